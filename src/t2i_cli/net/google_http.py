"""Client of Google Cloud's REST APIs for one account; translates their errors.

Error format: https://google.aip.dev/193.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import httpx2

from t2i_cli.errors import (
    AccessError,
    InputError,
    ModelError,
    QuotaError,
    RemoteError,
    T2IError,
    TimedOutError,
)
from t2i_cli.net import google_credentials, google_errors
from t2i_cli.net.error_body import parse_error_bytes
from t2i_cli.net.google_answers import answer_error, clock_offset, error_object, parse_answer
from t2i_cli.net.http_client import (
    FailedCall,
    HttpClient,
    HttpResponse,
    certificate_error,
    is_certificate_error,
)
from t2i_cli.net.retry import (
    RetryableError,
    RetryPolicy,
    call_with_retry,
    parse_retry_after,
    retryable,
)
from t2i_cli.net.unreachable import UnreachableError

MAX_ATTEMPTS = 5
"""Attempts of one call, the first included."""
GOOGLE_POLICY = RetryPolicy(retries=MAX_ATTEMPTS - 1, first_pause=0.4)
RETRY_STATUSES = frozenset({429, 502, 503})
"""HTTP statuses of temporary errors, after which any call is repeated."""
_UNLESS_POST = frozenset({408, 500, 504})
"""Further ones: a POST may have run, any other call may run twice."""

_CONNECTIONS = 10


class NotFoundError(ModelError):
    """There is no such resource."""


class ConflictError(RemoteError):
    """The resource exists already, or is in use."""


class GoneError(RemoteError):
    """There was such a resource, as the session of an upload; it has expired."""


class RefusedTokenError(AccessError):
    """The token is refused: it has expired, or the credentials are refused as a whole."""

    def __init__(self) -> None:
        super().__init__("Google refuses these credentials.", hint=google_credentials.LOGIN_HINT)


class DisabledError(AccessError):
    """The API is not enabled in the project."""


class PreconditionError(RemoteError):
    """The resource's state does not allow the operation."""


class CapacityError(QuotaError):
    """The region has no machine of the kind, or the quota of it there is used up or zero."""

    google_message = ""
    """Google's own words."""


class UnimplementedError(RemoteError):
    """There is no such method."""


class GoogleHttp:
    """Calls with the headers of `authorize`, or anonymous ones without. Raises T2IError only.

    Calls are retried by `policy` after a failed connection, unless a POST may have run, and after
    one of `retry_statuses`. `make_error` maps the status and body of an error response to an error.
    `seconds` is the timeout of each network operation, `proxies` and `ca_file` as in HttpClient.
    """

    def __init__(
        self,
        authorize: Callable[[], Mapping[str, str]] | None,
        *,
        seconds: float = 60,
        proxies: bool = True,
        ca_file: str | None = None,
        policy: RetryPolicy = GOOGLE_POLICY,
        retry_statuses: frozenset[int] = RETRY_STATUSES,
        make_error: Callable[[int, bytes], T2IError] | None = None,
    ) -> None:
        self._authorize = authorize
        self._seconds = seconds
        self._policy = policy
        self._retry_statuses = retry_statuses
        self._make_error = make_error or error_from_google
        self._client = HttpClient(
            "https://googleapis.com",
            _CONNECTIONS,
            translate=_error_from_failed_call,
            proxies=proxies,
            ca_file=ca_file,
        )
        self._offset = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def server_time(self) -> float:
        """Unix seconds by Google's clock: this machine's may be wrong, and costs depend on it."""
        return time.time() + self._offset

    def auth_headers(self, tries: int | None = None) -> dict[str, str]:
        """The headers that authorise a call, got with retries; none for anonymous calls."""

        def attempt(_left: float) -> dict[str, str]:
            with retryable():
                return dict(self._authorize()) if self._authorize else {}

        return call_with_retry(attempt, self._policy_for(tries))

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tries: int | None = None,
        **request: Any,  # noqa: ANN401 - handed on to HttpClient
    ) -> HttpResponse:
        """A response with status 2xx, or 308 of an upload, with retries.

        `tries` replaces the policy's number. A token that is refused is renewed once.
        """
        all_headers = self.auth_headers(tries) | dict(headers or {})

        def attempt(_left: float) -> HttpResponse:
            response = self._client.request(
                method, url, headers=all_headers, timeout=self._seconds, total=False, **request
            )
            self._check(method, response.status, response.headers, response.body)
            # After the check: what refuses may be a proxy, with a clock of its own.
            self._offset = clock_offset(response.headers, self._offset)
            return response

        try:
            return call_with_retry(attempt, self._policy_for(tries))
        except RefusedTokenError:
            if not google_credentials.discard_token(self._authorize):
                raise
        all_headers |= self.auth_headers(tries)
        return call_with_retry(attempt, self._policy_for(tries))

    def call_url(
        self,
        method: str,
        url: str,
        *,
        json: object = None,
        params: Mapping[str, str] | None = None,
        tries: int | None = None,
    ) -> dict[str, Any]:
        """Send a request; return the response's JSON object."""
        response = self.send(method, url, json=json, params=params or None, tries=tries)
        return parse_answer(response.body, may_be_empty=method != "GET")

    def list_url(
        self, url: str, key: str, params: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The entries under `key` of all pages of a list."""
        query = dict(params or {})
        while True:
            page = self.call_url("GET", url, params=query)
            entries = page.get(key, [])
            listed = isinstance(entries, list) and all(isinstance(one, dict) for one in entries)
            if not listed or "error" in page:
                raise answer_error(f"its {key} is none")
            yield from entries
            if not page.get("nextPageToken"):
                return
            query["pageToken"] = page["nextPageToken"]

    def retry(self, attempt: Callable[[], None]) -> None:
        """Call `attempt`, which uses `stream`, again where it raises RetryableError."""
        call_with_retry(lambda _left: attempt(), self._policy)

    @contextmanager
    def stream(self, url: str, params: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """A 2xx response whose body is read inside the block.

        Not retried here; raises RetryableError where `retry` may help.
        """
        with self._client.stream(
            "GET", url, headers=self.auth_headers(), params=params, timeout=self._seconds
        ) as response:
            if not response.is_success:
                # The first piece, of 1 MiB at most: an error has a sentence, not a file.
                body = next(response.iter_bytes(), b"")
                self._check("GET", response.status_code, response.headers, body)
            yield response

    def _policy_for(self, tries: int | None) -> RetryPolicy:
        return self._policy if tries is None else replace(self._policy, retries=tries - 1)

    def _check(self, method: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        # 308 asks for the rest of an upload; for anything else it is a redirect.
        if status // 100 == 2 or (status == 308 and method == "PUT"):
            return
        error, after = self._make_error(status, body), parse_retry_after(headers)
        # A quota that existing resources use up will not be free in a few seconds.
        quota_used_up = status == 429 and after is None and method != "GET"
        temporary = status in self._retry_statuses or (status in _UNLESS_POST and method != "POST")
        if temporary and not quota_used_up:
            raise RetryableError(error, after=after)
        raise error


def _error_from_failed_call(failed: FailedCall) -> RetryableError | T2IError:
    """The error for a call without a response; retryable unless a POST may have run."""
    if is_certificate_error(failed.error):
        return certificate_error(failed.host)
    error = connection_error(failed.error)
    may_have_run = failed.method == "POST" and not failed.never_sent
    return error if may_have_run else RetryableError(error)


def connection_error(error: Exception) -> T2IError:
    """The error for a failed connection."""
    if isinstance(error, httpx2.InvalidURL | UnicodeError):
        return InputError("That is no address of Google Cloud's interfaces.", field="api_endpoint")
    if isinstance(error, httpx2.TimeoutException):
        return TimedOutError("Google Cloud did not answer in time.", hint="Check the network.")
    return UnreachableError(
        "Google Cloud cannot be reached, or the connection broke.",
        hint="Check the network and try again.",
    )


def error_from_google(status: int, body: bytes) -> T2IError:
    """The error for an error response."""
    error = error_object(body)
    text = error.get("message") or parse_error_bytes(body).message
    message = str(text or f"HTTP status {status}").strip()
    return error_from_status(status, str(error.get("status") or ""), message)


def error_from_status(status: int, name: str, message: str) -> T2IError:
    """The error for an HTTP status, Google's name of the status (or ""), and a message."""
    message = " ".join(message.split()).rstrip(".") or f"nothing, but status {status or name}"
    text = f"Google says: {message}."
    if status == 401 or name == "UNAUTHENTICATED":
        return RefusedTokenError()
    if status == 403 or name == "PERMISSION_DENIED":
        return _permission_error(message)
    if google_errors.is_without_machines(message):
        text, hint = google_errors.exhausted_text(message)
        capacity = CapacityError(text, hint=hint)
        capacity.google_message = message
        return capacity
    if status == 429 or name == "RESOURCE_EXHAUSTED":
        text, hint = google_errors.exhausted_text(message)
        return QuotaError(text, hint=hint)
    if status == 404 or name == "NOT_FOUND":
        return NotFoundError(text)
    if status == 410:
        return GoneError(text)
    if status == 409 or name in {"ALREADY_EXISTS", "ABORTED"}:
        return ConflictError(text)
    if name == "FAILED_PRECONDITION":
        return PreconditionError(text)
    if status == 400 or name == "INVALID_ARGUMENT":
        return InputError(text)
    if status in {408, 504} or name == "DEADLINE_EXCEEDED":
        return TimedOutError(text)
    if status == 501 or name == "UNIMPLEMENTED":
        return UnimplementedError(text)
    return RemoteError(text, hint="Try again; run the same command to go on.")


def _permission_error(message: str) -> AccessError:
    if "SERVICE_DISABLED" in message or "has not been used in project" in message:
        service = re.search(r"[a-z]+\.googleapis\.com", message)
        named = service[0] if service else "its name"
        return DisabledError(
            f"The interface {named} is not enabled in this project.",
            hint=f"`gcloud services enable {named}`",
        )
    text, hint = google_errors.refused_text(message)
    return AccessError(text, hint=hint)
