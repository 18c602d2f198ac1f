"""Global random generators: seeded for a run, and put back after it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from t2i_cli.backends.local.device import Device
from t2i_cli.models.libraries import LibraryObject

_NUMPY_SEEDS = 2**32


@contextmanager
def seeded_global_generators(seed: int, device: Device) -> Iterator[None]:
    """Seed what a pipeline may draw from beside its own generator; afterwards nothing is changed.

    Language models that rewrite prompts or plan an image draw from torch's global generators, some
    schedulers and pipelines from numpy's or Python's.
    """
    import random

    import numpy as np
    import torch

    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one
    put_back = [_keep(torch.default_generator), *_keep_device(torch, device)]
    torch.default_generator.manual_seed(seed)
    if library := _device_library(torch, device):
        library.manual_seed(seed)
    np.random.seed(seed % _NUMPY_SEEDS)  # noqa: NPY002 - the global one
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002 - the global one
        for restore in put_back:
            restore()


def _device_library(torch: LibraryObject, device: Device) -> ModuleType | None:
    """torch's module of the device, if that has a global generator of its own."""
    name = device.name.partition(":")[0]
    return getattr(torch, name) if name in {"cuda", "xpu", "mps"} else None


def _keep(generator: LibraryObject) -> Callable[[], object]:
    state = generator.get_state()
    return lambda: generator.set_state(state)


def _keep_device(torch: LibraryObject, device: Device) -> list[Callable[[], object]]:
    """What puts back the state of the device's global generator."""
    library = _device_library(torch, device)
    if library is None:
        return []
    place = () if device.name == "mps" else (device.name,)
    state = library.get_rng_state(*place)
    return [lambda: library.set_rng_state(state, *place)]
