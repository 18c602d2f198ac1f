"""On a card: quantised weights make the picture, in every placement that a plan can name."""

import threading

import numpy as np
import pytest

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, device, memory, quantization
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest
from t2i_cli.request_fields import QUANTIZATIONS

pytestmark = pytest.mark.gpu
OFFLOADS = ((), (memory.MODEL_OFFLOAD,), (memory.VAE_TILING, memory.GROUP_OFFLOAD))


def made(backend: LocalBackend, quantize: str | None) -> GeneratedImage:
    asked = GenerateRequest(prompt="a red star", model="postcard", seed=1, quantize=quantize)
    request = resolve_request(asked, backend.describe(asked))
    backend.check(request)
    [outcome] = backend.run([request], lambda _: None, threading.Event())
    assert isinstance(outcome, GeneratedImage), outcome
    return outcome


@pytest.mark.parametrize("measures", OFFLOADS)
@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_quantised_weights_make_the_picture(kind: str, measures: memory.Measures) -> None:
    place = device.list_devices()[0]
    assert place.own_memory, "this test needs a GPU with memory of its own"
    if not quantization.is_available(kind, place):
        pytest.skip(f"{kind} cannot be had here")
    if kind in quantization.WITHOUT_GROUP_OFFLOAD and memory.GROUP_OFFLOAD in measures:
        pytest.skip(f"no plan names group offload with {kind}")
    backend = LocalBackend(LocalOptions(dtype="bfloat16"))
    plain = made(backend, None)
    quantized = made(backend, kind)
    assert backend._loaded
    backend._loaded.place(measures, "test")
    placed = made(backend, kind)
    pictures = [np.asarray(one.image, dtype=np.float64) for one in (plain, quantized, placed)]
    for other in pictures[1:]:
        error = float(np.mean((pictures[0] - other) ** 2))
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 20
