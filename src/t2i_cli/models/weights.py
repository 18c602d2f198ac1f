"""Sizes of a model folder's weights, from its safetensors headers; no weights are loaded."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from t2i_cli.models import (
    safetensors_header,
    saved_quantization,
    single_file_parts,
    sources,
)
from t2i_cli.models.safetensors_header import TensorKind
from t2i_cli.models.sources import Part

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a number in each dtype that a model is computed in."""
_STORED_BYTES = {"F64": 8, "I64": 8, "I32": 4, "I16": 2}
_FLOATS = {"F32", "F16", "BF16"}
_FP8 = {"F8_E4M3", "F8_E5M2"}
"""Floats that a model is computed in only where its config says how; else they are cast."""
_PACKED = "U8"
"""The dtype that GGUF's blocks have in memory, where they stay as they are in the file."""


@dataclass(frozen=True, kw_only=True)
class ComponentWeights:
    """One component's number of tensor elements by stored dtype (safetensors' names: "F16").

    `floats` has those of its float tensors by kind, `rows` their rows; `largest` is that of its
    largest tensor.
    """

    elements: dict[str, int]
    floats: Mapping[TensorKind, int] = field(default_factory=dict)
    rows: Mapping[TensorKind, int] = field(default_factory=dict)
    largest: int = 0

    def size(self, dtype: str) -> int:
        """Bytes in memory with floats cast to `dtype`; quantised weights keep their size."""
        return sum(
            count * (DTYPE_BYTES[dtype] if stored in _FLOATS else _STORED_BYTES.get(stored, 1))
            for stored, count in self.elements.items()
        )


def read_weight_headers(
    folder: Path, dtype: str, *, skip: frozenset[str] = frozenset()
) -> dict[str, ComponentWeights]:
    """The weights of each network by component name, of the variants that are loaded for a dtype.

    `skip` are components to leave out. Raises ModelError if weights are missing, damaged,
    truncated, or pickle files only.
    """
    return {
        part.name: _single_file_weights(part)
        if part.file
        else _component_weights(
            part.weight_paths(dtype), cast=saved_quantization.saved_method(part) is None
        )
        for part in sources.networks(folder, skip)
    }


def _single_file_weights(part: Part) -> ComponentWeights:
    """The weights that diffusers makes of a single file's tensors. Raises ModelError."""
    elements, floats, rows, largest = single_file_parts.count_elements(part)
    if saved_quantization.saved_method(part):
        if part.library != "diffusers":  # its blocks are computed to numbers of the run's dtype
            return ComponentWeights(elements={"F16": sum(elements.values())}, largest=largest)
        return ComponentWeights(elements={_PACKED: _file_bytes(part)}, largest=largest)
    return ComponentWeights(
        elements=_cast_fp8(elements), floats=dict(floats), rows=dict(rows), largest=largest
    )


def _file_bytes(part: Part) -> int:
    return part.file.path.stat().st_size if part.file else 0


def _cast_fp8(elements: Mapping[str, int]) -> dict[str, int]:
    """The elements by dtype, with those in fp8 as ones that are cast when they are loaded."""
    found: Counter[str] = Counter()
    for dtype, count in elements.items():
        found["F16" if dtype in _FP8 else dtype] += count
    return dict(found)


def _component_weights(files: Iterable[Path], *, cast: bool) -> ComponentWeights:
    elements: Counter[str] = Counter()
    floats: Counter[TensorKind] = Counter()
    rows: Counter[TensorKind] = Counter()
    largest = 0
    for file in files:
        found = safetensors_header.read_tensor_sizes(file)
        largest = max(largest, found.largest)
        for (dtype, kind), count in found.elements.items():
            elements[dtype] += count
            if dtype in _FLOATS or (cast and dtype in _FP8):
                floats[kind] += count
                rows[kind] += found.rows[dtype, kind]
    return ComponentWeights(
        elements=_cast_fp8(elements) if cast else dict(elements),
        floats=dict(floats),
        rows=dict(rows),
        largest=largest,
    )
