"""The device of tests that need a card: a real one, or a fake one, to try the tests themselves.

`T2I_TEST_DEVICE` names it ("cuda:1"), else it is the best there is. With `T2I_TEST_DEVICE=cpu`, and
for tests without the marker `gpu`, it is the GPU of tests/fakes, which computes on the CPU.
"""

import gc
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, device
from t2i_cli.backends.local.device import Device
from t2i_cli.events import Event, Step
from t2i_cli.request import ResolvedRequest
from tests.fakes import gpu
from tests.test_local_backend import ask, images, make, pixels

VARIABLE = "T2I_TEST_DEVICE"
FREE = 64 * 2**30


@pytest.fixture
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The device to compute on, which has memory of its own."""
    name = os.environ.get(VARIABLE)
    if name == "cpu" or request.node.get_closest_marker("gpu") is None:
        gpu.install(monkeypatch, free=FREE)
        return gpu.FAKE
    found = device.find_device(name)
    assert found.own_memory, f"{found.name} has no memory of its own; {VARIABLE}=cpu tries a fake"
    return found


def is_real(place: Device) -> bool:
    """Whether the device is a card."""
    return place != gpu.FAKE


def held_bytes(place: Device) -> int:
    """Bytes of tensors that are held: on a card torch's count, else of all tensors alive."""
    import torch

    gc.collect()
    if is_real(place):
        library = torch.xpu if place.kind == "xpu" else torch.cuda
        return int(library.memory_allocated(place.name))
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        if type(one) in {torch.Tensor, torch.nn.Parameter} and one.device.type == "cpu"
    }
    return sum(storages.values())


def run_on(
    place: Device,
    folder: Path | str,
    *,
    dtype: str | None = None,
    events: list[Event] | None = None,
    **fields: Any,  # noqa: ANN401 - the request's own
) -> GeneratedImage:
    """One picture of a model, by a backend of its own, which is closed."""
    backend = LocalBackend(LocalOptions(device=place.name, dtype=dtype))
    try:
        (image,) = images(make(backend, ask(backend, model=folder, **fields), events=events))
    finally:
        backend.close()
    assert pixels(image).std() > 1, "a picture of one colour shows nothing"
    return image


def run_cancelled(
    backend: LocalBackend, requests: Sequence[ResolvedRequest], step: int
) -> tuple[int, int]:
    """Cancel at a step: how many outcomes there were, and how many steps were told."""
    cancel, steps = threading.Event(), 0

    def on_event(event: Event) -> None:
        nonlocal steps
        if isinstance(event, Step):
            steps += 1
            if steps == step:
                cancel.set()

    return len(list(backend.run(requests, on_event, cancel))), steps
