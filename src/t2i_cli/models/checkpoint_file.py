"""A single file of weights: what it is and holds, read from its header before any weight is.

Safetensors and GGUF; what else people have under such names (pickles, pointers of Git LFS, web
pages) is told as what it is.
"""

import math
import os
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from t2i_cli.errors import InputError, ModelError, os_reason
from t2i_cli.files.state_files import open_regular
from t2i_cli.files.weight_files import PICKLES
from t2i_cli.models import checkpoint_contents, gguf_header, safetensors_header
from t2i_cli.models.adapter_header import AdapterHeader
from t2i_cli.models.checkpoint_contents import CheckpointKind
from t2i_cli.models.safetensors_header import TensorHeader

_BEGINNING = 512
_FOREIGN = (
    (b"version https://git-lfs", "a pointer of Git LFS, which stands for the file itself"),
    (b"<!doctype html", "a web page, as a download gives that needs a login"),
    (b"<html", "a web page, as a download gives that needs a login"),
    (b'{"error', "a server's error message"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
)
"""What files are by their first bytes."""
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
}
"""PyTorch's names; others, as GGUF's quantisations, are kept."""


@dataclass(frozen=True)
class CheckpointFile:
    """A file of weights, as its header describes it."""

    path: Path
    format: Literal["safetensors", "gguf"]
    kind: CheckpointKind
    family: str | None
    """Of a denoiser a name of `FAMILIES`, of a text encoder its own, of a LoRA the one it fits."""
    parts: tuple[str, ...]
    """Which of a pipeline's parts it holds, by diffusers' names."""
    dtype: str
    """The dtype of most elements of its denoiser, or of whatever else it is."""
    bytes: int
    tensors: Mapping[str, TensorHeader]
    metadata: Mapping[str, str]
    """What its maker wrote: proves nothing, and may hold anything."""
    adapter: AdapterHeader | None = None

    @property
    def dtypes(self) -> dict[str, int]:
        """The numbers of elements by dtype, the largest first."""
        return _count_dtypes(self.tensors)

    @property
    def quantization(self) -> str | None:
        """How its weights are quantised beyond their dtype, `None` if they are not."""
        if self.format == "gguf":
            return "gguf"
        return checkpoint_contents.quantization_of(self.tensors)


def read_checkpoint(path: Path) -> CheckpointFile:
    """Describe a file of weights from its header, which is read once while the file stays.

    Raises ModelError for what is no such file, or damaged, InputError if there is none.
    """
    form = _checked_format(path)
    state = os.stat(path)
    return _read_header(path, form, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=8)
def _read_header(
    path: Path,
    form: Literal["safetensors", "gguf"],
    state: tuple[int, ...],  # noqa: ARG001 - another one is another file
) -> CheckpointFile:
    if form == "gguf":
        header = gguf_header.read_gguf_header(path)
    else:
        header = safetensors_header.read_header(path)
    if not header.tensors:
        raise ModelError(f"{path} holds no tensors.")
    found = checkpoint_contents.recognise_contents(header.tensors)
    main = checkpoint_contents.denoiser_tensors(header.tensors)
    return CheckpointFile(
        path=path,
        format=form,
        kind=found.kind,
        family=found.family,
        parts=found.parts,
        dtype=next(iter(_count_dtypes(main))),
        bytes=header.size,
        tensors=header.tensors,
        metadata=header.metadata,
        adapter=found.adapter,
    )


def _count_dtypes(tensors: Mapping[str, TensorHeader]) -> dict[str, int]:
    """The numbers of elements by dtype, the largest first."""
    counts: Counter[str] = Counter()
    for shape, dtype in tensors.values():
        counts[_DTYPES.get(dtype, dtype)] += math.prod(shape)
    return dict(counts.most_common())


def _checked_format(path: Path) -> Literal["safetensors", "gguf"]:
    """The file's format by its first bytes. Raises ModelError, InputError."""
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY, follow_links=True), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            beginning = stream.read(_BEGINNING)
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {os_reason(error)}.") from error
    if beginning.startswith(gguf_header.GGUF_MAGIC):
        return "gguf"
    if not beginning:
        raise ModelError(f"{path} is empty.", hint="Copy or download it again.")
    if int.from_bytes(beginning[:8], "little") <= size - 8 and beginning[8:9] == b"{":
        return "safetensors"
    if is_pickle(path, beginning):
        raise ModelError(
            f"{path} is a pickle file{_disguise(path)}, which can run code when it is loaded.",
            hint=f"`t2i models convert {shlex.quote(str(path))}` makes a safetensors file of its "
            "weights, and runs none of its code.",
        )
    for magic, what in _FOREIGN:
        if beginning.lstrip().lower().startswith(magic.lower()):
            raise ModelError(f"{path} is no model: it is {what}.", hint="Download the file itself.")
    if path.name in {"model_index.json", "config.json"}:
        raise ModelError(
            f"{path} describes a model, and is none.", hint=f"Name its folder: {path.parent}."
        )
    raise ModelError(
        f"{path} is no file of weights, or damaged: it begins neither as safetensors nor as GGUF.",
        hint="Copy or download it again.",
    )


def is_pickle(path: Path, beginning: bytes) -> bool:
    """Whether a file is a pickle, or PyTorch's archive of one, by its first bytes or its name."""
    if beginning.startswith(b"PK\x03\x04"):
        return b"/data.pkl" in beginning or path.suffix.lower() in PICKLES
    return (
        beginning[:1] == b"\x80" and beginning[1:2] <= b"\x05"
    ) or path.suffix.lower() in PICKLES


def _disguise(path: Path) -> str:
    return "" if path.suffix.lower() in PICKLES else " under another name"
