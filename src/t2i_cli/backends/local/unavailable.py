"""What is said beside the error of a model that cannot be had: there is one inside t2i."""

from collections.abc import Iterator
from contextlib import contextmanager

from t2i_cli.errors import (
    AccessError,
    QuotaError,
    RemoteError,
    StorageError,
    T2IError,
    TimedOutError,
)

_HINT = "`-m postcard`, the small model inside t2i, needs no download."


@contextmanager
def hinting_at_embedded_model() -> Iterator[None]:
    """Name the embedded model in the hint of an error that says that a model cannot be had now."""
    try:
        yield
    except T2IError as error:
        if _is_unavailable(error) and not is_model_unavailable(error):
            error.hint = f"{error.hint} {_HINT}" if error.hint else _HINT
        raise


def is_model_unavailable(error: T2IError) -> bool:
    """Whether an error of the local backend says so; the error may have come from the worker."""
    return _HINT in (error.hint or "")


def _is_unavailable(error: T2IError) -> bool:
    from t2i_cli.hub.errors import NotDownloadedError

    kinds = (AccessError, QuotaError, RemoteError, StorageError, TimedOutError, NotDownloadedError)
    return isinstance(error, kinds)
