"""Reads a safetensors file's header and checks it as the safetensors library does, without tensors.

Format: 8 bytes of little-endian length, JSON with each tensor's dtype, shape and place, the data
(https://huggingface.co/docs/safetensors).
"""

import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

from t2i_cli.errors import ModelError, os_reason
from t2i_cli.files.state_files import is_count, open_regular, parse_json
from t2i_cli.terminal.console import console, format_bytes

_MAX_HEADER_BYTES = 100_000_000
"""The largest header that the safetensors library takes."""
_MAX_HEADER_ITEMS = 5_000_000
"""Objects, lists and commas of a header, in metadata too; real files have some ten thousand."""
_DTYPE_BITS = (
    {"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
    | {"I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
    | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
    | dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
)
"""Bits of one element by dtype: the variants of `Dtype` in safetensors 0.8."""
_MAX_DIMENSIONS = 64
"""The most dimensions that PyTorch takes."""
_EMBEDDING = re.compile(
    r"(^|\.)(shared|wte|embed_tokens\w*|\w*_?embedding|relative_attention_bias)\."
)
"""Names of torch.nn.Embedding in the encoders of transformers: T5, and language models."""
_KEPT = re.compile(r"(^|\.)(lm_head|wo)\.|(^|\.)(pos|patch)_embed|^proj_(in|out)\.")
"""Layers that quantisation may leave as they are: ends, and T5's `wo`, which is kept in float32."""


_EMBEDDER = re.compile(
    r"(^|\.)((t|cap|x|context|condition|patch)_embedder|patch_embedding|adaln_(single|proj)"
    r"|latent_image_embedding|img_in|img_emb|final_layer|pooler)\."
)
"""Layers that diffusers' layer-wise casting leaves as they are in some transformers."""

TensorKind = Literal["linear", "modulation", "embedder", "convolution", "embedding", "other"]
"""What a tensor is, as its name and shape tell: the weight of such a layer, or anything else.

`modulation` is a linear layer inside a norm, as the transformers' adaptive norms have it;
`embedder` is one at the network's ends, by which time, texts and images come in and out.
"""


class TensorSizes(NamedTuple):
    """A file's elements and rows by dtype and kind, in numbers, and those of its largest tensor.

    A row is all elements with the same first index.
    """

    elements: Counter[tuple[str, TensorKind]]
    rows: Counter[tuple[str, TensorKind]]
    largest: int


class TensorHeader(NamedTuple):
    """A tensor's shape and dtype, as a weights file's header has them."""

    shape: tuple[int, ...]
    dtype: str


class WeightsHeader(NamedTuple):
    """A weights file's tensors and texts, in the order of the file, and its size in bytes."""

    tensors: dict[str, TensorHeader]
    metadata: dict[str, str]
    size: int


def read_tensor_sizes(file: Path) -> TensorSizes:
    """The sizes of the tensors, from the header. Raises ModelError if it is damaged."""
    header = read_header(file)
    elements: Counter[tuple[str, TensorKind]] = Counter()
    rows: Counter[tuple[str, TensorKind]] = Counter()
    largest = 0
    for name, (shape, dtype) in header.tensors.items():
        kind = tensor_kind(name, len(shape))
        count = math.prod(shape)
        elements[dtype, kind] += count
        rows[dtype, kind] += shape[0] if shape else 1
        largest = max(largest, count)
    console.trace(f"weights in {file}: {format_bytes(header.size)}", once=True)
    return TensorSizes(elements, rows, largest)


def read_header(file: Path) -> WeightsHeader:
    """The header of a safetensors file. Raises ModelError if it is damaged."""
    try:
        with os.fdopen(open_regular(file, os.O_RDONLY, follow_links=True), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = _parse_header(stream.read(length))
        tensors, metadata, data_bytes = _check_tensors(header)
    except FileNotFoundError:
        raise ModelError(f"The model is incomplete: {file} is missing.") from None
    except ValueError as error:
        raise ModelError(f"The weights file {file} is damaged.") from error
    except OSError as error:
        raise ModelError(f"Cannot read {file}: {os_reason(error)}.") from error
    end = 8 + length + data_bytes
    if size < end:
        raise ModelError(
            f"The weights file {file} is truncated: it has {size:,} of {end:,} bytes.",
            hint="Copy or download it again.",
        )
    if size > end:
        raise ModelError(
            f"The weights file {file} is damaged: {size - end:,} bytes belong to no tensor."
        )
    return WeightsHeader(tensors, metadata, size)


def _parse_header(data: bytes) -> object:
    """The header's JSON; raises ValueError, also before it would take gigabytes of memory."""
    if sum(map(data.count, (b"{", b"[", b","))) > _MAX_HEADER_ITEMS:
        raise ValueError("its header has too many items")
    return parse_json(data)


def _check_tensors(header: object) -> tuple[dict[str, TensorHeader], dict[str, str], int]:
    """The tensors, the metadata, and the bytes of data.

    The tensors fill the data without holes or overlaps. Raises ValueError.
    """
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    metadata = _check_metadata(header.pop("__metadata__", None))
    tensors: dict[str, TensorHeader] = {}
    places = []
    for name, tensor in header.items():
        tensors[name], place = _check_tensor(tensor)
        places.append(place)
    end = 0
    for first, last in sorted(places):
        if first != end:
            raise ValueError("tensors overlap, or leave a hole")
        end = last
    return tensors, metadata, end


def tensor_kind(name: str, dimensions: int) -> TensorKind:
    """The kind of a tensor with that name and number of dimensions."""
    if not name.endswith(".weight") or _KEPT.search(name):
        return "other"
    ends = _EMBEDDER.search(name)
    if dimensions != 2:
        return "convolution" if dimensions in {3, 4, 5} and not ends else "other"
    if "norm" in name:
        return "modulation"
    if _EMBEDDING.search(name):
        return "embedding"
    return "embedder" if ends else "linear"


def _check_tensor(tensor: object) -> tuple[TensorHeader, tuple[int, int]]:
    """A tensor's shape and dtype, and its place in the data. Raises ValueError."""
    if not isinstance(tensor, dict):
        raise ValueError("a tensor is no object")
    dtype, shape, place = (tensor.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise ValueError("a tensor has an unknown dtype")
    if not isinstance(shape, list) or not isinstance(place, list) or len(place) != 2:
        raise ValueError("a tensor has no shape, or no place")
    # The product of very many sizes would take hours.
    if len(shape) > _MAX_DIMENSIONS or not all(map(is_count, (*shape, *place))):
        raise ValueError("a tensor's shape or place is no number")
    count = math.prod(shape)
    if not is_count(count) or count * _DTYPE_BITS[dtype] != 8 * (place[1] - place[0]):
        raise ValueError("a tensor's place has another size than its shape")
    return TensorHeader(tuple(shape), dtype), (place[0], place[1])


def _check_metadata(metadata: object) -> dict[str, str]:
    """The metadata; raises ValueError if it is no map of texts."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(t, str) for t in metadata.values()):
        raise ValueError("the metadata is no map of texts")
    return metadata
