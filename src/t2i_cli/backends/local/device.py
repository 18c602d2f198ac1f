"""Devices of this machine: detection, memory, and the dtype to compute in."""

import gc
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from t2i_cli.backends.local import absent_gpu, torch_build
from t2i_cli.errors import InputError, error_reason
from t2i_cli.known_names import name_choices
from t2i_cli.models import libraries
from t2i_cli.settings.schema import DTYPES
from t2i_cli.terminal.console import console

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

    @property
    def is_numbered(self) -> bool:
        """Whether it is one of several that torch numbers, of which one is current in a thread."""
        return ":" in self.name


CPU = Device(name="cpu", kind="cpu", label="CPU")


@dataclass(frozen=True, kw_only=True)
class MemoryInfo:
    """A device's memory in bytes; `free` is what this process may still allocate."""

    free: int
    total: int


def list_devices() -> list[Device]:
    """The devices of this machine that work, best first: CUDA or ROCm, XPU, MPS, CPU."""
    if torch_build.is_cpu_only():
        return [CPU]
    torch = libraries.import_torch()
    found = [
        *_numbered_devices(torch.cuda, "cuda", "rocm" if torch.version.hip else "cuda"),
        *_numbered_devices(torch.xpu, "xpu", "xpu"),
    ]
    if torch.backends.mps.is_available():
        found.append(Device(name="mps", kind="mps", label="Apple GPU"))
    return [*found, CPU]


def count_gpus() -> int:
    """The number of this machine's GPUs with memory of their own."""
    return sum(found.own_memory for found in list_devices())


def unused_gpus(name: str | None) -> dict[str, int]:
    """How many GPUs are left beside the best one, by the name "unused_gpus"; empty if none is.

    Where a device is named, none counts as left.
    """
    others = count_gpus() - 1 if name is None else 0
    return {"unused_gpus": others} if others > 0 else {}


def _numbered_devices(library: ModuleType, prefix: str, kind: DeviceKind) -> list[Device]:
    """The devices of torch.cuda or torch.xpu; none where its driver does not start.

    The count is taken anew after each name: before the driver has started it is of cards, of
    which a process may see fewer (one slice of all cards under MIG).
    """
    found: list[Device] = []
    with libraries.suppress_warnings():
        try:
            while len(found) < library.device_count():
                index = len(found)
                label = library.get_device_name(index)
                found.append(Device(name=f"{prefix}:{index}", kind=kind, label=label))
        # A driver that is too old or broken; `absent_gpu` says so where the device is asked for.
        except Exception as error:  # noqa: BLE001 - drivers' libraries raise anything
            console.trace(f"torch.{prefix}: {error_reason(error)}")
    return found


def find_device(name: str | None) -> Device:
    """The device of that name ("cuda" is the first CUDA device), or the best one if `None`.

    Raises InputError that lists the devices and says why that one is absent; for `None`, too, if
    the environment asks for a GPU and there is none.
    """
    if name == CPU.name:
        return CPU
    devices = list_devices()
    if name is None:
        if devices[0].kind == "cpu":
            absent_gpu.require_requested_gpu()
        return devices[0]
    known: dict[str, Device] = {}
    for device in reversed(devices):
        prefix, _, index = device.name.partition(":")
        # torch has no name "rocm": its devices are "cuda:0" and so on, in a build of its own.
        kind_index = f"{device.kind}:{index}" if index else device.kind
        known |= dict.fromkeys((device.name, prefix, device.kind, kind_index), device)
    if name in known:
        return known[name]
    listed = ", ".join(f"{device.name} ({device.label})" for device in devices)
    raise absent_gpu.absent_device_error(name, listed, known)


def select_device(device: Device) -> None:
    """Make it the calling thread's current device, for what libraries start without a name.

    diffusers' streams of group offload are such: on "cuda:0" they would take memory of a card that
    was not asked for, and not wait for the one that computes.
    """
    import torch

    if device.own_memory and device.is_numbered:
        (torch.xpu if device.kind == "xpu" else torch.cuda).set_device(device.name)


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
    if device.own_memory:
        library = torch.xpu if device.kind == "xpu" else torch.cuda
        # It acts on the thread's current device, and a context on another card costs memory there.
        with library.device(device.name) if device.is_numbered else nullcontext():
            library.empty_cache()
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
