"""An open file that this process alone appends to, and that others may remove or change meanwhile.

A file that was removed is written again from the open one, which the system keeps until it is
closed. What was cut or replaced is not there any more: that is an error.
"""

import os
from contextlib import suppress
from pathlib import Path

from t2i_cli.errors import StorageError
from t2i_cli.files import atomic
from t2i_cli.files.state_files import open_regular

_COMPARED_BYTES = 4096
"""Bytes at the end of the file that are compared with what was written."""
_COPIED_BYTES = 2**20
_HINT = "Run the same command again: what is on the disk stays done."


class AppendedFile:
    """Takes over the descriptor of a file, opened for reading and appending."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.restored = 0
        """How often the file was removed and is written again."""
        self._handle = handle
        self._folder = os.stat(path.parent)
        self._size = os.fstat(handle).st_size
        start = max(0, self._size - _COMPARED_BYTES)
        self._end = read_at(handle, self._size - start, start)

    def append(self, data: bytes, *, durable: bool) -> None:
        """Append all of the data or nothing. Raises OSError, and StorageError as `check` does."""
        self.check()
        size = os.fstat(self._handle).st_size
        try:
            remaining = memoryview(data)
            while remaining:
                remaining = remaining[os.write(self._handle, remaining) :]
            if durable:
                os.fsync(self._handle)
        except OSError:
            # Remove a partial line, as of a full disk.
            with suppress(OSError):
                os.ftruncate(self._handle, size)
            raise
        self._size = size + len(data)
        self._end = (self._end + data)[-_COMPARED_BYTES:]

    def check(self) -> None:
        """Write the file again if it was removed.

        Raises StorageError if it was cut, changed or replaced, or its folder was; OSError.
        """
        start = self._size - len(self._end)
        if read_at(self._handle, len(self._end), start) != self._end:
            raise self._error(f"'{self.path}' was changed by another program during the run.")
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            self._restore()
            return
        if not os.path.samestat(found, os.fstat(self._handle)):
            raise self._error(f"'{self.path}' was replaced by another program during the run.")

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def _restore(self) -> None:
        folder = self.path.parent
        if not folder.is_dir() or not os.path.samestat(os.stat(folder), self._folder):
            raise self._error(f"The folder '{folder}' was removed or replaced during the run.")
        with atomic.open_atomic(self.path, sync=True, exclusive=True) as copy:
            at = 0
            while data := read_at(self._handle, _COPIED_BYTES, at):
                copy.write(data)
                at += len(data)
        handle = open_regular(self.path, os.O_RDWR | os.O_APPEND)
        os.close(self._handle)
        self._handle = handle
        self.restored += 1

    def _error(self, message: str) -> StorageError:
        return StorageError(message, hint=_HINT)


def read_at(handle: int, size: int, offset: int) -> bytes:
    """Read at an offset; os.pread is missing on Windows."""
    os.lseek(handle, offset, os.SEEK_SET)
    return os.read(handle, size)
