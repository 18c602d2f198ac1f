"""Reads a GGUF file's header without its tensors, with bounds on all that it counts.

Format: magic, version, counts, key-value pairs, tensor infos, the data
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). The gguf package reads it, too, but
trusts every count (a list of 2**60 items is a loop of as many), and comes with an extra only.
"""

import math
import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from t2i_cli.errors import ModelError, os_reason
from t2i_cli.files.state_files import open_regular
from t2i_cli.models.safetensors_header import TensorHeader, WeightsHeader

GGUF_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_HEADER_BYTES = 100_000_000
_MAX_ITEMS = 2_000_000
"""Pairs, items of lists and tensors in a header; a tokenizer's lists have some 100,000."""
_MAX_DIMENSIONS = 8
_MAX_TEXT = 65_536
"""Bytes of a kept text; longer ones, as chat templates are, are left out."""
_MAX_LIST_DEPTH = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"} | {
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _LIST = 8, 9
_ALIGNMENT_KEY = "general.alignment"
_SHAPE_KEY = "comfy.gguf.orig_shape."
"""Of a tensor that ComfyUI-GGUF's converter flattened for quantisation: its own shape."""


class _Encoding(NamedTuple):
    """How a tensor is stored: elements and bytes of a block."""

    name: str
    elements: int
    bytes: int


TENSOR_ENCODINGS = {
    0: _Encoding("F32", 1, 4),
    1: _Encoding("F16", 1, 2),
    2: _Encoding("Q4_0", 32, 18),
    3: _Encoding("Q4_1", 32, 20),
    6: _Encoding("Q5_0", 32, 22),
    7: _Encoding("Q5_1", 32, 24),
    8: _Encoding("Q8_0", 32, 34),
    9: _Encoding("Q8_1", 32, 40),
    10: _Encoding("Q2_K", 256, 84),
    11: _Encoding("Q3_K", 256, 110),
    12: _Encoding("Q4_K", 256, 144),
    13: _Encoding("Q5_K", 256, 176),
    14: _Encoding("Q6_K", 256, 210),
    15: _Encoding("Q8_K", 256, 292),
    16: _Encoding("IQ2_XXS", 256, 66),
    17: _Encoding("IQ2_XS", 256, 74),
    18: _Encoding("IQ3_XXS", 256, 98),
    19: _Encoding("IQ1_S", 256, 50),
    20: _Encoding("IQ4_NL", 32, 18),
    21: _Encoding("IQ3_S", 256, 110),
    22: _Encoding("IQ2_S", 256, 82),
    23: _Encoding("IQ4_XS", 256, 136),
    24: _Encoding("I8", 1, 1),
    25: _Encoding("I16", 1, 2),
    26: _Encoding("I32", 1, 4),
    27: _Encoding("I64", 1, 8),
    28: _Encoding("F64", 1, 8),
    29: _Encoding("IQ1_M", 256, 56),
    30: _Encoding("BF16", 1, 2),
    34: _Encoding("TQ1_0", 256, 54),
    35: _Encoding("TQ2_0", 256, 66),
    39: _Encoding("MXFP4", 32, 17),
    40: _Encoding("NVFP4", 64, 36),
    41: _Encoding("Q1_0", 128, 18),
}
"""By number: GGMLQuantizationType and GGML_QUANT_SIZES of gguf 0.19's constants."""


class _TensorPlace(NamedTuple):
    """A tensor as the header has it: its sizes from the innermost, and its place in the data."""

    name: str
    sizes: tuple[int, ...]
    encoding: _Encoding
    offset: int


def read_gguf_header(file: Path) -> WeightsHeader:
    """The header of a GGUF file. Raises ModelError if it is damaged, or of another version."""
    try:
        with os.fdopen(open_regular(file, os.O_RDONLY, follow_links=True), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            reader = _HeaderReader(stream, min(size, _MAX_HEADER_BYTES))
            if reader.take(4) != GGUF_MAGIC:
                raise ValueError("it does not begin as GGUF does")
            version = reader.number("I")
            if version not in _VERSIONS:
                raise ModelError(
                    f"{file} is a GGUF file of version {version}; versions 2 and 3 can be read."
                )
            counts = reader.number("Q"), reader.number("Q")
            metadata = {}
            for _ in range(counts[1]):
                key = reader.text()
                value = reader.value(reader.number("I"))
                if value is not None:
                    metadata[key] = value
            places = [reader.tensor_place() for _ in range(counts[0])]
            start = _aligned(reader.position, metadata)
    except FileNotFoundError:
        raise ModelError(f"There is no file {file}.") from None
    except OSError as error:
        raise ModelError(f"Cannot read {file}: {os_reason(error)}.") from error
    except ValueError as error:
        raise ModelError(
            f"The GGUF file {file} is truncated or damaged: {error}.",
            hint="Copy or download it again.",
        ) from error
    return _checked_header(file, places, metadata, start, size)


def _checked_header(
    file: Path, places: list[_TensorPlace], metadata: dict[str, str], start: int, size: int
) -> WeightsHeader:
    """The header, whose tensors lie within the file. Raises ModelError."""
    tensors = {}
    for name, sizes, encoding, offset in places:
        count = math.prod(sizes)
        end = start + offset + count // encoding.elements * encoding.bytes
        if end > size or count % encoding.elements:
            raise ModelError(
                f"The GGUF file {file} is truncated or damaged: {name[:100]!r} ends at {end:,} of "
                f"{size:,} bytes.",
                hint="Copy or download it again.",
            )
        shape = _own_shape(metadata.get(_SHAPE_KEY + name), count) or sizes[::-1]
        tensors[name] = TensorHeader(shape, encoding.name)
    if len(tensors) != len(places):
        raise ModelError(f"The GGUF file {file} is damaged: two tensors have the same name.")
    return WeightsHeader(tensors, metadata, size)


def _aligned(position: int, metadata: dict[str, str]) -> int:
    """Where the data begin. Raises ValueError."""
    alignment = int(metadata.get(_ALIGNMENT_KEY, "32"))
    if not 0 < alignment <= 2**20:
        raise ValueError("its alignment is no size")
    return -(-position // alignment) * alignment


def _own_shape(text: str | None, count: int) -> tuple[int, ...] | None:
    """The shape that metadata give of a flattened tensor, if it has as many elements."""
    sizes = tuple(int(part) for part in text.split(",") if part.isdecimal()) if text else ()
    return sizes if sizes and math.prod(sizes) == count else None


def _decoded(data: bytes) -> str:
    """The text in UTF-8. Raises ValueError."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("one of its texts is not UTF-8") from None


class _HeaderReader:
    """Reads a header's values in order, and no more bytes and items than a header may have."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self._stream = stream
        self._most = most
        self._items = 0
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next bytes. Raises ValueError if there are not so many."""
        if count > self._most - self.position:
            raise ValueError("its header is longer than the file")
        data = self._stream.read(count)
        if len(data) != count:
            raise ValueError("it ends within its header")
        self.position += count
        return data

    def number(self, code: str) -> int:
        """The next number, of struct's format code. Raises ValueError."""
        found: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return found

    def text(self) -> str:
        """The next text. Raises ValueError, also if it is not UTF-8."""
        self._count_item()
        return _decoded(self.take(self.number("Q")))

    def value(self, kind: int, depth: int = 0) -> str | None:
        """The next value as text, `None` for what is too long to keep. Raises ValueError."""
        self._count_item()
        if kind in _SCALARS:
            return str(self.number(_SCALARS[kind]))
        if kind == _TEXT:
            length = self.number("Q")
            data = self.take(length)
            return _decoded(data) if length <= _MAX_TEXT else None
        if kind == _LIST and depth < _MAX_LIST_DEPTH:
            inner, length = self.number("I"), self.number("Q")
            if length > _MAX_ITEMS:
                raise ValueError("one of its lists is too long")
            if inner in _SCALARS and length > _MAX_DIMENSIONS:
                self.take(length * struct.calcsize(f"<{_SCALARS[inner]}"))
                return None
            found = [self.value(inner, depth + 1) for _ in range(length)]
            return ",".join(map(str, found)) if length <= _MAX_DIMENSIONS else None
        raise ValueError("a value is of an unknown kind")

    def tensor_place(self) -> _TensorPlace:
        """The next tensor. Raises ValueError."""
        name, dimensions = self.text(), self.number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError("a tensor has too many dimensions")
        sizes = tuple(self.number("Q") for _ in range(dimensions))
        encoding = TENSOR_ENCODINGS.get(self.number("I"))
        if encoding is None:
            raise ValueError("a tensor is of an unknown type")
        return _TensorPlace(name, sizes, encoding, self.number("Q"))

    def _count_item(self) -> None:
        self._items += 1
        if self._items > _MAX_ITEMS:
            raise ValueError("its header has too many items")
