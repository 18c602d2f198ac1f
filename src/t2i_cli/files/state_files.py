"""t2i's own state files: read without following links, validated, and replaced atomically.

A file's name proves nothing: whoever can write to the folder can put anything there. Uses the
standard library only, because the worker's client reads its state file with it and starts fast.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeGuard

from t2i_cli.files import atomic

MAX_STATE_BYTES = 2**20
"""Maximum bytes of a state file; t2i's own take a few thousand."""
_MAX_DEPTH = 32
"""Maximum nesting depth of JSON; t2i's own files have five levels."""
_MAX_AMOUNT = 1e15
_OPEN_FLAGS = sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)
"""Flags of every open; without O_NONBLOCK, opening a named pipe blocks until a peer opens it."""


def open_regular(path: Path, flags: int, mode: int = 0o666, *, follow_links: bool = False) -> int:
    """Open a regular file and return its descriptor; a link is followed only if asked to.

    `flags` must not contain O_TRUNC. Raises OSError, also for a link, folder, pipe, socket or
    device, which is left as it is.
    """
    # Checked before opening as well: opening a device can have side effects.
    check_regular(path, follow_links=follow_links)
    if follow_links:
        flags |= _OPEN_FLAGS & ~getattr(os, "O_NOFOLLOW", 0)
    else:
        flags |= _OPEN_FLAGS
    descriptor = os.open(path, flags, mode)
    if reason := _irregularity(os.fstat(descriptor)):
        os.close(descriptor)
        raise OSError(errno.EINVAL, reason, str(path))
    return descriptor


def check_regular(path: Path, *, follow_links: bool = False) -> None:
    """Raise OSError if the path exists and is not a regular file."""
    with suppress(FileNotFoundError):
        if reason := _irregularity(os.stat(path, follow_symlinks=follow_links)):
            raise OSError(errno.EINVAL, reason, str(path))


def _irregularity(status: os.stat_result) -> str | None:
    """Why a file is not a regular one, or `None` if it is."""
    if stat.S_ISREG(status.st_mode):
        return None
    if stat.S_ISLNK(status.st_mode):
        return "it is a link"
    return "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no regular file"


def replace_text(path: Path, text: str, *, mode: int = 0o600, sync: bool = False) -> None:
    """Replace a file atomically with UTF-8 text; raises OSError if it is not a regular file."""
    check_regular(path)
    atomic.write_text(path, text, mode=mode, sync=sync)


def remove_socket(path: Path) -> None:
    """Remove the path if it is a socket, and nothing else. Raises OSError."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            path.unlink()


def free_or_own_path(paths: Iterable[Path], is_ours: Callable[[Path], bool]) -> Path | None:
    """The first path that does not exist or is a regular file that `is_ours` accepts."""
    for path in paths:
        if not os.path.lexists(path):
            return path
        with suppress(OSError):
            check_regular(path)
            if is_ours(path):
                return path
    return None


def read_beginning(path: Path, size: int) -> bytes:
    """The first `size` bytes of a regular file. Raises OSError."""
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read(size)


def read_json(path: Path) -> object:
    """Read and parse a state file. Raises OSError, or ValueError if it is too large or no JSON."""
    data = read_beginning(path, MAX_STATE_BYTES + 1)
    if len(data) > MAX_STATE_BYTES:
        raise ValueError("it is too large")
    return parse_json(data)


def parse_json(data: bytes, *, deepest: int = _MAX_DEPTH, finite: bool = False) -> object:
    """Parse JSON; raises ValueError if it is malformed, or nested deeper than `deepest`.

    With `finite`, numbers that JSON does not have (NaN, Infinity, 1e999) become text.
    """
    constant, number = (str, _finite_number) if finite else (None, None)
    try:
        parsed: object = json.loads(
            data.decode("utf-8-sig"), parse_constant=constant, parse_float=number
        )
        if data.count(b"{") + data.count(b"[") > deepest and _is_deep(parsed, deepest):
            raise ValueError("it is nested too deeply")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return parsed


def _finite_number(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def _is_deep(root: object, deepest: int) -> bool:
    level = [root]
    for _ in range(deepest):
        level = [child for value in level for child in _children(value)]
        if not level:
            return False
    return True


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def is_text(value: object, longest: int = 4096) -> TypeGuard[str]:
    """Whether the value is one line of text of 1 to `longest` characters."""
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        return False
    return value.isprintable() or not any(c < " " or "\x7f" <= c <= "\x9f" for c in value)


def is_unicode_text(value: object, longest: int = 4096) -> TypeGuard[str]:
    """Whether it is such text without lone surrogates, which no file and no header can hold."""
    return is_text(value, longest) and not any("\ud800" <= c <= "\udfff" for c in value)


def is_count(value: object, most: int = 2**53) -> TypeGuard[int]:
    """Whether the value is an integer from 0 to `most`."""
    return type(value) is int and 0 <= value <= most


def is_amount(value: object) -> TypeGuard[float]:
    """Whether the value is a finite number from 0 to below 1e15, so that sums stay finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value < _MAX_AMOUNT
