"""Which tensors of a single file belong to which part of a pipeline, by their names."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

from t2i_cli.models.checkpoint_file import CheckpointFile, read_checkpoint
from t2i_cli.models.diffusers_folder import DENOISERS
from t2i_cli.models.safetensors_header import TensorKind, tensor_kind
from t2i_cli.models.sources import Part

_PREFIXES = {
    "denoiser": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
    "T5EncoderModel": ("text_encoders.t5xxl.",),
}
"""The beginnings of names, as diffusers/loaders/single_file_utils.py reads them, by part or class.

Other tensors (moving averages, a sampler's tables) are not used.
"""
FACTOR = re.compile(r"(.+)\.(scale_weight|weight_scale)")
"""The factor of a layer's weights in fp8, as ComfyUI writes it."""
_BESIDE_WEIGHTS = re.compile(r"(.+\.)?(scale_input|input_scale|scaled_fp8|comfy_quant)")
"""Factors of activations, which are computed in the model's dtype here, and marks of the format."""
_ALL_PREFIXES = tuple(each for prefixes in _PREFIXES.values() for each in prefixes)


def is_whole(names: Iterable[str]) -> bool:
    """Whether a file names its tensors with their parts, as checkpoints of pipelines do."""
    return any(name.startswith(_ALL_PREFIXES) for name in names)


def parts_inside(checkpoint: CheckpointFile, parts: Iterable[Part]) -> list[Part]:
    """Those parts of a pipeline that a checkpoint holds tensors of."""
    names = list(checkpoint.tensors)
    return [
        part
        for part in parts
        if part.has_weights
        and (prefixes := _part_prefixes(part))
        and any(name.startswith(prefixes) for name in names)
    ]


def part_tensors(part: Part) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """The names, shapes and dtypes of a part's tensors in its file. Raises ModelError."""
    if part.file is None:
        return
    prefixes = _part_prefixes(part) if part.file.whole else ("",)
    for name, (shape, dtype) in read_checkpoint(part.file.path).tensors.items():
        if name.startswith(prefixes) and not is_beside_weights(name):
            yield name, shape, dtype


def is_beside_weights(name: str) -> bool:
    """Whether a tensor says how others are scaled, and is none of a network's own."""
    return bool(FACTOR.fullmatch(name) or _BESIDE_WEIGHTS.fullmatch(name))


def _part_prefixes(part: Part) -> tuple[str, ...]:
    name = "denoiser" if part.name in DENOISERS else part.name
    return _PREFIXES.get(part.cls) or _PREFIXES.get(name, ())


def count_elements(part: Part) -> tuple[Counter[str], Counter[TensorKind], Counter[TensorKind]]:
    """The part's elements by dtype, its floats and their rows by kind. Raises ModelError."""
    elements: Counter[str] = Counter()
    floats: Counter[TensorKind] = Counter()
    rows: Counter[TensorKind] = Counter()
    for name, shape, dtype in part_tensors(part):
        kind, count = tensor_kind(name, len(shape)), prod(shape)
        elements[dtype] += count
        floats[kind] += count
        rows[kind] += shape[0] if shape else 1
    return elements, floats, rows


def largest_tensor(part: Part) -> int:
    """The elements of the part's largest tensor. Raises ModelError."""
    return max((prod(shape) for _, shape, _ in part_tensors(part)), default=0)


def is_gguf(path: Path) -> bool:
    """Whether a file is in GGUF's format, by its name's end."""
    return path.suffix.lower() == ".gguf"
