"""The errors that users see, each with an exit code and an optional hint.

The exit codes are a contract with scripts; `docs/exit-codes.md` lists them.
"""

from collections.abc import Mapping
from typing import ClassVar

from t2i_cli.known_secrets import scrub_secrets

EXIT_STDOUT_CLOSED = 141


class T2IError(Exception):
    """An error reported in one sentence, with an optional hint on what to do.

    Both are without the process's secrets, which a library's text within may quote.
    """

    exit_code: ClassVar[int]
    code: ClassVar[str]

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message = scrub_secrets(message)
        super().__init__(message)
        self.message = message
        self.hint = hint and scrub_secrets(hint)

    def to_json(self) -> dict[str, object]:
        """The error as `--json` prints it."""
        return {
            "code": self.code,
            "exit": self.exit_code,
            "message": self.message,
            "hint": self.hint,
        }


class InputError(T2IError):
    """Wrong usage or bad input; `field` is the invalid field of the request, if any."""

    exit_code = 2
    code = "bad_input"

    def __init__(self, message: str, *, hint: str | None = None, field: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field

    def to_json(self) -> dict[str, object]:
        """The error as `--json` prints it, with the invalid field."""
        return super().to_json() | ({"field": self.field} if self.field else {})


class AccessError(T2IError):
    """Not authenticated, or not allowed."""

    exit_code = 3
    code = "not_allowed"


class QuotaError(T2IError):
    """A quota or rate limit is exceeded."""

    exit_code = 4
    code = "quota"


class TimedOutError(T2IError):
    """A timeout expired."""

    exit_code = 5
    code = "timed_out"


class RemoteError(T2IError):
    """The network, the hub or a remote service failed."""

    exit_code = 6
    code = "remote"


class OutOfMemoryError(T2IError):
    """The device has too little memory, even with every memory-saving measure."""

    exit_code = 7
    code = "out_of_memory"


class InternalError(T2IError):
    """A bug that made an image fail; `__cause__` is the exception, unless it came from a server.

    A server's response only says that there was one; the traceback is in the server's log.
    """

    exit_code = 1
    code = "bug"


class PartialError(T2IError):
    """Some images of several failed."""

    exit_code = 8
    code = "partial"


class ModelError(T2IError):
    """The model is not found or not usable."""

    exit_code = 9
    code = "model"


class PipelineError(ModelError):
    """A model's pipeline failed for an unknown reason; `__cause__` is the exception."""


class ContentFilteredError(T2IError):
    """A safety checker withheld the image."""

    exit_code = 10
    code = "withheld"


class StorageError(T2IError):
    """Local input or output failed: a full disk, a broken file system."""

    exit_code = 11
    code = "storage"


class InterruptedRunError(T2IError):
    """Ctrl-C ended the run."""

    exit_code = 130
    code = "interrupted"


class TerminatedError(T2IError):
    """SIGTERM ended the run."""

    exit_code = 143
    code = "terminated"


def error_from_json(record: Mapping[str, object]) -> T2IError | None:
    """The error from its `to_json()` record, or None for an unknown code."""
    kind = next((k for k in T2IError.__subclasses__() if k.code == record.get("code")), None)
    if kind is None:
        return None
    hint = record.get("hint")
    error = kind(str(record.get("message")), hint=str(hint) if hint else None)
    if isinstance(error, InputError) and record.get("field"):
        error.field = str(record["field"])
    return error


def internal_error(
    raised: Exception, *, hint: str = "-v shows the traceback; please report it."
) -> InternalError:
    """Wrap an unexpected exception as the failure of the images it concerns."""
    error = InternalError(
        f"An unexpected {type(raised).__name__}: {error_reason(raised)}",
        hint=hint,
    )
    error.__cause__ = raised
    return error


def error_reason(raised: Exception) -> str:
    """An exception's message on one line, at most 200 characters; its type's name if empty."""
    # Before it is cut: a part of a secret would not be known for one.
    text = " ".join(scrub_secrets(str(raised)).split()) or type(raised).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def os_reason(error: OSError) -> str:
    """The system's reason of an OSError; its message where a library raised it without one."""
    return error.strerror or error_reason(error)


class Terminated(BaseException):
    """SIGTERM arrived. A BaseException like KeyboardInterrupt, so that no handler swallows it."""
