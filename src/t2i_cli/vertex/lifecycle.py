"""Lifecycle of a deployment: confirm the plan, deploy, and remove it, also after failures."""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from t2i_cli.errors import (
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
from t2i_cli.net.google_http import CapacityError
from t2i_cli.net.retry import RetryableError, RetryPolicy, call_with_retry
from t2i_cli.settings.options import DeploymentSpec, LocationOptions
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.progress import Progress
from t2i_cli.vertex import (
    capacity_errors,
    deploy,
    endpoint_store,
    inventory,
    operations,
    plan_consent,
    region_fallback,
    removal,
    ttl,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.cloud_session import CloudSession, connect_to_deploy
from t2i_cli.vertex.concurrent_deployments import ConcurrentDeploymentError
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.inventory import Deployment
from t2i_cli.vertex.operations import OperationRunner
from t2i_cli.vertex.plan import DeploymentPlan
from t2i_cli.vertex.region_fallback import RegionPlan, RegionPlans

TERMINATION_GRACE = 30.0
"""Seconds a child command has to exit after Ctrl-C or SIGTERM, before it is killed."""
REMOVAL_TIMEOUT, REMOVAL_PAUSE = 300.0, 5.0
"""Seconds to retry a failing removal for, and between two attempts."""


def deploy_plans(
    plans: RegionPlans, session: CloudSession, console: Console
) -> tuple[EndpointRecord, DeploymentPlan]:
    """Deploy in the first region that has machines, as `deploy_plan` does; and that one's plan."""

    def attempt(one: RegionPlan) -> EndpointRecord:
        here = replace(session, client=one.client, others=())
        return deploy_plan(one.plan, here, console, last=one is plans.plans[-1])

    def remove(one: RegionPlan) -> None:
        with ttl.ignore_signals(console):
            _remove_all(one.plan, OperationRunner(one.client, console.note), console)

    one, found = region_fallback.deploy_first_available(plans.plans, attempt, remove, console)
    return found, one.plan


def deploy_plan(
    plan: DeploymentPlan, session: CloudSession, console: Console, *, last: bool = True
) -> EndpointRecord:
    """Deploy, and store the endpoint as the one in use.

    After a failure or Ctrl-C lists what was created and offers to remove it; not after a
    CapacityError unless it is the `last` region. Raises T2IError.
    """
    existing = deploy.find_existing(plan, session.client)
    runner = OperationRunner(session.client, console.note)
    try:
        found = _deploy(plan, existing, runner, console)
        _remember(found, console, current=True)
    except ConcurrentDeploymentError:
        raise  # what there is by this name is another run's
    except (T2IError, KeyboardInterrupt, Terminated) as error:
        if last or not isinstance(error, CapacityError):
            _offer_removal(plan, runner, console, ask=not isinstance(error, Terminated))
        raise
    return found


@contextmanager
def ephemeral_deployment(
    spec: DeploymentSpec, session: CloudSession, console: Console, *, yes: bool
) -> Iterator[EndpointRecord]:
    """An endpoint that is removed when the block ends, also after a failed deployment."""
    if spec.name is None:
        spec = replace(spec, name=f"run-{secrets.token_hex(4)}")
    plans = plan_consent.confirm_plans(
        spec, session.clients, session.account, console, yes=yes, ephemeral=True
    )
    if any(deploy.find_existing(one.plan, one.client) for one in plans.plans):
        raise InputError(
            f"There is a deployment {plans.first.labels.name} already, which would be removed at "
            "the end.",
            hint="Leave --name out.",
        )
    tried: list[RegionPlan] = []

    def attempt(one: RegionPlan) -> EndpointRecord:
        tried.append(one)
        try:
            return _deploy(one.plan, None, one.runner, console)
        except ConcurrentDeploymentError:
            tried.remove(one)  # what there is by this name is another run's
            raise

    def remove(one: RegionPlan) -> None:
        with ttl.ignore_signals(console):
            _remove_all(one.plan, one.runner, console)
            tried.remove(one)

    try:
        with ttl.terminate_at(plans.first.labels.expires, session.client, console):
            _, found = region_fallback.deploy_first_available(plans.plans, attempt, remove, console)
            _remember(found, console)
            yield found
    finally:
        while tried:
            remove(tried[0])


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
        "T2I_VERTEX_REGION": found.name.split("/")[3],
    }
    if client.location.api_endpoint:
        environment["T2I_VERTEX_API_ENDPOINT"] = client.location.api_endpoint
    if client.location.ca_file:
        environment["T2I_VERTEX_CA_FILE"] = os.path.abspath(client.location.ca_file)
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
    where = capacity_errors.explaining_capacity(runner.client.location, plan.hardware, plan.memory)
    with Progress(console, 1) as progress, where:
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
    further = f"Run the same command again to go on, or `t2i remote down {name} --bucket`."
    try:
        runner.wait_for_pending()
        existing = inventory.list_deployments(runner.client, plan.bucket).deployments.get(name)
        if existing is None:
            console.note(f"Nothing of {name} is there.")
            return
        parts = existing.parts_text()
        endpoints = [endpoint["name"] for endpoint in existing.endpoints]
        parts += operations.pending_text(runner.client, endpoints)
        console.warn(f"Of {name} there is: {'; '.join(parts)}.")
        if ask and console.interactive and console.ask("Remove all of that?"):
            _remove_all(plan, runner, console)
            return
    except T2IError as error:
        console.warn(f"What is left of {name} cannot be told: {error.message}")
    except (KeyboardInterrupt, Terminated):
        console.warn(f"What is left of {name} may be paid for: `t2i remote list` shows it.")
        console.note(further)
        raise
    console.note(further)


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
    made = runner.made_endpoints()
    existing = inventory.list_deployments(
        runner.client, plan.bucket, partial=True, known=[one["name"] for one in made]
    )
    found = existing.deployments.get(name)
    if made and "endpoints" in existing.unlisted and not (found and found.endpoints):
        # What this run made and cannot list, it removes without having seen it.
        labels = plan.labels.encoded()
        found = existing.deployments.setdefault(
            name, Deployment(labels=plan.labels, raw_labels=labels)
        )
        found.endpoints = made
    unlisted = existing.unlisted_text()
    if found:
        unlisted += removal.remove_deployment(
            runner.client, found, console.note, artifacts=True, bucket=plan.bucket
        )
    if plan.bucket in existing.buckets:
        existing.buckets = {plan.bucket}
        removal.empty_buckets(runner.client, existing, console.note)
    removal.raise_if_temporary(existing, name)
    unseen = [where for where in existing.unseen if where.startswith(f"gs://{plan.bucket}:")]
    for sentence in unseen:
        console.warn(f"Its weights may still be there: {sentence}")
    for sentence in dict.fromkeys(unlisted):
        console.warn(f"Something of {name} may be left: {sentence}")
    kept = bool(found and found.retained)
    paid = "" if unseen or unlisted or kept else "; nothing of it is paid for any more"
    console.note(f"{name} is removed{paid}.")
