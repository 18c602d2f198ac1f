"""Quantised weights: what each kind needs, which parts it takes, their bytes, and how to load them.

The denoiser and the language models that encode text are quantised, each with diffusers' own
configs; VAEs and CLIP are small, and lose more than they save.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from t2i_cli.backends.local.device import Device
from t2i_cli.errors import InputError
from t2i_cli.models import libraries, sources
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.safetensors_header import TensorKind
from t2i_cli.models.sources import Part
from t2i_cli.models.weights import DTYPE_BYTES, ComponentWeights

_FIRST_FP8 = (8, 9)
"""The compute capability of the first cards with fp8 arithmetic: Ada, and Hopper after it."""
_NETWORK = re.compile(r"(transformer|unet|decoder)(_\d)?")
_ENCODER = re.compile(r"text_encoder(_\d)?")
_KEPT_IN_ENCODERS = ("norm", "embed", "shared", "relative_attention_bias", r"\bwo\b", "lm_head")
"""Parts of text encoders that keep their precision in `fp8-storage`: an encoder's dtype is that of
its embeddings, and T5 computes in the dtype of its `wo`."""


@dataclass(frozen=True, kw_only=True)
class _Method:
    """One value of `--quantize`.

    `package` is the distribution that it needs, of a version from `minimum`; `weight` are bytes of
    a quantised weight, with the scales of blocks, and `row` those of each row's scale; `kinds` are
    the weights that are quantised. `dtype` is the one that it computes in, if there is only one.
    """

    package: str | None
    minimum: tuple[int, int] = (0, 0)
    weight: float
    row: int = 0
    kinds: frozenset[TensorKind]
    dtype: str | None = None


_MATRICES: frozenset[TensorKind] = frozenset({"linear", "modulation", "embedder"})
_METHODS = {
    # A scale in float32 and a zero point in 8 bits; a scale in float32.
    "int8": _Method(package="torchao", minimum=(0, 15), weight=1, row=5, kinds=_MATRICES),
    "fp8": _Method(
        package="torchao", minimum=(0, 15), weight=1, row=4, kinds=_MATRICES, dtype="bfloat16"
    ),
    "fp8-storage": _Method(package=None, weight=1, kinds=frozenset({"linear", "convolution"})),
    # Four bits, and a maximum in float32 for each block of 64 weights.
    "nf4": _Method(package="bitsandbytes", minimum=(0, 48), weight=0.5625, kinds=_MATRICES),
}
MEMORY_METHODS = ("int8", "fp8-storage", "nf4")
"""The methods that are there to save memory, mildest first; `fp8` is there for its speed."""
WITHOUT_GROUP_OFFLOAD = frozenset({"nf4"})
"""Methods whose tensors diffusers' group offload cannot move."""


def check_quantization(name: str, device: Device, dtype: str | None = None) -> None:
    """Raise InputError if weights cannot be so quantised: not on this device, or no package.

    `dtype` is the one that the user asked for. Loads no library but torch.
    """
    method = _METHODS[name]
    reason = None
    if name == "nf4" and not device.own_memory:
        reason = f"needs a CUDA, ROCm or XPU device, and {device.name} ({device.label}) is none"
    elif name == "fp8" and not computes_fp8(device):
        reason = (
            "computes in fp8, which NVIDIA GPUs from Ada and Hopper on can (compute capability "
            f"8.9), and {device.name} ({device.label}) cannot"
        )
    elif name == "fp8-storage" and device.kind == "mps":
        reason = "needs a device with an fp8 dtype, and Apple GPUs have none"
    if reason:
        others = [other for other in MEMORY_METHODS if other != name and _suits(other, device)]
        raise InputError(
            f"--quantize {name} {reason}.",
            hint=f"{' or '.join(others)} would do here." if others else None,
            field="quantize",
        )
    if method.dtype and dtype not in {None, method.dtype}:
        raise InputError(
            f"--quantize {name} computes in {method.dtype}, not in {dtype}.",
            hint="Leave --dtype away.",
            field="dtype",
        )
    _check_package(name)


def _check_package(name: str) -> None:
    """Raise InputError if the package that the method needs is missing, or too old."""
    method = _METHODS[name]
    if method.package is None:
        return
    try:
        found = version(method.package)
    except PackageNotFoundError:
        found = ""
    if _numbers(found) >= method.minimum:
        return
    state = f"and {found} is installed" if found else "which is not installed"
    wanted = f"{method.package} {'.'.join(map(str, method.minimum))} or newer"
    raise InputError(
        f"--quantize {name} needs {wanted}, {state}.",
        hint="`pip install 't2i-cli[gpu]'` brings it; fp8-storage needs no package.",
        field="quantize",
    )


def package_version(name: str | None) -> dict[str, str]:
    """The package that the method needs, with the installed version; empty if it needs none."""
    package = _METHODS[name].package if name else None
    return {package: version(package)} if package else {}


def is_available(name: str, device: Device) -> bool:
    """Whether weights can be so quantised for this device."""
    try:
        check_quantization(name, device)
    except InputError:
        return False
    return True


def required_dtype(name: str | None) -> str | None:
    """The only dtype that the method computes in, `None` if there are several."""
    return _METHODS[name].dtype if name else None


def quantized_components(folder: Path) -> dict[str, str]:
    """The components that are quantised, by name, with their libraries. Raises ModelError."""
    return {
        part.name: part.library
        for part in sources.list_parts(folder)
        if _NETWORK.fullmatch(part.name)
        or (
            _ENCODER.fullmatch(part.name)
            and part.library == "transformers"
            and "CLIP" not in part.cls
        )
    }


def quantized_sizes(
    found: Mapping[str, ComponentWeights],
    folder: Path,
    dtype: str,
    float32_component: str | None,
    name: str | None,
) -> dict[str, int]:
    """Bytes of each component's weights in `dtype`, quantised by the method `name` if it is set."""
    parts = quantized_components(folder) if name else {}
    sizes = {}
    for component, weights in found.items():
        kind = "float32" if component == float32_component else dtype
        sizes[component] = weights.size(kind)
        if name and component in parts:
            method = _METHODS[name]
            count = sum(weights.floats.get(each, 0) for each in method.kinds)
            sizes[component] -= int(count * (DTYPE_BYTES[kind] - method.weight))
            sizes[component] += method.row * sum(weights.rows.get(each, 0) for each in method.kinds)
    return sizes


def shrunk_bytes(size: int, dtype: str, name: str | None) -> int:
    """What `size` bytes in `dtype` at least become: of weights of which nothing else is known."""
    return int(size * _METHODS[name].weight / DTYPE_BYTES[dtype]) if name else size


@contextmanager
def quantized_loading(
    name: str | None, folder: Path, device: Device, dtype: str
) -> Iterator[dict[str, Any]]:
    """The arguments for `from_pretrained` that quantise while it loads, in this context."""
    if name is None or _METHODS[name].package is None:
        yield {}
        return
    import torch

    mapping = {
        component: _config(name, library, dtype)
        for component, library in quantized_components(folder).items()
    }
    library_config = libraries.import_diffusers().PipelineQuantizationConfig
    arguments = {"quantization_config": library_config(quant_mapping=mapping)}
    if name == "nf4" and device.kind in {"cuda", "rocm"}:
        # bitsandbytes quantises on the current device.
        with torch.cuda.device(device.name):
            yield arguments
    else:
        yield arguments


def part_config(name: str | None, folder: Path, part: Part, dtype: str) -> LibraryObject:
    """The config with which one part is quantised while it is loaded by itself, or `None`."""
    if name is None or _METHODS[name].package is None:
        return None
    library = quantized_components(folder).get(part.name)
    return library and _config(name, library, dtype)


def _config(name: str, library: str, dtype: str) -> LibraryObject:
    """The config of a component's own library."""
    import diffusers
    import torch
    import transformers

    classes = transformers if library == "transformers" else diffusers
    if name == "nf4":
        return classes.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    from torchao import quantization

    if name == "int8":
        return classes.TorchAoConfig(quantization.Int8WeightOnlyConfig(version=2))
    # One scale a row: an image's numbers do not depend on the others of its pass.
    return classes.TorchAoConfig(
        quantization.Float8DynamicActivationFloat8WeightConfig(granularity=quantization.PerRow())
    )


def store_in_fp8(pipe: LibraryObject, folder: Path, dtype: str) -> None:
    """Keep the quantised components' weights in fp8; each layer computes in `dtype`."""
    import torch

    cast = libraries.import_diffusers().hooks.apply_layerwise_casting
    storage, compute = torch.float8_e4m3fn, getattr(torch, dtype)
    with libraries.suppress_warnings():
        for name, library in quantized_components(folder).items():
            module = getattr(pipe, name, None)
            if module is None:
                continue
            if library == "transformers":
                cast(module, storage, compute, skip_modules_pattern=_KEPT_IN_ENCODERS)
            else:
                module.enable_layerwise_casting(storage_dtype=storage, compute_dtype=compute)
            for layer in module.modules():
                if hook := getattr(layer, "_diffusers_hook", None):
                    if hook.get_hook("layerwise_casting") is not None:
                        # peft asks it for a LoRA's dtype, which else is that of the weights.
                        layer.compute_dtype = compute


def _suits(name: str, device: Device) -> bool:
    """Whether the device takes the method, whatever is installed."""
    return device.own_memory or (name != "nf4" and (name, device.kind) != ("fp8-storage", "mps"))


def computes_fp8(device: Device) -> bool:
    """Whether the device multiplies in fp8."""
    if device.kind != "cuda":
        return False
    import torch

    return torch.cuda.get_device_capability(device.name) >= _FIRST_FP8


def _numbers(text: str) -> tuple[int, ...]:
    """The first two numbers of a version; empty if it has none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()
