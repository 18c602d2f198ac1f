"""Sizes of a model folder's weights, from its safetensors headers; no weights are loaded."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from t2i_cli.errors import ModelError
from t2i_cli.files import weight_files
from t2i_cli.models import diffusers_folder, safetensors_header
from t2i_cli.models.safetensors_header import TensorKind

_FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
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
            count * (_FLOAT_BYTES[dtype] if stored in _FLOATS else _STORED_BYTES.get(stored, 1))
            for stored, count in self.elements.items()
        )


def read_weight_headers(
    folder: Path, *, half: bool, skip: frozenset[str] = frozenset()
) -> dict[str, ComponentWeights]:
    """The weights of each network by component name; `half` prefers the fp16 variant.

    `skip` are components to leave out. Raises ModelError if weights are missing, damaged,
    truncated, or pickle files only.
    """
    found = {}
    for component in diffusers_folder.list_components(folder):
        if component.name in skip:
            continue
        if not os.path.isdir(folder / component.name):
            raise ModelError(
                f"The model in {folder} is incomplete: it has no {component.name} folder."
            )
        if component.has_weights:
            found[component.name] = _component_weights(folder / component.name, half=half)
    return found


def find_variant(folder: Path, *, half: bool) -> str | None:
    """diffusers' `variant` argument: "fp16" if `half` prefers it or only it exists, else `None`."""
    name, _ = diffusers_folder.denoiser_config(folder)
    found = weight_files.choose_weights(_names(folder / name), half=half)
    return found.variant if found else None


def _component_weights(folder: Path, *, half: bool) -> ComponentWeights:
    elements: Counter[str] = Counter()
    floats: Counter[TensorKind] = Counter()
    rows: Counter[TensorKind] = Counter()
    largest = 0
    for file in list_weight_files(folder, half=half):
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


def list_weight_files(folder: Path, *, half: bool) -> list[Path]:
    """The safetensors files of a component that the libraries would load, shards included.

    Raises ModelError if there are none.
    """
    names = _names(folder)
    found = weight_files.choose_weights(names, half=half)
    if found and found.whole:
        return [folder / found.whole[0]]
    if found and found.index:
        return _shards(folder / found.index)
    if found:
        raise ModelError(f"The model is incomplete: {folder} has no index of its weight files.")
    if weight_files.has_pickles(names):
        raise ModelError(
            f"The weights in {folder} are pickle files only, which can run code when loaded.",
            hint="t2i loads safetensors; look for a safetensors copy of the model, or convert it.",
        )
    raise ModelError(f"The model is incomplete: {folder} holds no weights.")


def _names(folder: Path) -> list[str]:
    return [path.name for path in diffusers_folder.folder_entries(folder) if os.path.isfile(path)]


def _shards(index: Path) -> list[Path]:
    try:
        found = diffusers_folder.read_json_object(index).get("weight_map")
    except FileNotFoundError:
        found = None
    names = list(found.values()) if isinstance(found, dict) else []
    # diffusers would also load what lies elsewhere.
    if not names or not all(map(weight_files.is_plain_name, names)):
        raise ModelError(f"{index} is damaged: it names no weight files.")
    return [index.parent / name for name in sorted(set(names))]
