"""Calls of Google Cloud's REST interfaces as one account, and what their refusals mean.

The errors' form is Google's: https://google.aip.dev/193.
"""

import json as jsonlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from email.utils import parsedate_to_datetime
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
from t2i_cli.net import google_credentials
from t2i_cli.net.http_client import FailedCall, HttpClient, HttpResponse
from t2i_cli.net.retry import (
    RetryableError,
    RetryPolicy,
    call_with_retry,
    parse_retry_after,
    retryable,
)

MAX_ATTEMPTS = 5
"""Of one call."""
GOOGLE_POLICY = RetryPolicy(retries=MAX_ATTEMPTS - 1, first_pause=0.4)
PASSING_STATUSES = frozenset({429, 502, 503})
"""What an answer may have that another try can cure."""

_CONNECTIONS = 10
_QUOTA = re.compile(
    r"quotas? (?:metric |are exceeded: |exceeded: )'?([\w./, -]+?)'?(?:[.;]|$| and)"
)
"""Where Google's sentences name the quota."""


class NotFoundError(ModelError):
    """There is no such resource."""


class ConflictError(RemoteError):
    """It exists already, or something holds it."""


class PreconditionError(RemoteError):
    """The resource is in a state in which this cannot be done."""


class GoogleHttp:
    """A connection as one account, or as nobody without a `token`; errors leave it as T2IError.

    What can be repeated without harm is tried again, by the `policy`, where a failure is of the
    moment: a connection that broke, or one of the `passing` statuses. `refusal` makes the error of
    another answer.
    """

    def __init__(
        self,
        token: Callable[[], str] | None,
        *,
        seconds: float = 60,
        proxies: bool = True,
        policy: RetryPolicy = GOOGLE_POLICY,
        passing: frozenset[int] = PASSING_STATUSES,
        refusal: Callable[[int, bytes], T2IError] | None = None,
    ) -> None:
        self._token = token
        self._seconds = seconds
        self._policy = policy
        self._passing = passing
        self._refusal = refusal or error_from_google
        self._client = HttpClient(
            "https://googleapis.com", _CONNECTIONS, translate=_failed, proxies=proxies
        )
        self._ahead = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def server_time(self) -> float:
        """Unix seconds by Google's clock: this machine's may be wrong, and a bill depends on it."""
        return time.time() + self._ahead

    def token(self, tries: int | None = None) -> str:
        """An access token, asked for again where the failure is of the moment; "" for nobody."""

        def attempt(_left: float) -> str:
            with retryable():
                return self._token() if self._token else ""

        return call_with_retry(attempt, self._tried(tries))

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tries: int | None = None,
        **request: Any,  # noqa: ANN401 - handed on to HttpClient
    ) -> HttpResponse:
        """One answer with a good status (308 counts, too)."""
        whole = self._headers(tries) | dict(headers or {})

        def attempt(_left: float) -> HttpResponse:
            answer = self._client.request(
                method, url, headers=whole, timeout=self._seconds, whole=False, **request
            )
            self._ahead = _clock(answer.headers, self._ahead)
            self._check(method, answer.status, answer.headers, answer.body)
            return answer

        return call_with_retry(attempt, self._tried(tries))

    def call_url(
        self,
        method: str,
        url: str,
        *,
        json: object = None,
        params: Mapping[str, str] | None = None,
        tries: int | None = None,
    ) -> dict[str, Any]:
        """The answer's JSON object."""
        return json_of(self.send(method, url, json=json, params=params or None, tries=tries))

    def list_url(
        self, url: str, key: str, params: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every entry of a list, whatever the number of pages."""
        asked = dict(params or {})
        while True:
            page = self.call_url("GET", url, params=asked)
            yield from page.get(key, [])
            if not page.get("nextPageToken"):
                return
            asked["pageToken"] = page["nextPageToken"]

    def retry(self, attempt: Callable[[], None]) -> None:
        """Do what makes calls by `stream`, again where it raises RetryableError."""
        call_with_retry(lambda _left: attempt(), self._policy)

    @contextmanager
    def stream(self, url: str, params: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """An answer with a good status, whose body is read in the block. Raises RetryableError."""
        with self._client.stream(
            "GET", url, headers=self._headers(), params=params, timeout=self._seconds
        ) as answer:
            if not answer.is_success:
                self._check("GET", answer.status_code, answer.headers, answer.read())
            yield answer

    def _tried(self, tries: int | None) -> RetryPolicy:
        return self._policy if tries is None else replace(self._policy, retries=tries - 1)

    def _headers(self, tries: int | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(tries)}"} if self._token else {}

    def _check(self, method: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        if status // 100 == 2 or status == 308:
            return
        error, after = self._refusal(status, body), parse_retry_after(headers)
        # A quota that is used up by what exists will not grow in a few seconds.
        alone = status == 429 and after is None and method != "GET"
        if status in self._passing and not alone:
            raise RetryableError(error, after=after)
        raise error


def json_of(answer: HttpResponse) -> dict[str, Any]:
    """An answer's JSON object, {} where it has none. Raises RemoteError."""
    try:
        value = jsonlib.loads(answer.body) if answer.body else {}
    except ValueError as error:
        raise RemoteError(
            "The answer makes no sense: it is no JSON.",
            hint="Is --api-endpoint an address of Google Cloud's interfaces?",
        ) from error
    return value if isinstance(value, dict) else {}


def _failed(failed: FailedCall) -> RetryableError | T2IError:
    """What a call without an answer means, and whether it may be made again."""
    error = connection_error(failed.error)
    sent = not isinstance(failed.error, httpx2.ConnectError | httpx2.ConnectTimeout)
    return error if sent and failed.method == "POST" else RetryableError(error)


def connection_error(error: Exception) -> T2IError:
    """What a connection that failed means."""
    if isinstance(error, httpx2.InvalidURL):
        return InputError("That is no address of Google Cloud's interfaces.", field="api_endpoint")
    if isinstance(error, httpx2.TimeoutException):
        return TimedOutError("Google Cloud did not answer in time.", hint="Check the network.")
    return RemoteError(
        "Google Cloud cannot be reached, or the connection broke.",
        hint="Check the network and try again.",
    )


def error_from_google(status: int, body: bytes) -> T2IError:
    """What an answer that is an error means."""
    error = _error(body)
    message = str(error.get("message") or f"HTTP status {status}").strip()
    return error_from_status(status, str(error.get("status") or ""), message)


def error_from_status(status: int, name: str, message: str) -> T2IError:
    """The error for a status, by number and by Google's name for it, and a sentence."""
    said = f"Google says: {message.rstrip('.')}."
    if status == 401 or name == "UNAUTHENTICATED":
        return AccessError("Google refuses these credentials.", hint=google_credentials.LOGIN_HINT)
    if status == 403 or name == "PERMISSION_DENIED":
        return _forbidden(message)
    if status == 429 or name == "RESOURCE_EXHAUSTED":
        return _exhausted(message)
    if status == 404 or name == "NOT_FOUND":
        return NotFoundError(said)
    if status == 409 or name in {"ALREADY_EXISTS", "ABORTED"}:
        return ConflictError(said)
    if name == "FAILED_PRECONDITION":
        return PreconditionError(said)
    if status == 400 or name == "INVALID_ARGUMENT":
        return InputError(said)
    if status == 504 or name == "DEADLINE_EXCEEDED":
        return TimedOutError(said)
    return RemoteError(said, hint="Try again; run the same command to go on.")


def _forbidden(message: str) -> AccessError:
    if "SERVICE_DISABLED" in message or "has not been used in project" in message:
        service = re.search(r"[a-z]+\.googleapis\.com", message)
        named = service[0] if service else "its name"
        return AccessError(
            f"The interface {named} is not enabled in this project.",
            hint=f"`gcloud services enable {named}`",
        )
    if found := re.search(r"[Pp]ermission '?([a-z]+\.[\w.]+)'?", message):
        return AccessError(
            f"The permission {found[1].rstrip('.')} is missing.",
            hint="docs/remote.md lists the permissions of each step and the roles that have them.",
        )
    return AccessError(f"Google says: {message.rstrip('.')}.")


def _exhausted(message: str) -> QuotaError:
    found = _QUOTA.search(message)
    if not found:
        return QuotaError(f"Google says: {message.rstrip('.')}.")
    return QuotaError(
        f"The quota {found[1].strip()} is exceeded.",
        hint="Ask for more at https://console.cloud.google.com/iam-admin/quotas, or take another "
        "region, machine or accelerator.",
    )


def _error(body: bytes) -> dict[str, Any]:
    try:
        value = jsonlib.loads(body)
    except ValueError:
        return {}
    # Some of Google's services wrap the error in a list.
    value = value[0] if isinstance(value, list) and value else value
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}


def _clock(headers: Mapping[str, str], before: float) -> float:
    """How far Google's clock is ahead of this machine's, in seconds."""
    try:
        return parsedate_to_datetime(headers.get("date", "")).timestamp() - time.time()
    except ValueError:
        return before
