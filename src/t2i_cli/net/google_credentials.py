"""Finds Google credentials by google-auth, describes them, and authorises requests by them."""

import base64
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from t2i_cli import library_environment
from t2i_cli.errors import (
    AccessError,
    InputError,
    RemoteError,
    T2IError,
    TimedOutError,
    os_reason,
)
from t2i_cli.files.state_files import check_regular, is_text, parse_json
from t2i_cli.known_secrets import register_secret
from t2i_cli.net.google_token_answers import check_token_answer
from t2i_cli.net.unreachable import UnreachableError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

    from t2i_cli.net.http_client import FailedCall

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
CREDENTIALS_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
LOGIN_HINT = (
    "Run `gcloud auth application-default login`, or set "
    f"{CREDENTIALS_VARIABLE} to a service account's key file."
)
_NEW_SECONDS = 60.0
"""Seconds for which a token that was refused is not replaced: another would be refused as well."""
_NETWORK = "Check the network and try again."


@dataclass(frozen=True, kw_only=True)
class CredentialInfo:
    """The account of the credentials, their project, and where they were found."""

    account: str | None
    project: str | None
    source: str


def find_credentials(impersonate: str | None = None) -> tuple["Credentials", CredentialInfo]:
    """The credentials that google-auth finds; with `impersonate`, those of that service account.

    Order: GOOGLE_APPLICATION_CREDENTIALS, gcloud's application default, the metadata server.
    Raises AccessError if there are none or they are unusable, InputError for an `impersonate` that
    is no service account.
    """
    # Seconds for each of three attempts to find a metadata server; read at google-auth's import.
    library_environment.set_aside_invalid()
    os.environ.setdefault("GCE_METADATA_TIMEOUT", "1")
    library_environment.require_valid("google")
    import google.auth

    logging.getLogger("google.auth").setLevel(logging.ERROR)
    _check_key_file()
    with _translating_errors(), warnings.catch_warnings():
        # google-auth warns of a user's own credentials; they are good enough here.
        warnings.simplefilter("ignore")
        credentials, project = google.auth.default(scopes=[SCOPE])
        _register_secrets(credentials)
        source = _source(credentials)
        if impersonate:
            if not impersonate.endswith(".gserviceaccount.com"):
                raise InputError(
                    f"{impersonate} is not a service account: they end in .gserviceaccount.com."
                )
            from google.auth import impersonated_credentials

            source = (
                f"impersonation by {account_name(credentials) or 'the credentials'} from {source}"
            )
            credentials = impersonated_credentials.Credentials(  # type: ignore[no-untyped-call]
                source_credentials=credentials, target_principal=impersonate, target_scopes=[SCOPE]
            ).with_quota_project_from_environment()
    _check_quota_project(credentials)
    return credentials, CredentialInfo(
        account=account_name(credentials), project=project, source=source
    )


class TokenProvider:
    """The headers that authorise a request: the token, and the project that pays for the call.

    Tokens are refreshed when they expire. Thread-safe. Not retried here; callers retry and set
    timeouts. `seconds` limits each call to Google.
    """

    def __init__(self, credentials: "Credentials", seconds: float = 10) -> None:
        self._credentials = credentials
        self._seconds = seconds
        self._lock = Lock()
        self._renewed = -math.inf
        self._discarded = False

    def __call__(self, seconds: float | None = None) -> dict[str, str]:
        """The headers; waits at most `seconds` for the lock, and for each call to Google.

        Raises AccessError, or where a retry may help RemoteError or TimedOutError.
        """
        timeout = self._seconds if seconds is None else min(seconds, self._seconds)
        if not self._lock.acquire(timeout=timeout):
            raise _timeout_error()
        try:
            if self._discarded or not self._credentials.valid:
                refresh_token(self._credentials, timeout)
                self._renewed, self._discarded = time.monotonic(), False
            headers: dict[str, str] = {}
            # Not before_request(): it starts a thread that asks IAM, on Google's own host, for
            # the account's regions.
            self._credentials.apply(headers)  # type: ignore[no-untyped-call]
            return headers
        finally:
            self._lock.release()

    def discard(self) -> bool:
        """Have the next call get a new token: Google may refuse what this clock takes for valid.

        False if the one that was refused is new itself.
        """
        self._discarded = time.monotonic() - self._renewed > _NEW_SECONDS
        return self._discarded


def discard_token(authorize: object) -> bool:
    """Discard the token of what authorises calls, if it has one; whether a new one may help."""
    provider = authorize.func if isinstance(authorize, partial) else authorize
    return isinstance(provider, TokenProvider) and provider.discard()


def refresh_token(credentials: "Credentials", seconds: float) -> None:
    """Get a new token from Google; each call takes at most `seconds`. Raises T2IError."""
    with _translating_errors():
        credentials.refresh(partial(_request_without_retry, seconds))  # type: ignore[no-untyped-call]
    _register_secrets(credentials)


def _check_quota_project(credentials: "Credentials") -> None:
    """Raise InputError for a quota project that no project can be: it becomes a header's value."""
    project = getattr(credentials, "quota_project_id", None)
    if project is not None and not library_environment.is_project_id(str(project)):
        raise InputError(
            f"The credentials' quota project, {str(project)[:80]!r}, is no project's id.",
            hint="`gcloud auth application-default set-quota-project PROJECT` sets it, and "
            "GOOGLE_CLOUD_QUOTA_PROJECT stands over it.",
        )


def _register_secrets(credentials: "Credentials") -> None:
    """Have the secrets of each kind of credentials kept out of errors and logs."""
    for name in ("token", "refresh_token", "id_token", "client_secret"):
        secret = getattr(credentials, name, None)
        register_secret(secret if isinstance(secret, str) else None)


def _request_without_retry(
    seconds: float,
    url: str,
    method: str = "GET",
    body: str | bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
    **_: object,
) -> SimpleNamespace:
    """A google-auth transport by httpx2, as all other calls, with its proxies and certificates.

    Its temporary errors bypass google-auth's own retries.
    """
    from t2i_cli.net.http_client import HttpClient

    client = HttpClient(url, 1, translate=_error_from_failed_call)
    try:
        content = body.encode() if isinstance(body, str) else body
        response = client.request(
            method, url, headers=headers, content=content, timeout=timeout or seconds, total=False
        )
    finally:
        client.close()
    if response.status in {408, 429} or response.status >= 500:
        failed = f"its server answers with status {response.status}"
        raise RemoteError(f"Google issues no token now: {failed}.", hint="Try again.")
    check_token_answer(str(response.status), response.headers, response.body)
    return SimpleNamespace(status=response.status, headers=response.headers, data=response.body)


def _error_from_failed_call(failed: "FailedCall") -> T2IError:
    import httpx2

    if isinstance(failed.error, httpx2.TimeoutException):
        return _timeout_error()
    return UnreachableError("Google cannot be reached.", hint=_NETWORK)


def verify_credentials(
    impersonate: str | None = None, seconds: float = 10
) -> tuple["Credentials", CredentialInfo]:
    """Find the credentials and get a token for them; each call takes at most `seconds`.

    Raises AccessError, RemoteError or TimedOutError.
    """
    credentials, info = find_credentials(impersonate)
    refresh_token(credentials, seconds)
    # A user's credentials and the metadata server name the account with the first token only.
    return credentials, replace(info, account=account_name(credentials))


def _check_key_file() -> None:
    """Raise AccessError if the variable names no file: google-auth would wait for a pipe."""
    if file := os.environ.get(CREDENTIALS_VARIABLE):
        try:
            check_regular(Path(file), follow_links=True)
        except OSError as error:
            raise AccessError(
                f"Cannot read {file}, named by {CREDENTIALS_VARIABLE}: {os_reason(error)}.",
                hint=LOGIN_HINT,
            ) from error


def _source(credentials: "Credentials") -> str:
    if file := os.environ.get(CREDENTIALS_VARIABLE):
        return f"{file}, named by {CREDENTIALS_VARIABLE}"
    if type(credentials).__module__.startswith("google.auth.compute_engine"):
        return "the metadata server of this machine"
    return "gcloud's application default credentials"


def account_name(credentials: Any) -> str | None:  # noqa: ANN401 - each kind has fields of its own
    """The account's email address, or None if unknown, as for some before the first token."""
    named = getattr(credentials, "service_account_email", None) or getattr(
        credentials, "account", None
    )
    if named and named != "default":
        return str(named)
    # A user's token comes with an ID token: header.payload.signature (OpenID Connect).
    id_token = getattr(credentials, "id_token", None)
    if not isinstance(id_token, str) or id_token.count(".") != 2:
        return None
    payload = id_token.split(".")[1]
    try:
        claims = parse_json(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        return None
    email = claims.get("email") if isinstance(claims, dict) else None
    return email if is_text(email) else None


@contextmanager
def _translating_errors() -> Iterator[None]:
    """Turn google-auth's errors into T2IErrors, without their texts, which may hold secrets."""
    from google.auth import exceptions

    try:
        yield
    except exceptions.DefaultCredentialsError as error:
        if file := os.environ.get(CREDENTIALS_VARIABLE):
            raise AccessError(
                f"{CREDENTIALS_VARIABLE} names {file}, which holds no usable credentials.",
                hint=LOGIN_HINT,
            ) from error
        raise AccessError("There are no Google credentials.", hint=LOGIN_HINT) from error
    except exceptions.GoogleAuthError as error:
        raise _error_from_google_auth(error) from error


def _error_from_google_auth(error: Exception) -> T2IError:
    from google.auth import exceptions

    if isinstance(error, exceptions.TransportError) or getattr(error, "retryable", False):
        return UnreachableError("Google cannot be reached.", hint=_NETWORK)
    response = error.args[1] if len(error.args) > 1 else None
    code = response.get("error") if isinstance(response, dict) else None
    reason = f" ({code})" * isinstance(code, str)
    return AccessError(f"Google refuses these credentials{reason}.", hint=LOGIN_HINT)


def _timeout_error() -> TimedOutError:
    return TimedOutError("Google did not answer in time.", hint="Check the network.")
