"""Which names of models are files of weights, and where these files lie."""

import os
import stat
from pathlib import Path

from t2i_cli.errors import ModelError, os_reason
from t2i_cli.files.user_paths import expand_home
from t2i_cli.models.checkpoint_file import FILE_SUFFIXES


def file_named(name: str) -> Path | None:
    """The file that a name is the path of, `None` if there is none; `~` is expanded.

    Raises ModelError for something else than a regular file at the path of a weight file.
    """
    path = Path(expand_home(name))
    try:
        mode = os.stat(path).st_mode
    except (ValueError, FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if not names_weights(name):
            return None  # the name may be another thing than a path
        raise ModelError(f"Cannot read the model file {name}: {os_reason(error)}.") from error
    if stat.S_ISDIR(mode):
        return None
    if stat.S_ISREG(mode):
        return path
    raise ModelError(f"{name} is no regular file, so it is no model.")


def names_weights(name: str) -> bool:
    """Whether a name ends as files of weights do."""
    return name.lower().endswith(FILE_SUFFIXES)


def is_model_file(name: str) -> bool:
    """Whether a model name means a file, which may be missing."""
    try:
        return file_named(name) is not None
    except ModelError:
        return True
