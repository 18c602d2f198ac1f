"""Which parts a model_index.json names, and which files of a part's folder describe or fill it.

Of a local folder and of a repository's list of files alike: `models/sources.py` asks for the one,
`hub/files.py` for the other.
"""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from t2i_cli.files import weight_files

MODEL_INDEX = "model_index.json"

_CONFIGS = {".json", ".txt", ".model", ".tiktoken", ".jinja", ".py"}


class PartEntry(NamedTuple):
    """One entry of a model_index.json: a part's name, and its class with the class's library.

    Library and class are whatever the file has: nothing of it is checked here.
    """

    name: str
    library: str
    cls: str


def present_entries(index: Mapping[str, object]) -> list[PartEntry]:
    """The parts that the model contains."""
    return [entry for entry in _entries(index) if entry.library is not None]


def absent_names(index: Mapping[str, object]) -> list[str]:
    """The names of optional parts of the pipeline that the model does not contain."""
    return [entry.name for entry in _entries(index) if entry.library is None]


def _entries(index: Mapping[str, object]) -> list[PartEntry]:
    return [
        PartEntry(name, *value)
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2
    ]


def is_own_code(index: Mapping[str, object]) -> bool:
    """Whether the pipeline's class is in a Python file of the model."""
    return isinstance(index.get("_class_name"), list)


def config_names(names: Iterable[str]) -> list[str]:
    """Those of a part's files that describe it: configs, vocabularies, code."""
    return [
        name
        for name in names
        if PurePosixPath(name).suffix in _CONFIGS and not weight_files.is_index(name)
    ]
