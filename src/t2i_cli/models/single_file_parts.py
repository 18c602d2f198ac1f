"""Which tensors of a single file belong to which part of a pipeline, by their names."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

from t2i_cli.models import checkpoint_contents
from t2i_cli.models.checkpoint_file import CheckpointFile, read_checkpoint
from t2i_cli.models.diffusers_folder import DENOISERS
from t2i_cli.models.safetensors_header import TensorKind, tensor_kind
from t2i_cli.models.sources import Part

FACTOR = re.compile(r"(.+)\.(scale_weight|weight_scale)")
"""The factor of a layer's weights in fp8, as ComfyUI writes it."""
_BESIDE_WEIGHTS = re.compile(r"(.+\.)?(scale_input|input_scale|scaled_fp8|comfy_quant)")
"""Factors of activations, which are computed in the model's dtype here, and marks of the format."""


def is_whole(names: Iterable[str]) -> bool:
    """Whether a file names its tensors with their parts, as checkpoints of pipelines do."""
    return any(checkpoint_contents.split_prefix(name)[0] for name in names)


def parts_inside(checkpoint: CheckpointFile, parts: Iterable[Part]) -> list[Part]:
    """Those parts of a pipeline that a checkpoint holds tensors of."""
    names = list(checkpoint.tensors)
    return [part for part in parts if part.has_weights and tensor_names(part, names, whole=True)]


def tensor_names(part: Part, names: Iterable[str], *, whole: bool) -> dict[str, str]:
    """The names of a part's tensors without its prefix, by their names in the file.

    Of a file that is the part alone, not `whole`, all are the part's. Other tensors of a checkpoint
    (moving averages, a sampler's tables) are no part's.
    """
    if not whole:
        return {name: name for name in names}
    group = _group(part)
    found = {}
    for name in names:
        prefix, owner = checkpoint_contents.split_prefix(name)
        if owner == group:
            found[name] = name[len(prefix) :]
    return found


def part_tensors(part: Part) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """The names, shapes and dtypes of a part's tensors in its file. Raises ModelError."""
    if part.file is None:
        return
    tensors = read_checkpoint(part.file.path).tensors
    for name, own in tensor_names(part, tensors, whole=part.file.whole).items():
        if not is_beside_weights(name):
            yield own, *tensors[name]


def is_beside_weights(name: str) -> bool:
    """Whether a tensor says how others are scaled, and is none of a network's own."""
    return bool(FACTOR.fullmatch(name) or _BESIDE_WEIGHTS.fullmatch(name))


def _group(part: Part) -> str:
    """What `checkpoint_contents.split_prefix` calls the part's tensors."""
    if part.name in DENOISERS:
        return "denoiser"
    return "t5" if part.cls == "T5EncoderModel" else part.name


class ElementCounts(NamedTuple):
    """A part's elements by dtype, its floats and their rows by kind, its largest tensor's."""

    elements: Counter[str]
    floats: Counter[TensorKind]
    rows: Counter[TensorKind]
    largest: int


def count_elements(part: Part) -> ElementCounts:
    """The numbers of a part's elements in its file. Raises ModelError."""
    elements: Counter[str] = Counter()
    floats: Counter[TensorKind] = Counter()
    rows: Counter[TensorKind] = Counter()
    largest = 0
    for name, shape, dtype in part_tensors(part):
        kind, count = tensor_kind(name, len(shape)), prod(shape)
        elements[dtype] += count
        floats[kind] += count
        rows[kind] += shape[0] if shape else 1
        largest = max(largest, count)
    return ElementCounts(elements, floats, rows, largest)


def is_gguf(path: Path) -> bool:
    """Whether a file is in GGUF's format, by its name's end."""
    return path.suffix.lower() == ".gguf"
