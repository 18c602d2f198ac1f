"""Weights in fp8 with a factor beside each, as ComfyUI writes them: multiplied at loading."""

from pathlib import Path

from t2i_cli.errors import ModelError
from t2i_cli.models import single_file_parts
from t2i_cli.models.libraries import LibraryObject


def multiply_scales(
    tensors: dict[str, LibraryObject], dtype: LibraryObject, path: Path
) -> dict[str, LibraryObject]:
    """The tensors in `dtype`, without factors; the same tensors where there are none.

    A factor is one number, or one a row. Raises ModelError for other ones, as of NVFP4.
    """
    factors = {
        match[1]: name for name in tensors if (match := single_file_parts.FACTOR.fullmatch(name))
    }
    if not factors:
        return tensors
    found = {}
    for name, tensor in tensors.items():
        if single_file_parts.is_beside_weights(name):
            continue
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer in factors:
            factor = tensors[factors[layer]].float()
            if factor.numel() not in {1, tensor.shape[0]} or not tensor.is_floating_point():
                raise ModelError(
                    f"The weights in {path} are quantised in blocks, which is not read.",
                    hint="Look for a copy in fp16, bf16, fp8 or GGUF.",
                )
            rows = factor.reshape(-1, *[1] * (tensor.dim() - 1)) if factor.numel() > 1 else factor
            tensor = (tensor.float() * rows).to(dtype)
        found[name] = tensor
    return found
