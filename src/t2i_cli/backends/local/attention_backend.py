"""FlashAttention-3 for diffusion transformers on Hopper GPUs, where its kernel is at hand."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t2i_cli.backends.local.device import Device
from t2i_cli.models import libraries
from t2i_cli.models.libraries import LibraryObject

SDPA, FLASH_3, SLICED = "sdpa", "flash-attention-3", "sliced"
_NAMES = {"native": SDPA, "_flash_3_hub": FLASH_3, "_flash_3": FLASH_3}
"""diffusers' names of attention backends, and ours."""
_BACKENDS = {SDPA: "native", FLASH_3: "_flash_3_hub"}
_KERNEL = "kernels-community/flash-attn3"
_HOPPER = 9
"""Major number of the compute capability of H100, H200 and GH200."""


def acts_on(network: LibraryObject) -> bool:
    """Whether `set_attention_backend` changes the network: it does nothing to a UNet, silently."""
    return any(
        hasattr(getattr(module, "processor", None), "_attention_backend")
        for module in network.modules()
    )


def offers_flash_3(network: LibraryObject, device: Device, dtype: str) -> bool:
    """Whether FlashAttention-3 can be tried: by device, dtype, network, and what is on this disk.

    An attention backend that the user chose for diffusers (DIFFUSERS_ATTN_BACKEND) stays.
    """
    import torch

    if device.kind != "cuda" or dtype not in {"float16", "bfloat16"}:
        return False
    if os.environ.get("DIFFUSERS_ATTN_BACKEND") or not has_kernel():
        return False
    major, _ = torch.cuda.get_device_capability(device.name)
    return major == _HOPPER and acts_on(network)


def has_kernel() -> bool:
    """Whether `kernels` is installed and the kernel in its cache; nothing is imported or asked."""
    if importlib.util.find_spec("kernels") is None:
        return False
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(os.environ.get("KERNELS_CACHE") or constants.HF_HUB_CACHE)
    # As `kernels` looks for it: caches of older versions have it as a model.
    folders = (repo_folder_name(repo_id=_KERNEL, repo_type=kind) for kind in ("kernel", "model"))
    return any((cache / folder / "refs").is_dir() for folder in folders)


def use_attention(network: LibraryObject, name: str) -> None:
    """Set the network's attention, without a network call. Raises what diffusers raises.

    Other networks of the process keep theirs: diffusers would change its default as well.
    """
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    default = _AttentionBackendRegistry._active_backend
    try:
        with libraries.suppress_warnings(), _offline():
            network.set_attention_backend(_BACKENDS[name])
    finally:
        _AttentionBackendRegistry.set_active_backend(default)


def attention_name(network: LibraryObject) -> str:
    """The attention that the network computes with, as it is recorded in images."""
    chosen = None
    for module in network.modules():
        processor = getattr(module, "processor", None)
        if type(processor).__name__.startswith("Sliced"):
            return SLICED
        chosen = chosen or getattr(processor, "_attention_backend", None)
    if chosen is None and not acts_on(network):
        return SDPA
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    backend = chosen or _AttentionBackendRegistry._active_backend
    value = str(getattr(backend, "value", backend))
    return _NAMES.get(value, value)


@contextmanager
def _offline() -> Iterator[None]:
    """Have diffusers and `kernels` take the kernel from the cache, and ask no server.

    Both look at huggingface_hub's constant; diffusers has copied it.
    """
    from diffusers.models import attention_dispatch
    from huggingface_hub import constants

    holders = (constants, attention_dispatch)
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    for holder in holders:
        holder.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]
