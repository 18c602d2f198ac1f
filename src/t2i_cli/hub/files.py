"""Which files of a diffusers repository a pipeline needs.

The rules are those of diffusers' own loader: a folder for each component that model_index.json
names, weights called `model` (transformers) or `diffusion_pytorch_model` (diffusers), whole or in
shards, with the variant before or after the shard's number.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from t2i_cli.errors import ModelError

MODEL_INDEX = "model_index.json"

_WEIGHTS = re.compile(
    r"(model|diffusion_pytorch_model)"
    r"(\.(?P<before>\w+))?(-\d{5}-of-\d{5})?(\.(?P<after>\w+))?\.safetensors"
)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")
_FULL = [(None, None)]
_HALF = [("fp16", None), (None, "fp16")]
"""The variant before the shard's number, and after it, as older repositories have it."""
_SHARD_INDEX = re.compile(
    r"(model|diffusion_pytorch_model)\.safetensors(\.(?P<before>\w+))?\.index(\.(?P<after>\w+))?\.json"
)
_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
_CONFIGS = {".json", ".txt", ".model", ".tiktoken", ".jinja", ".py"}


def config_files(index: Mapping[str, object], files: Iterable[str]) -> list[str]:
    """The files that describe the pipeline and its components, weights aside."""
    return [MODEL_INDEX, *(path for path in _inside(index, files) if _is_config(path))]


def needed_files(
    repo: str, index: Mapping[str, object], files: Iterable[str], half: bool
) -> list[str]:
    """Every file that the pipeline needs, with the fp16 weights preferred if `half`.

    Raises ModelError if a component has weights that are not safetensors only, or lacks shards.
    """
    components: dict[str, list[str]] = {}
    for path in _inside(index, files):
        components.setdefault(path.split("/")[0], []).append(path)
    chosen = [MODEL_INDEX]
    for component, paths in components.items():
        chosen += (path for path in paths if _is_config(path))
        chosen += _weights(repo, component, paths, half)
    return chosen


def _weights(repo: str, component: str, paths: list[str], half: bool) -> list[str]:
    """One component's weights: of the wanted variant, or else of the other one."""
    named = {path: match for path in paths if (match := _WEIGHTS.fullmatch(_name(path)))}
    for variant in (_HALF, _FULL) if half else (_FULL, _HALF):
        for before, after in variant:
            weights = [p for p, m in named.items() if (m["before"], m["after"]) == (before, after)]
            if weights:
                return _whole(repo, weights, paths, before or after)
    if any(PurePosixPath(path).suffix in _PICKLES for path in paths):
        raise ModelError(
            f"{repo} keeps its {component} as pickle files only, which can run code; "
            "t2i loads safetensors.",
            hint="Look for a revision or a copy of the model with safetensors.",
        )
    return []


def _whole(repo: str, weights: list[str], paths: list[str], variant: str | None) -> list[str]:
    """One set of weights: a single file where there is one, else its shards and their index."""
    shards = {path: match[1] for path in weights if (match := _SHARD.search(path))}
    if single := [path for path in weights if path not in shards]:
        return single
    expected = int(next(iter(shards.values())))
    if len(weights) < expected:
        raise ModelError(f"{repo} lacks {expected - len(weights)} of {expected} weight files.")
    return weights + [
        path
        for path in paths
        if (match := _SHARD_INDEX.fullmatch(_name(path)))
        and (match["before"] or match["after"]) == variant
    ]


def _inside(index: Mapping[str, object], files: Iterable[str]) -> Iterator[str]:
    """The files in components' folders, and the root's code where the pipeline has its own."""
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
    return PurePosixPath(path).suffix in _CONFIGS and not _SHARD_INDEX.fullmatch(_name(path))


def _name(path: str) -> str:
    return PurePosixPath(path).name
