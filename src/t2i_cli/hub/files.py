"""Selects the files of a diffusers repository that a pipeline needs.

The rules are those of diffusers' own loader: a folder for each component that model_index.json
names, with its configuration and its weights.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from t2i_cli.errors import ModelError
from t2i_cli.files import weight_files

MODEL_INDEX = "model_index.json"

_CONFIGS = {".json", ".txt", ".model", ".tiktoken", ".jinja", ".py"}


def config_files(index: Mapping[str, object], files: Iterable[str]) -> list[str]:
    """The configuration files of the pipeline and its components, without weights."""
    return [MODEL_INDEX, *(path for path in _component_files(index, files) if _is_config(path))]


def needed_files(
    repo: str, index: Mapping[str, object], files: Iterable[str], half: bool
) -> list[str]:
    """Every file that the pipeline needs; prefers fp16 weights if `half`.

    Raises ModelError if a component has weights that are not safetensors only, or lacks shards.
    """
    components: dict[str, list[str]] = {}
    for path in _component_files(index, files):
        components.setdefault(path.split("/")[0], []).append(path)
    chosen = [MODEL_INDEX]
    for component, paths in components.items():
        chosen += (path for path in paths if _is_config(path))
        chosen += _weights(repo, component, paths, half)
    return chosen


def _weights(repo: str, component: str, paths: list[str], half: bool) -> list[str]:
    """One component's weights: of the wanted variant, or else of the other one."""
    names = {_basename(path): path for path in paths}
    found = weight_files.choose_weights(names, half=half)
    if found is None or not (found.whole or found.shards):
        if weight_files.has_pickles(names):
            raise ModelError(
                f"{repo} keeps its {component} as pickle files only, which can run code; "
                "t2i loads safetensors.",
                hint="Look for a revision or a copy of the model with safetensors.",
            )
        return []
    if found.missing:
        raise ModelError(f"{repo} lacks {found.missing} of {found.expected} weight files.")
    index = [found.index] if found.index else []
    return [names[name] for name in (*found.whole, *found.shards, *index)]


def _component_files(index: Mapping[str, object], files: Iterable[str]) -> Iterator[str]:
    """The files in components' folders, and the root's .py files for a custom pipeline."""
    components = {
        name for name, value in index.items() if isinstance(value, list) and any(value)
    } - {"_class_name"}
    own_code = isinstance(index.get("_class_name"), list)
    for path in files:
        folder, _, name = path.partition("/")
        if (folder in components and name and "/" not in name) or (
            own_code and not name and path.endswith(".py")
        ):
            yield path


def _is_config(path: str) -> bool:
    return PurePosixPath(path).suffix in _CONFIGS and not weight_files.is_index(_basename(path))


def _basename(path: str) -> str:
    return PurePosixPath(path).name
