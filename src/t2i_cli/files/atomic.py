"""Atomic file writes: a temporary file in the same file system, then a rename."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\.t2i-[0-9a-f]{16}\.tmp")


@contextmanager
def open_atomic(
    path: Path,
    *,
    scratch: Path | None = None,
    mode: int = 0o666,
    sync: bool = False,
    exclusive: bool = False,
) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; it replaces `path` when the block ends without an error.

    The temporary file lies beside `path`, or in `scratch`, which must be on the same file system;
    an exception in the block removes it. `mode` is the file's mode before the umask; `sync` calls
    fsync before the rename; `exclusive` never replaces a file. Raises OSError, and FileExistsError
    with `exclusive` if `path` exists.
    """
    temporary = _temporary_path(scratch or path.parent)
    descriptor = _create(temporary, mode)
    moved = False
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if exclusive:
            publish_new(temporary, path, mode)
        else:
            os.replace(temporary, path)
            moved = True
    finally:
        # Also reached by KeyboardInterrupt and by SIGTERM raised as an exception.
        if not moved:
            with suppress(OSError):
                temporary.unlink()


def write_bytes(
    path: Path,
    data: bytes,
    *,
    scratch: Path | None = None,
    mode: int = 0o666,
    sync: bool = False,
    exclusive: bool = False,
) -> None:
    """Write bytes atomically; the options and errors are those of `open_atomic`."""
    with open_atomic(path, scratch=scratch, mode=mode, sync=sync, exclusive=exclusive) as file:
        file.write(data)


def write_text(
    path: Path,
    text: str,
    *,
    scratch: Path | None = None,
    mode: int = 0o666,
    sync: bool = False,
) -> None:
    """Write UTF-8 text atomically, as `write_bytes` does; line endings are not translated."""
    write_bytes(path, text.encode(), scratch=scratch, mode=mode, sync=sync)


def probe_folder(folder: Path) -> None:
    """Raise OSError if no file can be created in the folder: creates an empty one and removes it.

    Permission bits alone do not tell: root ignores them, and a read-only file system overrides
    them.
    """
    temporary = _temporary_path(folder)
    descriptor = _create(temporary, 0o666)
    try:
        os.close(descriptor)
    finally:
        with suppress(OSError):
            temporary.unlink()


def is_temporary(path: Path) -> bool:
    """Whether the path is a regular file with the name of a temporary one. Raises OSError."""
    return bool(_TEMPORARY.fullmatch(path.name)) and stat.S_ISREG(os.lstat(path).st_mode)


def _temporary_path(folder: Path) -> Path:
    """A random, unpredictable path for a temporary file in the folder."""
    return folder / f".t2i-{os.urandom(8).hex()}.tmp"


def _create(path: Path, mode: int) -> int:
    """Create a file and return its descriptor; raises FileExistsError (open(2), O_EXCL)."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, mode)


def publish_new(temporary: Path, path: Path, mode: int = 0o666) -> None:
    """Give a whole file the name `path`, in the same file system; the temporary one may stay.

    Raises OSError, and FileExistsError if `path` exists.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # FAT and some network file systems have no hard links: there, an empty file reserves the
        # name until the complete file replaces it.
        os.close(_create(path, mode))
        try:
            os.replace(temporary, path)
        finally:
            if temporary.exists():
                path.unlink()
