"""Devices of this machine: detection, memory, and the dtype to compute in."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from t2i_cli.backends.local import torch_build
from t2i_cli.errors import InputError
from t2i_cli.known_names import name_choices, suggest_name
from t2i_cli.models import libraries
from t2i_cli.settings.schema import DTYPES

DeviceKind = Literal["cuda", "rocm", "xpu", "mps", "cpu"]
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device: torch's name ("cuda:0"), its kind, and its product name (`label`)."""

    name: str
    kind: DeviceKind
    label: str

    @property
    def own_memory(self) -> bool:
        """Whether its memory is separate from the host's, so that offloading weights frees some."""
        return self.kind in {"cuda", "rocm", "xpu"}

    @property
    def fused_attention(self) -> bool:
        """Whether SDPA has a fused kernel, which never stores the whole attention matrix."""
        return self.kind != "mps"


CPU = Device(name="cpu", kind="cpu", label="CPU")


@dataclass(frozen=True, kw_only=True)
class MemoryInfo:
    """A device's memory in bytes; `free` is what this process may still allocate."""

    free: int
    total: int


def list_devices() -> list[Device]:
    """The devices of this machine, best first: CUDA or ROCm, XPU, MPS, CPU."""
    if torch_build.is_cpu_only():
        return [CPU]
    torch = libraries.import_torch()
    found = []
    kind: DeviceKind = "rocm" if torch.version.hip else "cuda"
    for index in range(torch.cuda.device_count()):
        label = torch.cuda.get_device_name(index)
        found.append(Device(name=f"cuda:{index}", kind=kind, label=label))
    for index in range(torch.xpu.device_count()):
        label = torch.xpu.get_device_name(index)
        found.append(Device(name=f"xpu:{index}", kind="xpu", label=label))
    if torch.backends.mps.is_available():
        found.append(Device(name="mps", kind="mps", label="Apple GPU"))
    return [*found, CPU]


def find_device(name: str | None) -> Device:
    """The device of that name ("cuda" is the first CUDA device), or the best one if `None`.

    Raises InputError that lists the devices.
    """
    if name == CPU.name:
        return CPU
    devices = list_devices()
    if name is None:
        return devices[0]
    for device in devices:
        if name in {device.name, device.name.partition(":")[0], device.kind}:
            return device
    listed = ", ".join(f"{device.name} ({device.label})" for device in devices)
    names = {each for device in devices for each in (device.name, device.kind)}
    raise InputError(
        f"There is no device {name!r} here; there is {listed}.",
        hint=suggest_name(name, sorted(names)).strip() or None,
        field="device",
    )


def device_memory(device: Device) -> MemoryInfo:
    """Total and free memory; what torch has reserved but not allocated counts as free."""
    if device.kind == "cpu":
        return host_memory()
    import torch

    if device.kind == "mps":
        total = torch.mps.recommended_max_memory()
        allocated = torch.mps.current_allocated_memory()
        return MemoryInfo(free=min(total - allocated, host_memory().free), total=total)
    library = torch.xpu if device.kind == "xpu" else torch.cuda
    free, total = library.mem_get_info(device.name)
    cached = library.memory_reserved(device.name) - library.memory_allocated(device.name)
    return MemoryInfo(free=free + cached, total=total)


def host_memory() -> MemoryInfo:
    """The host's memory, within the limits of the process's control groups."""
    import psutil

    host = psutil.virtual_memory()
    limits = [MemoryInfo(free=host.available, total=host.total), *_cgroup_limits()]
    return MemoryInfo(free=min(m.free for m in limits), total=min(m.total for m in limits))


def _cgroup_limits(
    root: Path = _CGROUPS, process_file: Path = Path("/proc/self/cgroup")
) -> list[MemoryInfo]:
    """The memory limits, in bytes, of the process's control groups (v2, or v1's memory controller).

    `memory.current` includes the page cache, whose inactive part can be reclaimed
    (https://docs.kernel.org/admin-guide/cgroup-v2.html).
    """
    try:
        lines = process_file.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = ("memory.max", "memory.current", "inactive_file")
        base = root
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "memory"
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = base / path.lstrip("/")
        for group in [folder, *folder.parents]:
            if limit := _cgroup_limit(group, *names):
                found.append(limit)
            if group == base:
                break
    return found


def _cgroup_limit(group: Path, limit: str, usage: str, cache: str) -> MemoryInfo | None:
    try:
        total = int((group / limit).read_text())
        used = int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group here, or its limit is "max"
        return None
    return MemoryInfo(free=max(0, total - used + int(stat.get(cache, 0))), total=total)


def choose_dtype(device: Device, requested: str | None, *, transformer: bool) -> str:
    """The dtype to compute in: `requested`, else half precision on a GPU and float32 on a CPU.

    Diffusion transformers are trained in bfloat16 and overflow in float16; UNets work in float16.
    Raises InputError for an unknown dtype.
    """
    if requested is not None:
        if requested not in DTYPES:
            raise InputError(
                f"The dtype {requested!r} is unknown; {name_choices(requested, DTYPES)}",
                field="dtype",
            )
        return requested
    if device.kind == "cpu":
        return "float32"
    return "bfloat16" if transformer and _supports_bfloat16(device) else "float16"


def _supports_bfloat16(device: Device) -> bool:
    import torch

    if device.kind == "cuda":
        return torch.cuda.get_device_capability(device.name) >= (8, 0)
    return True


def clear_cache(device: Device) -> None:
    """Collect garbage and release the device memory that torch caches unused."""
    import torch

    gc.collect()
    if device.kind in {"cuda", "rocm"}:
        torch.cuda.empty_cache()
    elif device.kind == "xpu":
        torch.xpu.empty_cache()
    elif device.kind == "mps":
        torch.mps.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an out-of-memory error: by torch's type, or by a RuntimeError's text.

    The CPU allocator and MPS raise RuntimeError, which only its text distinguishes from others.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    texts = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
