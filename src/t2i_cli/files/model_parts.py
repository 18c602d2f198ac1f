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


_NAME_WHOLE = "Name the model it belongs to."


def other_content(names: Iterable[str], config: Mapping[str, object]) -> tuple[str, str] | None:
    """What a folder or repository without model_index.json has, and a hint; `None` if unknown.

    `names` are the files at its root, and `config` is the content of its config.json.
    """
    names = sorted(names)
    ends = {PurePosixPath(name).suffix for name in names}
    single = next((n for n in names if n.endswith((".safetensors", ".ckpt", ".gguf"))), None)
    cls, kinds = config.get("_class_name"), config.get("architectures")
    if "modular_model_index.json" in names:
        return (
            "is a modular model (modular_model_index.json), which t2i does not run",
            "Look for a copy of the model with a model_index.json.",
        )
    if "adapter_config.json" in names or any("lora" in name.lower() for name in names):
        return (
            "holds a LoRA, which changes a model and is none",
            "Name the model it was made for, and this by --lora.",
        )
    if isinstance(cls, str):
        if "ControlNet" in cls:
            return f"holds a ControlNet ({cls:.80}) and no whole model", _NAME_WHOLE
        hint = f"{_NAME_WHOLE[:-1]}, and this by --vae, --text-encoder or --transformer."
        return f"holds one part of a model ({cls:.80}) and no whole model", hint
    if isinstance(kinds, list) and kinds or "model_type" in config:
        kind = kinds[0] if isinstance(kinds, list) and kinds else config["model_type"]
        return (
            f"holds a model of transformers ({kind!s:.80}), which makes no images by diffusers",
            "`t2i models list` shows models that do.",
        )
    if ".gguf" in ends and not ends & {".safetensors", ".ckpt"}:
        return (
            f"holds weights in GGUF files only ({single})",
            f"Name a file itself, after a slash: `-m …/{single}`.",
        )
    if single and not ends & {".safetensors", ".gguf"}:
        return (
            f"holds pickles only ({single}), which can run code when they are loaded",
            "`t2i models convert FILE` makes a safetensors file of one, which -m takes.",
        )
    if single:
        return (
            f"holds single files of weights ({single}), and no folder for each part",
            f"Name a file itself, after a slash: `-m …/{single}`.",
        )
    return None
