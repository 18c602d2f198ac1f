"""`--schedule`: which scheduler takes which noise levels, and what other programs call them."""

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog, libraries, noise_schedules, scheduler_support, schedulers
from t2i_cli.models.noise_schedules import NOISE_SCHEDULES
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.output import infotext
from t2i_cli.request import ResolvedRequest
from t2i_cli.schedule_names import SCHEDULE_LABELS, parse_schedule_name
from tests import factories, tiny_models
from tests.conftest import T2I
from tests.test_local_backend import ask, error, images, make, pixels

POSTCARD = catalog.MODELS["postcard"]
DPM = {"_class_name": "DPMSolverMultistepScheduler"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SIGMAS = ("karras", "exponential", "beta")
HAS_SCIPY = importlib.util.find_spec("scipy") is not None
needs_scipy = pytest.mark.skipif(not HAS_SCIPY, reason="`pip install scipy` brings it.")


@pytest.fixture(scope="module")
def backend() -> LocalBackend:
    """One with the embedded model, loaded once."""
    return LocalBackend(LocalOptions())


@pytest.fixture
def with_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """All schedules as if what they need were installed."""
    monkeypatch.setattr(noise_schedules, "_is_installed", lambda _: True)


def chosen(
    name: str | None,
    schedule: str,
    *,
    flow: bool = False,
    own: Mapping[str, object] | None = None,
) -> schedulers.SchedulerSpec:
    """The scheduler with the schedule's settings."""
    config: Mapping[str, object] = own or (FLOW if flow else DPM)
    return noise_schedules.scheduled_spec((name, schedule), flow, config, "the model")


def test_the_table_of_what_takes_what() -> None:
    """By the source of each class; `lms` cannot be read without scipy."""
    every = ("normal", "karras", "exponential", "beta", "sgm")
    expected = {
        **dict.fromkeys(("euler", "heun", "dpm++2m", "dpm++2m-sde", "unipc", "deis"), every),
        **dict.fromkeys(("euler-a", "ddim", "ddpm", "pndm"), ("normal", "sgm")),
        **dict.fromkeys(("euler-karras", "dpm++2m-karras", "dpm++2m-sde-karras"), ("karras",)),
        **dict.fromkeys(("euler-trailing", "ddim-trailing"), ("sgm",)),
        "dpm++2s": SIGMAS,
        # It takes timestep_spacing, and never reads it.
        "lcm": (),
    }
    found = {
        name: noise_schedules.schedules_of(name, flow=False)
        for name in schedulers.NOISE_SCHEDULERS
        if name != "lms"
    }
    assert found == expected
    flows = {n: noise_schedules.schedules_of(n, flow=True) for n in schedulers.FLOW_SCHEDULERS}
    assert flows == {"euler": SIGMAS, "heun": (), "dpm++2m": (), "unipc": ()}


@pytest.mark.usefixtures("with_scipy")
def test_every_setting_is_one_of_the_class_and_shows_in_its_timesteps() -> None:
    diffusers = libraries.import_diffusers()
    for name, spec in schedulers.NOISE_SCHEDULERS.items():
        own = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, timestep_spacing="leading")
        for schedule in noise_schedules.schedules_of(name, flow=False):
            if schedule == "beta" and not HAS_SCIPY:
                continue
            changed = chosen(name, schedule)
            config = schedulers.scheduler_config(changed, own.config, latent=True)
            with libraries.suppress_warnings():
                made = getattr(diffusers, spec.cls).from_config(config)
                made.set_timesteps(8)
            wanted = NOISE_SCHEDULES[schedule]
            assert made.config[wanted.setting] == wanted.value, (name, schedule)
            known = inspect.signature(type(made).__init__).parameters
            others = [each.setting for each in NOISE_SCHEDULES.values() if each.value is True]
            active = [each for each in others if each in known and made.config[each]]
            assert active == [wanted.setting] * (wanted.value is True), (name, schedule)
            assert len(made.timesteps) >= 8


@pytest.mark.parametrize(
    ("name", "schedule", "more", "reason"),
    [
        ("euler-a", "karras", {}, "EulerAncestralDiscreteScheduler has none"),
        ("lcm", "sgm", {}, "LCMScheduler has none"),
        ("dpm++2m-karras", "exponential", {}, "its name says karras"),
        ("euler-trailing", "karras", {}, "its name says sgm"),
        ("dpm++2m", "karras", {"flow": True}, "those of flow matching"),
        ("euler", "sgm", {"flow": True}, "FlowMatchEulerDiscreteScheduler has none"),
        (None, "karras", {"own": {"_class_name": "PNDMScheduler"}}, "PNDMScheduler has none"),
        (None, "karras", {"own": DPM | {"use_flow_sigmas": True}}, "those of flow matching"),
        ("unipc", "karras", {"own": DPM | {"beta_schedule": "squaredcos_cap_v2"}}, "are equal"),
    ],
)
def test_a_scheduler_without_the_schedule_refuses_it_by_name(
    name: str | None, schedule: str, more: dict[str, object], reason: str
) -> None:
    with pytest.raises(InputError, match=f"takes no schedule '{schedule}': .*{reason}") as caught:
        chosen(name, schedule, **more)  # type: ignore[arg-type]
    assert caught.value.field == "schedule"
    if not more.get("flow") and schedule == "karras":
        assert "--scheduler euler" in (caught.value.hint or "")


def test_the_same_schedule_twice_is_no_contradiction() -> None:
    assert chosen("dpm++2m-karras", "karras").settings["use_karras_sigmas"] is True
    assert chosen("euler", "sgm").settings["timestep_spacing"] == "trailing"


def test_a_users_own_timesteps_do_not_go_with_it() -> None:
    spec = ModelSpec(name="mine", pipeline="StableDiffusionXLPipeline", flow=False)
    own = {"_class_name": "EulerDiscreteScheduler"}
    extras = (("timesteps", (999, 500)),)
    request = factories.request(scheduler=None, schedule="karras", extras=extras, steps=2)
    with pytest.raises(InputError, match="Cannot set `timesteps`"):
        scheduler_support.check_schedule(request, spec, own)
    scheduler_support.check_schedule(
        factories.request(scheduler=None, schedule="karras"), spec, own
    )


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Karras", "karras"),
        ("SGM Uniform", "sgm"),
        ("sgm_uniform", "sgm"),
        ("SGMUniform", "sgm"),
        ("simple", "sgm"),
        ("uniform", "normal"),
        ("Automatic", "auto"),
        (" beta ", "beta"),
        ("", None),
    ],
)
def test_spellings_of_other_programs(written: str, name: str | None) -> None:
    assert parse_schedule_name(written) == name


@pytest.mark.parametrize("written", ["carras", "kl_optimal", 7, ["karras"], "k" * 5_000])
def test_unknown_names_are_told(written: object) -> None:
    with pytest.raises(InputError) as caught:
        parse_schedule_name(written)
    assert caught.value.field == "schedule"
    assert len(caught.value.message) < 200


def test_it_is_part_of_an_id_only_if_it_is_set() -> None:
    def identity(**values: object) -> object:
        request = build_request({"prompt": "a", "seed": 1, **values})
        return resolve_request(request, POSTCARD).identity()

    assert identity(schedule="auto") == identity()
    assert len({str(identity(schedule=name)) for name in SCHEDULE_LABELS}) == len(SCHEDULE_LABELS)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULE_LABELS if name != "auto"])
def test_a1111s_text_has_it_and_is_read_back(schedule: str) -> None:
    request = factories.request(scheduler="dpm++2s", schedule=schedule)
    text = infotext.format_infotext(request, factories.LOCK, (64, 64))
    assert f"Sampler: DPM++ 2S, Schedule type: {SCHEDULE_LABELS[schedule]}, " in text
    parsed = infotext.parse_infotext(text)
    assert parsed
    assert (parsed.request["scheduler"], parsed.request["schedule"]) == ("dpm++2s", schedule)
    plain = infotext.format_infotext(factories.request(), factories.LOCK, (64, 64))
    assert "Schedule type" not in plain


@pytest.mark.parametrize(
    ("sampler", "schedule_type", "expected"),
    [
        ("DPM++ 2M", "Karras", ("dpm++2m-karras", None)),
        ("DPM++ 2M", "Exponential", ("dpm++2m", "exponential")),
        ("DPM++ 2M", "Automatic", ("dpm++2m-karras", None)),
        ("DPM++ 2M SDE", "Automatic", ("dpm++2m-sde", "exponential")),
        ("DPM++ 2M", "", ("dpm++2m", None)),
        # Before version 1.9.
        ("DPM++ 2M Karras", "", ("dpm++2m-karras", None)),
        ("DPM++ 2M SDE Exponential", "", ("dpm++2m-sde", "exponential")),
        ("Euler", "Beta", ("euler", "beta")),
        ("Euler", "SGM Uniform", ("euler-trailing", None)),
        ("UniPC", "SGM Uniform", ("unipc", "sgm")),
        ("Euler", "Simple", ("euler", None)),
        ("Euler", "Align Your Steps", ("euler", None)),
        ("Restart", "Karras", (None, None)),
    ],
)
def test_samplers_of_a1111(
    sampler: str, schedule_type: str, expected: tuple[str | None, str | None]
) -> None:
    assert noise_schedules.read_sampler_labels(sampler, schedule_type) == expected


@pytest.mark.parametrize(
    ("sampler", "spacing", "expected"),
    [
        ("dpmpp_2m", "karras", ("dpm++2m-karras", None)),
        ("dpmpp_2m_sde_gpu", "exponential", ("dpm++2m-sde", "exponential")),
        ("euler", "beta", ("euler", "beta")),
        ("dpmpp_2m", "sgm_uniform", ("dpm++2m", "sgm")),
        ("euler", "simple", ("euler", None)),
        ("euler", "normal", ("euler", None)),
        ("euler", "linear_quadratic", (None, None)),
        ("res_multistep", "karras", (None, None)),
    ],
)
def test_samplers_of_comfyui(
    sampler: str, spacing: str, expected: tuple[str | None, str | None]
) -> None:
    assert noise_schedules.read_sampler_names(sampler, spacing) == expected


def plain_picture(folder: Path, asked: ResolvedRequest, cls: str) -> np.ndarray:
    """What diffusers' own pipeline makes of a request, with a scheduler of that class."""
    import torch

    diffusers = libraries.import_diffusers()
    schedule = NOISE_SCHEDULES[str(asked.schedule)]
    with libraries.suppress_warnings():
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
        pipe.scheduler = getattr(diffusers, cls).from_config(
            pipe.scheduler.config, **{schedule.setting: schedule.value}
        )
        pipe.set_progress_bar_config(disable=True)
        image = pipe(
            asked.prompt,
            num_inference_steps=asked.steps,
            guidance_scale=asked.guidance_scale,
            width=asked.width,
            height=asked.height,
            generator=torch.Generator().manual_seed(asked.seed),
        ).images[0]
    return np.asarray(image, dtype=np.float64)


def test_a_schedule_is_that_of_the_schedulers_own_name(backend: LocalBackend) -> None:
    def picture(**values: Any) -> np.ndarray:  # noqa: ANN401 - of many fields
        (image,) = images(make(backend, ask(backend, steps=6, seed=1, **values)))
        return pixels(image)

    named = picture(scheduler="dpm++2m-karras")
    assert np.array_equal(picture(scheduler="dpm++2m", schedule="karras"), named)
    # The embedded model's own scheduler is DPM++ 2M.
    assert np.array_equal(picture(schedule="karras"), named)
    plain = picture()
    assert not np.array_equal(plain, named)
    other = picture(scheduler="dpm++2m", schedule="exponential")
    assert not np.array_equal(other, named) and not np.array_equal(other, plain)
    # The next request without one has the model's own again.
    assert np.array_equal(picture(), plain)


def test_what_is_not_installed_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    backend = LocalBackend(LocalOptions())
    failure = error(make(backend, ask(backend, scheduler="euler", schedule="beta")))
    assert isinstance(failure, InputError)
    assert failure.message == "The schedule 'beta' needs scipy, which is not installed."
    assert backend._loaded is None
    assert noise_schedules.usable_schedules(flow=False) == (
        "normal",
        "karras",
        "exponential",
        "sgm",
    )
    assert noise_schedules.usable_schedules(flow=True) == ("karras", "exponential")
    assert noise_schedules.usable_schedules(None) == ()


@pytest.mark.parametrize("schedule", ["karras", pytest.param("beta", marks=needs_scipy)])
def test_a_flow_matching_model_is_as_plain_diffusers_makes_it(
    tmp_path: Path, schedule: str
) -> None:
    folder = tiny_models.save("flux", tmp_path / "flux")
    backend = LocalBackend(LocalOptions())
    asked = ask(backend, model=folder, schedule=schedule, width=32, height=32, steps=4)
    (image,) = images(make(backend, asked))
    plain = plain_picture(folder, asked, "FlowMatchEulerDiscreteScheduler")
    assert np.abs(pixels(image) - plain).max() <= 2
    (own,) = images(make(backend, replace(asked, schedule=None)))
    assert not np.array_equal(pixels(own), pixels(image))


@needs_scipy
@pytest.mark.parametrize(
    ("scheduler", "cls"),
    [
        (None, "DPMSolverMultistepScheduler"),
        ("euler", "EulerDiscreteScheduler"),
    ],
)
def test_beta_is_as_plain_diffusers_makes_it(
    backend: LocalBackend, scheduler: str | None, cls: str
) -> None:
    asked = ask(backend, steps=6, seed=1, schedule="beta", scheduler=scheduler)
    (image,) = images(make(backend, asked))
    assert POSTCARD.folder
    plain = plain_picture(POSTCARD.folder, asked, cls)
    assert np.abs(pixels(image) - plain).max() <= 2
    (own,) = images(make(backend, replace(asked, schedule=None)))
    assert not np.array_equal(pixels(own), pixels(image))


@needs_scipy
@pytest.mark.full  # what a scheduler makes of beta is above; this runs the rest of them
def test_beta_is_run_through_by_every_scheduler_that_takes_it(backend: LocalBackend) -> None:
    for name in schedulers.NOISE_SCHEDULERS:
        if "beta" not in noise_schedules.schedules_of(name, flow=False):
            continue
        for steps in (1, 2, 30):
            made = make(backend, ask(backend, steps=steps, scheduler=name, schedule="beta"))
            (image,) = images(made)
            assert pixels(image).std() > 1, (name, steps)


def test_in_a_process_it_is_bad_input_before_loading(t2i: T2I) -> None:
    star = ("generate", "a red star", "-m", "postcard", "-o", "a.png")
    done = t2i(*star, "--scheduler", "euler-a", "--schedule", "karras")
    assert done.returncode == 2
    assert "'euler-a' takes no schedule 'karras'" in done.stderr
    assert "loading" not in done.stderr
