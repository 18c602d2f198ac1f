"""FlashAttention-3 on a GPU that is not there: when it is tried, chosen, remembered, and offline.

The fake kernel goes where diffusers' dispatcher looks for the real one, and computes by SDPA.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from t2i_cli.backends.local import LocalBackend, LocalOptions, attention_backend, denoiser_engine
from t2i_cli.backends.local.device import Device
from t2i_cli.backends.local.engine_measurements import EngineMeasurement
from t2i_cli.events import Event, Notice
from t2i_cli.models.libraries import LibraryObject
from tests import tiny_models
from tests.fakes import gpu
from tests.test_local_backend import ask, images, make

CUDA = Device(name="cpu", kind="cuda", label="Fake H200")
SIZE: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}


class FakeKernel:
    """The function of `kernels-community/flash-attn3`, by SDPA; `calls` counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.factor = 1.0
        self.error: Exception | None = None

    def __call__(
        self, q: LibraryObject, k: LibraryObject, v: LibraryObject, **options: LibraryObject
    ) -> LibraryObject:
        import torch

        self.calls += 1
        if self.error:
            raise self.error
        heads_first = (tensor.transpose(1, 2) for tensor in (q, k, v))
        output = torch.nn.functional.scaled_dot_product_attention(*heads_first)
        return output.transpose(1, 2) * self.factor


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKernel]:
    """A Hopper GPU with the kernel in the cache; measured times are a test's."""
    import torch
    from diffusers.models import attention_dispatch as dispatch
    from huggingface_hub import constants

    made = FakeKernel()
    config = dispatch._HUB_KERNELS_REGISTRY[dispatch.AttentionBackendName._FLASH_3_HUB]
    asked: list[bool] = []

    def fetched(backend: object) -> None:
        asked.append(bool(constants.HF_HUB_OFFLINE and vars(dispatch)["HF_HUB_OFFLINE"]))
        monkeypatch.setattr(config, "kernel_fn", made)

    gpu.install(monkeypatch, free=8 * 10**9, fake=CUDA)
    monkeypatch.setattr(dispatch, "_maybe_download_kernel_for_backend", fetched)
    monkeypatch.setattr(dispatch, "is_kernels_available", lambda: True)
    monkeypatch.setattr(dispatch, "is_kernels_version", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(attention_backend, "has_kernel", lambda: True)
    monkeypatch.setattr(
        "t2i_cli.backends.local.engine_measurements.user_folder", lambda kind: tmp_path / kind
    )
    measured(monkeypatch, sdpa=2.0, flash=1.0)
    yield made
    assert all(asked), "a server was asked for the kernel"
    assert not constants.HF_HUB_OFFLINE


def measured(monkeypatch: pytest.MonkeyPatch, *, sdpa: float, flash: float) -> None:
    """Let the first thing that is measured take so long, and the second."""
    times = [flash, sdpa]
    monkeypatch.setattr(denoiser_engine, "measure_seconds", lambda call, wait: times.pop())


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save("flux", tmp_path_factory.mktemp("attention") / "flux")


def run(model: Path, dtype: str = "bfloat16") -> tuple[str | None, list[str]]:
    """The attention of the second of two images, and what was told."""
    backend = LocalBackend(LocalOptions(dtype=dtype))
    events: list[Event] = []
    asked = [ask(backend, model=model, seed=seed, **SIZE) for seed in (1, 2)]
    made = images(make(backend, *asked, events=events))
    told = [event.message for event in events if isinstance(event, Notice)]
    return made[-1].info.attention, told


def test_the_faster_attention_is_used_and_remembered(
    kernel: FakeKernel, flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    assert run(flux) == ("flash-attention-3", [])
    assert kernel.calls > 4
    # Other networks of the process keep diffusers' default.
    assert _AttentionBackendRegistry._active_backend.value == "native"
    monkeypatch.setattr(denoiser_engine, "measure_seconds", None)
    assert run(flux) == ("flash-attention-3", [])


def test_where_it_is_not_faster_sdpa_stays_and_that_is_remembered(
    kernel: FakeKernel, flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, sdpa=1.0, flash=1.0)
    assert run(flux) == ("sdpa", [])
    calls = kernel.calls
    assert run(flux) == ("sdpa", [])
    assert kernel.calls == calls


@pytest.mark.parametrize("fault", ["raises", "differs", "memory"])
def test_a_kernel_that_fails_or_errs_is_not_used(
    fault: str, kernel: FakeKernel, flux: Path
) -> None:
    kernel.factor = 3.0 if fault == "differs" else 1.0
    errors = {"raises": ValueError("attn_mask is not supported"), "memory": gpu.out_of_memory()}
    kernel.error = errors.get(fault)
    attention, told = run(flux)
    assert attention == "sdpa"
    failed = ["FlashAttention-3 cannot be used with this model; PyTorch's is used."]
    assert told == ([] if fault == "differs" else failed)


@pytest.mark.parametrize("why", ["float32", "not Hopper", "no kernel", "user's own", "UNet"])
def test_it_is_not_tried_where_it_cannot_act(
    why: str, kernel: FakeKernel, flux: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    if why == "not Hopper":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 9))
    if why == "no kernel":
        monkeypatch.setattr(attention_backend, "has_kernel", lambda: False)
    if why == "user's own":
        monkeypatch.setenv("DIFFUSERS_ATTN_BACKEND", "native")
    model = tiny_models.save("sdxl", tmp_path / "sdxl") if why == "UNet" else flux
    assert run(model, "float32" if why == "float32" else "bfloat16") == ("sdpa", [])
    assert kernel.calls == 0


def test_the_kernel_is_looked_for_where_kernels_puts_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path))
    assert not attention_backend.has_kernel()
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: real("json" if name == "kernels" else name)
    )
    assert not attention_backend.has_kernel()
    (tmp_path / "kernels--kernels-community--flash-attn3" / "refs").mkdir(parents=True)
    assert attention_backend.has_kernel()


def test_a_measurement_is_faster_by_its_ratio() -> None:
    measurement = EngineMeasurement(eager=1.05, other=1.0)
    assert measurement.is_faster(1.05)
    assert not measurement.is_faster(1.06)
    assert EngineMeasurement(eager=0.0, other=1.0).gain == 0
