"""Files that t2i keeps for itself: no link is followed, none is trusted, each is replaced whole.

A name proves nothing: whoever else may write beside it can have put anything there. Standard
library only, as the worker's client reads its state by it.
"""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeGuard

from t2i_cli.files import atomic

MAX_STATE_BYTES = 2**20
"""Bytes of a state file; t2i's own take a few thousand."""
_MAX_DEPTH = 32
"""Levels of nesting in JSON; t2i's own has five."""
_MOST = 1e15
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
"""Without O_NONBLOCK, opening a pipe waits for its other end."""


def open_regular(path: Path, flags: int, mode: int = 0o666) -> int:
    """A descriptor of a regular file, not by way of a link; `flags` are without O_TRUNC.

    Raises OSError: for a link, a folder, a pipe, a socket or a device as well, which is left alone.
    """
    # Opening a device may already do something to it.
    check_regular(path)
    handle = os.open(path, flags | _FLAGS, mode)
    if reason := _other(os.fstat(handle)):
        os.close(handle)
        raise OSError(errno.EINVAL, reason, str(path))
    return handle


def check_regular(path: Path) -> None:
    """Raise OSError if something lies there that is no regular file."""
    with suppress(FileNotFoundError):
        if reason := _other(os.lstat(path)):
            raise OSError(errno.EINVAL, reason, str(path))


def _other(found: os.stat_result) -> str | None:
    """What is there in place of a regular file."""
    if stat.S_ISREG(found.st_mode):
        return None
    if stat.S_ISLNK(found.st_mode):
        return "it is a link"
    return "it is a folder" if stat.S_ISDIR(found.st_mode) else "it is no regular file"


def replace_text(path: Path, text: str, *, mode: int = 0o600, sync: bool = False) -> None:
    """Replace a file in one step, as UTF-8; raises OSError where no regular file lies there."""
    check_regular(path)
    atomic.write_text(path, text, mode=mode, sync=sync)


def remove_socket(path: Path) -> None:
    """Remove a socket; anything else stays. Raises OSError."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            path.unlink()


def free_or_own_path(paths: Iterable[Path], ours: Callable[[Path], bool]) -> Path | None:
    """The first path where nothing lies, or a regular file that `ours` knows as t2i's.

    A folder counts as such: writing there fails, and tells why.
    """
    for path in paths:
        if not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
            return path
        with suppress(OSError):
            check_regular(path)
            if ours(path):
                return path
    return None


def read_beginning(path: Path, size: int) -> bytes:
    """The first `size` bytes of a regular file. Raises OSError."""
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read(size)


def read_json(path: Path) -> object:
    """What a state file says. Raises OSError, or ValueError if it is damaged in any way."""
    data = read_beginning(path, MAX_STATE_BYTES + 1)
    if len(data) > MAX_STATE_BYTES:
        raise ValueError("it is too large")
    return parse_json(data)


def parse_json(data: bytes) -> object:
    """JSON that is nested no deeper than t2i's own. Raises ValueError."""
    try:
        found: object = json.loads(data.decode())
        if data.count(b"{") + data.count(b"[") > _MAX_DEPTH and _is_deep(found):
            raise ValueError("it is nested too deeply")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return found


def _is_deep(found: object) -> bool:
    level = [found]
    for _ in range(_MAX_DEPTH):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def is_text(value: object, longest: int = 4096) -> TypeGuard[str]:
    """Whether it is text of one line, at most so many characters long."""
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        return False
    return value.isprintable() or not any(c < " " or c == "\x7f" for c in value)


def is_count(value: object, most: int = 2**53) -> TypeGuard[int]:
    """Whether it is a number of something: from 0 to `most`."""
    return type(value) is int and 0 <= value <= most


def is_amount(value: object) -> TypeGuard[float]:
    """Whether it is a number from 0 on, and neither infinite nor so large that sums are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value < _MOST
