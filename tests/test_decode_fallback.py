"""A decode that runs out of memory: slices, tiles, smaller tiles, the CPU; nothing is denoised."""

from types import SimpleNamespace
from typing import Any

import pytest

from t2i_cli.backends.local import device, memory, vae_decode
from t2i_cli.backends.local.device import Device, MemoryInfo
from t2i_cli.backends.local.load_target import LoadTarget
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.events import Event, MemoryMeasure
from t2i_cli.models.catalog import MODELS
from t2i_cli.models.libraries import LibraryObject
from tests.fakes import gpu
from tests.test_local_memory import SHAPES
from tests.test_vae_tiling import VAES

GPU = Device(name="cpu", kind="xpu", label="Fake GPU")


class Decoding:
    """A pipeline whose VAE decodes at most `pixels` pixels at once, on a GPU that is not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pixels: int, free: int = 10**12) -> None:
        import torch

        monkeypatch.setattr(device, "device_memory", lambda _: MemoryInfo(free=free, total=free))

        torch.manual_seed(0)
        self.vae = VAES["AutoencoderKL"]().eval()
        self.events: list[Event] = []
        self.calls: list[tuple[int, int]] = []
        target = LoadTarget(
            spec=MODELS["postcard"], device=GPU, dtype="float32", folder=SHAPES, sizes={}
        )
        self.loaded = LoadedPipeline(target, SimpleNamespace(vae=self.vae), self.events.append)
        self.loaded._offload = ""  # it is on its device
        decode = self.vae.decoder.forward

        def limited(latent: LibraryObject, *args: Any) -> LibraryObject:  # noqa: ANN401
            self.calls.append((len(latent), latent.shape[-1] * 8))
            if len(latent) * latent.shape[-1] * latent.shape[-2] * 64 > pixels:
                raise gpu.out_of_memory()
            return decode(latent, *args)

        monkeypatch.setattr(self.vae.decoder, "forward", limited)
        monkeypatch.setattr(
            vae_decode._DecodeWithFallback, "_load_on_cpu", lambda _: VAES["AutoencoderKL"]()
        )
        vae_decode.install_decode_fallback(self.loaded)

    def decode(self, side: int, batch: int = 1) -> LibraryObject:
        import torch

        self.calls.clear()
        with torch.no_grad():
            return self.vae.decode(torch.zeros(batch, 4, side // 8, side // 8))[0]

    @property
    def told(self) -> list[str]:
        return [event.name for event in self.events if isinstance(event, MemoryMeasure)]


def test_slices_come_first_then_tiles_that_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = Decoding(monkeypatch, 300**2)
    assert decoding.decode(768, batch=2).shape == (2, 3, 768, 768)
    assert [side for _, side in decoding.calls[:4]] == [768, 768, 512, 320]
    assert decoding.calls[-1][1] <= 256
    assert decoding.loaded.measures == ["vae-slicing", "vae-tiling"]
    assert decoding.told == ["vae-slicing", "vae-tiling", "vae-tiling", "vae-tiling"]
    assert decoding.loaded.vae_tile == 256
    decoding.decode(768)
    assert max(side for _, side in decoding.calls) == 256, "the next image begins with what fits"
    decoding.loaded.place(("vae-tiling",), tile=512)
    assert decoding.loaded.vae_tile == 256, "a plan does not go back to what ran out"


def test_the_cpu_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = Decoding(monkeypatch, 100**2)
    assert decoding.decode(512).shape == (1, 3, 512, 512)
    assert decoding.loaded.measures == ["vae-tiling", "vae-on-cpu"]
    assert [side for _, side in decoding.calls] == [512, 320, 256]


def test_a_planned_tile_goes_on_to_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = Decoding(monkeypatch, 300**2)
    decoding.loaded.place((memory.VAE_TILING,), "to fit", tile=512)
    decoding.decode(1024)
    assert decoding.loaded.measures == ["vae-tiling"]
    assert decoding.loaded.vae_tile == 256


@pytest.mark.parametrize(("free", "sliced"), [(10**9, False), (10**8, True)])
def test_a_batch_is_sliced_where_it_would_not_fit(
    free: int, sliced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = Decoding(monkeypatch, 10**9, free)
    decoding.decode(512, batch=2)
    assert [batch for batch, _ in decoding.calls] == ([1, 1] if sliced else [2])
    assert decoding.told == (["vae-slicing"] if sliced else [])
