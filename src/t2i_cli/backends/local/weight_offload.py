"""Keep weights on the host while they are idle: text encoders, or every layer in groups."""

from t2i_cli.backends.local import device, working_memory
from t2i_cli.backends.local.device import Device
from t2i_cli.errors import error_reason
from t2i_cli.models import diffusers_folder
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.terminal.console import console

_PINNED_FRACTION = 0.5
"""The fraction of the host's free memory that may be pinned; pinned memory cannot be swapped."""


def remove_hooks(pipe: LibraryObject) -> None:
    """Remove all offload hooks from a pipeline, also if installing them failed midway."""
    import torch

    pipe.remove_all_hooks()  # accelerate's hooks
    for network in pipe.components.values():
        for module in network.modules() if isinstance(network, torch.nn.Module) else ():
            # diffusers' own hooks
            if (registry := getattr(module, "_diffusers_hook", None)) is not None:
                # Weights that are stored in fp8 stay so: that hook cannot be removed.
                for name in registry.hooks.keys() - {"layerwise_casting"}:
                    registry.remove_hook(name, recurse=False)


def offload_groups(pipe: LibraryObject, target: Device, weight_bytes: int) -> str | None:
    """Keep all weights on the host; each layer is copied to the device while the one before works.

    Copies run beside the computation where the device has streams, and fast from weights that are
    pinned beforehand, for which the host needs memory. Returns a note where that was not possible.
    Raises what torch raises.
    """
    streams = target.kind in {"cuda", "rocm"}
    pinned = streams and weight_bytes <= device.host_memory().free * _PINNED_FRACTION
    attempts = [(True, True)] * pinned + [(True, False)] * streams + [(False, False)]
    for use_stream, pin in attempts[:-1]:
        try:
            _enable_group_offload(pipe, target, use_stream=use_stream, pin=pin)
        except Exception as error:  # noqa: BLE001 - the next attempt needs less
            what = "pinned memory" if pin else "streams"
            console.trace(f"group offload with {what} failed: {error_reason(error)}")
            remove_hooks(pipe)
            device.clear_cache(target)
            continue
        return None if pin else _UNPINNED
    _enable_group_offload(pipe, target, use_stream=False, pin=False)
    return _WITHOUT_STREAMS if streams else None


_UNPINNED = (
    "The host has too little free memory to pin the weights; each layer is pinned when it is "
    "copied, which is slower."
)
_WITHOUT_STREAMS = "Layers cannot be copied beside the computation here; group offload is slower."


def _enable_group_offload(
    pipe: LibraryObject, target: Device, *, use_stream: bool, pin: bool
) -> None:
    import torch

    pipe.to("cpu", silence_dtype_warnings=True)
    pipe.enable_group_offload(
        onload_device=torch.device(target.name),
        offload_type="leaf_level",
        use_stream=use_stream,
        low_cpu_mem_usage=use_stream and not pin,
    )


def idle_text_encoders(pipe: LibraryObject) -> dict[str, LibraryObject]:
    """The text encoders by name that a pipeline only calls before it denoises; maybe none."""
    order = (pipe.model_cpu_offload_seq or "").split("->")
    if not any(name in order and getattr(pipe, name, None) for name in diffusers_folder.DENOISERS):
        return {}
    names = [name for name in order if working_memory.is_text_encoder(name)]
    return {name: encoder for name in names if (encoder := getattr(pipe, name, None)) is not None}


def offload_text_encoders(pipe: LibraryObject, target: Device) -> None:
    """Keep the text encoders on the host but while they encode; the rest is on the device.

    They leave the device when the denoiser runs: a pipeline may call each several times before.
    """
    import torch
    from accelerate.hooks import ModelHook, add_hook_to_module

    encoders = idle_text_encoders(pipe)
    host, accelerator = torch.device("cpu"), torch.device(target.name)

    class OnloadHook(ModelHook):  # type: ignore[misc]
        """Moves an encoder to the device before it runs."""

        execution_device = accelerator

        def pre_forward(
            self, module: LibraryObject, *args: LibraryObject, **kwargs: LibraryObject
        ) -> tuple[LibraryObject, LibraryObject]:
            module.to(accelerator)
            return args, kwargs

    class ReleaseHook(ModelHook):  # type: ignore[misc]
        """Moves the encoders to the host before the denoiser runs."""

        execution_device = accelerator

        def pre_forward(
            self, module: LibraryObject, *args: LibraryObject, **kwargs: LibraryObject
        ) -> tuple[LibraryObject, LibraryObject]:
            for encoder in encoders.values():
                encoder.to(host)
            return args, kwargs

    for name, network in pipe.components.items():
        if isinstance(network, torch.nn.Module):
            network.to(host if name in encoders else accelerator)
    for encoder in encoders.values():
        add_hook_to_module(encoder, OnloadHook())
    for name in diffusers_folder.DENOISERS:
        if (denoiser := getattr(pipe, name, None)) is not None:
            add_hook_to_module(denoiser, ReleaseHook())
