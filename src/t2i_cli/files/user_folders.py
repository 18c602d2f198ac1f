"""The user's folders for settings, caches and state, by the system's conventions."""

from pathlib import Path
from typing import Literal

from t2i_cli.errors import StorageError


class NoHomeError(StorageError):
    """The user has no home directory: HOME is not set, and the system knows of none."""


def user_folder(kind: Literal["config", "cache", "state"]) -> Path:
    """t2i's folder of that kind, which may not exist yet. Raises NoHomeError."""
    import platformdirs

    find = {
        "config": platformdirs.user_config_path,
        "cache": platformdirs.user_cache_path,
        "state": platformdirs.user_state_path,
    }[kind]
    try:
        return find("t2i", appauthor=False)
    except RuntimeError as error:
        raise NoHomeError(
            "You have no home directory.", hint="HOME or T2I_CONFIG names a place to keep files."
        ) from error
