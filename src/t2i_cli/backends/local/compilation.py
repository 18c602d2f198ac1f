"""Compile a denoiser with torch.compile: its repeated blocks, else the whole of it."""

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from t2i_cli.backends.local.device import Device
from t2i_cli.files.user_folders import NoHomeError, user_folder
from t2i_cli.models import libraries
from t2i_cli.models.libraries import LibraryObject

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_RECOMPILES = 64
"""Variants of a block that torch may compile: all blocks of a network share their code."""
_MARGIN = 1.5
"""Compiling is begun where it is expected to save so many times what it costs."""
_GAINS = {"cuda": 0.15, "rocm": 0.15}
"""The part of a transformer's time that is expected to be saved, by kind of device.

FLUX.1 6.7 to 4.5 s and FLUX.2-klein 0.49 to 0.39 s an image (H100, H200), less the other models'.
On other devices nothing is expected until it was measured there.
"""
_REGIONAL_SECONDS, _WHOLE_SECONDS = 15.0, 70.0
"""Seconds of a cold compilation of repeated blocks, and of a whole denoiser (FLUX.1: 10 and 67)."""


class CompiledForward:
    """A denoiser's compiled forward; between its calls the denoiser is as it was."""

    def __init__(self, network: LibraryObject, forward: Callable[..., Any]) -> None:
        """Prepare compiling; torch compiles at the first call. Raises what torch raises."""
        import torch

        _prepare_compiler()
        self._forward = forward
        self._compiled_parts: list[tuple[LibraryObject, Any]] = []
        try:
            network.compile_repeated_blocks(fullgraph=True)
        except ValueError:  # the class names no repeated blocks
            self._forward = torch.compile(forward)
        for module in network.modules():
            if (compiled := getattr(module, "_compiled_call_impl", None)) is not None:
                self._compiled_parts.append((module, compiled))
                module._compiled_call_impl = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the network's own
        """The output of the compiled forward. Raises what the compiler or the network raises."""
        for module, compiled in self._compiled_parts:
            module._compiled_call_impl = compiled
        try:
            with libraries.suppress_warnings():
                return self._forward(*args, **kwargs)
        finally:
            for module, _ in self._compiled_parts:
                module._compiled_call_impl = None


def has_compiler(device: Device) -> bool:
    """Whether torch finds what it compiles with: Triton on a GPU, and a C++ compiler."""
    if device.kind in {"cuda", "rocm", "xpu"}:
        from torch.utils._triton import has_triton

        if not has_triton():
            return False
    names = (os.environ.get("CXX"), "g++", "clang++", "c++", "cl")
    return any(name and shutil.which(name) for name in names)


def is_regional(network: LibraryObject) -> bool:
    """Whether the network's class names the blocks that repeat."""
    return bool(getattr(network, "_repeated_blocks", None))


def expected_gain(device: Device, *, unet: bool) -> float:
    """The part of the time that compiling is expected to save, unmeasured.

    A UNet gains nothing by it (SD 1.5: 0.90 against 1.05 s on an H200).
    """
    return 0.0 if unet else _GAINS.get(device.kind, 0.0)


def expected_seconds(*, regional: bool) -> float:
    """The seconds that compiling is expected to take, unmeasured."""
    return _REGIONAL_SECONDS if regional else _WHOLE_SECONDS


def pays_off(seconds_left: float, gain: float, compile_seconds: float) -> bool:
    """Whether compiling saves more of the seconds that are left than it costs, with a margin."""
    return gain * seconds_left >= _MARGIN * compile_seconds


def compiled_code_folder() -> Path:
    """The folder of compiled code, one folder in it for each environment. Raises NoHomeError."""
    return user_folder("cache") / "compiled"


def environment_parts(device: Device) -> dict[str, str]:
    """What compiled code and measured times depend on, beside the model and its inputs."""
    import torch

    parts = {"torch": torch.__version__, "device": device.label}
    if device.kind == "cpu":
        parts["cpu"] = f"{torch.backends.cpu.get_cpu_capability()}-{torch.get_num_threads()}"
        return parts
    with suppress(ImportError, AttributeError):
        import triton  # type: ignore[import-not-found,unused-ignore]

        parts["triton"] = triton.__version__
    with suppress(AttributeError, RuntimeError, OSError):
        parts["driver"] = _driver(device)
    return parts


def _driver(device: Device) -> str:
    """The version of the GPU's driver: the kernel module's, else that of CUDA it offers."""
    import torch

    if device.kind == "cuda":
        with suppress(OSError):
            text = Path("/proc/driver/nvidia/version").read_text()
            if found := re.search(r"\s(\d+\.[\d.]+)\s", text):
                return found[1]
        return str(torch._C._cuda_getDriverVersion())  # type: ignore[attr-defined]
    return str(torch.version.hip or "")


def keep_compiled_code(device: Device) -> None:
    """Have torch keep compiled code in t2i's cache folder, unless the user names another."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Torch itself sets the variable to its default, in the system's temporary folder.
    if os.environ.get(_CACHE_VARIABLE, default_cache_dir()) != default_cache_dir():
        return
    name = re.sub(r"[^\w.+-]+", "_", "-".join(environment_parts(device).values()))
    with suppress(OSError, NoHomeError):
        folder = compiled_code_folder() / name
        # What is in it is run: it is the user's alone.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.environ[_CACHE_VARIABLE] = str(folder)


def _prepare_compiler() -> None:
    """Import the compiler itself, not its stand-ins, and let it compile each kind of block."""
    import torch._dynamo

    for name in ("recompile_limit", "cache_size_limit"):
        if isinstance(limit := getattr(torch._dynamo.config, name, None), int):
            setattr(torch._dynamo.config, name, max(limit, _RECOMPILES))
