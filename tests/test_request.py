"""Requests: what is refused, and how a request is settled for a model."""

from dataclasses import replace

import pytest

from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog, schedulers
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.request import (
    GenerateRequest,
    expand_seeds,
    parse_size,
)
from t2i_cli.request_fields import MAX_PROMPT, MAX_SEED

SD15 = catalog.MODELS["sd15"]
SCHNELL = catalog.MODELS["flux-schnell"]
QWEN = catalog.MODELS["qwen-image"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", " \n\t"),
        ("prompt", "a" * 100_000),
        ("prompt", "a\x07b"),
        ("prompt", "a\x9bb"),
        ("prompt", "a\udc80b"),
        ("negative_prompt", "a\x00b"),
        ("model", "a\udc80b"),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("steps", 0),
        ("steps", 10_001),
        ("width", 0),
        ("height", -8),
        ("width", 100_000),
        ("guidance_scale", -1.0),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("scheduler", "magic"),
    ],
)
def test_bad_value_names_its_field(field: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        build_request({"prompt": "a star", field: value})
    assert caught.value.field == field
    assert caught.value.message.count("\n") == 0


@pytest.mark.parametrize(
    "prompt", ["نجمة حمراء", "a\u202eb", "line\nbreak", "🎨 star", "x" * MAX_PROMPT]
)
def test_unusual_prompts_are_taken(prompt: str) -> None:
    assert GenerateRequest(prompt=prompt).prompt == prompt


def test_unset_fields_take_the_models_values() -> None:
    resolved = resolve_request(GenerateRequest(prompt="x", steps=7), SD15)
    assert (resolved.steps, resolved.guidance_scale) == (7, 7.5)
    assert (resolved.width, resolved.height) == (512, 512)
    assert resolved.model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert resolved.user_set == {"prompt", "steps"}
    assert 0 <= resolved.seed <= MAX_SEED


def test_distilled_model_keeps_its_own_steps_and_has_no_guidance() -> None:
    resolved = resolve_request(GenerateRequest(prompt="x"), SCHNELL)
    assert (resolved.steps, resolved.guidance_scale) == (4, None)


@pytest.mark.parametrize(
    ("request_", "spec", "field"),
    [
        (GenerateRequest(prompt="x", guidance_scale=3.0), SCHNELL, "guidance_scale"),
        (GenerateRequest(prompt="x", negative_prompt="y"), SCHNELL, "negative_prompt"),
        (
            GenerateRequest(prompt="x", negative_prompt="y", guidance_scale=1.0),
            SD15,
            "negative_prompt",
        ),
    ],
)
def test_what_the_model_cannot_honour(
    request_: GenerateRequest, spec: ModelSpec, field: str
) -> None:
    with pytest.raises(InputError) as caught:
        resolve_request(request_, spec)
    assert caught.value.field == field
    notes: list[str] = []
    resolved = resolve_request(request_, spec, lenient=True, on_note=notes.append)
    assert len(notes) == 1
    assert field not in resolved.user_set
    assert getattr(resolved, field) == getattr(
        resolve_request(GenerateRequest(prompt="x"), spec), field
    )


def test_size_that_does_not_fit_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"width 500 is not a multiple of 8.* nearest is 496"):
        resolve_request(GenerateRequest(prompt="x", width=500), SD15)
    with pytest.raises(InputError, match="nearest is 16"):
        resolve_request(GenerateRequest(prompt="x", height=3), QWEN)


def test_scheduler_must_fit_the_kind_of_model() -> None:
    with pytest.raises(InputError, match="does not fit .* euler, heun"):
        resolve_request(GenerateRequest(prompt="x", scheduler="ddim"), SCHNELL)
    assert (
        resolve_request(GenerateRequest(prompt="x", scheduler="euler"), SCHNELL).scheduler
        == "euler"
    )


def test_seeds_count_up_or_stand_each() -> None:
    request = resolve_request(GenerateRequest(prompt="x"), SD15)
    assert [r.seed for r in expand_seeds(request, [5], 3)] == [5, 6, 7]
    assert [r.seed for r in expand_seeds(request, [5, 9], 1)] == [5, 9]
    first, second = expand_seeds(request, [], 2)
    assert second.seed == first.seed + 1
    last = replace(request, seed=MAX_SEED)
    assert [r.seed for r in expand_seeds(last, [], 3)][-1] <= MAX_SEED
    for seeds, count in (([5, 6], 2), ([], 0), ([MAX_SEED], 2)):
        with pytest.raises(InputError):
            expand_seeds(request, seeds, count)


def test_size_is_read() -> None:
    assert parse_size("512x768") == (512, 768)
    assert parse_size("64X32") == (64, 32)
    for text in ("512", "512x", "x512", "512x768x3", "-5x5", "a×b"):
        with pytest.raises(InputError, match="512x768"):
            parse_size(text)


def test_catalogue_is_complete_and_found_by_alias_and_repository() -> None:
    wanted = {
        "sd15",
        "sdxl",
        "sd35-medium",
        "flux-schnell",
        "flux2-klein",
        "z-image-turbo",
        "qwen-image",
        "postcard",
    }
    assert wanted <= set(catalog.MODELS)
    for spec in catalog.MODELS.values():
        assert spec.licence
        assert spec.steps
        assert spec.width
        assert spec.flow is not None
        assert (spec.folder is None) != (spec.repo is None)
    assert catalog.find_in_catalog("Qwen/Qwen-Image") is QWEN
    found = catalog.find_in_catalog("sd15", revision="abc")
    assert found is not None
    assert found.revision == "abc"
    assert catalog.find_in_catalog("nobody/nothing") is None


def test_every_short_scheduler_name_is_a_diffusers_class() -> None:
    import diffusers

    for table in (schedulers.NOISE_SCHEDULERS, schedulers.FLOW_SCHEDULERS):
        for spec in table.values():
            assert hasattr(diffusers, spec.cls)
