"""A deployment from its plan to its end: asked for, made, and removed whatever happens."""

import os
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
from t2i_cli.net import google_credentials
from t2i_cli.net.retry import RetryableError, RetryPolicy, call_with_retry
from t2i_cli.settings.options import DeploymentSpec, LocationOptions
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.progress import Progress
from t2i_cli.vertex import (
    cloud_scheduler,
    containers,
    deploy,
    endpoint_store,
    inventory,
    location,
    operations,
    plan,
    teardown,
    ttl,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.inventory import Deployment
from t2i_cli.vertex.operations import OperationRunner
from t2i_cli.vertex.plan import DeploymentPlan

TERMINATION_GRACE = 30.0
"""Seconds that a command has to end after Ctrl-C or SIGTERM."""
REMOVAL, PAUSE = 300.0, 5.0
"""Seconds for which a removal that fails is tried again, and between two tries."""


@dataclass(frozen=True)
class CloudSession:
    """A connection, and whose it is."""

    rest: GoogleClient
    account: str | None


@contextmanager
def connect(
    place: LocationOptions | None = None, *, endpoint: str | None = None
) -> Iterator[CloudSession]:
    """A connection with the credentials that there are. Raises AccessError and InputError."""
    found, login = google_credentials.find_credentials()
    where = location.find_location(place, endpoint=endpoint, login_project=login.project)
    with GoogleClient(where, google_credentials.TokenProvider(found)) as rest:
        rest.token()
        # Only now do a person's credentials tell whose they are.
        yield CloudSession(rest, google_credentials.account_name(found))


def confirm_plan(
    wanted: DeploymentSpec, cloud: CloudSession, console: Console, *, yes: bool, offer: bool = False
) -> DeploymentPlan:
    """The plan, shown and agreed to. Raises AccessError where permissions are missing.

    With `offer`, a person is asked whether to make the scheduler job that was not asked for.
    """
    settled = plan.plan_deployment(wanted, cloud.rest, cloud.account)
    made = inventory.list_endpoints(cloud.rest)
    inventory.warn_overdue(made.overdue(cloud.rest.server_time()), console.warn)
    console.note(settled.text())
    if warning := containers.serving_warning(settled.labels.serving):
        console.warn(warning)
    if missing := settled.permissions.blocking:
        raise AccessError(
            f"These permissions are missing in {cloud.rest.place.project}: {', '.join(missing)}.",
            hint="docs/remote.md names a role for each step.",
        )
    if yes:
        return settled
    if offer and console.interactive and not wanted.scheduler_account:
        if account := cloud_scheduler.prompt_for_account(cloud.rest, cloud.account, console):
            wanted = replace(wanted, scheduler_account=account)
            settled = plan.plan_deployment(wanted, cloud.rest, cloud.account)
            console.note(f"enforced by  {settled.enforcement()}")
    console.confirm(settled.question())
    return settled


def deploy_plan(settled: DeploymentPlan, cloud: CloudSession, console: Console) -> EndpointRecord:
    """Deploy, and keep the endpoint as the one in use.

    A failure, or Ctrl-C, offers to remove what was made, and says what is left.
    """
    there = deploy.find_existing(settled, cloud.rest)
    work = OperationRunner(cloud.rest, console.note)
    try:
        found = _deploy(settled, there, work, console)
    except (T2IError, KeyboardInterrupt, Terminated) as error:
        _offer_removal(settled, work, console, ask=not isinstance(error, Terminated))
        raise
    _remember(found, console, current=True)
    return found


@contextmanager
def ephemeral_deployment(
    wanted: DeploymentSpec, cloud: CloudSession, console: Console, *, yes: bool
) -> Iterator[EndpointRecord]:
    """An endpoint for as long as the block runs; removed whatever happens in it, and before."""
    if wanted.name is None:
        wanted = replace(wanted, name=f"run-{secrets.token_hex(4)}")
    settled = confirm_plan(wanted, cloud, console, yes=yes)
    if deploy.find_existing(settled, cloud.rest):
        raise InputError(
            f"There is a deployment {settled.labels.name} already, which would be removed at the "
            "end.",
            hint="Leave --name out.",
        )
    work = OperationRunner(cloud.rest, console.note)
    try:
        with ttl.terminate_at(settled.labels.expires, cloud.rest, console):
            found = _deploy(settled, None, work, console)
            _remember(found, console)
            yield found
    finally:
        with ttl.ignore_signals(console):
            _remove_all(settled, work, console)


@contextmanager
def ephemeral_endpoint(
    wanted: DeploymentSpec, place: LocationOptions, console: Console, *, yes: bool
) -> Iterator[str]:
    """The name of an endpoint for as long as the block runs."""
    with (
        connect(place) as cloud,
        ephemeral_deployment(wanted, cloud, console, yes=yes) as found,
    ):
        yield found.name


def run_command(
    wanted: DeploymentSpec,
    cloud: CloudSession,
    console: Console,
    command: Sequence[str],
    *,
    yes: bool,
) -> int:
    """The exit code of a command that ran with an endpoint of its own."""
    if shutil.which(command[0]) is None:
        raise InputError(f"Cannot run {command[0]}: there is no such command.")
    with ephemeral_deployment(wanted, cloud, console, yes=yes) as found:
        environment = os.environ | endpoint_environment(found, cloud.rest)
        try:
            child = subprocess.Popen(command, env=environment)  # noqa: S603 - the user's command
        except OSError as error:
            raise InputError(f"Cannot run {command[0]}: {os_reason(error)}.") from error
        try:
            code = child.wait()
        except BaseException as reason:
            _end(child, reason)
            raise
    return code if code >= 0 else 128 - code


def endpoint_environment(found: EndpointRecord, rest: GoogleClient) -> Mapping[str, str]:
    """What has a `t2i` in the environment use the endpoint."""
    environment = {
        "T2I_BACKEND": "vertex",
        "T2I_VERTEX_ENDPOINT": found.name,
        "T2I_VERTEX_PROJECT": rest.place.project,
        "T2I_VERTEX_REGION": rest.place.region,
    }
    if rest.place.api_endpoint:
        environment["T2I_VERTEX_API_ENDPOINT"] = rest.place.api_endpoint
    return environment


def _remember(found: EndpointRecord, console: Console, *, current: bool = False) -> None:
    """Keep an endpoint; where the home cannot be written to, it is there all the same."""
    try:
        endpoint_store.remember_endpoint(found, current=current)
    except StorageError as error:
        console.warn(f"{error.message} --endpoint {found.name} names the endpoint.")


def _deploy(
    settled: DeploymentPlan, there: Deployment | None, work: OperationRunner, console: Console
) -> EndpointRecord:
    with Progress(console, 1) as progress:
        found = deploy.run_deployment(
            settled,
            there,
            work,
            lambda done, total: progress.transfer(f"uploading {settled.labels.model}", done, total),
        )
    console.note(f"{found.name} is ready.")
    return found


def _end(child: "subprocess.Popen[bytes]", reason: BaseException) -> None:
    """Have the command end: Ctrl-C reached it as well, SIGTERM did not."""
    if not isinstance(reason, KeyboardInterrupt):
        child.terminate()
    try:
        child.wait(TERMINATION_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _offer_removal(
    settled: DeploymentPlan, work: OperationRunner, console: Console, *, ask: bool
) -> None:
    """Say what a deployment that failed left behind, and remove it if the person wants that."""
    name = settled.labels.name
    try:
        work.wait_for_pending()
        there = inventory.list_deployments(work.rest, settled.bucket).deployments.get(name)
        if there is None:
            console.note(f"Nothing of {name} is there.")
            return
        parts = there.parts_text()
        if any(operations.pending_operation(work.rest, one["name"]) for one in there.endpoints):
            parts.append("a deployment under way (it will be paid for)")
        console.warn(f"Of {name} there is: {'; '.join(parts)}.")
        if ask and console.interactive and console.ask("Remove all of that?"):
            _remove_all(settled, work, console)
            return
    except T2IError as error:
        console.warn(f"What is left of {name} cannot be told: {error.message}")
    console.note(f"Run the same command again to go on, or `t2i remote down {name} --bucket`.")


def _remove_all(settled: DeploymentPlan, work: OperationRunner, console: Console) -> None:
    """Remove a deployment with its weights, trying for minutes: until then it is paid for."""
    end = time.monotonic() + REMOVAL
    work.wait_for_pending()

    def attempt(left: float) -> None:
        try:
            _remove_once(settled, work, console)
        except (RemoteError, TimedOutError, QuotaError) as error:
            if left < PAUSE:
                raise
            console.warn(f"{error.message} The removal is tried again.")
            raise RetryableError(error, waking=True) from error

    # Every time the same pause: until it is gone it is paid for.
    left = max(0.0, end - time.monotonic())
    policy = RetryPolicy(retries=0, timeout=left, first_pause=PAUSE, longest_pause=PAUSE)
    call_with_retry(attempt, policy)


def _remove_once(settled: DeploymentPlan, work: OperationRunner, console: Console) -> None:
    """Remove all of it, and the bucket if t2i made it and nothing is in it."""
    name = settled.labels.name
    try:
        there = inventory.list_deployments(work.rest, settled.bucket)
    except T2IError as error:
        raise type(error)(
            f"Whether anything of {name} is left cannot be told: {error.message}",
            hint=f"`t2i remote down {name} --bucket` removes it; until then it may be paid for.",
        ) from error
    if found := there.deployments.get(name):
        teardown.remove_deployment(
            work.rest, found, console.note, artifacts=True, bucket=settled.bucket
        )
    if settled.bucket in there.buckets:
        there.buckets = {settled.bucket}
        teardown.empty_buckets(work.rest, there, console.note)
    unseen = [where for where in there.unseen if where.startswith(f"gs://{settled.bucket}:")]
    for sentence in unseen:
        console.warn(f"Its weights may still be there: {sentence}")
    paid = "" if unseen else "; nothing of it is paid for any more"
    console.note(f"{name} is removed{paid}.")
