"""Calls of Google Cloud's REST interfaces, and what their refusals mean.

The errors' form is Google's: https://google.aip.dev/193.
"""

import json as jsonlib
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
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
from t2i_cli.vertex import credentials
from t2i_cli.vertex.location import Location

MAX_ATTEMPTS = 5
_PATHS = {
    "aiplatform": "/v1/",
    "cloudbuild": "/v1/",
    "cloudresourcemanager": "/v3/",
    "cloudscheduler": "/v1/",
    "iam": "/v1/",
    "storage": "/storage/v1/",
}
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


class GoogleClient:
    """A connection to one place, as one account; errors leave it only as T2IError.

    What can be repeated without harm is tried again where a failure is of the moment.
    """

    def __init__(self, place: Location, token: Callable[[], str], *, seconds: float = 60) -> None:
        self.place = place
        self._token = token
        # A token must not go through a proxy to this very machine.
        proxies = not (place.api_endpoint or "").startswith("http://")
        self.http = httpx2.Client(timeout=seconds, trust_env=proxies)
        self._ahead = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        self.http.close()

    def server_time(self) -> float:
        """Unix seconds by Google's clock: this machine's may be wrong, and a bill depends on it."""
        return time.time() + self._ahead

    def token(self, tries: int = MAX_ATTEMPTS) -> str:
        """An access token, asked for again where the failure is of the moment."""
        for tried in range(1, tries):
            try:
                return self._token()
            except (RemoteError, TimedOutError):
                time.sleep(_pause(tried))
        return self._token()

    def call(
        self,
        method: str,
        service: str,
        path: str,
        *,
        json: object = None,
        params: Mapping[str, str] | None = None,
        tries: int = MAX_ATTEMPTS,
    ) -> dict[str, Any]:
        """The answer's JSON; `path` is a resource's name, or begins with / where it is whole."""
        whole = path if path.startswith("/") else _PATHS[service] + path
        url = self.place.host(service) + whole
        response = self.send(method, url, json=json, params=dict(params or {}), tries=tries)
        try:
            value = response.json() if response.content else {}
        except ValueError as error:
            raise RemoteError(
                "The answer makes no sense: it is no JSON.",
                hint="Is --api-endpoint an address of Google Cloud's interfaces?",
            ) from error
        return value if isinstance(value, dict) else {}

    def list_all(
        self, service: str, path: str, key: str, params: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every entry of a list, whatever the number of pages."""
        asked = dict(params or {})
        while True:
            page = self.call("GET", service, path, params=asked)
            yield from page.get(key, [])
            if not page.get("nextPageToken"):
                return
            asked["pageToken"] = page["nextPageToken"]

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tries: int = MAX_ATTEMPTS,
        **request: Any,  # noqa: ANN401 - handed on to httpx2
    ) -> httpx2.Response:
        """One answer with a good status (308 counts, too)."""
        headers = {"Authorization": f"Bearer {self.token(tries)}"} | dict(headers or {})
        for left in reversed(range(tries)):
            wait = _pause(tries - left)
            try:
                response = self.http.request(method, url, headers=headers, **request)
            except httpx2.HTTPError as error:
                sent = not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                if left and not (sent and method == "POST"):
                    time.sleep(wait)
                    continue
                raise connection_error(error) from error
            self._ahead = _clock(response, self._ahead)
            if response.is_success or response.status_code == 308:
                return response
            told = retry_after(response.headers)
            # A quota that is used up by what exists will not grow in a few seconds.
            passing = response.status_code in {502, 503} or told is not None or method == "GET"
            if left and passing and response.status_code in {429, 502, 503}:
                time.sleep(max(wait, told or 0))
                continue
            break
        raise error_from_google(response.status_code, response.content)


def _pause(tried: int) -> float:
    """Seconds after so many tries: twice as long every time, with jitter."""
    return random.uniform(0.1, 0.2) * 2.0**tried  # noqa: S311 - no secret


def connection_error(error: httpx2.HTTPError) -> T2IError:
    """What a connection that failed means."""
    if isinstance(error, httpx2.TimeoutException):
        return TimedOutError("Google Cloud did not answer in time.", hint="Check the network.")
    return RemoteError(
        "Google Cloud cannot be reached, or the connection broke.",
        hint="Check the network and try again.",
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as the server says, in either of HTTP's forms (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after")
    if not value:
        return None
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def error_from_google(status: int, body: bytes) -> T2IError:
    """What an answer that is an error means."""
    error = _error(body)
    message = str(error.get("message") or f"HTTP status {status}").strip()
    return error_from_status(status, str(error.get("status") or ""), message)


def error_from_status(status: int, name: str, message: str) -> T2IError:
    """The error for a status, by number and by Google's name for it, and a sentence."""
    said = f"Google says: {message.rstrip('.')}."
    if status == 401 or name == "UNAUTHENTICATED":
        return AccessError("Google refuses these credentials.", hint=credentials.LOGIN_HINT)
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


def _clock(response: httpx2.Response, before: float) -> float:
    """How far Google's clock is ahead of this machine's, in seconds."""
    try:
        return parsedate_to_datetime(response.headers.get("date", "")).timestamp() - time.time()
    except ValueError:
        return before
