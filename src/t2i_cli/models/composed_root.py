"""Where the folders lie that `composition.py` puts together: in the user's cache."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

from t2i_cli.files.user_folders import NoHomeError, user_folder

COMPOSITION = "composition.json"
"""The file of such a folder that says what its base is, and which parts are in single files."""


def composed_root() -> Path:
    """The folder of all of them, which may not exist yet."""
    try:
        return user_folder("cache") / "composed"
    except NoHomeError:
        return _temporary_root()


def is_composed(folder: Path) -> bool:
    """Whether a model's folder was put together here: others' files of that name mean nothing."""
    return folder.parent == composed_root()


@cache
def _temporary_root() -> Path:
    """A folder for as long as the process runs: of a user without a home directory."""
    import atexit

    made = Path(tempfile.mkdtemp(prefix="t2i-models-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
