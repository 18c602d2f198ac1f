"""Long-running operations of Vertex AI: start, wait, cancel."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from t2i_cli import signals
from t2i_cli.durations import format_duration
from t2i_cli.errors import ModelError, RemoteError, T2IError, TimedOutError
from t2i_cli.net.google_http import (
    NotFoundError,
    PreconditionError,
    UnimplementedError,
    error_from_status,
)
from t2i_cli.net.retry import RetryableError, RetryPolicy, call_with_retry, retryable
from t2i_cli.vertex.client import GoogleClient

ReportProgress = Callable[[str], None]
"""Takes one sentence about progress."""

REPORT_INTERVAL = 30.0
"""Seconds between progress reports of one operation."""
DEPLOYMENT_TIMEOUT, OPERATION_TIMEOUT = 5400.0, 1800.0
"""Seconds to wait for an operation: a deployment has an hour to get its container ready, and waits
for a machine before that; others take minutes.
"""
_RERUN_HINT = "The same command, run again, finds what is there by then and goes on."
_CODES = {
    1: "CANCELLED",
    3: "INVALID_ARGUMENT",
    4: "DEADLINE_EXCEEDED",
    5: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    10: "ABORTED",
    16: "UNAUTHENTICATED",
}
"""google.rpc.Code values: an operation's error has one in place of an HTTP status."""


class OperationCancelledError(RemoteError):
    """The operation was cancelled."""


class OperationRunner:
    """Runs operations that create resources, and keeps track of the unfinished ones."""

    def __init__(self, client: GoogleClient, report: ReportProgress) -> None:
        self.client = client
        self.report = report
        self._unfinished: dict[str, dict[str, Any]] = {}
        self._started: list[str] = []
        self._deployed: dict[str, list[str]] = {}

    def note_deployment(self, endpoint: str, number: str) -> None:
        """Note that a DeployedModel with this id is about to be made on the endpoint."""
        self._deployed.setdefault(endpoint, []).append(number)

    def made_endpoints(self) -> list[dict[str, Any]]:
        """The endpoints of this run as Endpoint resources, without asking Google."""
        # An operation's name begins with that of its resource.
        names = dict.fromkeys(name.split("/operations/")[0] for name in self._started)
        return [
            {"name": name, "deployedModels": [{"id": one} for one in self._deployed.get(name, [])]}
            for name in (*names, *(self._deployed.keys() - names))
            if "/endpoints/" in name
        ]

    def run_operation(self, path: str, body: object, title: str) -> dict[str, Any]:
        """Start an operation that creates a resource, wait for it, and return its response."""
        with block_signals():
            operation = self.client.call("POST", "aiplatform", path, json=body)
            self._unfinished[operation["name"]] = operation
            self._started.append(operation["name"])
        response = wait_for_operation(self.client, operation, title, self.report)
        del self._unfinished[operation["name"]]
        return response

    def wait_for_pending(self) -> None:
        """Wait for unfinished operations, ignoring errors: only then are their resources listed."""
        for operation in self._unfinished.values():
            with suppress(T2IError):
                wait_for_operation(self.client, operation, "what is under way", self.report)


@contextmanager
def block_signals() -> Iterator[None]:
    """Block termination signals, so that no response naming a new resource is lost."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.termination_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_for_operation(
    client: GoogleClient,
    operation: dict[str, Any],
    title: str,
    report: ReportProgress,
    *,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Wait until an operation is done and return its response; raises its error as T2IError.

    A look at it that fails for a reason that may pass is repeated. Raises TimedOutError after
    `seconds`, by default OPERATION_TIMEOUT, and RemoteError if the operation no longer exists.
    """
    done = _wait_until_done(client, operation, title, report, seconds)
    if error := done.get("error"):
        raise _failure(client, str(done.get("name", "")), error)
    response: dict[str, Any] = done.get("response", {})
    return response


def wait_for_removal(
    client: GoogleClient, operation: dict[str, Any], title: str, report: ReportProgress
) -> bool:
    """Wait for an undeployment or deletion; raises its error as T2IError.

    Returns whether its end was seen; where it cannot be looked at, that is reported.
    """
    try:
        done = _wait_until_done(client, operation, title, report, None)
    except T2IError as error:
        report(f"{title}: its end cannot be looked at: {error.message} The removal goes on.")
        return False
    if failure := done.get("error"):
        raise _failure(client, str(done.get("name", "")), failure)
    return True


def _wait_until_done(
    client: GoogleClient,
    operation: dict[str, Any],
    title: str,
    report: ReportProgress,
    seconds: float | None,
) -> dict[str, Any]:
    limit = OPERATION_TIMEOUT if seconds is None else seconds
    started = reported = time.monotonic()
    latest: dict[str, Any] | None = operation
    name = str(operation.get("name", ""))

    def poll(_left: float) -> dict[str, Any]:
        nonlocal latest, reported
        try:
            found, latest = latest or _look_at_operation(client, name), None
        except RetryableError as failure:
            # It goes on at Google all the same: to give it up would tear down what is fine.
            raise not_done(failure.error, failure.after) from failure
        if time.monotonic() - reported > REPORT_INTERVAL:
            reported = time.monotonic()
            report(f"{title}: {format_duration(reported - started)} so far")
        if found.get("done"):
            return found
        raise not_done()

    def not_done(reason: T2IError | None = None, after: float | None = None) -> RetryableError:
        text = f"{title}: not done after {format_duration(limit)}; it goes on at Google."
        if reason:
            text = (
                f"{title}: whether it is done could not be told after {format_duration(limit)}: "
                f"{reason.message}"
            )
        return RetryableError(TimedOutError(text, hint=_RERUN_HINT), after=after, cold_start=True)

    policy = RetryPolicy(retries=0, timeout=limit, first_pause=0.1, growth=1.5, longest_pause=10.0)
    try:
        return call_with_retry(poll, policy)
    except NotFoundError as gone:
        raise RemoteError(
            f"{title}: Google knows nothing of this operation any more, nor how it ended.",
            hint=_RERUN_HINT,
        ) from gone


def _look_at_operation(client: GoogleClient, name: str) -> dict[str, Any]:
    """The operation's current state. Raises T2IError, or RetryableError if another look may do."""
    try:
        with retryable():
            return client.call("GET", "aiplatform", name, tries=1)
    except RetryableError as failure:
        if isinstance(failure.error, PreconditionError | UnimplementedError):
            raise failure.error from failure
        raise


def cancel_all(client: GoogleClient, resource: str, title: str, report: ReportProgress) -> bool:
    """Cancel all running operations on a resource, and wait until they have ended.

    Returns whether all of them could be looked at; a resource that does not exist has none.
    """
    seen = True
    try:
        for operation in client.list_all("aiplatform", f"{resource}/operations", "operations"):
            if operation.get("done"):
                continue
            # Cancellation is best effort: wait for operations that cannot be cancelled.
            with suppress(T2IError):
                client.call("POST", "aiplatform", f"{operation['name']}:cancel", json={})
            try:
                # The resource is being removed, so the result does not matter.
                _wait_until_done(client, operation, title, report, None)
            except T2IError as error:
                report(f"{title}: its end cannot be looked at: {error.message}")
                seen = False
    except NotFoundError:
        return True
    except T2IError as error:
        report(f"{title}: cannot be looked at: {error.message} The removal goes on.")
        return False
    return seen


def pending_operation(client: GoogleClient, resource: str) -> dict[str, Any] | None:
    """A running operation on a resource, if there is one."""
    found = client.list_all("aiplatform", f"{resource}/operations", "operations")
    return next((operation for operation in found if not operation.get("done")), None)


def pending_deployment(client: GoogleClient, endpoint: str) -> dict[str, Any] | None:
    """A deployment to an endpoint that is under way, if there is one."""
    return next(iter(pending_deployments(client, endpoint)), None)


def pending_deployments(client: GoogleClient, endpoint: str) -> list[dict[str, Any]]:
    """The deployments to an endpoint that are under way."""
    found = []
    for operation in client.list_all("aiplatform", f"{endpoint}/operations", "operations"):
        kind = str(operation.get("metadata", {}).get("@type", ""))
        # One that does not tell its kind may be a deployment, which is paid for.
        if not operation.get("done") and (not kind or ".DeployModelOperation" in kind):
            found.append(operation)
    return found


def started_at(operation: Mapping[str, Any]) -> str | None:
    """When an operation began, as Google writes times; None where it does not tell."""
    metadata = operation.get("metadata", {}).get("genericMetadata")
    began = metadata.get("createTime") if isinstance(metadata, dict) else None
    try:
        datetime.fromisoformat(began if isinstance(began, str) else "").timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return str(began)


def pending_text(client: GoogleClient, resources: Iterable[str]) -> list[str]:
    """What is told of deployments under way on these endpoints, for people."""
    for resource in resources:
        try:
            if pending_operation(client, resource):
                return ["a deployment under way (it will be paid for)"]
        except T2IError as error:
            return [f"perhaps a deployment under way, which cannot be looked at: {error.message}"]
    return []


def log_link(client: GoogleClient, endpoint: str) -> str:
    """Where the container's log can be read."""
    number = endpoint.split("/")[-1]
    query = (
        "resource.type%3D%22aiplatform.googleapis.com%2FEndpoint%22%0A"
        f"resource.labels.endpoint_id%3D%22{number}%22"
    )
    return f"https://console.cloud.google.com/logs/query;query={query}?project={client.location.project}"


def _failure(client: GoogleClient, name: str, error: dict[str, Any]) -> T2IError:
    message = str(error.get("message") or "the operation failed")
    lowered = message.lower()
    if "model server" in lowered or "never became ready" in lowered or "health check" in lowered:
        endpoint = name.split("/operations/")[0]
        return ModelError(
            "The server in the container never became ready.",
            hint=f"Its log: {log_link(client, endpoint)}",
        )
    name_of_code = _CODES.get(int(error.get("code", 0)), "")
    if name_of_code == "CANCELLED":
        return OperationCancelledError("The operation was cancelled.", hint=_RERUN_HINT)
    return error_from_status(0, name_of_code, message)
