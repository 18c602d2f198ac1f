"""Arguments of a pipeline in a request: `--set name=value`, and `extras` in rows and bodies."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_cli.batch.generate_command import generate_command
from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import class_facts, extras_support, libraries, scheduler_support
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.output import infotext
from t2i_cli.prompts import entries
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import GenerateRequest
from t2i_cli.request_extras import extras_to_json, parse_extras
from t2i_cli.request_fields import DIALECTS, FIELDS
from t2i_cli.server.schemas import ImageRequest
from tests import factories, families
from tests.family_runs import Family, difference

FLUX = ModelSpec(name="flux", pipeline="FluxPipeline", negative_prompt=False, flow=True)
NOISE = ModelSpec(name="sd", pipeline="StableDiffusionPipeline", flow=False)


def test_texts_objects_and_json_text_are_the_same_extras() -> None:
    texts = parse_extras(["sigmas=[1, 0.5]", "clip_skip=1", "guidance_schedule=linear"])
    given = {"clip_skip": 1, "guidance_schedule": "linear", "sigmas": [1, 0.5], "eta": None}
    assert texts == parse_extras(given) == parse_extras(json.dumps(given))
    assert extras_to_json(texts or ()) == {k: v for k, v in given.items() if v is not None}
    assert parse_extras({}) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("clip_skip", "not of the form name=value"),
        (["a=1", "a=2"], "set twice"),
        ("a=[1,", "not JSON"),
        ("a=NaN", "finite"),
        ('{"a": 1e400}', "finite"),
        ({"a": {"b": 1}}, "cannot be an object"),
        ({"a": [[[1]]]}, "a list that deep"),
        ({"a": [0] * 1002}, "more than 1,001"),
        ({"a": [[0] * 1000] * 2}, "more than 1,001"),
        ({"a": "x" * 5001}, "5,000 characters"),
        ({"a": "\x1b[2J"}, "printable"),
        ({"a b": 1}, "no name of an argument"),
        ({f"a{n}": n for n in range(33)}, "at most 32"),
        ("a=" + "[" * 100_000, "deep|JSON"),
        (7, "an object of names and values"),
    ],
)
def test_what_is_no_bounded_value_is_refused(given: object, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        parse_extras(given)
    assert caught.value.field == "extras"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("spec", "extras", "reason"),
    [
        (NOISE, {"clip_skp": 1}, "takes no clip_skp; did you mean clip_skip"),
        (NOISE, {"width": 64}, "cannot give width: --width does"),
        (NOISE, {"guidance_scale": 2}, "--guidance does"),
        (NOISE, {"latents": 1}, "cannot give latents"),
        (NOISE, {"generator": 1}, "cannot give generator"),
        (NOISE, {"prompt_embeds": [1]}, "cannot give prompt_embeds"),
        (NOISE, {"callback_on_step_end": "x"}, "cannot give callback_on_step_end"),
        (NOISE, {"ip_adapter_image": "/etc/passwd"}, "cannot give ip_adapter_image"),
        (NOISE, {"cross_attention_kwargs": "x"}, "cannot give cross_attention_kwargs"),
        (NOISE, {"self": 1}, "cannot give self"),
        (NOISE, {"clip_skip": True}, "clip_skip must be a whole number"),
        (NOISE, {"clip_skip": 99}, "from 0 to 64"),
        (NOISE, {"eta": "much"}, "eta must be a number"),
        (NOISE, {"sigmas": 5}, "sigmas must be a list of numbers"),
        (NOISE, {"sigmas": ["x", "y"]}, "a list of numbers from 0"),
        (NOISE, {"timesteps": [900, 500, 100]}, "has 3 numbers, and there are 20 steps"),
        (FLUX, {"pag_scale": 3}, "takes no pag_scale"),
    ],
)
def test_an_extra_that_the_call_does_not_take_is_refused(
    spec: ModelSpec, extras: dict[str, object], reason: str
) -> None:
    request = factories.request(steps=20, extras=parse_extras(extras))
    with pytest.raises(InputError, match=reason) as caught:
        extras_support.check_extras(request, spec, class_facts.facts_of_name(str(spec.pipeline)))
    assert caught.value.field == "extras"


@pytest.mark.parametrize(
    ("pipeline", "extras"),
    [
        ("StableDiffusionPipeline", {"clip_skip": 1, "eta": 1, "guidance_rescale": 0.7}),
        ("StableDiffusionXLPipeline", {"clip_skip": 2.0, "original_size": [64, 64]}),
        ("StableDiffusionPAGPipeline", {"pag_scale": 3, "pag_adaptive_scale": 0.5}),
        ("FluxPipeline", {"true_cfg_scale": 4, "max_sequence_length": 256}),
        ("FluxPipeline", {"sigmas": [1, 0.5], "prompt_2": "a star"}),
        ("SanaPipeline", {"clean_caption": False}),
    ],
)
def test_extras_of_a_family_are_taken(pipeline: str, extras: dict[str, object]) -> None:
    request = factories.request(steps=2, extras=parse_extras(extras))
    spec = ModelSpec(name="m", pipeline=pipeline)
    extras_support.check_extras(request, spec, class_facts.facts_of_name(pipeline))


def test_a_schedule_that_the_scheduler_does_not_take_is_refused() -> None:
    own = {"_class_name": "PNDMScheduler"}
    request = factories.request(steps=2, scheduler=None, extras=parse_extras({"sigmas": [1, 0.5]}))
    with pytest.raises(InputError, match="does not take sigmas"):
        scheduler_support.check_schedule(request, NOISE, own)
    request = factories.request(steps=2, scheduler="euler", extras=request.extras)
    scheduler_support.check_schedule(request, NOISE, own)


def test_a_negative_prompt_is_taken_with_true_guidance_and_the_hint_tells_so() -> None:
    asked = GenerateRequest(prompt="x", negative_prompt="rain")
    with pytest.raises(InputError, match="takes no negative prompt") as caught:
        resolve_request(asked, FLUX)
    assert "--set true_cfg_scale=" in str(caught.value.hint)
    extras = parse_extras({"true_cfg_scale": 4})
    taken = resolve_request(
        GenerateRequest(prompt="x", negative_prompt="rain", extras=extras), FLUX
    )
    assert taken.negative_prompt == "rain"
    calm = parse_extras({"true_cfg_scale": 1})
    with pytest.raises(InputError, match="takes no negative prompt"):
        resolve_request(GenerateRequest(prompt="x", negative_prompt="rain", extras=calm), FLUX)


def test_ids_and_batch_keys_have_them_only_when_set() -> None:
    plain = factories.REQUEST
    one = factories.request(extras=parse_extras({"eta": 0.5, "clip_skip": 1}))
    same = factories.request(extras=parse_extras({"clip_skip": 1, "eta": 0.5}))
    other = factories.request(extras=parse_extras({"clip_skip": 2, "eta": 0.5}))
    assert plain.identity() == "d402d110f2fb25f9"
    assert len({plain.identity(), one.identity(), other.identity()}) == 3
    assert len({plain.batch_key(), one.batch_key(), other.batch_key()}) == 3
    assert one.identity() == same.identity()
    assert "extras" not in plain.to_json()


def test_rows_bodies_and_servers_have_them() -> None:
    wanted = parse_extras({"clip_skip": 1})
    read: list[object] = [
        entries.check_value("extras", {"clip_skip": 1}),  # JSONL
        entries.parse_value("extras", '{"clip_skip": 1}'),  # CSV
    ]
    assert read == [wanted, wanted]
    body = ImageRequest(prompt="x", extras={"clip_skip": 1}).request()  # type: ignore[call-arg]
    assert body.extras == wanted
    assert {name for name in DIALECTS if "extras" in DIALECTS[name].takes} == {"t2i"}
    assert FIELDS["extras"].servings == {"t2i"}


def test_records_give_them_back() -> None:
    request = factories.request(extras=parse_extras({"clip_skip": 1, "guidance_schedule": "a b"}))
    info = GenerationInfo(backend="local", model="m", libraries={})
    text = infotext.format_infotext(request, info, (64, 64))
    assert "Clip skip: 2" in text
    parsed = infotext.parse_infotext(text)
    assert parsed is not None
    assert parsed.request["extras"] == request.extras
    record: dict[str, object] = {"request": request.to_json(), "lock": {}}
    words = " ".join(generate_command(record) or ())
    assert "--set clip_skip=1 --set 'guidance_schedule=\"a b\"'" in words


def test_a_dry_run_refuses_an_extra_before_anything_is_loaded(
    t2i_env: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "t2i_cli", "generate", "x", "-m", "postcard", "--dry-run"]
    done = subprocess.run(
        [*command, "--json", "--set", "clip_skp=1"],
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["message"] == "postcard takes no clip_skp; did you mean clip_skip?"
    assert error["field"] == "extras"


@pytest.mark.full
@pytest.mark.parametrize(
    ("pipeline", "extras", "negative"),
    [
        ("FluxPipeline", {"true_cfg_scale": 4.0}, "rain and fog"),
        ("StableDiffusionPipeline", {"guidance_rescale": 0.7, "eta": 0.5}, None),
        ("StableDiffusionXLPipeline", {"clip_skip": 1}, None),
    ],
)
def test_the_picture_is_that_of_plain_diffusers_with_the_same_arguments(
    tmp_path: Path, pipeline: str, extras: dict[str, object], negative: str | None
) -> None:
    fields: dict[str, object] = {} if negative is None else {"negative_prompt": negative}
    family = Family(pipeline, families.save(pipeline, tmp_path / pipeline))
    with libraries.suppress_warnings():
        made = family.picture(extras=parse_extras(extras), **fields)
        assert difference(made, family.picture()) > 1
        assert difference(made, family.plain(**extras, **fields)) <= 1
    family.close()


@pytest.mark.full
def test_clip_skip_acts_in_stable_diffusion_1(tmp_path: Path) -> None:
    name = "StableDiffusionPipeline"
    family = Family(name, families.save(name, tmp_path / name))
    with libraries.suppress_warnings():
        pictures = [family.picture(extras=parse_extras({"clip_skip": n})) for n in (1, 2)]
        pictures.append(family.picture())
    family.close()
    assert all(
        difference(pictures[one], pictures[other]) > 1 for one, other in ((0, 1), (0, 2), (1, 2))
    )
