"""Sizes of a model folder's weights, from its safetensors headers; no weights are loaded."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from t2i_cli.models import safetensors_header, sources
from t2i_cli.models.safetensors_header import TensorKind

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a number in each dtype that a model is computed in."""
_STORED_BYTES = {"F64": 8, "I64": 8, "I32": 4, "I16": 2}
_FLOATS = {"F32", "F16", "BF16"}


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
        part.name: _component_weights(part.weight_paths(dtype))
        for part in sources.networks(folder, skip)
    }


def _component_weights(files: Iterable[Path]) -> ComponentWeights:
    elements: Counter[str] = Counter()
    floats: Counter[TensorKind] = Counter()
    rows: Counter[TensorKind] = Counter()
    largest = 0
    for file in files:
        found = safetensors_header.read_tensor_sizes(file)
        largest = max(largest, found.largest)
        for (dtype, kind), count in found.elements.items():
            elements[dtype] += count
            if dtype in _FLOATS:
                floats[kind] += count
                rows[kind] += found.rows[dtype, kind]
    return ComponentWeights(
        elements=dict(elements), floats=dict(floats), rows=dict(rows), largest=largest
    )
