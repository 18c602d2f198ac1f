"""Weights that were saved quantised: what they need of a device, and what is done once loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t2i_cli.backends.local import quantization
from t2i_cli.backends.local.device import Device
from t2i_cli.errors import InputError, ModelError
from t2i_cli.models import safetensors_header, saved_quantization, sources
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.sources import Part

_WITHOUT_GROUP_OFFLOAD = {"bitsandbytes", "quanto"}
"""Methods whose tensors diffusers' group offload cannot move."""
_KERNEL_WIDTH = 16
"""What the inputs of a layer must be a multiple of in PyTorch's kernel for 8 bits on CPUs, or the
process crashes (`torch._weight_int8pack_mm` of 2.13, which quanto calls in bfloat16)."""


def check_saved_weights(folder: Path, model: str, device: Device) -> None:
    """Raise ModelError if weights of the model, as they were quantised, cannot be on the device."""
    for part in sources.list_parts(folder):
        saved = saved_quantization.saved_quantization(part)
        if saved is None:
            continue
        reason = None
        # transformers has kernels for CPUs where diffusers has none.
        four_bits_on_mps = device.kind == "mps" and saved.form != "8bit"
        if saved.method == "bitsandbytes" and part.library == "diffusers":
            if not device.own_memory and not four_bits_on_mps:
                reason = f"loads on a CUDA, ROCm or XPU device only, and {device.name} is none"
        elif str(saved.form).startswith("Float8Dynamic") and device.kind in {"cuda", "mps"}:
            if not quantization.computes_fp8(device):
                reason = (
                    "multiplies in fp8, which NVIDIA GPUs from Ada and Hopper on can (compute "
                    f"capability 8.9), and {device.name} ({device.label}) cannot"
                )
        if reason:
            raise ModelError(
                f"The {part.name} of {model} is saved quantised ({saved.text}), which {reason}.",
                hint="Look for a copy that is quantised otherwise, or not; --quantize makes one "
                "smaller while it is read.",
            )


def settle_dtype(folder: Path, model: str, asked: str | None, device: Device, chosen: str) -> str:
    """The dtype that the model is computed in: `chosen`, or the only one that its weights take.

    `asked` is the user's. Raises InputError if they do not take that.
    """
    required = saved_quantization.saved_dtype(folder)
    if required and asked not in {None, required[0]}:
        raise InputError(
            f"The {required[1]} of {model} is saved quantised for {required[0]}, and is not "
            f"computed in {asked}.",
            hint="Leave --dtype away.",
            field="dtype",
        )
    dtype = required[0] if required else chosen
    if device.kind == "cpu" and dtype == "bfloat16":
        for part in sources.list_parts(folder):
            if _crashes_in_bfloat16(part):
                raise InputError(
                    f"The {part.name} of {model} has layers whose inputs are no multiple of "
                    f"{_KERNEL_WIDTH}, which PyTorch cannot compute on a CPU in bfloat16 from "
                    "weights that quanto has saved in 8 bits.",
                    hint="Leave --dtype away, for float32.",
                    field="dtype",
                )
    return dtype


def lacks_group_offload(folder: Path, quantize: str | None) -> bool:
    """Whether a model has quantised weights that group offload cannot move."""
    return quantize in quantization.WITHOUT_GROUP_OFFLOAD or bool(
        saved_quantization.saved_methods(folder) & _WITHOUT_GROUP_OFFLOAD
    )


def lacks_memory_format(folder: Path, quantize: str | None) -> bool:
    """Whether a model has packed weights, which have no order of dimensions."""
    return quantize == "nf4" or "bitsandbytes" in saved_quantization.saved_methods(folder)


@contextmanager
def current_device(folder: Path, device: Device) -> Iterator[None]:
    """Make the device current while weights of bitsandbytes are read, which go there at once."""
    if "bitsandbytes" in saved_quantization.saved_methods(folder) and device.kind in {
        "cuda",
        "rocm",
    }:
        import torch

        with torch.cuda.device(device.name):
            yield
    else:
        yield


def finish_loading(pipe: LibraryObject, folder: Path, dtype: str) -> None:
    """Give saved quantised weights the device of their data, and what is beside them the dtype.

    diffusers fills quanto's tensors inside, and leaves the outer ones on the meta device.
    transformers keeps what bitsandbytes has left alone in the dtype of its files.
    """
    for name, saved in saved_quantization.quantized_parts(folder).items():
        network = getattr(pipe, name, None)
        if network is not None and saved.method == "quanto":
            _rebuild_outer_tensors(network)
        elif network is not None and saved.method == "bitsandbytes":
            _cast_plain_weights(network, dtype)


def _rebuild_outer_tensors(network: LibraryObject) -> None:
    import torch

    for module in network.modules():
        for key, weight in list(module.named_parameters(recurse=False)):
            if not weight.is_meta or not hasattr(weight, "__tensor_flatten__"):
                continue
            names, context = weight.__tensor_flatten__()
            inner = {each: getattr(weight, each) for each in names}
            if any(tensor.is_meta for tensor in inner.values()):
                continue
            outer = type(weight).__tensor_unflatten__(
                inner, context, weight.size(), weight.stride()
            )
            module.register_parameter(key, torch.nn.Parameter(outer, requires_grad=False))


def _cast_plain_weights(network: LibraryObject, dtype: str) -> None:
    """Cast the floats that have the network's own dtype; those kept in another stay in it."""
    import torch

    own, wanted = network.dtype, getattr(torch, dtype)
    for tensor in [*network.parameters(), *network.buffers()]:
        # Packed weights may be stored as floats.
        packed = hasattr(tensor, "quant_state") or hasattr(tensor, "SCB")
        if tensor.dtype == own and own.is_floating_point and not packed:
            tensor.data = tensor.data.to(wanted)


def _crashes_in_bfloat16(part: Part) -> bool:
    saved = saved_quantization.saved_quantization(part)
    if saved is None or saved != ("quanto", "int8") or not part.weights("bfloat16"):
        return False
    return any(
        name.endswith("._data") and len(tensor.shape) == 2 and tensor.shape[1] % _KERNEL_WIDTH
        for path in part.weight_paths("bfloat16")
        if path.is_file()
        for name, tensor in safetensors_header.read_header(path).tensors.items()
    )
