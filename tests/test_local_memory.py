"""The plan from what is free: arithmetic on made-up needs, and the choice for fake devices."""

from dataclasses import replace
from pathlib import Path

import pytest

from t2i_cli.backends.local import device, memory, planning, quantization
from t2i_cli.backends.local.device import Device, MemoryInfo
from t2i_cli.backends.local.load_target import LoadTarget
from t2i_cli.backends.local.memory import (
    ATTENTION_SLICING,
    GROUP_OFFLOAD,
    MIB,
    MODEL_OFFLOAD,
    TEXT_ENCODER_OFFLOAD,
    VAE_TILING,
    MemoryEstimate,
)
from t2i_cli.backends.local.memory_plan import MemoryPlan
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.errors import OutOfMemoryError
from t2i_cli.models.catalog import MODELS
from tests import factories
from tests.fakes import gpu

GPU = Device(name="cuda:0", kind="cuda", label="GPU")
MPS = Device(name="mps", kind="mps", label="Apple GPU")
CPU = Device(name="cpu", kind="cpu", label="CPU")
NEED = MemoryEstimate(
    weights={"unet": 1600, "text_encoder": 300, "vae": 100},
    denoise=500,
    attention=400,
    decode=2000,
    tile=300,
)
HOST = 10**6
SHAPES = Path(__file__).parent / "fakes" / "shapes"
"""The configs of a model like postcard, without weights."""
AUTO = LocalOptions()


def test_peaks_follow_the_measures() -> None:
    assert NEED.peak((), 1, GPU) == 2000 + 2000
    assert NEED.peak((), 3, GPU) == 2000 + 3 * 2000
    assert NEED.peak((VAE_TILING,), 1, GPU) == 2000 + 500
    assert NEED.peak((VAE_TILING,), 2, GPU) == 2000 + 2 * 500
    assert NEED.peak((VAE_TILING,), 1, MPS) == 2000 + 500 + 400
    assert NEED.peak((VAE_TILING, ATTENTION_SLICING), 1, MPS) == 2000 + 500
    assert NEED.peak((VAE_TILING, MODEL_OFFLOAD), 1, GPU) == 1600 + 500
    assert NEED.peak((VAE_TILING, GROUP_OFFLOAD), 1, GPU) == 200 + 500


@pytest.mark.parametrize(
    ("place", "free", "measures"),
    [
        (GPU, 4300, ()),
        (GPU, 4200, (VAE_TILING,)),
        (GPU, 2500, (VAE_TILING, TEXT_ENCODER_OFFLOAD)),
        (GPU, 2300, (MODEL_OFFLOAD,)),
        (GPU, 2000, (VAE_TILING, GROUP_OFFLOAD)),
        (GPU, 700, None),
        (MPS, 3100, (VAE_TILING,)),
        (MPS, 2700, (VAE_TILING, ATTENTION_SLICING)),
        (MPS, 2500, None),
        (CPU, 2700, (VAE_TILING,)),
        (CPU, 2500, None),
    ],
)
def test_the_cheapest_measures_that_fit_are_chosen(
    place: Device, free: int, measures: tuple[str, ...] | None
) -> None:
    assert memory.choose_measures(NEED, place, free, HOST, 1) == measures


def test_offload_needs_room_on_the_host() -> None:
    assert memory.choose_measures(NEED, GPU, 2250, 2200, 1) == (MODEL_OFFLOAD,)
    assert memory.choose_measures(NEED, GPU, 2250, 2050, 1) is None
    assert memory.choose_measures(NEED, GPU, 2500, 320, 1) == (VAE_TILING, TEXT_ENCODER_OFFLOAD)
    assert memory.choose_measures(NEED, GPU, 2500, 300, 1) is None


def test_low_takes_its_measures_however_much_is_free() -> None:
    def choose(place: Device, free: int) -> memory.Measures | None:
        return memory.choose_measures(
            NEED, place, free, HOST, 1, least=memory.low_memory_measures(place)
        )

    assert choose(GPU, HOST) == (VAE_TILING, MODEL_OFFLOAD)
    assert choose(GPU, 1000) == (VAE_TILING, GROUP_OFFLOAD)
    assert choose(MPS, HOST) == (VAE_TILING, ATTENTION_SLICING)
    assert choose(CPU, HOST) == (VAE_TILING,)


def test_a_need_grows_with_the_picture_and_the_dtype() -> None:
    small = memory.estimate_memory(SHAPES, {}, 128, 128, 2)
    large = memory.estimate_memory(SHAPES, {}, 256, 256, 2)
    larger = memory.estimate_memory(SHAPES, {}, 1024, 1024, 2)
    full = memory.estimate_memory(SHAPES, {}, 128, 128, 4)
    assert large.denoise == 4 * small.denoise
    assert large.attention == 16 * small.attention
    assert full.denoise == 2 * small.denoise
    assert larger.tile < larger.decode


def target(place: Device, dtype: str = "float32") -> LoadTarget:
    size = 30 * MIB if dtype == "float32" else 15 * MIB
    return LoadTarget(
        spec=MODELS["postcard"], device=place, dtype=dtype, folder=SHAPES, sizes={"unet": size}
    )


def plan(
    monkeypatch: pytest.MonkeyPatch,
    free_mib: int,
    *,
    aim: LoadTarget | None = None,
    options: LocalOptions = AUTO,
    side: int = 2048,
    resident: int = 0,
) -> MemoryPlan:
    here = MemoryInfo(free=free_mib * MIB, total=16_000 * MIB)
    monkeypatch.setattr(device, "device_memory", lambda _: here)
    request = factories.request(model="postcard", width=side, height=side)
    return planning.plan_memory(aim or target(GPU), request, options, resident)


def test_a_plan_says_what_is_needed_and_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(monkeypatch, 9000).to_json() == {
        "device": "cuda:0",
        "device_name": "GPU",
        "dtype": "float32",
        "free_mib": 9000,
        "total_mib": 16_000,
        "weights_mib": 30,
        "working_mib": 2873,
        "measures": [],
        "download_mib": 0,
        "vae_tile": None,
        "peak_mib": 2903,
        "cuda_graphs_mib": 896,
    }


def test_weights_that_are_there_count_as_room(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutOfMemoryError):
        plan(monkeypatch, 10)
    assert plan(monkeypatch, 10, resident=9000 * MIB).measures == ()


def test_fast_plans_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(monkeypatch, 1, options=LocalOptions(memory="fast")).measures == ()


def test_attention_slicing_is_taken_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(target(GPU), slicing=True)
    assert plan(monkeypatch, 9000, aim=asked).measures == (ATTENTION_SLICING,)


@pytest.mark.parametrize("mode", ["auto", "low"])
def test_attention_slicing_is_left_out_where_it_is_unwanted(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measures(free_mib: int, slicing: bool | None) -> memory.Measures:
        options = LocalOptions(memory=mode, attention_slicing=slicing)
        return plan(monkeypatch, free_mib, aim=target(MPS), options=options, side=512).measures

    enough, short = 1200, 400
    assert measures(enough, False) == ((VAE_TILING,) if mode == "low" else ())
    assert measures(short, None) == (VAE_TILING, ATTENTION_SLICING)
    with pytest.raises(OutOfMemoryError) as caught:
        measures(short, False)
    assert caught.value.hint == "It would fit without --no-attention-slicing."


def test_a_refusal_names_a_smaller_size(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"postcard at 2048x2048 needs about [\d,]+ MiB on cpu, and 600 of"
    ) as caught:
        plan(monkeypatch, 600, aim=target(CPU))
    assert caught.value.exit_code == 7
    assert caught.value.hint == "It would fit with --size 1536x1536."
    side = 1536
    assert VAE_TILING in plan(monkeypatch, 600, aim=target(CPU), side=side).measures
    with pytest.raises(OutOfMemoryError):
        plan(monkeypatch, 600, aim=target(CPU), side=side + 256)


def test_a_refusal_names_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        plan(monkeypatch, 950, aim=target(MPS))
    assert caught.value.hint == "It would fit with --dtype float16."
    assert plan(monkeypatch, 950, aim=target(MPS, "float16")).dtype == "float16"


def test_a_refusal_where_no_memory_is_left_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for free in (0, -5):  # more may be reserved than is there
        with pytest.raises(OutOfMemoryError) as caught:
            plan(monkeypatch, free, aim=target(CPU))
        assert caught.value.hint == "No model fits; end what else takes the memory."


def test_a_refusal_names_a_smaller_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    large = replace(target(CPU), sizes={"unet": 30_000 * MIB})
    monkeypatch.setattr(quantization, "is_available", lambda *_: False)
    with pytest.raises(OutOfMemoryError) as caught:
        plan(monkeypatch, 12_000, aim=large)
    assert caught.value.hint == "No size of it fits; -m sd15 would."


def test_a_download_that_cannot_fit_is_refused_before_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu.install(monkeypatch, free=8000 * MIB)
    aim = replace(target(CPU), sizes={"model": 33_000 * MIB}, missing_bytes=33_000 * MIB)
    with pytest.raises(OutOfMemoryError):
        plan(monkeypatch, 24_000, aim=aim)
