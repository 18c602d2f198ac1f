"""Model folders that an attacker may hand out, each made from the embedded model by code.

What a folder would run if it were believed leaves a mark (`MARK`).
"""

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests import tiny_models

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
MARK = "was-run"
"""The file beside the folder that hostile code writes."""

Spoil = Callable[[Path], None]
"""Makes a copy of the embedded model hostile."""


class Bomb:
    """Writes the mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self._mark), "w")


def payload(folder: Path) -> bytes:
    """A pickle that leaves the mark."""
    return pickle.dumps(Bomb(folder.parent / MARK))


def code(folder: Path) -> str:
    """Python that leaves the mark."""
    mark = str(folder.parent / MARK)
    return f"open({mark!r}, 'w')\nclass Own:\n    pass\n"


def index(**changes: object) -> Spoil:
    """Change keys of model_index.json."""
    return lambda folder: tiny_models.edit_json(folder / "model_index.json", **changes)


def config(name: str, **changes: object) -> Spoil:
    """Change keys of a component's config."""
    return lambda folder: tiny_models.edit_json(folder / name, **changes)


def content(name: str, data: bytes | Callable[[Path], bytes]) -> Spoil:
    """Put other bytes in a file's place."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data(folder))

    return spoil


def renamed(name: str, to: str) -> Spoil:
    """A pickle under another name, in place of a component's weights."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).with_name(to).write_bytes(payload(folder))

    return spoil


def with_code(file: str, spoil: Spoil) -> Spoil:
    """Lay code into the folder as well."""

    def both(folder: Path) -> None:
        (folder / file).write_text(code(folder))
        spoil(folder)

    return both


def linked(name: str, to: str) -> Spoil:
    """A symbolic link in place of a file or folder."""

    def spoil(folder: Path) -> None:
        remove(folder / name)
        (folder / name).symlink_to(to)

    return spoil


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def replaced(name: str, make: Callable[[Path], object]) -> Spoil:
    """Put what `make` makes at the path in a file's or folder's place."""

    def spoil(folder: Path) -> None:
        remove(folder / name)
        make(folder / name)

    return spoil


def a_socket(path: Path) -> None:
    """Bind a socket, which stays after it is closed."""
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; `length` is what it says of its header's length."""
    size = len(header) if length is None else length
    return size.to_bytes(8, "little") + header + data


def tensors(data: bytes = bytes(8), **entries: object) -> bytes:
    """A safetensors file whose header has these entries."""
    return safetensors(json.dumps(entries).encode(), data)


def tensor(
    dtype: object = "F32", shape: object = (2,), data_offsets: object = (0, 8)
) -> dict[str, object]:
    """A tensor's entry of a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


def without(entry: Mapping[str, object], key: str) -> dict[str, object]:
    """The entry without a key."""
    return {name: value for name, value in entry.items() if name != key}


def shards(weight_map: object, names: Sequence[str] = ()) -> Spoil:
    """Weights in shards, with an index."""

    def spoil(folder: Path) -> None:
        first = "diffusion_pytorch_model-00001-of-00001.safetensors"
        (folder / UNET).rename(folder / "unet" / first)
        found = {"weight_map": weight_map} if weight_map != "none" else {}
        (folder / f"{UNET}.index.json").write_text(json.dumps(found))
        for name in names:
            shutil.copy(folder / "unet" / first, folder.parent / name)

    return spoil


def sparse(size: int) -> Callable[[Path], object]:
    """A file of zeros that takes no place on the disk."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


_CLASSES: tuple[tuple[object, object], ...] = (
    ("os", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("posix", "system"),
    ("importlib", "import_module"),
    ("antigravity", "fly"),
    ("pickle", "Unpickler"),
    ("t2i_cli.cli.main", "main"),
    ("__main__", "main"),
    ("torch", "load"),
    ("torch.nn", "Module"),
    ("transformers", "Trainer"),
    ("transformers", "pipeline"),
    ("transformers.utils", "logging"),
    ("diffusers", "utils"),
    ("diffusers.utils", "logging"),
    ("diffusers", "DiffusionPipeline"),
    ("diffusers", "OnnxRuntimeModel"),
    ("diffusers", "UNet2DConditionModel.from_pretrained"),
    ("diffusers", "__class__"),
    ("diffusers", ""),
    ("", "UNet2DConditionModel"),
    ("..", "Own"),
    ("../unet/own", "Own"),
    ("/tmp/own", "Own"),  # noqa: S108 - a name in a hostile folder
    ("os.path", "join"),
    ("diffusers\0", "UNet2DConditionModel"),
    (1, 2),
    (["diffusers"], "UNet2DConditionModel"),
    ({}, {}),
    (True, "UNet2DConditionModel"),
    (None, "UNet2DConditionModel"),
    ("diffusers", None),
    ("x" * 5_000, "Own"),
)
_HEADERS: dict[str, bytes] = {
    "empty": b"",
    "three bytes": b"abc",
    "length 0": safetensors(b""),
    "length of 2**63": safetensors(b"{}", length=2**63),
    "length of 2**64-1": safetensors(b"{}", length=2**64 - 1),
    "length beyond the file": safetensors(b"{}", length=90_000_000),
    "no JSON": safetensors(b"{" * 50),
    "deep": safetensors(b'{"a":' + b"[" * 50_000),
    "a list": safetensors(b"[]"),
    "null": safetensors(b"null"),
    "a number of 5,000 digits": safetensors(b'{"a": ' + b"1" * 5_000 + b"}"),
    "no UTF-8": safetensors(b'{"\xff": {}}'),
    "tensor is null": tensors(a=None),
    "tensor is text": tensors(a="x"),
    "no shape": tensors(a=without(tensor(), "shape")),
    "no dtype": tensors(a=without(tensor(), "dtype")),
    "no offsets": tensors(a=without(tensor(), "data_offsets")),
    "shape is text": tensors(a=tensor(shape="22")),
    "shape is negative": tensors(a=tensor(shape=[-1, -2])),
    "shape is a fraction": tensors(a=tensor(shape=[2.0])),
    "shape is a truth": tensors(a=tensor(shape=[True, 2])),
    "shape is huge": tensors(a=tensor(shape=[2**40, 2**40])),
    "shape of 400 digits": tensors(a=tensor(shape=[10**400])),
    "numbers as text": tensors(a=tensor(shape=["2"], data_offsets=["0", "8"])),
    "dtype unknown": tensors(a=tensor(dtype="F128")),
    "dtype is a number": tensors(a=tensor(dtype=32)),
    "dtype is a list": tensors(a=tensor(dtype=["F32"])),
    "one offset": tensors(a=tensor(data_offsets=[0])),
    "three offsets": tensors(a=tensor(data_offsets=[0, 4, 8])),
    "offsets are an object": tensors(a=tensor(data_offsets={"0": 0, "1": 8})),
    "offsets are negative": tensors(a=tensor(data_offsets=[-8, 0])),
    "offsets backwards": tensors(a=tensor(data_offsets=[8, 0])),
    "offsets of another size": tensors(a=tensor(data_offsets=[0, 4])),
    "offsets beyond the file": tensors(a=tensor(shape=[2**30], data_offsets=[0, 2**32])),
    "offsets overlap": tensors(a=tensor(), b=tensor(data_offsets=[4, 12]), data=bytes(12)),
    "same offsets": tensors(a=tensor(), b=tensor()),
    "hole between tensors": tensors(a=tensor(), b=tensor(data_offsets=[16, 24]), data=bytes(24)),
    "hole before the first": tensors(a=tensor(data_offsets=[8, 16]), data=bytes(16)),
    "bytes after the last": tensors(a=tensor(), data=bytes(64)),
    "metadata is a number": tensors(a=tensor(), __metadata__=5),
    "metadata of numbers": tensors(a=tensor(), __metadata__={"a": 5}),
}
_JSON: dict[str, bytes] = {
    "deep": b'{"a":' + b"[" * 100_000,
    "deep and closed": b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
    "a list": b"[]",
    "empty": b"",
    "no UTF-8": b'{"a": "\xff"}',
    "a number of 5,000 digits": b'{"sample_size": ' + b"1" * 5_000 + b"}",
}

HOSTILE: dict[str, Spoil] = {
    # Pickles under any name.
    "pickle as .safetensors": content(UNET, payload),
    "pickle as the text encoder's .safetensors": content(TEXT, payload),
    "pickle as .bin": renamed(UNET, "diffusion_pytorch_model.bin"),
    "pickle as .fp16.bin": renamed(UNET, "diffusion_pytorch_model.fp16.bin"),
    "pickle as .non_ema.bin": renamed(UNET, "diffusion_pytorch_model.non_ema.bin"),
    "pickle as pytorch_model.bin": renamed(TEXT, "pytorch_model.bin"),
    "pickle as .ckpt": renamed(UNET, "model.ckpt"),
    "pickle as .pt": renamed(VAE, "diffusion_pytorch_model.pt"),
    "pickle as .pth": renamed(VAE, "diffusion_pytorch_model.pth"),
    "pickle as .pkl": renamed(VAE, "diffusion_pytorch_model.pkl"),
    "pickle as .fp16.safetensors": renamed(UNET, "diffusion_pytorch_model.fp16.safetensors"),
    "pickle as .SAFETENSORS": renamed(UNET, "diffusion_pytorch_model.SAFETENSORS"),
    "pickle as .safetensors.bin": renamed(UNET, "diffusion_pytorch_model.safetensors.bin"),
    "pickle as a shard": renamed(UNET, "diffusion_pytorch_model-00001-of-00001.safetensors"),
    "pickle as msgpack": renamed(UNET, "diffusion_flax_model.msgpack"),
    "pickle as ONNX": renamed(UNET, "model.onnx"),
    # Code.
    "code as the pipeline": with_code("own.py", index(_class_name=["own", "Own"])),
    "code as a network": with_code("unet/own.py", index(unet=["own", "Own"])),
    "code as a tokenizer": with_code("tokenizer/own.py", index(tokenizer=["own", "Own"])),
    "code as a scheduler": with_code("scheduler/own.py", index(scheduler=["own", "Own"])),
    "code as what nobody needs": with_code("unet/own.py", index(more=["own", "Own"])),
    "code named as a component": with_code("unet/os.py", index(unet=["os", "system"])),
    "code that is not there": index(unet=["own", "Own"]),
    "kernel of the Hub": config("text_encoder/config.json", attn_implementation="a/kernel"),
    "kernel of the Hub inside": config(
        "text_encoder/config.json", text_config={"_attn_implementation_internal": "a/kernel"}
    ),
    # Classes of other modules.
    **{
        f"class {str(library)[:20]!r} {str(cls)[:40]!r}": index(unet=[library, cls])
        for library, cls in _CLASSES
    },
    "pipeline os.system": index(_class_name="os.system"),
    "pipeline that is none": index(_class_name="UNet2DConditionModel"),
    "pipeline of utils": index(_class_name="utils"),
    "pipeline __class__": index(_class_name="__class__"),
    "pipeline that is null": index(_class_name=None),
    "pipeline of lists": index(_class_name=[["a"], "b"]),
    "pipeline elsewhere": index(_class_name=["../own", "Own"]),
    "pipeline of ONNX": index(_class_name="OnnxStableDiffusionPipeline"),
    # Components that are none.
    "component ..": index(**{"..": ["diffusers", "UNet2DConditionModel"]}),
    "component ../x": index(**{"../x": ["diffusers", "UNet2DConditionModel"]}),
    "component of no name": index(**{"": ["diffusers", "UNet2DConditionModel"]}),
    "component with NUL": index(**{"a\0": ["diffusers", "UNet2DConditionModel"]}),
    "component of 300 letters": index(**{"a" * 300: ["diffusers", "UNet2DConditionModel"]}),
    "component that is not there": index(unet_2=["diffusers", "UNet2DConditionModel"]),
    "network is null": index(unet=None),
    "network is two nulls": index(unet=[None, None]),
    "network is a text": index(unet="UNet2DConditionModel"),
    "network is a list of one": index(unet=["UNet2DConditionModel"]),
    "network is an object": index(unet={"diffusers": "UNet2DConditionModel"}),
    "decoder is null": index(vae=[None, None]),
    "text encoder is null": index(text_encoder=[None, None]),
    "tokenizer is null": index(tokenizer=[None, None]),
    "scheduler is null": index(scheduler=[None, None]),
    "no components": content("model_index.json", b'{"_class_name": "StableDiffusionPipeline"}'),
    # Weights that lie.
    **{f"header: {name}": content(UNET, data) for name, data in _HEADERS.items()},
    "header of the decoder": content(VAE, _HEADERS["no shape"]),
    "header of the text encoder": content(TEXT, _HEADERS["offsets overlap"]),
    "weights of zeros": replaced(UNET, sparse(2**40)),
    "weights cut off": lambda folder: os.truncate(folder / UNET, 5_000),
    # Shards.
    "shards: no map": shards("none"),
    "shards: a list": shards([]),
    "shards: none named": shards({}),
    "shards: a number": shards({"a": 5}),
    "shards: a list inside": shards({"a": [1]}),
    "shards: null": shards({"a": None}),
    "shards: above": shards({"a": "../../outside.safetensors"}, ["outside.safetensors"]),
    "shards: absolute": shards({"a": "/etc/passwd"}),
    "shards: backslash": shards({"a": "..\\outside.safetensors"}),
    "shards: NUL": shards({"a": "a\0"}),
    "shards: 300 letters": shards({"a": "a" * 300}),
    "shards: surrogate": shards({"a": "\ud800"}),
    "shards: a pickle": shards({"a": "diffusion_pytorch_model.bin"}),
    "shards: the config": shards({"a": "config.json"}),
    "shards: a folder": shards({"a": "."}),
    # Links, pipes, devices.
    "index is a folder": replaced("model_index.json", os.mkdir),
    "index is a link to a device": linked("model_index.json", "/dev/zero"),
    "index is a link to itself": linked("model_index.json", "model_index.json"),
    "index is a link to nothing": linked("model_index.json", "nowhere"),
    "index is a link to a file of the system": linked("model_index.json", "/etc/passwd"),
    "index is a pipe": replaced("model_index.json", os.mkfifo),
    "index is a socket": replaced("model_index.json", a_socket),
    "config is a folder": replaced("unet/config.json", os.mkdir),
    "config is a pipe": replaced("unet/config.json", os.mkfifo),
    "tokenizer is a pipe": replaced("tokenizer/tokenizer.json", os.mkfifo),
    "a pipe beside": lambda folder: os.mkfifo(folder / "vae/more.json"),
    "weights are a pipe": replaced(UNET, os.mkfifo),
    "weights are a device": linked(UNET, "/dev/zero"),
    "weights are a link out": linked(UNET, "/etc/passwd"),
    "weights are a link to nothing": linked(UNET, "nowhere"),
    "weights are a folder": replaced(UNET, os.mkdir),
    "component is a link to nothing": linked("unet", "nowhere"),
    "component is a link to itself": linked("unet", "unet"),
    "component is a link to the system": linked("unet", "/etc"),
    "component is a file": replaced("unet", lambda path: path.write_text("{}")),
    "component is a device": linked("unet", "/dev/null"),
    # JSON bombs, and sizes that are none.
    **{
        f"{name}: {what}": content(name, data)
        for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
        for what, data in _JSON.items()
    },
    "index of 1 TB": replaced("model_index.json", sparse(2**40)),
    "config of 1 TB": replaced("vae/config.json", sparse(2**40)),
    "config of 100,000 keys": content(
        "unet/config.json",
        json.dumps({f"k{n}": [n] for n in range(10**5)} | {"sample_size": "x"}).encode(),
    ),
    "size of 400 digits": config("unet/config.json", sample_size=10**400),
    "size is infinite": config("unet/config.json", sample_size=float("inf")),
    "size is text": config("unet/config.json", sample_size="16"),
    "size is negative": config("unet/config.json", sample_size=-16),
    "channels are huge": config("unet/config.json", block_out_channels=[10**30]),
    "channels without end": config("vae/config.json", block_out_channels=[1] * 10**5),
    "compression is text": config("vae/config.json", spatial_compression_ratio="8"),
}
