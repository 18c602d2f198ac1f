"""Opens the files that a user names: regular files only, so that no read waits or never ends."""

import os
import stat
from io import BufferedReader
from pathlib import Path

from t2i_cli.files.state_files import open_regular

_INHERITED = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")
"""Paths of open files that a shell passes on, as with `<(command)`: pipes that have a writer."""


def open_input(path: str | Path) -> BufferedReader:
    """Open a regular file for reading, also through a link, or a pipe that the shell passes on.

    Raises OSError, at once also for a folder, socket, device or another pipe: one without a writer
    would never answer.
    """
    if str(path).startswith(_INHERITED) and _is_pipe(path):
        return open(path, "rb")
    return os.fdopen(open_regular(Path(path), os.O_RDONLY, follow_links=True), "rb")


def _is_pipe(path: str | Path) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


def read_input(path: str | Path, most: int) -> bytes:
    """Read a regular file, also through a link. Raises OSError, ValueError if it has more bytes."""
    with open_input(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError("it is too large")
    return data
