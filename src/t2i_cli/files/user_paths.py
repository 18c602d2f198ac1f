"""Paths that a user names: `~` is expanded, and only what can be read at once is opened.

Nothing here raises for a path that cannot be examined: another user's folder, a loop of links, a
name that is too long. Opening it then fails with an error that says why.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from t2i_cli.errors import InputError
from t2i_cli.files.state_files import open_regular

_INHERITED = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")
"""Paths of open files that a shell passes on, as with `<(command)`: pipes that have a writer."""


def expand_home(path: str) -> str:
    """The path with a leading `~` or `~user` expanded; unchanged if there is no such home."""
    try:
        return os.path.expanduser(path)
    except ValueError:  # a null byte
        return path


def expand_option(path: str) -> str:
    """`expand_home` for a path of the command line; raises InputError if there is no such home."""
    expanded = expand_home(path)
    home, separator, _ = expanded.partition("/")
    if separator and home.startswith("~") and not os.path.lexists(home):
        raise InputError(
            f"There is no home folder {home}.", hint=f"./{home}/ is a folder of that name."
        )
    return expanded


def open_user_file(path: str | Path) -> BinaryIO:
    """Open a regular file, through links, or a pipe that the shell passes on. Raises OSError.

    Other pipes, devices and folders are refused before they are opened: a pipe without a writer
    would never answer.
    """
    if str(path).startswith(_INHERITED) and _is_pipe(path):
        return open(path, "rb")
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return os.fdopen(open_regular(Path(path), os.O_RDONLY, follow_links=True), "rb")


def _is_pipe(path: str | Path) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False
