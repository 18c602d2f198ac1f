"""Requests: what is refused, and how a request is settled for a model."""

import re
from dataclasses import replace

import pytest

from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog, schedulers
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.request import (
    GenerateRequest,
    ResolvedRequest,
    expand_seeds,
    parse_size,
    resolve_size,
)
from t2i_cli.request_field import MAX_PROMPT, check_range
from t2i_cli.request_fields import FIELDS, MAX_SEED

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
    assert parse_size(" 512 ") == (512, 512)
    for text in ("", "-512", "512px", "512x", "x512", "512x768x3", "-5x5", "a×b"):
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


@pytest.mark.parametrize(
    ("seeds", "count", "message", "field"),
    [
        ([], 0, "count must be at least 1, not 0.", "count"),
        ([5, 6], 2, "Give several seeds or a count, not both.", "count"),
        ([MAX_SEED], 2, f"seed must be from 0 to {MAX_SEED}, not {MAX_SEED + 1}.", "seed"),
        ([-1, 3, 5], 1, f"seed must be from 0 to {MAX_SEED}, not -1.", "seed"),
        ([5, 3, -1], 1, f"seed must be from 0 to {MAX_SEED}, not -1.", "seed"),
    ],
)
def test_wrong_seeds_are_told_with_their_field(
    seeds: list[int], count: int, message: str, field: str
) -> None:
    request = resolve_request(GenerateRequest(prompt="x", seed=1), SD15)
    with pytest.raises(InputError) as caught:
        expand_seeds(request, seeds, count)
    assert (caught.value.message, caught.value.field) == (message, field)


def test_seeds_reach_from_the_first_to_the_last() -> None:
    request = resolve_request(GenerateRequest(prompt="x", seed=MAX_SEED - 2), SD15)
    assert [r.seed for r in expand_seeds(request, [], 3)] == [MAX_SEED - 2, MAX_SEED - 1, MAX_SEED]
    assert [r.seed for r in expand_seeds(request, [0], 1)] == [0]
    over = replace(request, seed=MAX_SEED)
    assert [r.seed for r in expand_seeds(over, [], 2)] == [0, 1]


def test_a_size_stands_in_for_width_and_height() -> None:
    assert resolve_size(3, None, None) == (3, None)
    assert resolve_size(None, None, "512x768") == (512, 768)
    for width, height in [(1, None), (None, 1), (1, 1)]:
        with pytest.raises(InputError) as caught:
            resolve_size(width, height, "1x1")
        assert caught.value.message == "Give --size or --width and --height, not both."
        assert caught.value.field == "size"
    with pytest.raises(InputError) as caught:
        parse_size("big")
    assert (caught.value.message, caught.value.field) == (
        "The size 'big' is not of the form 512x768 or 512.",
        "size",
    )


@pytest.mark.parametrize(
    ("low", "high", "good", "bad", "taken"),
    [
        (1, 3, [1, 2, 3], [0, 4], "from 1 to 3"),
        (1, None, [1, 10**9], [0], "at least 1"),
        (None, 2.5, [-5, 2.5], [2.6], "at most 2.5"),
        (0, 2**32 - 1, [2**32 - 1], [2**32], "from 0 to 4294967295"),
        (None, None, [-1, 1], [], ""),
    ],
)
def test_a_range_takes_its_ends(
    low: int | None, high: float | None, good: list[float], bad: list[float], taken: str
) -> None:
    for value in good:
        check_range("x", value, low, high)
    for value in bad:
        with pytest.raises(InputError) as caught:
            check_range("x", value, low, high)
        assert caught.value.message == f"x must be {taken}, not {value}."
        assert caught.value.field == "x"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("negative_prompt", "a\x07b", "the control character U+0007 at position 2."),
        ("negative_prompt", "a" * 5_001, "5,001 characters; at most 5,000 are taken."),
        ("prompt", " ", "The prompt is empty."),
        ("model", " ", "The model is empty."),
        ("guidance_scale", float("nan"), "guidance_scale must be a number."),
        ("guidance_scale", 100.5, "guidance_scale must be from 0 to 100, not 100.5."),
        ("steps", 0, "steps must be from 1 to 1000, not 0."),
    ],
)
def test_a_wrong_value_says_what_is_taken(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_request({"prompt": "a star", field: value})
    assert caught.value.message in (message, f"{field} has {message}")
    assert caught.value.field == field
    assert build_request({"prompt": "a star", "negative_prompt": " "}).negative_prompt == " "


def test_what_stands_for_a_value_in_ids_and_in_json() -> None:
    plain = FIELDS["prompt"]
    assert (plain.identity_value("a"), plain.json_value("a")) == ("a", "a")
    written = replace(plain, to_json=lambda value: [value])
    assert (written.identity_value("a"), written.json_value("a"), written.json_value(None)) == (
        ["a"],
        ["a"],
        None,
    )
    hashed = replace(written, digest=lambda value: f"#{value}")
    assert (hashed.identity_value("a"), hashed.json_value("a")) == ("#a", ["a"])


def resolved(**values: object) -> ResolvedRequest:
    return resolve_request(build_request({"prompt": "a star", "seed": 7} | values), SD15)


def test_a_pass_has_one_of_everything_but_prompt_seed_and_the_negatives_words() -> None:
    key = resolved(negative_prompt="rain").batch_key()
    for same in ({"prompt": "b"}, {"seed": 8}, {"negative_prompt": "snow"}):
        assert resolved(**({"negative_prompt": "rain"} | same)).batch_key() == key
    for other in ({"negative_prompt": None}, {"steps": 3}, {"width": 64}, {"scheduler": "euler"}):
        assert resolved(**({"negative_prompt": "rain"} | other)).batch_key() != key


def test_an_id_tells_images_apart_and_nothing_else() -> None:
    one = resolved()
    assert one.identity() == resolved().identity() == one.identity(seed=7) == one.identity(0)
    assert re.fullmatch("[0-9a-f]{16}", one.identity())
    others = [one.identity(1), one.identity(seed=0), resolved(seed=8).identity()]
    others += [resolved(prompt="b").identity(), resolved(steps=3).identity()]
    assert len({one.identity(), *others}) == 6
    assert one.identity(seed=8) == resolved(seed=8).identity()


@pytest.mark.parametrize(
    ("values", "spec", "message", "field", "hint"),
    [
        (
            {"guidance_scale": 3.0},
            SCHNELL,
            "flux-schnell takes no guidance scale.",
            "guidance_scale",
            "--lenient goes on without it.",
        ),
        (
            {"negative_prompt": "y"},
            SCHNELL,
            "flux-schnell takes no negative prompt.",
            "negative_prompt",
            "It acts with --set true_cfg_scale=4, as each step then runs the model twice.",
        ),
        (
            {"negative_prompt": "y", "guidance_scale": 1.0},
            SD15,
            "The negative prompt cannot act at guidance 1: it needs more than 1.",
            "negative_prompt",
            "--lenient goes on without it.",
        ),
        (
            {"height": 500},
            SD15,
            "height 500 is not a multiple of 8, which sd15 needs; the nearest is 496.",
            "height",
            None,
        ),
    ],
)
def test_a_model_says_what_it_cannot_honour(
    values: dict[str, object], spec: ModelSpec, message: str, field: str, hint: str | None
) -> None:
    with pytest.raises(InputError) as caught:
        resolve_request(build_request({"prompt": "x"} | values), spec)
    assert (caught.value.message, caught.value.field, caught.value.hint) == (message, field, hint)


def test_a_lenient_request_says_what_it_left_out() -> None:
    notes: list[str] = []
    request = build_request({"prompt": "x", "negative_prompt": "y", "guidance_scale": 3.0})
    found = resolve_request(request, SCHNELL, lenient=True, on_note=notes.append)
    assert notes == [
        "flux-schnell takes no guidance scale. It is left out.",
        "flux-schnell takes no negative prompt. It is left out.",
    ]
    assert (found.negative_prompt, found.guidance_scale) == (None, None)
    assert found.user_set == {"prompt"}
    assert resolve_request(request, SCHNELL, lenient=True).user_set == {"prompt"}


def test_a_field_that_a_model_refuses_says_why() -> None:
    spec = replace(SD15, refuses=(("scheduler", "It has one scheduler."), ("steps", "No.")))
    with pytest.raises(InputError, match=r"^It has one scheduler\.$"):
        resolve_request(build_request({"prompt": "x", "scheduler": "euler"}), spec)
    assert resolve_request(build_request({"prompt": "x"}), spec).steps == SD15.steps


def test_a_negative_prompt_needs_the_guidance_that_the_request_or_the_model_has() -> None:
    off = replace(SD15, guidance_scale=1.0)
    request = build_request({"prompt": "x", "negative_prompt": "y"})
    with pytest.raises(InputError, match="cannot act at guidance 1:"):
        resolve_request(request, off)
    own = build_request({"prompt": "x", "negative_prompt": "y", "guidance_scale": 1.01})
    assert resolve_request(own, off).negative_prompt == "y"
    unknown = replace(SD15, guidance_scale=None)
    assert resolve_request(request, unknown).negative_prompt == "y"
    assert resolve_request(build_request({"prompt": "x", "negative_prompt": ""}), off)


def test_a_random_seed_may_be_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.randbelow", lambda below: below - 1)
    assert resolve_request(GenerateRequest(prompt="x"), SD15).seed == MAX_SEED


def test_a_local_model_goes_by_its_name() -> None:
    spec = replace(SD15, repo=None, name="mine", revision="r")
    found = resolve_request(GenerateRequest(prompt="x"), spec)
    assert (found.model, found.revision) == ("mine", "r")


@pytest.mark.parametrize(
    ("field", "largest"),
    [("seed", 4_294_967_295), ("width", 16_384), ("height", 16_384), ("steps", 1_000)],
)
def test_the_largest_values_that_are_taken(field: str, largest: int) -> None:
    assert getattr(build_request({"prompt": "x", field: largest}), field) == largest
    with pytest.raises(InputError) as caught:
        build_request({"prompt": "x", field: largest + 1})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("model", "size", "noted"),
    [
        ("postcard", (256, 256), True),
        ("postcard", (64, 64), True),
        ("postcard", (192, 192), False),
        ("postcard", (None, 512), True),
        ("postcard", (None, None), False),
        ("sd15", (1024, 1024), True),
        ("sd15", (512, 768), False),
        ("sdxl", (512, 512), True),
        ("sdxl", (1216, 832), False),
        ("flux-schnell", (512, 512), False),
        ("flux-schnell", (2048, 2048), True),
    ],
)
def test_a_size_far_from_the_models_own_is_told(
    model: str, size: tuple[int | None, int | None], noted: bool
) -> None:
    notes: list[str] = []
    request = GenerateRequest(prompt="x", width=size[0], height=size[1])
    resolve_request(request, catalog.MODELS[model], on_size_note=notes.append)
    assert len(notes) == noted
    unknown = ModelSpec(name="m")
    resolve_request(request, unknown, on_size_note=notes.append)
    assert len(notes) == noted, "a model whose size is not known"
