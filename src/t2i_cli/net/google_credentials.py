"""Google credentials: found where google-auth looks, shown, and tried once."""

import base64
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from t2i_cli.errors import AccessError, InputError, RemoteError, T2IError, TimedOutError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
CREDENTIALS_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
LOGIN_HINT = (
    "Run `gcloud auth application-default login`, or set "
    f"{CREDENTIALS_VARIABLE} to a service account's key file."
)


@dataclass(frozen=True, kw_only=True)
class CredentialInfo:
    """Whose credentials there are, for which project, and how they were found."""

    account: str | None
    project: str | None
    source: str


def find_credentials(impersonate: str | None = None) -> tuple["Credentials", CredentialInfo]:
    """The credentials that google-auth finds, for acting as `impersonate` if that is given.

    Order: GOOGLE_APPLICATION_CREDENTIALS, gcloud's application default, the metadata server.
    Raises AccessError if there are none, or if they are broken.
    """
    # One second each for the three tries to find a metadata server; read at google-auth's import.
    os.environ.setdefault("GCE_METADATA_TIMEOUT", "1")
    import google.auth

    logging.getLogger("google.auth").setLevel(logging.ERROR)
    with _translated(), warnings.catch_warnings():
        # It would have people use a service account; a person's own credentials will do here.
        warnings.simplefilter("ignore")
        credentials, project = google.auth.default(scopes=[SCOPE])
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
            )
    return credentials, CredentialInfo(
        account=account_name(credentials), project=project, source=source
    )


class TokenProvider:
    """Access tokens of the credentials, renewed as they run out; threads may share it.

    One that is asked for is asked for once: who needs it has retries and a time of its own.
    """

    def __init__(self, credentials: "Credentials", seconds: float = 10) -> None:
        self._credentials = credentials
        self._seconds = seconds
        self._lock = Lock()

    def __call__(self, seconds: float | None = None) -> str:
        """A token that is good now, waiting at most `seconds` for each call.

        Raises AccessError; or RemoteError or TimedOutError, where another try may help.
        """
        most = self._seconds if seconds is None else min(seconds, self._seconds)
        if not self._lock.acquire(timeout=most):
            raise _late()
        try:
            if not self._credentials.valid:
                refresh_token(self._credentials, most)
            return str(self._credentials.token)
        finally:
            self._lock.release()


def refresh_token(credentials: "Credentials", seconds: float) -> None:
    """Have Google issue a token, waiting `seconds` for each call."""
    with _translated():
        credentials.refresh(partial(_once, seconds))  # type: ignore[no-untyped-call]


def _once(seconds: float, *args: Any, **request: Any) -> Any:  # noqa: ANN401 - google-auth's
    """A call of google-auth's; what may pass is raised past the tries that it makes by itself."""
    from google.auth import exceptions
    from google.auth.transport.requests import Request

    try:
        answer = Request()(*args, **({"timeout": seconds} | request))
    except exceptions.TransportError as error:
        raise _refusal(error) from error
    if answer.status in {408, 429} or answer.status >= 500:
        raise RemoteError(
            f"Google issues no token now: its server answers with status {answer.status}.",
            hint="Try again.",
        )
    return answer


def verify_credentials(
    impersonate: str | None = None, seconds: float = 10
) -> tuple["Credentials", CredentialInfo]:
    """Find the credentials and have Google issue a token for them, waiting `seconds` for each call.

    Raises AccessError, RemoteError or TimedOutError.
    """
    credentials, login = find_credentials(impersonate)
    refresh_token(credentials, seconds)
    # Only now do a person's credentials and the metadata server tell whose they are.
    return credentials, replace(login, account=account_name(credentials))


def _source(credentials: "Credentials") -> str:
    if file := os.environ.get(CREDENTIALS_VARIABLE):
        return f"{file}, named by {CREDENTIALS_VARIABLE}"
    if type(credentials).__module__.startswith("google.auth.compute_engine"):
        return "the metadata server of this machine"
    return "gcloud's application default credentials"


def account_name(credentials: Any) -> str | None:  # noqa: ANN401 - each kind has fields of its own
    """Whose they are, as far as is known; some tell it with their first token only."""
    named = getattr(credentials, "service_account_email", None) or getattr(
        credentials, "account", None
    )
    if named and named != "default":
        return str(named)
    # A person's token comes with a signed statement: header.payload.signature (OpenID Connect).
    statement = getattr(credentials, "id_token", None)
    if not isinstance(statement, str) or statement.count(".") != 2:
        return None
    payload = statement.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return str(claims["email"]) if "email" in claims else None


@contextmanager
def _translated() -> Iterator[None]:
    """Turn google-auth's errors into T2IErrors; their texts may hold more than should be shown."""
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
        raise _refusal(error) from error


def _refusal(error: Exception) -> T2IError:
    from google.auth import exceptions
    from requests.exceptions import Timeout

    if isinstance(error.__cause__, Timeout) or isinstance(error.__context__, Timeout):
        return _late()
    if isinstance(error, exceptions.TransportError) or getattr(error, "retryable", False):
        return RemoteError("Google cannot be reached.", hint="Check the network and try again.")
    answer = error.args[1] if len(error.args) > 1 else None
    code = answer.get("error") if isinstance(answer, dict) else None
    reason = f" ({code})" if isinstance(code, str) else ""
    return AccessError(f"Google refuses these credentials{reason}.", hint=LOGIN_HINT)


def _late() -> TimedOutError:
    return TimedOutError("Google did not answer in time.", hint="Check the network.")
