"""Every family that can be made small: its pictures are plain diffusers', alone and in a pass.

A sample runs always; `make full` runs all of them.
"""

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, batch_size
from t2i_cli.errors import InputError, ModelError
from t2i_cli.events import Event, Notice
from t2i_cli.models import libraries, schedulers, sources
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest, ResolvedRequest
from tests import tiny_models
from tests.conftest import T2I

CLASSES = {
    "sd": "StableDiffusionPipeline",
    "lcm": "LatentConsistencyModelPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "flux-kontext": "FluxKontextPipeline",
    "pixart": "PixArtAlphaPipeline",
    "pixart-sigma": "PixArtSigmaPipeline",
    "hunyuan-dit": "HunyuanDiTPipeline",
    "aura-flow": "AuraFlowPipeline",
    "chroma": "ChromaPipeline",
    "bria": "BriaPipeline",
    "hidream": "HiDreamImagePipeline",
    "qwen-image": "QwenImagePipeline",
    "lumina2": "Lumina2Pipeline",
    "sana": "SanaPipeline",
    "sana-sprint": "SanaSprintPipeline",
    "flux2-klein": "Flux2KleinPipeline",
    "cogview4": "CogView4Pipeline",
    "z-image": "ZImagePipeline",
}
DEPENDENT = ("cogview4", "z-image")
INDEPENDENT = tuple(name for name in CLASSES if name not in DEPENDENT)
SAMPLE = ("sana", "flux-kontext", "hunyuan-dit", "cogview4")
"""Families of the default run: what is special to each was once overlooked."""
SIDES = {"hidream": 256}
"""Pixels, of families that do not make 64."""
PROMPTS = ("a red house", "a blue star over the sea at night, with many waves and a boat", "cat")
NEGATIVE = ("rain", "grey fog, snow and ice upon the roads", "ink")
GUIDANCE = 3.0

Family = Callable[[str], Path]


def of(*families: str) -> list[object]:
    """The families as parameters; those outside the sample are marked."""
    marks = {True: (), False: (pytest.mark.full,)}
    return [pytest.param(name, marks=marks[name in SAMPLE]) for name in families]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The folder of a family's tiny pipeline, made once."""
    root = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        if name == "sd":
            return Path("postcard")
        return root / name if (root / name).exists() else tiny_models.save(name, root / name)

    return folder


def ask(backend: LocalBackend, model: Path, side: int = 64, **fields: object) -> ResolvedRequest:
    settings = {"prompt": PROMPTS[0], "seed": 1, "steps": 2, "width": side, "height": side}
    request = GenerateRequest(model=str(model), **settings | fields)  # type: ignore[arg-type]
    return resolve_request(request, backend.describe(request))


def run(
    backend: LocalBackend, requests: Sequence[ResolvedRequest], events: list[Event] | None = None
) -> list[GeneratedImage | Failure]:
    told: list[Event] = [] if events is None else events
    outcomes = backend.run(requests, told.append, threading.Event())
    return sorted(outcomes, key=lambda outcome: outcome.index)


def pixels(outcome: GeneratedImage | Failure) -> NDArray[np.int16]:
    """height x width x 3, 0 to 255."""
    assert isinstance(outcome, GeneratedImage), outcome
    return np.asarray(outcome.image, dtype=np.int16)


def difference(one: NDArray[np.int16], other: NDArray[np.int16]) -> int:
    """The largest of two pictures' differences, 0 to 255."""
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


def plain(folder: Path, request: ResolvedRequest) -> NDArray[np.int16]:
    """The picture of diffusers itself, called for the request with nothing else set."""
    import torch
    from diffusers import DiffusionPipeline

    with libraries.suppress_warnings():
        without = dict.fromkeys(sources.absent_parts(folder))
        pipe = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **without)
        taken = inspect.signature(pipe.__call__).parameters
        size = {"use_resolution_binning": False, "max_area": 64 * 64}
        words = {"negative_prompt": request.negative_prompt}
        made = pipe(
            prompt=request.prompt,
            height=request.height,
            width=request.width,
            num_inference_steps=request.steps,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            **words if request.negative_prompt else {},
            **{name: value for name, value in size.items() if name in taken},
        )
    return np.asarray(made.images[0].convert("RGB"), dtype=np.int16)


def test_the_list_of_independent_classes_is_what_is_shown_here() -> None:
    shown = {CLASSES[name] for name in INDEPENDENT}
    assert shown == batch_size.INDEPENDENT_PIPELINES


@pytest.mark.parametrize("name", of(*(name for name in CLASSES if name != "sd")))
def test_the_picture_is_plain_diffusers(family: Family, name: str) -> None:
    folder, backend = family(name), LocalBackend(LocalOptions())
    spec = backend.describe(GenerateRequest(prompt="x", model=str(folder)))
    worded = {"negative_prompt": NEGATIVE[0]} if spec.negative_prompt else {}
    request = ask(backend, folder, SIDES.get(name, 64), **worded)
    (made,) = run(backend, [request])
    assert difference(pixels(made), plain(folder, request)) <= 1
    weaker = ask(backend, folder, SIDES.get(name, 64), guidance_scale=1.5, **worded)
    (other,) = run(backend, [weaker])
    assert difference(pixels(made), pixels(other)) > 1, "the guidance scale acts"
    backend.close()


@pytest.mark.parametrize("name", of(*INDEPENDENT))
@pytest.mark.parametrize("worded", [False, True])
def test_images_of_a_pass_are_what_they_are_alone(family: Family, name: str, worded: bool) -> None:
    folder, together = family(name), LocalBackend(LocalOptions(batch_size=3))
    spec = together.describe(GenerateRequest(prompt="x", model=str(folder)))
    if worded and not spec.negative_prompt:
        pytest.skip("The family takes no negative prompt.")
    requests = [
        ask(
            together,
            folder,
            SIDES.get(name, 64),
            **{"prompt": prompt, "seed": seed, "guidance_scale": GUIDANCE},
            **{"negative_prompt": negative} if worded else {},
        )
        for prompt, seed, negative in zip(PROMPTS, (1, 1, 2), NEGATIVE, strict=True)
    ]
    shared = run(together, requests)
    alone = [run(together, [request])[0] for request in requests]
    locks = [outcome.info for outcome in (*shared, *alone) if isinstance(outcome, GeneratedImage)]
    assert [lock.batch_size for lock in locks] == [3] * 3 + [1] * 3
    assert {lock.pipeline for lock in locks} == {CLASSES[name]}
    assert difference(pixels(alone[0]), pixels(alone[1])) > 4, "the prompt shows"
    for one, other in zip(shared, alone, strict=True):
        assert difference(pixels(one), pixels(other)) <= 1
    together.close()


@pytest.mark.parametrize("name", of(*DEPENDENT))
def test_images_that_change_each_other_share_no_pass(family: Family, name: str) -> None:
    folder = family(name)
    asked = LocalBackend(LocalOptions(batch_size=3))
    requests = [ask(asked, folder, prompt=prompt) for prompt in PROMPTS]
    complaint = f"Images of a {CLASSES[name]} may change each other in a pass"
    with pytest.raises(InputError, match=complaint):
        asked.check(requests[0])
    for options in (LocalOptions(batch_size=None), LocalOptions(batch_size=3, lenient=True)):
        backend, events = LocalBackend(options), list[Event]()
        made = run(backend, requests, events)
        assert [o.info.batch_size for o in made if isinstance(o, GeneratedImage)] == [1, 1, 1]
        notes = [event.message for event in events if isinstance(event, Notice)]
        assert any(complaint in note for note in notes) is bool(options.lenient)
        backend.close()


@pytest.mark.full
def test_a_batch_size_that_a_family_does_not_bear_is_refused(
    family: Family, t2i: T2I, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    arguments = (
        "batch",
        "prompts.txt",
        "-m",
        family("cogview4"),
        "--steps",
        "1",
        "--size",
        "64x64",
    )
    done = t2i(*arguments, "-o", "out", "--batch-size", "3")
    assert done.returncode == 2
    assert "Images of a CogView4Pipeline may change each other in a pass" in done.stderr
    assert "--lenient" in done.stderr
    assert t2i(*arguments, "-o", "out").returncode == 0


@pytest.mark.full
@pytest.mark.parametrize(
    "scheduler", [n for n in schedulers.NOISE_SCHEDULERS if n != "lms"]
)  # wants scipy
def test_no_scheduler_makes_the_images_of_a_pass_depend_on_each_other(scheduler: str) -> None:
    backend = LocalBackend(LocalOptions(batch_size=3))
    requests = [
        ask(backend, Path("postcard"), prompt=prompt, seed=seed, steps=4, scheduler=scheduler)
        for seed, prompt in enumerate(PROMPTS)
    ]
    shared = run(backend, requests)
    for request, together in zip(requests, shared, strict=True):
        assert difference(pixels(together), pixels(run(backend, [request])[0])) <= 1


@pytest.mark.full
def test_a_size_that_is_not_kept_is_an_error(family: Family) -> None:
    backend = LocalBackend(LocalOptions())
    folder = family("hidream")
    with pytest.raises(InputError, match="makes no images of 64x64; .* is 256x256"):
        ask(backend, folder)
    asked = replace(ask(backend, folder, width=256, height=256), width=64, height=64)
    (outcome,) = run(backend, [asked])
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, ModelError)
    assert "made 256x256 pixels where 64x64 were asked for" in outcome.error.message
    assert outcome.error.hint == "--size 256x256 is a size that it keeps."


@pytest.mark.full
def test_a_prompt_is_rewritten_by_the_seed(family: Family) -> None:
    folder = family("longcat")
    tiny_models.edit_json(folder / "text_encoder/generation_config.json", do_sample=True)
    backend = LocalBackend(LocalOptions())
    one, again = (pixels(run(backend, [ask(backend, folder)])[0]) for _ in range(2))
    assert difference(one, again) == 0
