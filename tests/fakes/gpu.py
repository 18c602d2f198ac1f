"""A GPU that is not there: it computes on the CPU, has the memory a test gives it, and runs out."""

from collections.abc import Callable, Iterable

import pytest

from t2i_cli.backends.local import device
from t2i_cli.backends.local.device import Device, MemoryInfo
from t2i_cli.models.libraries import LibraryObject

FAKE = Device(name="cpu", kind="xpu", label="Fake GPU")
"""Its kind has memory of its own, its name lets torch and diffusers really move weights to it."""


def install(monkeypatch: pytest.MonkeyPatch, *, free: int, fake: Device = FAKE) -> None:
    """Make the fake GPU this machine's best device, with `free` bytes."""
    import torch

    real = device.device_memory
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: None)
    monkeypatch.setattr(device, "list_devices", lambda: [fake])
    monkeypatch.setattr(
        device,
        "device_memory",
        lambda asked: MemoryInfo(free=free, total=free) if asked == fake else real(asked),
    )


def out_of_memory() -> RuntimeError:
    """The error of a GPU without room."""
    import torch

    return torch.OutOfMemoryError("XPU out of memory. Tried to allocate 2.00 GiB.")


def cpu_out_of_memory() -> RuntimeError:
    """The error of torch's CPU allocator, from the allocator itself."""
    import torch

    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        return RuntimeError(str(error))
    raise AssertionError("an exabyte was there")


class Failing:
    """A method or function that raises at chosen calls (from 1), and otherwise does what it did."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        owner: object,
        name: str,
        at: Iterable[int] = (),
        error: Callable[[], Exception] = out_of_memory,
    ) -> None:
        self.calls = 0
        at = frozenset(at)
        original = getattr(owner, name)

        def method(*args: LibraryObject, **kwargs: LibraryObject) -> LibraryObject:
            self.calls += 1
            if self.calls in at:
                raise error()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, method)
