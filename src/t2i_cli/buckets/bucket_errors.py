"""What an error of fsspec's packages means: each raises its own library's exceptions."""

from collections.abc import Iterator
from typing import TypeGuard

from t2i_cli.buckets.bucket_url import BucketUrl
from t2i_cli.errors import (
    AccessError,
    InputError,
    QuotaError,
    RemoteError,
    T2IError,
    TimedOutError,
    error_reason,
)

BUG_TYPES = (AssertionError, AttributeError, LookupError, NameError, TypeError)
"""Exceptions that no store's answer causes."""

_CREDENTIAL_ERRORS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"),
    *("ProfileNotFound", "NoAuthTokenError", "SSOError", "TokenRetrievalError"),
    *("DefaultCredentialsError", "RefreshError", "ClientAuthenticationError"),
    "LocalTokenNotFoundError",
}
_MISSING_ERRORS = {
    *("NoSuchBucket", "RepositoryNotFoundError", "RevisionNotFoundError", "BucketNotFoundError"),
}
_CONNECTION_ERRORS = {
    *(
        "ConnectionError",
        "TransportError",
        "IncompleteReadError",
        "ResponseStreamingError",
        "ServiceRequestError",
    ),
    *("ServiceResponseError", "HTTPError"),
}
_BROKEN_ANSWERS = {"HTTPClientError", "ClientConnectionError", "ClientPayloadError"}
"""Raised for an answer that broke off or is none, whichever status the library makes of it."""
_STATUS_NAMES = ("status", "status_code", "code")
_HINTS = {
    "s3": "The AWS command line's sign-in is used: AWS_PROFILE, AWS_ACCESS_KEY_ID, or a role.",
    "gs": "Google's is used: gcloud auth application-default login",
    "hf": "`t2i login` takes a token that may write.",
}
_ALIASES = {"s3a": "s3", "gcs": "gs"}
_EXTRAS = {"s3": "s3", "gs": "gcs"}


def bucket_error(error: BaseException, action: str, url: BucketUrl, name: str = "") -> T2IError:
    """The error for users; `action` is what was tried, as `write`."""
    message = f"Cannot {action} '{url.location(name)}'"
    hint = _HINTS.get(_ALIASES.get(url.protocol, url.protocol))
    status = _status(error)
    reason = error_reason(error) if isinstance(error, Exception) else type(error).__name__
    reason = reason.rstrip(".")
    if _is_one_of(error, _CREDENTIAL_ERRORS):
        return AccessError(f"{message}: there are no usable credentials ({reason}).", hint=hint)
    if is_missing_place(error) or isinstance(error, FileNotFoundError):
        return InputError(
            f"{message}: there is no such bucket ({reason}).",
            hint="Make it first, or use another place with -o.",
        )
    if isinstance(error, PermissionError) or status in (401, 403):
        return AccessError(f"{message}: it is not allowed ({reason}).", hint=hint)
    if status == 429 or "SlowDown" in reason:
        return QuotaError(f"{message}: the store asks to wait ({reason}).", hint="Try again later.")
    if _is_timeout(error) or status in (408, 504):
        return TimedOutError(f"{message}: no answer in time ({reason}).")
    if isinstance(error, NotImplementedError) or status in (405, 501):
        return InputError(f"{message}: its store does not offer that ({reason}).")
    if isinstance(error, ValueError) or _is_one_of(error, {"ParamValidationError"}):
        return InputError(f"{message}: {reason}.")
    return RemoteError(f"{message}: {reason}.", hint="Check the network and try again.")


def missing_package_error(error: ImportError, url: BucketUrl) -> InputError:
    """The error for a URL whose package is not installed."""
    extra = _EXTRAS.get(_ALIASES.get(url.protocol, url.protocol))
    hint = f"Install it with: pip install 't2i-cli[{extra}]'" if extra else None
    return InputError(
        f"{url.protocol}:// needs a package that is not installed ({error_reason(error)}).",
        hint=hint,
    )


def is_missing_place(error: BaseException) -> bool:
    """Whether the bucket or repository itself is missing, and not an object in it."""
    return _is_one_of(error, _MISSING_ERRORS)


def is_conflict(error: BaseException) -> bool:
    """Whether a write was refused because of another one before it."""
    return _status(error) in (409, 412)


def is_passing_failure(error: BaseException) -> bool:
    """Whether the same call may succeed in a while."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    if _is_one_of(error, _BROKEN_ANSWERS):
        return True
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500 and status != 501
    return _is_timeout(error) or _is_one_of(error, _CONNECTION_ERRORS)


def _is_timeout(error: BaseException) -> bool:
    return any("timeout" in kind.lower() for cause in _causes(error) for kind in _type_names(cause))


def _is_one_of(error: BaseException, names: set[str]) -> bool:
    return any(names & _type_names(cause) for cause in _causes(error))


def _type_names(error: BaseException) -> set[str]:
    """Names of its type and base types: importing a library to compare would load it."""
    return {kind.__name__ for kind in type(error).__mro__}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    """The HTTP status that the store answered, in whichever way its library says it."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            response = response.get("ResponseMetadata") or {}
            found = response.get("HTTPStatusCode")
        else:
            found = getattr(response, "status_code", None)
        if _is_status(found):
            return found
        # One after the other: asking aiohttp's errors for the last one warns.
        for name in _STATUS_NAMES:
            if _is_status(value := getattr(cause, name, None)):
                return value
    return None


def _is_status(value: object) -> TypeGuard[int]:
    return type(value) is int and 100 <= value < 600
