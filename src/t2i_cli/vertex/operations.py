"""Long-running operations: wait for one, end those of an endpoint."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from t2i_cli import signals
from t2i_cli.durations import format_duration
from t2i_cli.errors import ModelError, RemoteError, T2IError, TimedOutError
from t2i_cli.net.google_http import NotFoundError, error_from_status
from t2i_cli.net.retry import RetryableError, RetryPolicy, call_with_retry
from t2i_cli.vertex.client import GoogleClient

ReportProgress = Callable[[str], None]
"""Takes a sentence about how it goes on."""

TOLD_EVERY = 30.0
"""Seconds between two sentences about one operation."""
DEPLOYMENT, OTHERS = 5400.0, 1800.0
"""Seconds after which an operation is waited for no more: a deployment may take an hour, in which
its container has to get ready, and a while before for a machine; others take minutes.
"""
POLL_INTERVALS = "The same command, run again, finds what is there by then and goes on."
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
"""google.rpc.Code, which an operation's error has in place of an HTTP status."""


class OperationRunner:
    """Runs long-running operations of Vertex AI, and knows those that still make a resource."""

    def __init__(self, rest: GoogleClient, say: ReportProgress) -> None:
        self.rest = rest
        self.say = say
        self._unfinished: dict[str, dict[str, Any]] = {}

    def run_operation(self, path: str, body: object, title: str) -> dict[str, Any]:
        """Begin an operation that makes a resource, wait for it, and return its response."""
        with block_signals():
            operation = self.rest.call("POST", "aiplatform", path, json=body)
            self._unfinished[operation["name"]] = operation
        response = wait_for_operation(self.rest, operation, title, self.say)
        del self._unfinished[operation["name"]]
        return response

    def wait_for_pending(self) -> None:
        """Wait for what still makes a resource, however it ends: only then can that be found."""
        for operation in self._unfinished.values():
            with suppress(T2IError):
                wait_for_operation(self.rest, operation, "what is under way", self.say)


@contextmanager
def block_signals() -> Iterator[None]:
    """Hold the signals back that end t2i: no answer that names something is lost."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.termination_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_for_operation(
    rest: GoogleClient,
    operation: dict[str, Any],
    title: str,
    say: ReportProgress,
    *,
    seconds: float | None = None,
) -> dict[str, Any]:
    """The response of an operation once it is done; its error is raised as T2IError.

    Raises TimedOutError after `seconds`, by default OTHERS, and RemoteError if it is gone.
    """
    most = OTHERS if seconds is None else seconds
    started = told = time.monotonic()
    known: dict[str, Any] | None = operation

    def look(_left: float) -> dict[str, Any]:
        nonlocal known, told
        found, known = known or _ask(rest, operation["name"], title), None
        if time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            say(f"{title}: {format_duration(told - started)} so far")
        if found.get("done"):
            return found
        late = TimedOutError(
            f"{title}: not done after {format_duration(most)}; it goes on at Google.",
            hint=POLL_INTERVALS,
        )
        raise RetryableError(late, waking=True)

    policy = RetryPolicy(retries=0, timeout=most, first_pause=0.1, growth=1.5, longest_pause=10.0)
    operation = call_with_retry(look, policy)
    if error := operation.get("error"):
        raise _failure(rest, operation["name"], error)
    response: dict[str, Any] = operation.get("response", {})
    return response


def _ask(rest: GoogleClient, name: str, title: str) -> dict[str, Any]:
    """An operation as it is now."""
    try:
        return rest.call("GET", "aiplatform", name)
    except NotFoundError as gone:
        raise RemoteError(
            f"{title}: Google knows nothing of this operation any more, nor how it ended.",
            hint=POLL_INTERVALS,
        ) from gone


def cancel_all(rest: GoogleClient, resource: str, title: str, say: ReportProgress) -> None:
    """Cancel what is under way on a resource, and wait until nothing is."""
    for operation in rest.list_all("aiplatform", f"{resource}/operations", "operations"):
        if operation.get("done"):
            continue
        # Cancelling is a wish: what cannot be cancelled is waited for.
        with suppress(T2IError):
            rest.call("POST", "aiplatform", f"{operation['name']}:cancel", json={})
        # How it ended is of no interest to what removes the resource.
        with suppress(T2IError):
            wait_for_operation(rest, operation, title, say)


def pending_operation(rest: GoogleClient, resource: str) -> dict[str, Any] | None:
    """An operation that is under way on a resource, if there is one."""
    found = rest.list_all("aiplatform", f"{resource}/operations", "operations")
    return next((operation for operation in found if not operation.get("done")), None)


def log_link(rest: GoogleClient, endpoint: str) -> str:
    """Where the container's log can be read."""
    number = endpoint.split("/")[-1]
    query = (
        "resource.type%3D%22aiplatform.googleapis.com%2FEndpoint%22%0A"
        f"resource.labels.endpoint_id%3D%22{number}%22"
    )
    return f"https://console.cloud.google.com/logs/query;query={query}?project={rest.place.project}"


def _failure(rest: GoogleClient, name: str, error: dict[str, Any]) -> T2IError:
    message = str(error.get("message") or "the operation failed")
    said = message.lower()
    if "model server" in said or "never became ready" in said or "health check" in said:
        endpoint = name.split("/operations/")[0]
        return ModelError(
            "The server in the container never became ready.",
            hint=f"Its log: {log_link(rest, endpoint)}",
        )
    return error_from_status(0, _CODES.get(int(error.get("code", 0)), ""), message)
