"""Running out of memory on purpose: what is tried, in which order, and no step run twice."""

from collections.abc import Callable, Iterator

import pytest

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.backends.local.device import Device
from t2i_cli.errors import OutOfMemoryError
from t2i_cli.events import Event, MemoryMeasure, Step
from tests.fakes import gpu
from tests.test_local_backend import STEPS, ask, error, images, make, psnr

ERRORS = [gpu.out_of_memory, gpu.cpu_out_of_memory]
GB = 10**9


@pytest.fixture(scope="module")
def undisturbed() -> list[GeneratedImage]:
    """Two pictures made in one pass, seeds 1 and 2."""
    backend = LocalBackend(LocalOptions(batch_size=2))
    return images(make(backend, ask(backend), ask(backend, seed=2)))


@pytest.fixture
def unet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., gpu.Failing]]:
    """Makes the denoiser fail at the calls it is given."""
    from diffusers import UNet2DConditionModel

    yield lambda *at, error=gpu.out_of_memory: gpu.Failing(
        monkeypatch, UNet2DConditionModel, "forward", at, error
    )


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., gpu.Failing]]:
    """Makes the decode fail at the calls it is given."""
    from diffusers import AutoencoderKL

    yield lambda *at, error=gpu.out_of_memory: gpu.Failing(
        monkeypatch, AutoencoderKL, "decode", at, error
    )


def measures(events: list[Event]) -> list[str]:
    return [event.name for event in events if isinstance(event, MemoryMeasure)]


def steps(events: list[Event]) -> int:
    return sum(isinstance(event, Step) for event in events)


@pytest.mark.parametrize("raised", ERRORS)
def test_the_denoiser_runs_out(
    raised: Callable[[], Exception],
    unet: Callable[..., gpu.Failing],
    undisturbed: list[GeneratedImage],
) -> None:
    unet(2, error=raised)
    backend = LocalBackend(LocalOptions())
    events: list[Event] = []
    (image,) = images(make(backend, ask(backend), events=events))
    assert measures(events) == ["vae-tiling"]
    assert image.info.measures == ("vae-tiling",)
    assert "cpu ran out of memory" in {e.reason for e in events if isinstance(e, MemoryMeasure)}
    assert psnr(image, undisturbed[0]) > 50


@pytest.mark.parametrize("raised", ERRORS)
def test_the_decode_runs_out_and_keeps_its_latents(
    raised: Callable[[], Exception],
    unet: Callable[..., gpu.Failing],
    vae: Callable[..., gpu.Failing],
    undisturbed: list[GeneratedImage],
) -> None:
    denoised, decoded = unet(), vae(1, 2, error=raised)
    backend = LocalBackend(LocalOptions(batch_size=2))
    events: list[Event] = []
    both = images(make(backend, ask(backend), ask(backend, seed=2), events=events))
    assert measures(events) == ["vae-slicing", "vae-tiling"]
    assert steps(events) == denoised.calls == STEPS
    assert decoded.calls == 3
    for image, expected in zip(both, undisturbed, strict=True):
        assert image.info.measures == ("vae-slicing", "vae-tiling")
        assert psnr(image, expected) > 40


def test_the_decode_of_a_gpu_goes_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
    unet: Callable[..., gpu.Failing],
    vae: Callable[..., gpu.Failing],
    undisturbed: list[GeneratedImage],
) -> None:
    gpu.install(monkeypatch, free=8 * GB)
    denoised, decoded = unet(), vae(1, 2)
    backend = LocalBackend(LocalOptions(dtype="float32"))
    events: list[Event] = []
    first, second = images(make(backend, ask(backend), ask(backend, seed=2), events=events))
    assert measures(events) == ["vae-tiling", "vae-on-cpu"]
    assert steps(events) == denoised.calls == 2 * STEPS
    assert decoded.calls == 4, "the second image is not tried on the GPU again"
    assert first.info.measures == second.info.measures == ("vae-tiling", "vae-on-cpu")
    assert psnr(first, undisturbed[0]) > 40
    assert psnr(second, undisturbed[1]) > 40


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_decode_that_nothing_saves_is_refused_without_running_steps_again(
    on_gpu: bool,
    monkeypatch: pytest.MonkeyPatch,
    unet: Callable[..., gpu.Failing],
    vae: Callable[..., gpu.Failing],
) -> None:
    if on_gpu:
        gpu.install(monkeypatch, free=8 * GB)
    denoised = unet()
    vae(*range(1, 9))
    backend = LocalBackend(LocalOptions(dtype="float32"))
    failure = error(make(backend, ask(backend)))
    assert isinstance(failure, OutOfMemoryError)
    assert failure.message == "Memory ran out at the decode, in tiles and on the CPU too."
    assert denoised.calls == STEPS


def test_a_gpu_goes_down_the_ladder_one_step_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
    unet: Callable[..., gpu.Failing],
    undisturbed: list[GeneratedImage],
) -> None:
    gpu.install(monkeypatch, free=8 * GB)
    unet(1, 2, 3, 4, 5)
    backend = LocalBackend(LocalOptions(batch_size=2, dtype="float32"))
    events: list[Event] = []
    both = images(make(backend, ask(backend), ask(backend, seed=2), events=events))
    taken = ["batch-size-1", "vae-tiling", "text-encoder-offload", "model-offload", "group-offload"]
    assert measures(events) == taken
    for image, expected in zip(both, undisturbed, strict=True):
        assert image.info.measures == tuple(taken)
        assert image.info.batch_size == 1
        assert psnr(image, expected) > 50


def test_the_foot_of_the_ladder_is_exit_7(
    monkeypatch: pytest.MonkeyPatch, unet: Callable[..., gpu.Failing]
) -> None:
    gpu.install(monkeypatch, free=8 * GB)
    unet(*range(1, 99))
    backend = LocalBackend(LocalOptions(dtype="float32"))
    failure = error(make(backend, ask(backend)))
    assert isinstance(failure, OutOfMemoryError)
    assert failure.exit_code == 7
    assert "(vae-tiling, text-encoder-offload, model-offload, group-offload)" in failure.message


def test_a_cpu_has_nowhere_to_offload_to(unet: Callable[..., gpu.Failing]) -> None:
    unet(*range(1, 99))
    backend = LocalBackend(LocalOptions())
    events: list[Event] = []
    failure = error(make(backend, ask(backend), events=events))
    assert isinstance(failure, OutOfMemoryError)
    assert measures(events) == ["vae-tiling"]


@pytest.mark.parametrize("slicing", [None, False])
def test_attention_is_sliced_where_there_is_no_fused_kernel(
    slicing: bool | None,
    monkeypatch: pytest.MonkeyPatch,
    unet: Callable[..., gpu.Failing],
    undisturbed: list[GeneratedImage],
) -> None:
    gpu.install(monkeypatch, free=8 * GB, fake=Device(name="cpu", kind="mps", label="Fake"))
    unet(1, 2)
    backend = LocalBackend(LocalOptions(dtype="float32", attention_slicing=slicing))
    events: list[Event] = []
    outcomes = make(backend, ask(backend), events=events)
    if slicing is False:
        assert isinstance(error(outcomes), OutOfMemoryError)
        assert measures(events) == ["vae-tiling"]
    else:
        assert measures(events) == ["vae-tiling", "attention-slicing"]
        assert psnr(images(outcomes)[0], undisturbed[0]) > 45


def test_moving_to_the_gpu_runs_out(
    monkeypatch: pytest.MonkeyPatch, undisturbed: list[GeneratedImage]
) -> None:
    from diffusers import StableDiffusionPipeline

    gpu.install(monkeypatch, free=8 * GB)
    gpu.Failing(monkeypatch, StableDiffusionPipeline, "to", at=(1,))
    backend = LocalBackend(LocalOptions(dtype="float32", memory="fast"))
    events: list[Event] = []
    (image,) = images(make(backend, ask(backend), events=events))
    assert measures(events) == ["vae-tiling"]
    assert psnr(image, undisturbed[0]) > 40


def test_offloading_runs_out_and_the_next_rung_is_taken(
    monkeypatch: pytest.MonkeyPatch,
    unet: Callable[..., gpu.Failing],
    undisturbed: list[GeneratedImage],
) -> None:
    from diffusers import StableDiffusionPipeline

    gpu.install(monkeypatch, free=8 * GB)
    gpu.Failing(monkeypatch, StableDiffusionPipeline, "enable_model_cpu_offload", at=(1,))
    unet(1, 2, 3)
    backend = LocalBackend(LocalOptions(dtype="float32"))
    events: list[Event] = []
    (image,) = images(make(backend, ask(backend), events=events))
    assert measures(events) == [
        "vae-tiling",
        "text-encoder-offload",
        "model-offload",
        "group-offload",
    ]
    assert psnr(image, undisturbed[0]) > 40


def test_reading_a_model_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKL

    gpu.Failing(monkeypatch, AutoencoderKL, "from_pretrained", (1,), gpu.cpu_out_of_memory)
    backend = LocalBackend(LocalOptions())
    failure = error(make(backend, ask(backend)))
    assert isinstance(failure, OutOfMemoryError)
    assert failure.message == "Memory ran out while postcard was read."


def test_low_memory_offloads_from_the_start(
    monkeypatch: pytest.MonkeyPatch, undisturbed: list[GeneratedImage]
) -> None:
    gpu.install(monkeypatch, free=8 * GB)
    backend = LocalBackend(LocalOptions(memory="low", dtype="float32"))
    events: list[Event] = []
    (image,) = images(make(backend, ask(backend), events=events))
    assert image.info.measures == ("vae-tiling", "model-offload")
    assert {event.reason for event in events if isinstance(event, MemoryMeasure)} == {"as asked"}
    assert psnr(image, undisturbed[0]) > 40


def test_other_errors_of_the_decode_are_not_retried(
    vae: Callable[..., gpu.Failing],
) -> None:
    decoded = vae(1, error=lambda: ValueError("bad latents"))
    backend = LocalBackend(LocalOptions())
    assert "bad latents" in error(make(backend, ask(backend))).message
    assert decoded.calls == 1
