"""Reads the tensors of a pickle and writes them as safetensors: the program of a process alone.

`python -m t2i_cli.models.pickle_reader SOURCE TARGET` prints one line of JSON: what was written, or
why nothing was. PyTorch's `weights_only` unpickler builds tensors and plain containers, and calls
nothing that a pickle names.
"""

import json
import os
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

_WRAPPERS = ("state_dict", "model_state_dict", "params_ema", "params", "module", "model", "ema")
"""Under which trainers keep the weights, the most usual first."""
_MAX_WRAPPERS = 3
_EMBEDDING, _EMBEDDING_TENSOR = "string_to_param", "emb_params"
"""AUTOMATIC1111's textual inversions, as pickles and as safetensors."""
_BLOCKED = re.compile(r"GLOBAL\s+([\w.]+)")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How safetensors' own error ends where the system's is behind it."""
_TRAINERS_CLASSES = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.StringNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.BooleanNode",
    "typing.Any",
    "argparse.Namespace",
)
"""What trainers leave in checkpoints beside the weights: read as objects that hold nothing."""


class _IgnoredObject:
    """Stands for an object of a trainer, whose class is not imported."""

    def __new__(cls, *_: object) -> "_IgnoredObject":
        """An object that keeps none of the arguments."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Keep nothing of the state."""


class UnreadablePickleError(Exception):
    """The file is no pickle of weights; its text says why, as the end of a sentence."""


def read_tensors(source: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of a pickle by name, and the kinds of what else it holds by name.

    Raises UnreadablePickleError.
    """
    import torch

    def allowed(name: str) -> tuple[Any, str]:
        # A class for each: torch refuses two names of the same.
        return type(name.rpartition(".")[2], (_IgnoredObject,), {}), name

    try:
        archive = zipfile.is_zipfile(source)
        with torch.serialization.safe_globals([allowed(name) for name in _TRAINERS_CLASSES]):
            loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        if blocked := _BLOCKED.search(str(error)):
            raise UnreadablePickleError(
                f"it holds more than weights: it would call {blocked[1][:100]} when loaded"
            ) from error
        raise UnreadablePickleError(
            "it is damaged, or no file of weights that PyTorch writes"
        ) from error
    return _tensors_in(loaded)


def _tensors_in(loaded: object) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors in what was loaded, without a trainer's wrappers, and the rest's kinds."""
    import torch

    left_out: dict[str, str] = {}
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(loaded, Mapping):
            break
        wrapper = next((key for key in _WRAPPERS if _holds_tensors(loaded.get(key))), None)
        if wrapper is None:
            break
        left_out |= _kinds((key, value) for key, value in loaded.items() if key != wrapper)
        loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise UnreadablePickleError("it holds no weights by name")
    vectors = loaded.get(_EMBEDDING)
    if isinstance(vectors, Mapping) and len(vectors) == 1:
        left_out |= _kinds((key, value) for key, value in loaded.items() if key != _EMBEDDING)
        loaded = {_EMBEDDING_TENSOR: next(iter(vectors.values()))}
    tensors: dict[str, Any] = {}
    others = []
    for name, value in loaded.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor) and _is_plain(value):
            tensors[name] = value.detach()
        else:
            others.append((name, value))
    if not tensors:
        raise UnreadablePickleError("it holds no weights by name")
    return tensors, left_out | _kinds(others)


def _holds_tensors(value: object) -> bool:
    """Whether it is a map of names to tensors, or a wrapper of one."""
    import torch

    if not isinstance(value, Mapping):
        return False
    tensors = any(isinstance(each, torch.Tensor) for each in value.values())
    return tensors or any(isinstance(value.get(key), Mapping) for key in _WRAPPERS)


def _is_plain(tensor: Any) -> bool:  # noqa: ANN401 - a tensor of torch
    import torch

    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _kinds(entries: Iterable[tuple[object, object]]) -> dict[str, str]:
    """The names of types by the entries' names, which may be of any type themselves."""
    return {
        key[:200] if isinstance(key, str) else f"a {type(key).__name__}": type(value).__name__
        for key, value in entries
    }


def write_tensors(tensors: Mapping[str, Any], target: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. Raises OSError, and SafetensorError for what it cannot hold."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        whole = tensor.contiguous()
        # Two names of the same memory become two tensors, as loading them gives anyway.
        storage = whole.untyped_storage().data_ptr()
        plain[name] = whole.clone() if storage in seen else whole
        seen.add(storage)
    save_file(plain, target, metadata=dict(metadata))


def convert_file(source: Path, target: Path, metadata: Mapping[str, str]) -> dict[str, object]:
    """Convert a file, and return the report, which has `error` if nothing was written."""
    try:
        tensors, left_out = read_tensors(source)
    except UnreadablePickleError as error:
        return {"error": str(error)}
    try:
        write_tensors(tensors, target, metadata)
    except OSError as error:
        return {"error": error.strerror or str(error), "storage": True}
    except Exception as error:  # noqa: BLE001 - safetensors raises its own, and ValueError
        if number := _OS_ERROR.search(str(error)):
            return {"error": os.strerror(int(number[1])), "storage": True}
        return {"error": f"safetensors cannot hold it ({type(error).__name__})"}
    return {"tensors": len(tensors), "left_out": left_out}


def _leave_with_parent(folder: Path) -> None:
    """Wait for the end of standard input, which the parent holds open; then remove the folder.

    So nothing is left of a parent that was killed, and could not do it.
    """
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    Thread(target=_leave_with_parent, args=(Path(sys.argv[2]).parent,), daemon=True).start()
    warnings.simplefilter("ignore")
    report = convert_file(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
    sys.stdout.write(json.dumps(report) + "\n")
