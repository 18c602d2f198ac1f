"""Translates huggingface_hub's exceptions into T2IErrors."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import errors as hf
from huggingface_hub import get_token

from t2i_cli.errors import (
    AccessError,
    ModelError,
    QuotaError,
    RemoteError,
    StorageError,
    T2IError,
    TimedOutError,
    os_reason,
)
from t2i_cli.net.unreachable import UnreachableError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_MODELS_HINT = "`t2i models list` shows the models t2i knows."


NETWORK_HINT = "Check the network and try again."


@contextmanager
def translate_hub_errors(repo: str = "", hint: str = NETWORK_HINT) -> Iterator[None]:
    """Translate exceptions of huggingface_hub into T2IErrors; others propagate as bugs.

    `repo` is the requested repository; `hint` is for errors without a hint of their own.
    """
    try:
        yield
    except (
        hf.HfHubHTTPError,
        hf.EntryNotFoundError,
        hf.RevisionResolutionError,
        hf.OfflineModeIsEnabled,
        hf.HFValidationError,
        httpx2.HTTPError,
        OSError,
        # hf_xet, which downloads large files, raises it for every failure.
        RuntimeError,
    ) as error:
        raise hub_error(error, repo, hint) from error


def hub_error(error: BaseException, repo: str, hint: str = NETWORK_HINT) -> T2IError:
    """The T2IError for an exception of huggingface_hub, from its chain of causes."""
    failure = _translate(error, repo)
    if isinstance(failure, StorageError) and hint == NETWORK_HINT:
        hint = "HF_HOME names another place for the Hub's files."
    failure.hint = failure.hint or hint
    return failure


def _translate(error: BaseException, repo: str) -> T2IError:
    for cause in _cause_chain(error):
        match cause:
            case hf.HfHubHTTPError():
                return _error_from_response(cause, repo)
            case httpx2.TimeoutException():
                return TimedOutError("The Hub did not answer in time.")
            case httpx2.HTTPError():
                return UnreachableError("The Hub cannot be reached.")
            case hf.OfflineModeIsEnabled():
                return UnreachableError("HF_HUB_OFFLINE is set.", hint="Unset it to ask the Hub.")
            case hf.HFValidationError():
                return ModelError(f"{repo} is not the name of a repository.", hint=_MODELS_HINT)
            case OSError(errno=int() as number):
                why = "the disk is full" if number in _DISK_FULL else os_reason(cause)
                return StorageError(f"Cannot write {cause.filename or repo}: {why}.")
    return RemoteError(f"The download of {repo} broke off.")


class NotDownloadedError(ModelError):
    """The model is not on this machine, or not all of it, and nothing may be downloaded."""


def not_downloaded(repo: str) -> NotDownloadedError:
    """The error for a model that is requested offline and not downloaded."""
    return NotDownloadedError(
        f"{repo} is not downloaded.", hint=f"`t2i models pull {repo}` downloads it, once online."
    )


def _error_from_response(error: hf.HfHubHTTPError, repo: str) -> T2IError:
    """The T2IError for an HTTP error response of the Hub."""
    match error, error.response.status_code:
        case hf.GatedRepoError(), _:
            login = (
                "with the account you are logged in as" if get_token() else "and run `t2i login`"
            )
            return AccessError(
                f"{repo} is gated: its licence must be accepted first.",
                hint=f"Accept the licence at https://huggingface.co/{repo} {login}.",
            )
        case hf.RepositoryNotFoundError(), _:
            return ModelError(
                f"There is no repository {repo} on the Hub, or it is private.",
                hint=f"{_MODELS_HINT} A private one needs `t2i login`.",
            )
        case hf.RevisionNotFoundError(), _:
            return ModelError(
                f"{repo} has no such revision.",
                hint=f"Its branches and tags are at https://huggingface.co/{repo}/tree/main.",
            )
        case _, 401:
            return AccessError("The Hub refuses the token.", hint="`t2i login` takes a new one.")
        case _, 403:
            return AccessError(
                f"The Hub does not allow access to {repo}.", hint="`t2i login` takes another token."
            )
        case _, 429:
            return QuotaError("The Hub asks to wait: too many requests.", hint="Try again later.")
        case _, 408 | 504:
            return TimedOutError("The Hub did not answer in time.")
        case _, status:
            return RemoteError(f"The Hub answered with error {status}.")


def _cause_chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
