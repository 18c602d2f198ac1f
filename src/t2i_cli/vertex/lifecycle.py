"""Lifecycle of a deployment: confirm the plan, deploy, and remove it, also after failures."""

import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from t2i_cli.errors import (
    AccessError,
    InputError,
    QuotaError,
    RemoteError,
    StorageError,
    T2IError,
    Terminated,
    TimedOutError,
    os_reason,
)
from t2i_cli.library_environment import environment_of_children
from t2i_cli.net import google_credentials
from t2i_cli.net.retry import RetryableError, RetryPolicy, call_with_retry
from t2i_cli.settings.options import DeploymentSpec, LocationOptions
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.progress import Progress
from t2i_cli.vertex import (
    cloud_scheduler,
    containers,
    deploy,
    deployment_options,
    endpoint_store,
    inventory,
    location,
    operations,
    teardown,
    ttl,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.inventory import Deployment
from t2i_cli.vertex.operations import OperationRunner
from t2i_cli.vertex.plan import DeploymentPlan, plan_deployment

TERMINATION_GRACE = 30.0
"""Seconds a child command has to exit after Ctrl-C or SIGTERM, before it is killed."""
REMOVAL_TIMEOUT, REMOVAL_PAUSE = 300.0, 5.0
"""Seconds to retry a failing removal for, and between two attempts."""


@dataclass(frozen=True)
class CloudSession:
    """A client, and the account of its credentials."""

    client: GoogleClient
    account: str | None


@contextmanager
def connect(
    options: LocationOptions | None = None, *, endpoint: str | None = None
) -> Iterator[CloudSession]:
    """A session with the default credentials. Raises AccessError and InputError."""
    found, login = google_credentials.find_credentials()
    where = location.find_location(options, endpoint=endpoint, login_project=login.project)
    with GoogleClient(where, google_credentials.TokenProvider(found)) as client:
        client.auth_headers()
        # A person's credentials name their account only after the first token.
        yield CloudSession(client, google_credentials.account_name(found))


@contextmanager
def connect_to_deploy(spec: DeploymentSpec, options: LocationOptions) -> Iterator[CloudSession]:
    """A session, after the options are checked: a mistake in them needs no credentials."""
    where = location.location_without_account(options)
    deployment_options.check_options(spec, where.region)
    with connect(options) as session:
        yield session


def confirm_plan(
    spec: DeploymentSpec, session: CloudSession, console: Console, *, yes: bool, offer: bool = False
) -> DeploymentPlan:
    """Plan the deployment, print it, and ask to confirm it unless `yes`.

    With `offer`, also offers a Cloud Scheduler job if none was requested. Raises AccessError where
    permissions are missing, QuotaError where the quota is too low.
    """
    plan = plan_deployment(spec, session.client, session.account)
    made = inventory.list_endpoints(session.client)
    inventory.warn_overdue(made.overdue(session.client.server_time()), console.warn)
    console.note(plan.text())
    if warning := containers.serving_warning(plan.labels.serving):
        console.warn(warning)
    if missing := plan.permissions.blocking:
        raise AccessError(
            f"These permissions are missing in {session.client.location.project}: "
            f"{', '.join(missing)}.",
            hint="docs/remote.md names a role for each step.",
        )
    plan.quota.check(session.client.location.project)
    if yes:
        return plan
    if offer and console.interactive and not spec.scheduler_account:
        if account := cloud_scheduler.prompt_for_account(session.client, session.account, console):
            spec = replace(spec, scheduler_account=account)
            plan = plan_deployment(spec, session.client, session.account)
            console.note(f"enforced by  {plan.enforcement()}")
    console.confirm(plan.question())
    return plan


def deploy_plan(plan: DeploymentPlan, session: CloudSession, console: Console) -> EndpointRecord:
    """Deploy, and store the endpoint as the one in use.

    After a failure or Ctrl-C lists what was created and offers to remove it. Raises T2IError.
    """
    existing = deploy.find_existing(plan, session.client)
    runner = OperationRunner(session.client, console.note)
    try:
        found = _deploy(plan, existing, runner, console)
    except (T2IError, KeyboardInterrupt, Terminated) as error:
        _offer_removal(plan, runner, console, ask=not isinstance(error, Terminated))
        raise
    _remember(found, console, current=True)
    return found


@contextmanager
def ephemeral_deployment(
    spec: DeploymentSpec, session: CloudSession, console: Console, *, yes: bool
) -> Iterator[EndpointRecord]:
    """An endpoint that is removed when the block ends, also after a failed deployment."""
    if spec.name is None:
        spec = replace(spec, name=f"run-{secrets.token_hex(4)}")
    plan = confirm_plan(spec, session, console, yes=yes)
    if deploy.find_existing(plan, session.client):
        raise InputError(
            f"There is a deployment {plan.labels.name} already, which would be removed at the end.",
            hint="Leave --name out.",
        )
    runner = OperationRunner(session.client, console.note)
    try:
        with ttl.terminate_at(plan.labels.expires, session.client, console):
            found = _deploy(plan, None, runner, console)
            _remember(found, console)
            yield found
    finally:
        with ttl.ignore_signals(console):
            _remove_all(plan, runner, console)


@contextmanager
def ephemeral_endpoint(
    spec: DeploymentSpec, options: LocationOptions, console: Console, *, yes: bool
) -> Iterator[str]:
    """The name of an endpoint that is removed when the block ends."""
    with (
        connect_to_deploy(spec, options) as session,
        ephemeral_deployment(spec, session, console, yes=yes) as found,
    ):
        yield found.name


def check_command(command: Sequence[str]) -> None:
    """Raise InputError if there is no such command."""
    if shutil.which(command[0]) is None:
        raise InputError(f"Cannot run {command[0]}: there is no such command.")


def run_command(
    spec: DeploymentSpec,
    session: CloudSession,
    console: Console,
    command: Sequence[str],
    *,
    yes: bool,
) -> int:
    """Run a command with an ephemeral endpoint; its exit code, 128 + N after signal N.

    Raises InputError if the command cannot be run.
    """
    with ephemeral_deployment(spec, session, console, yes=yes) as found:
        environment = {
            **environment_of_children(),
            **endpoint_environment(found, session.client),
        }
        try:
            child = subprocess.Popen(command, env=environment)  # noqa: S603 - the user's command
        except OSError as error:
            raise InputError(f"Cannot run {command[0]}: {os_reason(error)}.") from error
        try:
            code = child.wait()
        except BaseException as reason:
            _stop_child(child, reason)
            raise
    return code if code >= 0 else 128 - code


def endpoint_environment(found: EndpointRecord, client: GoogleClient) -> Mapping[str, str]:
    """Environment variables that make `t2i` use the endpoint."""
    environment = {
        "T2I_BACKEND": "vertex",
        "T2I_VERTEX_ENDPOINT": found.name,
        "T2I_VERTEX_PROJECT": client.location.project,
        "T2I_VERTEX_REGION": client.location.region,
    }
    if client.location.api_endpoint:
        environment["T2I_VERTEX_API_ENDPOINT"] = client.location.api_endpoint
    return environment


def _remember(found: EndpointRecord, console: Console, *, current: bool = False) -> None:
    """Store an endpoint; only warn if the state file cannot be written."""
    try:
        endpoint_store.remember_endpoint(found, current=current)
    except StorageError as error:
        console.warn(f"{error.message} --endpoint {found.name} names the endpoint.")


def _deploy(
    plan: DeploymentPlan, existing: Deployment | None, runner: OperationRunner, console: Console
) -> EndpointRecord:
    with Progress(console, 1) as progress:
        found = deploy.run_deployment(
            plan,
            existing,
            runner,
            lambda done, total: progress.transfer(f"uploading {plan.labels.model}", done, total),
        )
    console.note(f"{found.name} is ready.")
    return found


def _stop_child(child: "subprocess.Popen[bytes]", reason: BaseException) -> None:
    """Stop the child process: Ctrl-C has reached it already, SIGTERM has not."""
    if not isinstance(reason, KeyboardInterrupt):
        child.terminate()
    try:
        child.wait(TERMINATION_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _offer_removal(
    plan: DeploymentPlan, runner: OperationRunner, console: Console, *, ask: bool
) -> None:
    """List what a failed deployment left behind, and with `ask` offer to remove it."""
    name = plan.labels.name
    try:
        runner.wait_for_pending()
        existing = inventory.list_deployments(runner.client, plan.bucket).deployments.get(name)
        if existing is None:
            console.note(f"Nothing of {name} is there.")
            return
        parts = existing.parts_text()
        if any(
            operations.pending_operation(runner.client, one["name"]) for one in existing.endpoints
        ):
            parts.append("a deployment under way (it will be paid for)")
        console.warn(f"Of {name} there is: {'; '.join(parts)}.")
        if ask and console.interactive and console.ask("Remove all of that?"):
            _remove_all(plan, runner, console)
            return
    except T2IError as error:
        console.warn(f"What is left of {name} cannot be told: {error.message}")
    console.note(f"Run the same command again to go on, or `t2i remote down {name} --bucket`.")


def _remove_all(plan: DeploymentPlan, runner: OperationRunner, console: Console) -> None:
    """Remove a deployment with its weights; retry for minutes, since it is billed until then.

    Raises T2IError.
    """
    end = time.monotonic() + REMOVAL_TIMEOUT
    runner.wait_for_pending()

    def attempt(left: float) -> None:
        try:
            _remove_once(plan, runner, console)
        except (RemoteError, TimedOutError, QuotaError) as error:
            if left < REMOVAL_PAUSE:
                raise
            console.warn(f"{error.message} The removal is tried again.")
            raise RetryableError(error, cold_start=True) from error

    # A constant pause, without backoff: it is billed until it is gone.
    left = max(0.0, end - time.monotonic())
    policy = RetryPolicy(
        retries=0, timeout=left, first_pause=REMOVAL_PAUSE, longest_pause=REMOVAL_PAUSE
    )
    call_with_retry(attempt, policy)


def _remove_once(plan: DeploymentPlan, runner: OperationRunner, console: Console) -> None:
    """Remove all resources, and the bucket if t2i created it and it is empty."""
    name = plan.labels.name
    try:
        existing = inventory.list_deployments(runner.client, plan.bucket)
    except T2IError as error:
        raise type(error)(
            f"Whether anything of {name} is left cannot be told: {error.message}",
            hint=f"`t2i remote down {name} --bucket` removes it; until then it may be paid for.",
        ) from error
    if found := existing.deployments.get(name):
        teardown.remove_deployment(
            runner.client, found, console.note, artifacts=True, bucket=plan.bucket
        )
    if plan.bucket in existing.buckets:
        existing.buckets = {plan.bucket}
        teardown.empty_buckets(runner.client, existing, console.note)
    unseen = [where for where in existing.unseen if where.startswith(f"gs://{plan.bucket}:")]
    for sentence in unseen:
        console.warn(f"Its weights may still be there: {sentence}")
    paid = "" if unseen else "; nothing of it is paid for any more"
    console.note(f"{name} is removed{paid}.")
