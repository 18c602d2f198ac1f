"""Every scheduler of the tables makes right pictures of latents, or is refused before loading."""

import importlib.util
import inspect
import shutil
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest

from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.errors import InputError
from t2i_cli.models import libraries, schedulers, sources
from t2i_cli.models.libraries import LibraryObject
from tests import tiny_models
from tests.conftest import T2I
from tests.fakes.serving import serving
from tests.test_local_backend import ask, error, images, make, pixels
from training.prompt_adherence import grade_image

PROMPT = "a purple heart on a white background"
SAMPLE = {"ddim", "ddpm", "pndm", "lms"}
"""Those whose class's defaults ruined pictures, or that need more than diffusers does."""


@pytest.fixture(scope="module")
def backend() -> LocalBackend:
    """One with the embedded model, loaded once for all its schedulers."""
    return LocalBackend(LocalOptions())


def scheduler(cls: str, **config: object) -> LibraryObject:
    """A scheduler of diffusers, as of a model's scheduler_config.json."""
    found = getattr(libraries.import_diffusers(), cls)
    with libraries.suppress_warnings():
        return found.from_config({"_class_name": cls, **config})


def switched(
    own: LibraryObject, spec: schedulers.SchedulerSpec, *, latent: bool = True
) -> LibraryObject:
    """The config of the scheduler that takes the place of a model's own."""
    config = schedulers.scheduler_config(spec, own.config, latent=latent)
    with libraries.suppress_warnings():
        return getattr(libraries.import_diffusers(), spec.cls).from_config(config).config


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SAMPLE else pytest.mark.full)
        for name in schedulers.NOISE_SCHEDULERS
    ],
)
def test_every_scheduler_shows_the_prompt(name: str, backend: LocalBackend) -> None:
    request = ask(backend, prompt=PROMPT, scheduler=name, steps=20)
    if not schedulers.is_installed(schedulers.NOISE_SCHEDULERS[name]):
        with pytest.raises(InputError, match="needs scipy, which is not installed"):
            backend.check(request)
        return
    (image,) = images(make(backend, request))
    grade = grade_image(image.image, PROMPT)
    assert grade.passed, (grade.checks, grade.seen)


def test_what_is_not_installed_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    backend = LocalBackend(LocalOptions())
    failure = error(make(backend, ask(backend, scheduler="lms")))
    assert isinstance(failure, InputError)
    assert failure.message == "The scheduler 'lms' needs scipy, which is not installed."
    assert "pip install scipy" in (failure.hint or "")
    assert backend._loaded is None
    assert "lms" in schedulers.scheduler_names(False)
    assert "lms" not in schedulers.usable_scheduler_names(False)


def test_a_server_refuses_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    backend = LocalBackend(LocalOptions())
    monkeypatch.setattr(backend, "load", lambda *_: None)  # a server loads its model at its start
    with serving(backend) as server:
        body = {"requests": [{"prompt": PROMPT, "scheduler": "lms"}]}
        answer = httpx2.post(f"{server.url}/t2i/v1/generate", json=body, timeout=60)
    assert answer.status_code == 400
    assert "needs scipy" in answer.json()["error"]["message"]
    assert backend._loaded is None


@pytest.mark.skipif(importlib.util.find_spec("scipy") is not None, reason="scipy is installed")
def test_in_a_process_it_is_bad_input(t2i: T2I) -> None:
    done = t2i("generate", "a red star", "-m", "postcard", "--scheduler", "lms", "-o", "a.png")
    assert done.returncode == 2
    assert "needs scipy" in done.stderr
    assert "loading" not in done.stderr


def test_the_tables_know_what_their_classes_lack() -> None:
    """What a model was made for, and a class does not know, is refused rather than ignored."""
    keys = {"noise": "rescale_betas_zero_snr", "flow": "use_dynamic_shifting"}
    for kind, table in (
        ("noise", schedulers.NOISE_SCHEDULERS),
        ("flow", schedulers.FLOW_SCHEDULERS),
    ):
        for name, spec in table.items():
            if schedulers.is_installed(spec):
                cls = getattr(libraries.import_diffusers(), spec.cls)
                known = inspect.signature(cls.__init__).parameters
                assert (keys[kind] in spec.lacks) == (keys[kind] not in known), name


@pytest.mark.parametrize(
    ("name", "key", "model"),
    [("heun", "rescale_betas_zero_snr", "postcard"), ("heun", "use_dynamic_shifting", "flux")],
)
def test_what_a_scheduler_lacks_is_refused_before_loading(
    name: str, key: str, model: str, tmp_path: Path
) -> None:
    folder = tmp_path / model
    if model == "postcard":
        tiny_models.copy_postcard(folder)
    else:
        tiny_models.save(model, folder)
    tiny_models.edit_json(folder / "scheduler/scheduler_config.json", **{key: True})
    backend = LocalBackend(LocalOptions())
    request = ask(backend, model=folder, scheduler=name, width=32, height=32)
    with pytest.raises(InputError, match=f"'{name}' does not know {key}"):
        backend.check(request)
    assert isinstance(error(make(backend, request)), InputError)
    assert backend._loaded is None


@pytest.mark.parametrize("name", [n for n in schedulers.NOISE_SCHEDULERS if n != "lms"])
def test_latents_are_not_clipped_and_the_betas_stay(name: str) -> None:
    """A config that leaves all to its class, as Euler's here, means that class's defaults."""
    own = scheduler("EulerDiscreteScheduler")
    config = switched(own, schedulers.NOISE_SCHEDULERS[name])
    assert not config.get("clip_sample", False)
    assert not config.get("thresholding", False)
    for key in schedulers.TRAINED_SETTINGS:
        if key in own.config and key in config:
            assert config[key] == own.config[key], key


def test_pixels_are_clipped_unless_the_model_says_otherwise() -> None:
    own = scheduler("DDPMScheduler")
    assert switched(own, schedulers.NOISE_SCHEDULERS["ddim"], latent=False).clip_sample
    told = scheduler("DDPMScheduler", clip_sample=False)
    assert not switched(told, schedulers.NOISE_SCHEDULERS["ddim"], latent=False).clip_sample
    clips = scheduler("DDPMScheduler", clip_sample=True)
    assert switched(clips, schedulers.NOISE_SCHEDULERS["ddim"]).clip_sample, (
        "a model's own word holds"
    )


def test_a_name_means_the_same_whatever_the_models_own_scheduler_does() -> None:
    own = scheduler(
        "DPMSolverMultistepScheduler",
        use_karras_sigmas=True,
        algorithm_type="sde-dpmsolver++",
        solver_order=3,
    )
    plain = switched(own, schedulers.NOISE_SCHEDULERS["dpm++2m"])
    assert (plain.use_karras_sigmas, plain.algorithm_type) == (False, "dpmsolver++")
    assert plain.solver_order == 2
    assert not switched(own, schedulers.NOISE_SCHEDULERS["euler"]).use_karras_sigmas
    assert switched(own, schedulers.NOISE_SCHEDULERS["deis"]).algorithm_type == "deis"
    assert switched(own, schedulers.NOISE_SCHEDULERS["pndm"]).skip_prk_steps
    spaced = scheduler("EulerDiscreteScheduler", use_exponential_sigmas=True)
    assert not switched(spaced, schedulers.NOISE_SCHEDULERS["euler-karras"]).use_exponential_sigmas


def test_the_shift_of_flows_has_two_names() -> None:
    solver = scheduler(
        "DPMSolverMultistepScheduler",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
    )
    assert switched(solver, schedulers.FLOW_SCHEDULERS["euler"]).shift == 3.0
    assert switched(solver, schedulers.FLOW_SCHEDULERS["unipc"]).flow_shift == 3.0
    euler = scheduler("FlowMatchEulerDiscreteScheduler", shift=2.5)
    for name in ("dpm++2m", "unipc"):
        assert switched(euler, schedulers.FLOW_SCHEDULERS[name]).flow_shift == 2.5
    assert switched(euler, schedulers.FLOW_SCHEDULERS["heun"]).shift == 2.5


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny flow-matching model with a shift of 3."""
    return tiny_models.save("sd3", tmp_path_factory.mktemp("flow") / "sd3")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny flow-matching model whose shift depends on the size."""
    folder = tiny_models.save("flux", tmp_path_factory.mktemp("flow") / "flux")
    tiny_models.edit_json(folder / "scheduler/scheduler_config.json", use_dynamic_shifting=True)
    return folder


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("sd3", name) for name in schedulers.FLOW_SCHEDULERS),
        *(("flux", name) for name in schedulers.FLOW_SCHEDULERS if name != "heun"),
    ],
)
def test_flows_are_as_plain_diffusers_makes_them(
    family: str, name: str, request: pytest.FixtureRequest
) -> None:
    import torch

    folder: Path = request.getfixturevalue(family)
    backend = LocalBackend(LocalOptions())
    asked = ask(backend, model=folder, scheduler=name, width=32, height=32, steps=4)
    (image,) = images(make(backend, asked))

    diffusers = libraries.import_diffusers()
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    with libraries.suppress_warnings():
        left_out = dict.fromkeys(sources.absent_parts(folder))
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **left_out)
        own = pipe.scheduler.config
        shift = {"use_dynamic_shifting": True} if family == "flux" else {"flow_shift": own.shift}
        pipe.scheduler = {
            "euler": lambda: pipe.scheduler,
            "heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=own.shift),
            "dpm++2m": lambda: diffusers.DPMSolverMultistepScheduler(**flow, **shift),
            "unipc": lambda: diffusers.UniPCMultistepScheduler(**flow, **shift),
        }[name]()
        pipe.set_progress_bar_config(disable=True)
        plain = pipe(
            asked.prompt,
            num_inference_steps=4,
            width=32,
            height=32,
            generator=torch.Generator().manual_seed(asked.seed),
        ).images[0]
    difference = np.abs(pixels(image) - np.asarray(plain, dtype=np.float64))
    assert difference.max() <= 2


def test_a_schedule_that_a_class_does_not_know_is_bad_input(tmp_path: Path) -> None:
    from t2i_cli import postcard

    folder = shutil.copytree(postcard.FOLDER, tmp_path / "model")
    config = folder / "scheduler/scheduler_config.json"
    tiny_models.edit_json(config, _class_name="DDPMScheduler", beta_schedule="sigmoid")
    tiny_models.edit_json(folder / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])
    backend = LocalBackend(LocalOptions())
    failure = error(make(backend, ask(backend, model=folder, scheduler="euler")))
    assert isinstance(failure, InputError)
    assert "'euler' does not fit" in failure.message
