"""AUTOMATIC1111's text, written and read."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i_cli import __version__
from t2i_cli.output import infotext
from tests.factories import LOCK, request

FROM_A1111 = """\
masterpiece, a (cat:1.2), Steps: 3 by hand
second line <lora:pixel:0.8>
Negative prompt: blurry, low quality
and more
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, VAE: "a, b: c.pt", Denoising strength: 0.7, \
Hires upscale: 2, Lora hashes: "pixel: 2f3b0a, other: 99", Version: v1.10.1"""


def test_text_is_as_automatic1111_writes_it() -> None:
    assert infotext.format_infotext(request(), LOCK, (64, 48)) == (
        "A red house, on green hills\n"
        "Negative prompt: rain\n"
        "Steps: 30, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 42, Size: 64x48, "
        "Model hash: 451f4fe161, Model: stable-diffusion-v1-5/stable-diffusion-v1-5, "
        f"Version: t2i {__version__}"
    )


def test_what_is_not_known_is_left_out() -> None:
    unknown = request(negative_prompt=None, steps=None, guidance_scale=None, scheduler=None)
    text = infotext.format_infotext(unknown, LOCK, (8, 8))
    assert "Negative" not in text and "Steps" not in text and "CFG" not in text
    assert "Sampler: DPM++ 2M, " in text
    parsed = infotext.parse_infotext(text)
    assert parsed and parsed.request["prompt"] == unknown.prompt
    assert (parsed.request["steps"], parsed.request["seed"]) == (None, 42)


def test_reads_a_text_of_automatic1111() -> None:
    parsed = infotext.parse_infotext(FROM_A1111)
    assert parsed is not None
    assert parsed.request == {
        "prompt": "masterpiece, a (cat:1.2), Steps: 3 by hand\nsecond line <lora:pixel:0.8>",
        "negative_prompt": "blurry, low quality\nand more",
        "model": "v1-5-pruned-emaonly",
        "seed": 965400086,
        "steps": 20,
        "guidance_scale": 7.0,
        "width": 512,
        "height": 768,
        "scheduler": "dpm++2m-karras",
    }
    assert parsed.parameters["VAE"] == "a, b: c.pt"
    assert parsed.parameters["Lora hashes"] == "pixel: 2f3b0a, other: 99"
    assert parsed.parameters["Hires upscale"] == "2"
    assert parsed.parameters["Version"] == "v1.10.1"


def test_lines_that_extensions_append_are_settings() -> None:
    parsed = infotext.parse_infotext(
        f"{FROM_A1111}\nTemplate: a {{cat|dog}}\nNegative Template: blurry"
    )
    assert parsed is not None
    assert parsed.request["seed"] == 965400086
    assert parsed.parameters["Template"] == "a {cat|dog}"


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("Euler a", "euler-a"),
        ("DPM++ 2M Karras", "dpm++2m-karras"),
        ("Euler, Schedule type: Automatic", "euler"),
        ("Restart", None),
    ],
)
def test_sampler_becomes_a_schedulers_short_name(sampler: str, expected: str | None) -> None:
    parsed = infotext.parse_infotext(f"a\nSteps: 2, Sampler: {sampler}, Seed: 1, Size: 8x8")
    assert parsed and parsed.request["scheduler"] == expected


def test_values_that_are_no_numbers_are_unknown_and_still_shown() -> None:
    parsed = infotext.parse_infotext("a\nSteps: many, Seed: -, CFG scale: high, Size: big")
    assert parsed is not None
    for name in ("steps", "seed", "guidance_scale", "width", "height"):
        assert parsed.request[name] is None
    assert parsed.parameters["Steps"] == "many"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photograph",
        "Canon: x, Lens: y, Shot: z",
        '{"prompt": "a", "seed": 1, "Steps": 2}',
        "a\nSteps: 2, Seed: 1",
        "a\nSteps: 2, Seed: 1, Seed: 2",
    ],
)
def test_other_texts_are_not_taken_for_it(text: str) -> None:
    assert infotext.parse_infotext(text) is None


@pytest.mark.parametrize("settings", ["Steps: 2, Size: 8x8, VAE: x", "Seed: 1, Size: 8x8, VAE: x"])
def test_three_settings_are_enough(settings: str) -> None:
    parsed = infotext.parse_infotext(f"a\n{settings}")
    assert parsed and (parsed.request["prompt"], parsed.request["width"]) == ("a", 8)
    assert len(parsed.parameters) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of CPU time")
@pytest.mark.parametrize(
    "text", ["'a' * 10**6", "' ' * 10**6", """'ab: "' * 200_000""", "'ab:' * 9**6"]
)
def test_a_hostile_text_takes_no_long_time(text: str) -> None:
    # A quadratic expression would take hours of it; the system ends the process (getrlimit(2)).
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (30, 30))\n"
        f"from t2i_cli.output import infotext; infotext.parse_infotext({text})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PROMPTS = [
    "quotes \"double\", 'single', commas, colons: and \\ backslashes",
    "Steps: 1, Sampler: Euler, Seed: 5, Size: 1x1",
    "first\nSteps: 1, Sampler: Euler, Seed: 5, Size: 1x1\nlast",
    "a\nNegative prompt: not really",
    "Negative prompt: at the start",
    "  leading and trailing \n\n",
    "שלום عالم 🏳️‍🌈 日本",
    "Template: x",
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("negative", [None, "rain", "two\nlines, Steps: 3"])
def test_any_prompt_comes_back(prompt: str, negative: str | None) -> None:
    parsed = infotext.parse_infotext(
        infotext.format_infotext(request(prompt=prompt, negative_prompt=negative), LOCK, (64, 48))
    )
    assert parsed is not None
    assert parsed.request["prompt"] == prompt
    assert parsed.request["negative_prompt"] == negative
    assert parsed.request["seed"] == 42


@given(
    prompt=st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"]), min_size=1),
    model=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1).map(str.strip),
)
def test_any_text_comes_back(prompt: str, model: str) -> None:
    text = infotext.format_infotext(request(prompt=prompt, model=model or "m"), LOCK, (64, 48))
    parsed = infotext.parse_infotext(text)
    assert parsed is not None
    assert parsed.request["prompt"] == prompt
    assert parsed.request["negative_prompt"] == "rain"
    assert parsed.request["model"] == (model or "m")


@pytest.mark.parametrize(
    ("model", "written"),
    [
        ("plain 1.5", "plain 1.5"),
        ("XxX", "XxX"),
        ("a, b", '"a, b"'),
        ("a: b", '"a: b"'),
        ("a\nb", '"a\\nb"'),
        ('"a"', '"\\"a\\""'),
        ("ö, é", '"ö, é"'),
    ],
)
def test_a_value_is_quoted_where_it_needs_it(model: str, written: str) -> None:
    text = infotext.format_infotext(request(model=model), LOCK, (64, 48))
    assert f"Model: {written}, Version" in text
    parsed = infotext.parse_infotext(text)
    assert parsed and parsed.request["model"] == model


def test_a_number_has_ten_digits_at_most() -> None:
    text = infotext.format_infotext(request(guidance_scale=0.1 + 0.2), LOCK, (64, 48))
    assert "CFG scale: 0.3, " in text


def test_the_end_of_a_text_may_be_blank_lines_and_nothing_more() -> None:
    settings = "Steps: 2, Sampler: Euler, Seed: 1, Size: 8x16x2, Note: XX"
    parsed = infotext.parse_infotext(f"\na\n{settings}\nTemplate: b: c\n\n")
    assert parsed is not None
    assert parsed.request["prompt"] == "\na"
    assert (parsed.request["width"], parsed.request["height"]) == (8, None)
    assert parsed.parameters["Template"] == "b: c"
    assert parsed.parameters["Note"] == "XX"


def test_settings_without_size_and_sampler_are_read() -> None:
    parsed = infotext.parse_infotext("a\nSteps: 2, Seed: 1, VAE: x")
    assert parsed is not None
    found = parsed.request
    assert (found["width"], found["height"], found["scheduler"]) == (None, None, None)
    assert found["steps"] == 2


def test_a_later_field_is_told_only_where_the_text_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infotext, "ADDED_FIELDS", ("scheduler", "steps"))
    parsed = infotext.parse_infotext("a\nSteps: 2, Seed: 1, VAE: x")
    assert parsed is not None
    assert parsed.request["steps"] == 2
    assert "scheduler" not in parsed.request
