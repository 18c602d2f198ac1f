"""What huggingface_hub raises, as the errors of t2i."""

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

_FULL = {errno.ENOSPC, errno.EDQUOT}
_MODELS = "`t2i models list` shows the models t2i knows."


NETWORK = "Check the network and try again."


@contextmanager
def translate_hub_errors(repo: str = "", hint: str = NETWORK) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into a T2IError; anything else is a bug and passes.

    `repo` is the repository that is asked for; `hint` says what to do where the network failed.
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
        # hf_xet, which brings large files, raises it for whatever goes wrong on its way.
        RuntimeError,
    ) as error:
        raise hub_error(error, repo, hint) from error


def hub_error(error: BaseException, repo: str, hint: str = NETWORK) -> T2IError:
    """The T2IError for an error of huggingface_hub, found along its chain of causes."""
    failure = _find(error, repo)
    failure.hint = failure.hint or hint
    return failure


def _find(error: BaseException, repo: str) -> T2IError:
    for cause in _chain(error):
        match cause:
            case hf.HfHubHTTPError():
                return _answered(cause, repo)
            case httpx2.TimeoutException():
                return TimedOutError("The Hub did not answer in time.")
            case httpx2.HTTPError():
                return RemoteError("The Hub cannot be reached.")
            case hf.OfflineModeIsEnabled():
                return RemoteError("HF_HUB_OFFLINE is set.", hint="Unset it to ask the Hub.")
            case hf.HFValidationError():
                return ModelError(f"{repo} is not the name of a repository.", hint=_MODELS)
            case OSError(errno=int() as number):
                why = "the disk is full" if number in _FULL else os_reason(cause)
                return StorageError(f"Cannot write {cause.filename or repo}: {why}.")
    return RemoteError(f"The download of {repo} broke off.")


def not_downloaded(repo: str) -> ModelError:
    """The model is wanted offline and is not downloaded."""
    return ModelError(
        f"{repo} is not downloaded.", hint=f"`t2i models pull {repo}` downloads it, once online."
    )


def _answered(error: hf.HfHubHTTPError, repo: str) -> T2IError:
    """The error with which the Hub answered."""
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
                hint=f"{_MODELS} A private one needs `t2i login`.",
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


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
