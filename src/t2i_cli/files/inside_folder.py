"""Files inside a folder, by their path relative to it: no link below the folder is followed."""

import errno
import os
import stat
from pathlib import Path, PurePosixPath

from t2i_cli.files.state_files import open_regular


def check_parents(folder: Path, file: str) -> None:
    """Raise OSError if a folder between `folder` and `file` is a link, or no folder.

    `file` is relative, with `/`. Parents that do not exist are no error.
    """
    for parent in reversed(PurePosixPath(file).parents[:-1]):
        path = folder / parent
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            reason = "it is a link" if stat.S_ISLNK(mode) else "it is no folder"
            raise OSError(errno.ENOTDIR, reason, str(path))


def stat_inside(folder: Path, file: str) -> os.stat_result:
    """The status of a regular file inside the folder; raises OSError for anything else."""
    if "/" in file:
        check_parents(folder, file)
    status = os.lstat(os.path.join(folder, file))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", os.path.join(folder, file))
    return status


def open_inside(folder: Path, file: str) -> int:
    """Open a regular file inside the folder for reading; returns its descriptor. Raises OSError."""
    check_parents(folder, file)
    return open_regular(folder / file, os.O_RDONLY)
