"""Weights in prompts: how AUTOMATIC1111's and compel's are read, and what is refused by name."""

import json
import re
import time
from pathlib import Path

import pytest

from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.prompts import compel_prompt
from t2i_cli.prompts.compel_prompt import check_compel_prompt, compel_texts
from t2i_cli.prompts.literal_syntax import literal_syntax_notes
from t2i_cli.prompts.weighted_prompt import parse_weights
from tests import factories
from tests.conftest import T2I

POSTCARD = ModelSpec(name="postcard", pipeline="StableDiffusionPipeline")


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a red house", [("a red house", 1)]),
        ("a (red:1.3) house", [("a ", 1), ("red", 1.3), (" house", 1)]),
        ("((a))", [("a", 1.21)]),
        ("[a] b", [("a", 1 / 1.1), (" b", 1)]),
        ("(a (b [c]) d:1.5)", [("a ", 1.5), ("b ", 1.65), ("c d", 1.5)]),
        (r"\(a\) \[b\] c\\", [("(a) [b] c\\", 1)]),
        ("(a:1.0) b", [("a b", 1)]),
        ("(a:1.2) (b:1.2)", [("a", 1.2), ("b", 1.2)]),
        ("(a, b", [("a, b", 1.1)]),
        ("a) b] :) 10:30", [("a) b] :) 10:30", 1)]),
        ("a :1.3) b", [("a :1.3) b", 1)]),
        ("( : 2 )", [("", 1)]),
        ("", [("", 1)]),
        ("[a: 10:30 b]", [("a: 10:30 b", 1 / 1.1)]),
        ("Break and AN DANDY", [("Break and AN DANDY", 1)]),
    ],
)
def test_weights_are_read_as_automatic1111_does(
    prompt: str, parts: list[tuple[str, float]]
) -> None:
    found = parse_weights(prompt)
    assert [part.text for part in found] == [text for text, _ in parts]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in parts])


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a BREAK b", "BREAK"),
        ("a AND b:1.2", "AND"),
        ("a [red:blue:0.5] star", "`[red:blue:0.5]`"),
        ("a [red::8] star", "`[red::8]`"),
        ("a [(red:1.2):.5]", "`[(red:1.2):.5]`"),
        ("a [red|blue] star", "`[red|blue]`"),
        ("a [[red]|blue]", "`[[red]|blue]`"),
        ("(a:1.2.3)", "1.2.3"),
        ("(a:-1)", "-1"),
        ("(" * 30 + "a", "from 0 to 10"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "prompt_2"])
def test_what_is_no_weight_is_refused_by_name(prompt: str, named: str, field: str) -> None:
    values = {"prompt": "a", field: prompt, "prompt_syntax": "a1111"}
    spec = ModelSpec(name="sdxl", pipeline="StableDiffusionXLPipeline")
    with pytest.raises(InputError) as refused:
        resolve_request(build_request(values), spec)
    assert named in refused.value.message
    assert refused.value.field == field
    # In plain text it is made, and told.
    plain = resolve_request(build_request({"prompt": "a", field: prompt}), spec)
    told = " ".join(literal_syntax_notes([plain]))
    assert named in told or named[0] not in "`BA" or "[[" in prompt


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("a (red)1.5 star, blue++ sea", None),
        ('("a", "b").blend(0.7, 0.3)', None),
        ('("a", "b").and()', None),
        ("a cat.swap(dog)", ".swap"),
        ("withLora(x, 0.5) a", "withLora"),
        ("(a)99", "from 0 to 10"),
        ('("a", "b").blend(1)', "compel cannot read"),
        ('("a", "b").blend(1, -1)', "sum up to 0"),
        ("(" * 11 + "a", "more brackets"),
        ("(a)" * 60, "more brackets"),
    ],
)
def test_compels_syntax_is_checked_before_a_model_is_loaded(
    prompt: str, complaint: str | None
) -> None:
    if complaint is None:
        check_compel_prompt(prompt)
        return
    with pytest.raises(InputError) as refused:
        check_compel_prompt(prompt, "negative_prompt")
    assert complaint in refused.value.message
    assert refused.value.field == "negative_prompt"


def test_hostile_prompts_take_no_time() -> None:
    begun = time.process_time()
    for prompt in (
        "(a" * 2_500,
        "[" * 5_000,
        "[a" * 1_250 + "]" * 1_250,
        ":1" * 2_500,
        "\\" * 5_000,
    ):
        try:
            parse_weights(prompt)
        except InputError as error:
            assert "from 0 to 10" in error.message
    check_compel_prompt("(((((((((a" + "b)1.1" * 9)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "text",
    [
        "a quiet harbour at night, oil on canvas, by nobody at all. the end = here",
        "a b c d e f (red fish, of many kinds. and so on)1.3 and five more words here, too",
        "one two three four five+ six seven eight nine ten-- eleven",
        'the first of many (a b c d e f g)++ "in quotation marks, all of it so"1.2 behind it',
        '("a b c d e f g", "h i j k l m n").blend(0.7, 0.3)',
        '("a b c d e f g", "h i, j k l m n+").and(1, 0.5)',
        "a well-known x-ray of a b-c d e f -g h- i--j k+l",
        "one two three four five .attend(1.5) six seven",
        "never closed ( one two three four five, six",
        'a "quotation of two\nlines that is none here"++ a b c d e',
        "escaped \\(one two three four five\\) six seven eight nine",
        "a,b,c,d,e,f,g h i j k",
    ],
)
def test_words_without_syntax_need_not_pass_compels_parser(text: str) -> None:
    parser = compel_prompt._parser_module()
    whole = compel_prompt._prompt_parser(parser).parse_conjunction(text)
    assert repr(compel_prompt.parse_compel_prompt(text, "prompt", parser)) == repr(whole)


def test_a_long_prompt_is_a_few_words_to_compels_parser() -> None:
    for word in ("word ", "word, ", "x-ray. ", "1 ", "wört "):
        text = word * (5_000 // len(word))
        shortened, runs = compel_prompt._shorten_runs(text)
        assert len(shortened) < 100
        assert compel_prompt._restored(shortened, runs).strip() == text.strip()
    inside, _ = compel_prompt._shorten_runs(f"({'word ' * 900})1.3")
    assert len(inside) < 100
    for text in ("- " * 2_500, "word+ " * 833):
        with pytest.raises(InputError, match="words with signs of compel's syntax"):
            check_compel_prompt(text)


@pytest.mark.parametrize(
    ("pipeline", "values", "field"),
    [
        ("StableDiffusion3Pipeline", {"prompt_syntax": "a1111"}, "prompt_syntax"),
        ("ZImagePipeline", {"prompt_syntax": "compel"}, "prompt_syntax"),
        ("FluxPipeline", {"clip_skip": 2}, "clip_skip"),
        ("StableDiffusionPipeline", {"prompt_2": "b"}, "prompt_2"),
        ("ZImagePipeline", {"prompt_2": "b"}, "prompt_2"),
        ("FluxPipeline", {"guidance_rescale": 0.7}, "guidance_rescale"),
    ],
)
def test_a_model_that_has_no_such_thing_refuses_it_by_name(
    pipeline: str, values: dict[str, object], field: str
) -> None:
    spec = ModelSpec(name="mine", pipeline=pipeline)
    request = build_request({"prompt": "a", **values})
    with pytest.raises(InputError, match=f"mine takes no .* {pipeline}") as refused:
        resolve_request(request, spec)
    assert refused.value.field == field
    notes: list[str] = []
    lenient = resolve_request(request, spec, lenient=True, on_note=notes.append)
    assert getattr(lenient, field) is None
    assert notes[0].endswith("It is left out.")


def test_what_is_so_anyway_changes_no_id() -> None:
    plain = resolve_request(build_request({"prompt": "a", "seed": 1}), POSTCARD)
    said = build_request({"prompt": "a", "seed": 1, "prompt_syntax": "plain", "clip_skip": 1})
    assert resolve_request(said, POSTCARD).identity() == plain.identity()
    said = build_request({"prompt": "a", "seed": 1, "guidance_rescale": 0.0})
    assert resolve_request(said, POSTCARD).identity() == plain.identity()
    weighted = build_request({"prompt": "a", "seed": 1, "prompt_syntax": "a1111"})
    assert resolve_request(weighted, POSTCARD).identity() != plain.identity()


def test_an_option_and_set_do_not_contradict_each_other() -> None:
    both = build_request({"prompt": "a", "clip_skip": 2, "extras": (("clip_skip", 1),)})
    with pytest.raises(InputError, match="Give --clip-skip or --set clip_skip, not both"):
        resolve_request(both, POSTCARD)


def test_text_that_the_pipeline_rewrites_takes_no_weights() -> None:
    spec = ModelSpec(name="mine", pipeline="SanaPipeline")
    values = {"prompt": "a (red:1.2) star", "extras": (("clean_caption", True),)}
    resolve_request(build_request(values), spec)
    both = build_request(values | {"prompt_syntax": "a1111"})
    with pytest.raises(InputError, match="--prompt-syntax a1111 or --set clean_caption, not both"):
        resolve_request(both, spec)


def test_the_words_of_a_prompt_in_compels_syntax() -> None:
    assert compel_texts("a (red)1.5, blue++ sea") == ("a red, blue sea",)
    assert compel_texts('("a b+", "c").blend(1, 2)') == ("a b", "c")


def test_a_prompt_that_looks_weighted_is_told_unless_it_is_read_so() -> None:
    request = factories.request(prompt="a (red:1.3) house BREAK a sea")
    notes = literal_syntax_notes([request])
    assert [note.partition(" is read")[0] for note in notes] == ["`(red:1.3)`", "`BREAK`"]
    read = factories.request(prompt="a (red:1.3) house", prompt_syntax="a1111")
    assert literal_syntax_notes([read]) == []
    assert literal_syntax_notes([factories.request(prompt="ROCK AND ROLL")]) == []


def test_a_process_refuses_before_a_model_is_loaded(t2i: T2I) -> None:
    command = ("generate", "a [red|blue] star", "-m", "postcard", "--prompt-syntax", "a1111")
    done = t2i(*command, "--json")
    assert done.returncode == 2
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["message"] == (
        "The prompt has words that alternate, which t2i does not make: `[red|blue]`."
    )
    done = t2i("generate", "a", "-m", "postcard", "--clip-skip", "40", "--json")
    assert done.returncode == 2
    assert "CLIP skip of at most" in json.loads(done.stderr.splitlines()[-1])["error"]["message"]


_WITH_WEIGHTS = {
    *("FluxKontextPipeline", "FluxPipeline", "LatentConsistencyModelPipeline", "Lumina2Pipeline"),
    *("SanaPAGPipeline", "SanaPipeline", "SanaSprintPipeline"),
    *("StableDiffusionModelEditingPipeline", "StableDiffusionPAGPipeline"),
    *("StableDiffusionPanoramaPipeline", "StableDiffusionParadigmsPipeline"),
    *("StableDiffusionPipeline", "StableDiffusionSAGPipeline"),
    *("StableDiffusionXLPAGPipeline", "StableDiffusionXLPipeline"),
}
_WITH_CLIP_SKIP = {
    *("LatentConsistencyModelPipeline", "StableDiffusion3PAGPipeline", "StableDiffusion3Pipeline"),
    *("StableDiffusionModelEditingPipeline", "StableDiffusionPAGPipeline"),
    *("StableDiffusionPanoramaPipeline", "StableDiffusionParadigmsPipeline"),
    *("StableDiffusionPipeline", "StableDiffusionSAGPipeline", "StableDiffusionXLPAGPipeline"),
    *("StableDiffusionXLPipeline", "StableUnCLIPPipeline"),
}
_WITH_PROMPT_2 = {
    *("FluxKontextPipeline", "FluxPipeline", "HiDreamImagePipeline"),
    *("StableDiffusion3PAGPipeline", "StableDiffusion3Pipeline"),
    *("StableDiffusionXLPAGPipeline", "StableDiffusionXLPipeline"),
}


def test_every_family_takes_these_fields_or_refuses_them_by_name() -> None:
    """Over all classes of docs/models.md and the catalogue; nothing is loaded."""
    table = (Path(__file__).parent.parent / "docs/models.md").read_text(encoding="utf-8")
    names = set(re.findall(r"^\| (\w+Pipeline) \|", table, re.MULTILINE))
    assert len(names) > 50
    assert {spec.pipeline for spec in catalog.MODELS.values()} <= names
    for field, value, takers in (
        ("prompt_syntax", "a1111", _WITH_WEIGHTS),
        ("prompt_syntax", "compel", _WITH_WEIGHTS),
        ("clip_skip", 2, _WITH_CLIP_SKIP),
        ("prompt_2", "b", _WITH_PROMPT_2),
    ):
        for name in names:
            spec = ModelSpec(name="mine", pipeline=name)
            request = build_request({"prompt": "a (b:1.2)", field: value})
            if name in takers:
                assert getattr(resolve_request(request, spec), field) == value, (field, name)
                continue
            with pytest.raises(InputError, match=f"^mine takes no .*{name}") as refused:
                resolve_request(request, spec)
            assert refused.value.field == field
