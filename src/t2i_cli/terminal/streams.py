"""The standard streams of a `t2i` process: there, in any encoding, and failing by a sentence."""

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from t2i_cli.errors import InputError, StorageError, os_reason

_closed_stdout = False


def open_standard_streams() -> None:
    """Replace the process's standard streams, before anything is read or written.

    A closed one leads to the null device: the next file that is opened must not become standard
    output. Characters that the encoding lacks are escaped. Reading raises InputError and writing
    results StorageError, but BrokenPipeError where nobody reads; messages never fail.
    """
    global _closed_stdout
    _closed_stdout = sys.stdout is None
    sys.stdin = _wrap(sys.stdin, 0, _InputFile, "surrogateescape")
    sys.stdout = _wrap(sys.stdout, 1, _ResultFile, "backslashreplace")
    sys.stderr = _wrap(sys.stderr, 2, _MessageFile, "backslashreplace")


def stdout_is_closed() -> bool:
    """Whether the process was started without a standard output."""
    return _closed_stdout


class _StandardFile(io.RawIOBase):
    """The raw file of a standard stream, which it keeps from being closed."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        # Without a buffer, as with python -u, the stream's own buffer is the raw file.
        buffer: Any = stream.buffer
        self._raw: io.RawIOBase = getattr(buffer, "raw", buffer)

    def fileno(self) -> int:
        """The descriptor."""
        return self._raw.fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._raw.isatty()


class _InputFile(_StandardFile):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int | None:  # type: ignore[override]
        try:
            read: int | None = self._raw.readinto(buffer)
        except OSError as error:
            raise InputError(f"Cannot read standard input: {os_reason(error)}.") from error
        return read


class _ResultFile(_StandardFile):
    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int | None:  # type: ignore[override]
        try:
            written: int | None = self._raw.write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            reason = os_reason(error)
            raise StorageError(f"Cannot write to standard output: {reason}.") from error
        return written


class _MessageFile(_StandardFile):
    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int | None:  # type: ignore[override]
        # A full disk or a closed terminal must not turn a finished image into a failure.
        with suppress(OSError):
            self._raw.write(data)
        return len(data)


def _wrap(stream: TextIO | None, fd: int, kind: type[_StandardFile], errors: str) -> TextIO:
    """The stream in its encoding, with a raw file of that kind."""
    found = stream or _null_stream(fd)
    # Something else than a file, which tests or an embedding program put there, stays.
    if not isinstance(found, io.TextIOWrapper):
        return found
    file = kind(found)
    buffer = io.BufferedReader(file) if kind is _InputFile else io.BufferedWriter(file)
    return io.TextIOWrapper(
        buffer, encoding=found.encoding, errors=errors, line_buffering=found.line_buffering
    )


def _null_stream(fd: int) -> TextIO:
    """A stream of the null device, which takes the descriptor's place if nothing else has."""
    opened = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(fd)
    except OSError:
        os.dup2(opened, fd)
        os.close(opened)
        opened = fd
    os.set_inheritable(opened, opened == fd)
    return open(opened, "r" if fd == 0 else "w", encoding="utf-8", closefd=False)
