"""The one way to write a file: whole or not at all, beside its place and then into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def open_atomic(
    path: Path,
    *,
    scratch: Path | None = None,
    mode: int = 0o666,
    sync: bool = False,
    exclusive: bool = False,
) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the place of `path` when the block ends well.

    Until then it lies under a name of its own beside it, or in `scratch` on the same file system;
    whatever ends the block otherwise removes it. `mode` is cut by the umask; `sync` has the content
    on the disk before the name; `exclusive` replaces nothing. Raises OSError, FileExistsError
    where the name is taken.
    """
    temporary = _temporary(scratch or path.parent)
    handle = _create(temporary, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if exclusive:
            _publish(temporary, path, mode)
        else:
            os.replace(temporary, path)
    finally:
        # Here for errors, Ctrl-C and SIGTERM alike.
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
    """Write a file as `open_atomic` does."""
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
    """Write a file of UTF-8 as `open_atomic` does; the ends of its lines stay as they are."""
    write_bytes(path, text.encode(), scratch=scratch, mode=mode, sync=sync)


def probe_folder(folder: Path) -> None:
    """Write an empty file and remove it: permissions alone do not tell. Raises OSError.

    Root passes permissions, and a read-only file system ignores them.
    """
    temporary = _temporary(folder)
    handle = _create(temporary, 0o666)
    try:
        os.close(handle)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _temporary(folder: Path) -> Path:
    """A name in the folder that nothing has and nobody can foresee."""
    return folder / f".t2i-{os.urandom(8).hex()}.tmp"


def _create(path: Path, mode: int) -> int:
    """Open a new file. What has the name already, a link too, is an error (open(2), O_EXCL)."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, mode)


def _publish(temporary: Path, path: Path, mode: int) -> None:
    """Give the finished file its name; raises FileExistsError if another has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # FAT and some network file systems have no links: an empty file holds the name there
        # until the whole one takes its place.
        os.close(_create(path, mode))
        try:
            os.replace(temporary, path)
        finally:
            if temporary.exists():
                path.unlink()
