"""The devices of this machine: found, named, measured, and the precision they compute in."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from t2i_cli.errors import InputError
from t2i_cli.models import libraries
from t2i_cli.settings.schema import DTYPES

DeviceKind = Literal["cuda", "rocm", "xpu", "mps", "cpu"]
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device under torch's name for it ("cuda:0"), and what people call it."""

    name: str
    kind: DeviceKind
    label: str

    @property
    def own_memory(self) -> bool:
        """Whether its memory is apart from the host's, so that moving weights away frees some."""
        return self.kind in {"cuda", "rocm", "xpu"}

    @property
    def fused_attention(self) -> bool:
        """Whether SDPA has a fused kernel there, which never holds the whole attention matrix."""
        return self.kind != "mps"


@dataclass(frozen=True, kw_only=True)
class MemoryInfo:
    """A device's memory in bytes; `free` is what this process may still take."""

    free: int
    total: int


def list_devices() -> list[Device]:
    """What this machine has, best first: CUDA or ROCm, XPU, MPS, CPU."""
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
    return [*found, Device(name="cpu", kind="cpu", label="CPU")]


def find_device(name: str | None) -> Device:
    """The device of that name ("cuda" is the first CUDA device), or the best one.

    Raises InputError listing what there is.
    """
    here = list_devices()
    if name is None:
        return here[0]
    for device in here:
        if name in {device.name, device.name.partition(":")[0], device.kind}:
            return device
    listed = ", ".join(f"{device.name} ({device.label})" for device in here)
    raise InputError(f"There is no device {name!r} here; there is {listed}.", field="device")


def device_memory(device: Device) -> MemoryInfo:
    """What the device has and what is free; memory that torch holds unused counts as free."""
    import torch

    if device.kind == "cpu":
        return host_memory()
    if device.kind == "mps":
        total = torch.mps.recommended_max_memory()
        taken = torch.mps.current_allocated_memory()
        return MemoryInfo(free=min(total - taken, host_memory().free), total=total)
    library = torch.xpu if device.kind == "xpu" else torch.cuda
    free, total = library.mem_get_info(device.name)
    unused = library.memory_reserved(device.name) - library.memory_allocated(device.name)
    return MemoryInfo(free=free + unused, total=total)


def host_memory() -> MemoryInfo:
    """The host's memory, as far as the process's control groups let it be used."""
    import psutil

    host = psutil.virtual_memory()
    limits = [MemoryInfo(free=host.available, total=host.total), *_cgroup_limits()]
    return MemoryInfo(free=min(m.free for m in limits), total=min(m.total for m in limits))


def _cgroup_limits(
    root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")
) -> list[MemoryInfo]:
    """The limits of the process's control groups (cgroup v2, or v1's memory controller), bytes.

    https://docs.kernel.org/admin-guide/cgroup-v2.html: `memory.current` counts the page cache, of
    which the inactive part is given back at need.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        names = ("memory.max", "memory.current", "inactive_file")
        base = root
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "memory"
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = base / place.lstrip("/")
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


def choose_dtype(device: Device, asked: str | None, *, transformer: bool) -> str:
    """The precision to compute in: the user's, or half precision where the device is made for it.

    Diffusion transformers are trained in bfloat16 and overflow in float16; UNets fit float16.
    Raises InputError.
    """
    if asked is not None:
        if asked not in DTYPES:
            raise InputError(
                f"The dtype {asked!r} is unknown; use one of: {', '.join(DTYPES)}.", field="dtype"
            )
        return asked
    if device.kind == "cpu":
        return "float32"
    return "bfloat16" if transformer and _computes_bfloat16(device) else "float16"


def _computes_bfloat16(device: Device) -> bool:
    import torch

    if device.kind == "cuda":
        return torch.cuda.get_device_capability(device.name) >= (8, 0)
    return True


def clear_cache(device: Device) -> None:
    """Give back what torch holds of the device's memory without using it."""
    import torch

    gc.collect()
    if device.kind in {"cuda", "rocm"}:
        torch.cuda.empty_cache()
    elif device.kind == "xpu":
        torch.xpu.empty_cache()
    elif device.kind == "mps":
        torch.mps.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out: torch's own type, or a plain RuntimeError.

    The CPU allocator and MPS raise RuntimeError, which only its text tells from others.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    texts = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
