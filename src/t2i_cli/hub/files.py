"""Selects the files of a diffusers repository that a pipeline needs.

The rules are those of diffusers' own loader: a folder for each component that model_index.json
names, with its configuration and its weights.
"""

from collections.abc import Container, Iterable, Mapping

from t2i_cli.errors import ModelError
from t2i_cli.files import model_parts, weight_files
from t2i_cli.files.model_parts import MODEL_INDEX as MODEL_INDEX


def config_files(index: Mapping[str, object], files: Iterable[str]) -> list[str]:
    """The configuration files of the pipeline and its components, without weights."""
    files = list(files)
    chosen = [MODEL_INDEX, *_pipeline_code(index, files)]
    for part, names in _part_files(index, files).items():
        chosen += (f"{part}/{name}" for name in model_parts.config_names(names))
    return chosen


def needed_files(
    repo: str,
    index: Mapping[str, object],
    files: Iterable[str],
    dtype: str,
    skip: Container[str] = (),
) -> list[str]:
    """Every file that the pipeline needs; each component's weights are chosen for the dtype.

    `skip` are components whose weights are not needed.
    Raises ModelError if a component has weights that are not safetensors only, or lacks shards.
    """
    files = list(files)
    chosen = config_files(index, files)
    for part, names in _part_files(index, files).items():
        if part not in skip:
            chosen += (f"{part}/{name}" for name in weight_names(repo, part, names, dtype))
    return chosen


def weight_names(repo: str, part: str, names: list[str], dtype: str) -> list[str]:
    """The names of one component's weights. Raises ModelError."""
    found = weight_files.choose_weights(names, dtype)
    if found is None or not (found.whole or found.shards):
        if weight_files.has_pickles(names):
            raise ModelError(
                f"{repo} keeps its {part} as pickle files only, which can run code; "
                "t2i loads safetensors.",
                hint="Look for a revision or a copy of the model with safetensors.",
            )
        return []
    if found.missing:
        raise ModelError(f"{repo} lacks {found.missing} of {found.expected} weight files.")
    return [*found.whole, *found.shards, *([found.index] if found.index else [])]


def _part_files(index: Mapping[str, object], files: Iterable[str]) -> dict[str, list[str]]:
    """The names of the files in each component's folder."""
    found: dict[str, list[str]] = {entry.name: [] for entry in model_parts.present_entries(index)}
    for path in files:
        folder, _, name = path.partition("/")
        if folder in found and name and "/" not in name:
            found[folder].append(name)
    return found


def _pipeline_code(index: Mapping[str, object], files: Iterable[str]) -> list[str]:
    """The root's .py files, for a pipeline with a class of its own."""
    own = model_parts.is_own_code(index)
    return [path for path in files if own and "/" not in path and path.endswith(".py")]
