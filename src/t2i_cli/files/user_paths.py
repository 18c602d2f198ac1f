"""Paths that a user names: `~` is expanded.

Nothing here raises for a path that cannot be examined: another user's folder, a loop of links, a
name that is too long. Opening it then fails with an error that says why.
"""

import os

from t2i_cli.errors import InputError


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
