"""The local backend on real pipelines: pictures, batches, schedulers, cancelling, withholding."""

import os
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from t2i_cli import postcard
from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.local import (
    LocalBackend,
    LocalOptions,
    loading,
    pipeline,
    planning,
    prompt_warnings,
)
from t2i_cli.backends.local import outcomes as local_outcomes
from t2i_cli.backends.local.load_target import LoadTarget
from t2i_cli.backends.local.memory_plan import MemoryPlan
from t2i_cli.errors import (
    ContentFilteredError,
    InputError,
    InternalError,
    ModelError,
    OutOfMemoryError,
    PipelineError,
    T2IError,
)
from t2i_cli.events import Event, Loaded, Loading, MemoryMeasure, Notice, Step
from t2i_cli.models import catalog, libraries
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest, ResolvedRequest
from tests import tiny_models
from tests.fakes import gpu

PROMPT = "a red house on green hills"
STEPS = 3


def ask(
    backend: LocalBackend, *, model: str | Path = "postcard", prompt: str = PROMPT, **more: object
) -> ResolvedRequest:
    fields = {"seed": 1, "steps": STEPS} | more
    request = GenerateRequest(prompt=prompt, model=str(model), **fields)  # type: ignore[arg-type]
    return resolve_request(request, backend.describe(request))


def make(
    backend: LocalBackend, *requests: ResolvedRequest, events: list[Event] | None = None
) -> list[GeneratedImage | Failure]:
    """All outcomes, sorted by position; events are added to the list."""
    told: list[Event] = [] if events is None else events
    outcomes = backend.run(requests, told.append, threading.Event())
    return sorted(outcomes, key=lambda outcome: outcome.index)


@pytest.mark.parametrize(("given", "turns"), [({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_threads_wait_awake_for_a_moment_unless_told_otherwise(
    given: dict[str, str], turns: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    libraries.import_torch()
    assert os.environ.get("GOMP_SPINCOUNT") == turns


def images(outcomes: Sequence[GeneratedImage | Failure]) -> list[GeneratedImage]:
    """The outcomes, all of which are images."""
    for outcome in outcomes:
        assert isinstance(outcome, GeneratedImage), outcome
    return [outcome for outcome in outcomes if isinstance(outcome, GeneratedImage)]


def error(outcomes: Sequence[GeneratedImage | Failure]) -> T2IError:
    """The error of the only outcome, a failure."""
    (outcome,) = outcomes
    assert isinstance(outcome, Failure)
    return outcome.error


def pixels(generated: GeneratedImage) -> NDArray[np.float64]:
    """height x width x 3, 0 to 255."""
    return np.asarray(generated.image, dtype=np.float64)


def psnr(one: GeneratedImage, other: GeneratedImage) -> float:
    """Peak signal-to-noise ratio in dB; infinite where the pictures are equal."""
    mean = np.mean((pixels(one) - pixels(other)) ** 2)
    return float("inf") if mean == 0 else float(10 * np.log10(255**2 / mean))


@pytest.fixture(scope="module")
def backend() -> LocalBackend:
    """One backend with postcard loaded, for tests that do not change it."""
    return LocalBackend(LocalOptions(batch_size=2))


@pytest.fixture(scope="module")
def undisturbed(backend: LocalBackend) -> list[GeneratedImage]:
    """Two pictures of one pass, seeds 1 and 2."""
    return images(make(backend, ask(backend), ask(backend, seed=2)))


def test_the_picture_is_the_pipelines_own(undisturbed: list[GeneratedImage]) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    generator = torch.Generator("cpu").manual_seed(1)
    guidance = catalog.MODELS["postcard"].guidance_scale
    with libraries.suppress_warnings():
        pipe = StableDiffusionPipeline.from_pretrained(postcard.FOLDER, dtype=torch.float32)
        made = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=guidance, generator=generator)
    expected = made.images[0]
    difference = pixels(undisturbed[0]) - np.asarray(expected, dtype=np.float64)
    assert np.abs(difference).max() <= 1


def test_an_image_in_a_batch_is_the_image_alone(
    backend: LocalBackend, undisturbed: list[GeneratedImage]
) -> None:
    (alone,) = images(make(backend, ask(backend, seed=2)))
    assert psnr(alone, undisturbed[1]) > 50
    assert psnr(undisturbed[0], undisturbed[1]) < 30
    assert (alone.info.batch_size, undisturbed[1].info.batch_size) == (1, 2)


def test_the_lock_says_what_made_the_image(undisturbed: list[GeneratedImage]) -> None:
    import diffusers
    import torch

    lock = undisturbed[0].info
    assert (lock.backend, lock.model, lock.revision) == ("local", "postcard", None)
    assert lock.pipeline == "StableDiffusionPipeline"
    assert lock.scheduler == "DPMSolverMultistepScheduler"
    assert (lock.device, lock.dtype, lock.measures) == ("cpu", "float32", ())
    assert lock.libraries["torch"] == torch.__version__
    assert lock.libraries["diffusers"] == diffusers.__version__
    assert set(lock.libraries) == {"t2i", "torch", "diffusers", "transformers"}
    assert undisturbed[0].seconds > 0


def test_events_tell_of_loading_and_steps() -> None:
    backend = LocalBackend(LocalOptions(batch_size=2))
    events: list[Event] = []
    make(backend, *(ask(backend, seed=seed) for seed in range(3)), events=events)
    (loaded,) = [event for event in events if isinstance(event, Loaded)]
    assert loaded.seconds > 0
    assert events == [
        Loading(model="postcard", device="cpu"),
        Loaded(model="postcard", device="cpu", seconds=loaded.seconds),
        *(Step(indices=(0, 1), step=step, steps=STEPS) for step in (1, 2, 3)),
        *(Step(indices=(2,), step=step, steps=STEPS) for step in (1, 2, 3)),
    ]


def test_second_order_schedulers_count_a_step_once(backend: LocalBackend) -> None:
    events: list[Event] = []
    make(backend, ask(backend, scheduler="heun"), events=events)
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3]


def test_requests_that_differ_get_passes_of_their_own(backend: LocalBackend) -> None:
    outcomes = make(
        backend,
        ask(backend),
        ask(backend, negative_prompt="rain"),
        ask(backend, guidance_scale=1.0),
        ask(backend, width=64),
        ask(backend, scheduler="euler"),
    )
    assert [image.info.batch_size for image in images(outcomes)] == [1] * 5
    assert images(outcomes)[3].image.size == (64, 128)


def test_a_scheduler_is_applied_and_taken_back(
    backend: LocalBackend, undisturbed: list[GeneratedImage]
) -> None:
    euler, own = images(make(backend, ask(backend, scheduler="euler-karras"), ask(backend)))
    assert euler.info.scheduler == "EulerDiscreteScheduler"
    assert psnr(euler, own) < 40
    assert own.info.scheduler == "DPMSolverMultistepScheduler"
    assert psnr(own, undisturbed[0]) > 50


def test_the_scheduler_keeps_the_models_own_settings(backend: LocalBackend) -> None:
    make(backend, ask(backend))
    loaded = backend._loaded
    assert loaded is not None
    loaded.set_scheduler("dpm++2m-karras")
    config = loaded.pipe.scheduler.config
    assert config.use_karras_sigmas
    assert config.prediction_type == "v_prediction"


def test_a_model_stays_loaded_until_another_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = gpu.Failing(monkeypatch, loading, "load_pipeline")
    backend = LocalBackend(LocalOptions())
    make(backend, ask(backend))
    make(backend, ask(backend, seed=2))
    assert loads.calls == 1
    assert backend._loaded is not None
    first = weakref.ref(backend._loaded.pipe.unet)
    other = tiny_models.copy_postcard(tmp_path / "other")
    make(backend, ask(backend, model=other, width=64, height=64))
    assert loads.calls == 2
    assert first() is None
    backend.close()
    backend.close()
    assert backend._loaded is None


def test_the_cache_is_cleared_after_each_image_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from t2i_cli.backends.local import device

    for wanted, times in ((False, 0), (True, 2)):
        backend = LocalBackend(LocalOptions(clear_cache=wanted))
        with monkeypatch.context() as patch:
            cleared = gpu.Failing(patch, device, "clear_cache")
            make(backend, ask(backend), ask(backend, seed=2))
            assert cleared.calls == times


def test_cancelling_ends_the_run_after_the_step(backend: LocalBackend) -> None:
    cancel = threading.Event()
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Step) and event.step == 2:
            cancel.set()

    requests = [ask(backend, seed=seed) for seed in range(4)]
    assert list(backend.run(requests, on_event, cancel)) == []
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2]
    assert list(backend.run(requests, on_event, cancel)) == []
    images(make(backend, ask(backend)))


def test_a_local_folder_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    backend = LocalBackend(LocalOptions())
    assert len(images(make(backend, ask(backend)))) == 1


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "pixart"])
def test_every_family_makes_images(family: str, tmp_path: Path) -> None:
    folder = tiny_models.save(family, tmp_path / family)
    backend = LocalBackend(LocalOptions(batch_size=2))
    side: dict[str, LibraryObject] = {} if family == "pixart" else {"width": 32, "height": 48}
    requests = [ask(backend, model=folder, seed=seed, **side) for seed in (1, 2)]
    events: list[Event] = []
    both = images(make(backend, *requests, events=events))
    (alone,) = images(make(backend, requests[1]))
    assert both[0].image.size == (requests[0].width, requests[0].height)
    assert psnr(alone, both[1]) > 50
    assert psnr(both[0], both[1]) < 50
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("family", "name", "scheduler"),
    [
        ("sdxl", "dpm++2m-sde-karras", "DPMSolverMultistepScheduler"),
        ("sd3", "heun", "FlowMatchHeunDiscreteScheduler"),
        ("sd3", "dpm++2m", "DPMSolverMultistepScheduler"),
        ("flux", "unipc", "UniPCMultistepScheduler"),
    ],
)
def test_schedulers_fit_their_kind(family: str, name: str, scheduler: str, tmp_path: Path) -> None:
    folder = tiny_models.save(family, tmp_path / family)
    backend = LocalBackend(LocalOptions())
    request = ask(backend, model=folder, scheduler=name, width=32, height=32)
    (image,) = images(make(backend, request))
    assert image.info.scheduler == scheduler
    loaded = backend._loaded
    assert loaded is not None
    if family == "sd3" and name == "dpm++2m":
        assert loaded.pipe.scheduler.config.flow_shift == 3.0


def test_a_scheduler_that_the_pipeline_cannot_drive_is_bad_input(tmp_path: Path) -> None:
    folder = tiny_models.save("flux", tmp_path / "flux")
    backend = LocalBackend(LocalOptions())
    request = ask(backend, model=folder, scheduler="dpm++2m", width=32, height=32)
    failure = error(make(backend, request))
    assert isinstance(failure, InputError)
    assert failure.message == (
        f"The scheduler 'dpm++2m' does not fit {folder}: it does not take the settings of the "
        "model's own."
    )
    assert failure.hint == "There are euler, unipc."


def test_a_scheduler_of_no_known_kind_cannot_be_changed(tmp_path: Path) -> None:
    folder = tiny_models.copy_postcard(tmp_path / "model")
    file = folder / "scheduler/scheduler_config.json"
    tiny_models.edit_json(file, _class_name="KarrasVeScheduler")
    backend = LocalBackend(LocalOptions())
    with pytest.raises(InputError, match="cannot be changed") as caught:
        backend.check(ask(backend, model=folder, scheduler="euler"))
    assert caught.value.field == "scheduler"


def test_a_withheld_image_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.copy_postcard(tmp_path / "model")
    tiny_models.add_safety_checker(folder)
    # The bias of its concepts decides; this one flags whatever it sees.
    tiny_models.edit_tensor(
        folder / "safety_checker/model.safetensors", "concept_embeds_weights", -1.0
    )
    backend = LocalBackend(LocalOptions())
    failure = error(make(backend, ask(backend, model=folder)))
    assert isinstance(failure, ContentFilteredError)
    assert failure.exit_code == 10
    assert "--no-safety-checker" in str(failure.hint)
    without = LocalBackend(LocalOptions(safety_checker=False))
    (image,) = images(make(without, ask(without, model=folder)))
    assert pixels(image).max() > 0


def test_a_pipelines_own_failure_is_a_model_error(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DConditionModel

    def broken() -> Exception:
        return IndexError("index 5 is\nout of range")

    gpu.Failing(monkeypatch, UNet2DConditionModel, "forward", at=(1,), error=broken)
    failure = error(make(backend, ask(backend)))
    assert isinstance(failure, ModelError)
    assert failure.message == "StableDiffusionPipeline failed: index 5 is out of range"


def test_a_scheduler_that_cannot_be_used_fails_its_images_only(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loading.LoadedPipeline.set_scheduler

    def set_scheduler(
        self: loading.LoadedPipeline, name: str | None, schedule: str | None
    ) -> str | None:
        if name == "deis":
            raise ImportError("It requires the other library\nbut it was not found.")
        return real(self, name, schedule)

    monkeypatch.setattr(loading.LoadedPipeline, "set_scheduler", set_scheduler)
    asked = [ask(backend, scheduler=name) for name in ("euler", "deis", "deis", "ddim")]
    first, *failed, last = make(backend, *asked)
    assert isinstance(first, GeneratedImage)
    assert isinstance(last, GeneratedImage)
    for failure in failed:
        assert isinstance(failure, Failure)
        assert isinstance(failure.error, InputError)
        assert failure.error.field == "scheduler"
        assert failure.error.message == (
            "The scheduler 'deis' cannot be used here: "
            "It requires the other library but it was not found."
        )


def test_what_one_image_raises_does_not_fail_those_of_its_pass(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pipeline.run_pipeline
    passes: list[int] = []

    def run(
        loaded: loading.LoadedPipeline, requests: Sequence[ResolvedRequest], *rest: LibraryObject
    ) -> LibraryObject:
        passes.append(len(requests))
        if any(request.prompt == "a bad one" for request in requests):
            raise RuntimeError("it broke")
        return real(loaded, list(requests), *rest)

    monkeypatch.setattr(pipeline, "run_pipeline", run)
    prompts = (PROMPT, "a bad one", PROMPT, PROMPT)
    outcomes = make(backend, *(ask(backend, prompt=prompt) for prompt in prompts))
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [False, True, False, False]
    assert isinstance(outcomes[1], Failure)
    assert isinstance(outcomes[1].error, PipelineError)
    assert passes == [2, 1, 1, 2]


@pytest.mark.parametrize("where", ["prepare", "notes", "pass"])
def test_what_nobody_expects_is_the_failure_of_whom_it_concerns(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = LocalBackend(LocalOptions(batch_size=2))
    asked = [ask(backend), ask(backend, steps=1), ask(backend, prompt="a star", steps=2)]

    def bug(*_: object, **__: object) -> LibraryObject:
        raise ZeroDivisionError("it broke")

    broken: dict[str, tuple[object, str, Callable[..., bool]]] = {
        "prepare": (backend, "_plan_memory", lambda aim, request, *_: request.steps == 1),
        "notes": (prompt_warnings, "prompt_warnings", lambda loaded, text: text.words == "a star"),
        "pass": (local_outcomes, "outcome_for", lambda index, *_: index == 1),
    }
    place, name, concerns = broken[where]
    real = getattr(place, name)

    def replaced(*args: LibraryObject, **options: LibraryObject) -> LibraryObject:
        return bug() if concerns(*args) else real(*args, **options)

    monkeypatch.setattr(place, name, replaced)
    if where == "prepare":
        monkeypatch.setattr(loading.LoadedPipeline, "recently_fitted", lambda self, request: False)
    outcomes = make(backend, *asked)
    failed = {"prepare": 1, "notes": 2, "pass": 1}[where]
    assert [o.index for o in outcomes if isinstance(o, Failure)] == [failed]
    failure = outcomes[failed]
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, InternalError)
    assert isinstance(failure.error.__cause__, ZeroDivisionError)


def test_memory_that_runs_out_where_nothing_can_be_done_comes_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = LocalBackend(LocalOptions())
    request = ask(backend)

    def full(*_: object, **__: object) -> LibraryObject:
        raise MemoryError

    monkeypatch.setattr(prompt_warnings, "prompt_warnings", full)
    with pytest.raises(MemoryError):
        make(backend, request)


def test_a_model_that_cannot_be_loaded_fails_its_requests_only(tmp_path: Path) -> None:
    folder = tiny_models.copy_postcard(tmp_path / "model")
    backend = LocalBackend(LocalOptions())
    broken = ask(backend, model=folder)
    tiny_models.edit_json(folder / "unet/config.json", block_out_channels=[32, 32, 32])
    first, second = make(backend, broken, ask(backend))
    assert isinstance(first, Failure)
    assert isinstance(first.error, ModelError)
    assert f"{folder} cannot be loaded" in first.error.message
    assert isinstance(second, GeneratedImage)


def test_ctrl_c_goes_through(backend: LocalBackend) -> None:
    def on_event(event: Event) -> None:
        if isinstance(event, Step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(backend.run([ask(backend)], on_event, threading.Event()))


def test_attention_slicing_is_done_where_it_is_asked_for(
    undisturbed: list[GeneratedImage],
) -> None:
    backend = LocalBackend(LocalOptions(attention_slicing=True))
    events: list[Event] = []
    (image,) = images(make(backend, ask(backend), events=events))
    assert image.info.measures == ("attention-slicing",)
    assert psnr(image, undisturbed[0]) > 45
    assert any(isinstance(event, Notice) and "slower" in event.message for event in events)
    assert MemoryMeasure(name="attention-slicing", reason="as asked") in events


def test_attention_slicing_that_a_model_lacks_is_bad_input(tmp_path: Path) -> None:
    folder = tiny_models.save("sd3", tmp_path / "sd3")
    # None is a server, which has no such option to advise.
    for lenient, hint in ((False, ", or go on without it by --lenient"), (None, "")):
        backend = LocalBackend(LocalOptions(attention_slicing=True, lenient=lenient))
        with pytest.raises(InputError, match="SD3Transformer2DModel.* no attention") as caught:
            backend.check(ask(backend, model=folder))
        assert caught.value.field == "attention_slicing"
        assert caught.value.hint == f"Leave --attention-slicing away{hint}."


def test_check_refuses_what_does_not_fit_and_loads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = LocalBackend(LocalOptions())
    large = ask(backend, width=16_384, height=16_384)
    with pytest.raises(OutOfMemoryError, match="needs about"):
        backend.check(large)
    assert backend._loaded is None
    assert isinstance(error(make(backend, large)), OutOfMemoryError)


def test_a_model_that_is_loaded_is_not_counted_twice(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(make(backend, ask(backend, steps=1)))
    assert backend._loaded
    planned: list[int] = []
    plan = planning.plan_memory

    def noted(
        aim: LoadTarget, request: ResolvedRequest, options: LocalOptions, resident: int
    ) -> MemoryPlan:
        planned.append(resident)
        return plan(aim, request, options, resident)

    monkeypatch.setattr(planning, "plan_memory", noted)
    backend.check(ask(backend))
    LocalBackend(LocalOptions()).check(ask(backend))
    assert planned == [backend._loaded.resident_bytes, 0]
    assert planned[0] > 0


def test_half_precision_is_planned_where_it_is_asked_for() -> None:
    half, full = (
        backend.plan(ask(backend))
        for backend in (LocalBackend(LocalOptions(dtype=dtype)) for dtype in ("bfloat16", None))
    )
    assert (half.dtype, full.dtype) == ("bfloat16", "float32")
    assert abs(2 * half.weights_mib - full.weights_mib) <= 1


def test_dtypes_other_than_the_default_make_the_same_picture(
    undisturbed: list[GeneratedImage],
) -> None:
    backend = LocalBackend(LocalOptions(dtype="bfloat16"))
    (image,) = images(make(backend, ask(backend)))
    assert image.info.dtype == "bfloat16"
    assert psnr(image, undisturbed[0]) > 25


def test_attention_slicing_that_a_model_lacks_can_be_left_out(tmp_path: Path) -> None:
    folder = tiny_models.save("sd3", tmp_path / "sd3")
    backend = LocalBackend(LocalOptions(attention_slicing=True, lenient=True))
    events: list[Event] = []
    request = ask(backend, model=folder, width=32, height=32)
    (image,) = images(make(backend, request, events=events))
    assert image.info.measures == ()
    assert any(isinstance(event, Notice) and "left out" in event.message for event in events)
