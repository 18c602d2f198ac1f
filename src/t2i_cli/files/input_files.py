"""Opens the files that a user names: regular files only, so that no read waits or never ends."""

import os
from io import BufferedReader
from pathlib import Path

from t2i_cli.files.state_files import open_regular


def open_input(path: Path) -> BufferedReader:
    """Open a regular file for reading, also through a link.

    Raises OSError, at once also for a folder, pipe, socket or device.
    """
    return os.fdopen(open_regular(path, os.O_RDONLY, follow_links=True), "rb")


def read_input(path: Path, most: int) -> bytes:
    """Read a regular file, also through a link. Raises OSError, ValueError if it has more bytes."""
    with open_input(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError("it is too large")
    return data
