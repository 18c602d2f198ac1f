"""Calls that differ: one prompt, one generator, schedules; and what a run leaves of randomness."""

import json
import random
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, pipeline_calls
from t2i_cli.backends.local.device import CPU
from t2i_cli.backends.local.random_state import seeded_global_generators
from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import class_facts, size_rules
from t2i_cli.models.described_spec import check_spec_values
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.worker.answers import worker_model
from tests import tiny_models

SCHEDULE = (7.0,) * 45 + (3.0,) * 3


def request(**values: object) -> ResolvedRequest:
    """A request of seed 1, resolved for a model that takes all."""
    asked = {"prompt": "x", "seed": 1} | values
    return resolve_request(GenerateRequest(**asked), ModelSpec(name="it"))  # type: ignore[arg-type]


def pipeline(call: Callable[..., None], name: str = "OwnPipeline") -> LibraryObject:
    """An instance of a class of that name and call."""
    return type(name, (), {"__call__": call})()


def takes_one(
    self: object,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """A call that takes no lists."""


def takes_lists(
    self: object,
    prompt: str | list[str] | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> None:
    """A call as most have it."""


def unannotated(self, prompt, generator=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """A call that does not say what it takes."""


def scheduled(
    self: object,
    prompt: str | list[str],
    num_inference_steps: int = 48,
    guidance_scale: float | None = None,
    guidance_schedule: tuple[float, ...] | None = SCHEDULE,
) -> None:
    """A call like Ideogram 4's."""


def intermediate(
    self: object,
    prompt: str | list[str],
    num_inference_steps: int = 2,
    intermediate_timesteps: float | None = 1.3,
) -> None:
    """A call like Sana Sprint's."""


def adapted(
    call: Callable[..., None], name: str = "OwnPipeline", **values: object
) -> LibraryObject:
    """The arguments for one request."""
    arguments = {"prompt": ["x"]} | values
    return pipeline_calls.call_arguments(pipeline(call, name), arguments, [request()])


def test_a_call_that_takes_no_list_gets_none() -> None:
    found = adapted(takes_one, negative_prompt=["y"])
    assert (found["prompt"], found["negative_prompt"]) == ("x", "y")
    assert found["generator"].initial_seed() == 1
    for call in (takes_lists, unannotated):
        found = adapted(call)
        assert found["prompt"] == ["x"]
        assert [each.initial_seed() for each in found["generator"]] == [1]
    listed = adapted(takes_lists, "DreamLiteMobilePipeline")
    assert listed["prompt"] == "x", "it writes a list into its text"


def test_a_schedule_of_guidance_has_a_scale_for_each_step() -> None:
    assert adapted(scheduled, num_inference_steps=48)["guidance_schedule"] == list(SCHEDULE)
    assert adapted(scheduled, num_inference_steps=16)["guidance_schedule"] == [7.0] * 15 + [3.0]
    assert adapted(scheduled, num_inference_steps=2)["guidance_schedule"] == [7.0, 7.0]
    assert len(adapted(scheduled, num_inference_steps=60)["guidance_schedule"]) == 60
    found = adapted(scheduled, num_inference_steps=20, guidance_scale=4.0)
    assert found["guidance_schedule"] is None, "it and a scale exclude each other"
    own = adapted(scheduled, num_inference_steps=2, guidance_schedule=[1.0, 2.0])
    assert own["guidance_schedule"] == [1.0, 2.0]


def test_intermediate_timesteps_are_of_two_steps_only() -> None:
    assert "intermediate_timesteps" not in adapted(intermediate, num_inference_steps=2)
    assert adapted(intermediate, num_inference_steps=5)["intermediate_timesteps"] is None


def test_a_class_that_fails_unguided_is_refused_by_name() -> None:
    spec = ModelSpec(name="it", pipeline="HunyuanDiTPAGPipeline")
    pipeline_calls.check_guidance(spec, request(guidance_scale=1.5))
    with pytest.raises(InputError, match="HunyuanDiTPAGPipeline makes no images without"):
        pipeline_calls.check_guidance(spec, request(guidance_scale=1.0))
    pipeline_calls.check_guidance(ModelSpec(name="it"), request(guidance_scale=1.0))


def drawn() -> tuple[float, ...]:
    """A number of each global generator."""
    return (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002, S311


def test_global_generators_are_seeded_for_a_run_and_put_back() -> None:
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    before, expected = drawn(), drawn()
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    assert drawn() == before
    inside = []
    for seed in (5, 5, 2**40 + 6):
        with seeded_global_generators(seed, CPU):
            inside.append(drawn())
    with pytest.raises(ZeroDivisionError), seeded_global_generators(5, CPU):
        raise ZeroDivisionError
    assert inside[0] == inside[1]
    assert inside[2][0] != inside[0][0]
    assert drawn() == expected, "a run changed a global generator"


def test_a_run_changes_no_global_generator(tmp_path: Path) -> None:
    backend = LocalBackend(LocalOptions())
    folder = tiny_models.copy_postcard(tmp_path / "postcard")
    asked = GenerateRequest(prompt="x", model=str(folder), seed=1, steps=1)
    resolved = resolve_request(asked, backend.describe(asked))
    backend.load(resolved, lambda _: None)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    expected = drawn()
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    (made,) = backend.run([resolved], lambda _: None, threading.Event())
    assert isinstance(made, GeneratedImage)
    assert drawn() == expected


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("FluxPipeline", {16}),
        ("GlmImagePipeline", {32, 4}),
        ("Kandinsky3Pipeline", {64}),
        ("Krea2Pipeline", {16}),
        ("SanaPipeline", {32}),
        ("StableDiffusionPipeline", {8}),
    ],
)
def test_divisors_are_read_from_the_source(name: str, found: set[int], tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text('{"patch_size": 2}', encoding="utf-8")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text('{"temperal_downsample": [1, 1, 1]}', "utf-8")
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    facts = class_facts.facts_of_name(name)
    assert size_rules.divisors(facts, tmp_path) == found


def test_sizes_that_a_family_does_not_keep_are_refused_with_one_that_it_keeps() -> None:
    kept = size_rules.kept_sizes(class_facts.facts_of_name("Kandinsky5T2IPipeline"))
    assert (1280, 768) in kept
    assert size_rules.kept_sizes(class_facts.facts_of_name("FluxPipeline")) == ()

    def resolve(spec: ModelSpec, width: int, height: int) -> ResolvedRequest:
        return resolve_request(GenerateRequest(prompt="x", width=width, height=height), spec)

    listed = ModelSpec(name="it", sizes=kept)
    assert resolve(listed, 1280, 768).width == 1280
    with pytest.raises(InputError, match="no images of 1600x960; .* is 1280x768"):
        resolve(listed, 1600, 960)
    scaled = ModelSpec(name="it", area=1024**2, multiple=16)
    for width, height in ((1024, 1024), (2048, 512), (1360, 768)):
        assert resolve(scaled, width, height).height == height
    with pytest.raises(InputError, match="no images of 512x512; .* is 1024x1024"):
        resolve(scaled, 512, 512)


def test_a_worker_tells_the_sizes_that_are_kept() -> None:
    spec = ModelSpec(name="it", sizes=((1280, 768), (768, 1280)), area=1024**2)
    said = json.loads(json.dumps(asdict(spec)))
    answer = SimpleNamespace(ok=True, json=lambda: said)
    assert worker_model(answer) == spec  # type: ignore[arg-type]
    check_spec_values({"sizes": [[8, 8]], "area": 64})
    for wrong in ({"sizes": [[8]]}, {"sizes": None}, {"sizes": [[0, 8]]}, {"area": 0}):
        with pytest.raises(ValueError, match="sizes|area"):
            check_spec_values(wrong)
