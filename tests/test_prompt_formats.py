"""Prompts files as other programs write them: encodings, spreadsheets, JSON, lines of options."""

import csv
import io
import json
import time
from pathlib import Path

import pytest

from t2i_cli import prompts
from t2i_cli.errors import InputError
from t2i_cli.models.request_resolution import build_request
from t2i_cli.models.schedulers import FLOW_SCHEDULERS, NOISE_SCHEDULERS
from t2i_cli.prompts import entries
from t2i_cli.prompts.decoding import decode_text
from t2i_cli.prompts.entries import PromptEntry, PromptProblem
from t2i_cli.request import GenerateRequest
from t2i_cli.server.api.openai import GenerationBody
from t2i_cli.server.api.t2i import GenerateBody
from t2i_cli.server.api.vertex import PredictionsBody, _parse_body
from tests.conftest import T2I


def read(folder: Path, name: str, content: str | bytes) -> prompts.PromptsFile:
    """What a file with this content holds."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return prompts.read_prompts(str(path), prompts.prompts_format(str(path), None))


def good(folder: Path, name: str, content: str | bytes) -> list[dict[str, object]]:
    """The values of the entries of a file with nothing wrong."""
    found = read(folder, name, content)
    assert found.problems == []
    return [dict(entry.values) for entry in found.entries]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    text = f"an ünusual ✓ 𝄞 star{end}{end}# not{end}a blue star"
    assert good(tmp_path, "p.txt", text.encode(encoding)) == [
        {"prompt": "an ünusual ✓ 𝄞 star"},
        {"prompt": "a blue star"},
    ]
    table = f'prompt,steps{end}"a{end}b",3{end}'.encode(encoding)
    assert good(tmp_path, "p.csv", table) == [{"prompt": "a\nb", "steps": 3}]
    objects = f'[{{"prompt": "a",{end} "steps": 3}},{end}{{"prompt": "ü"}}]'.encode(encoding)
    assert [e.line for e in read(tmp_path, "p.json", objects).entries] == [1, 3]


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("mark", [True, False])
def test_utf16_in_either_order_with_and_without_a_mark(
    tmp_path: Path, order: str, mark: bool
) -> None:
    text = "\ufeff" * mark + "a red star\r\na blüe star ✓\r\n"
    found = good(tmp_path, "p.txt", text.encode(f"utf-16-{order}"))
    assert found == [{"prompt": "a red star"}, {"prompt": "a blüe star ✓"}]


def test_what_cannot_be_decoded_is_named_by_line(tmp_path: Path) -> None:
    found = read(tmp_path, "p.txt", "a\n\ud800b\nc".encode("utf-16", "surrogatepass"))
    assert found.problems == [PromptProblem(2, None, "a character is not UTF-16.")]
    assert [entry.line for entry in found.entries] == [1, 3]
    found = read(tmp_path, "p.txt", "a\nb".encode("utf-16") + b"c")
    assert found.problems == [PromptProblem(2, None, "a character is not UTF-16.")]
    found = read(tmp_path, "p.txt", b"a\r\xc3\xa4\xff\rc")
    assert found.problems == [PromptProblem(2, None, "byte 3 is not UTF-8.")]
    assert read(tmp_path, "p.json", b'[{"prompt": "\xff"}]').entries == []
    with pytest.raises(InputError, match="line 2: byte 1 is not UTF-8"):
        decode_text(b"a\n\xff")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_spreadsheets_separator_is_detected(tmp_path: Path, separator: str) -> None:
    out = io.StringIO()
    rows = [["prompt", "steps"], [f"a {separator} b, c; d", "3.0"], ['the "big" one', ""]]
    csv.writer(out, delimiter=separator).writerows(rows)
    made = [{"prompt": f"a {separator} b, c; d", "steps": 3}, {"prompt": 'the "big" one'}]
    assert good(tmp_path, "p.csv", out.getvalue()) == made
    named = f"sep={separator}\r\n{out.getvalue()}"
    found = read(tmp_path, "p.csv", named)
    assert [(e.line, dict(e.values)) for e in found.entries] == [(3, made[0]), (4, made[1])]
    if separator == "\t":
        assert good(tmp_path, "p.tsv", out.getvalue()) == made


def test_a_separator_may_be_named_that_would_not_be_detected(tmp_path: Path) -> None:
    text = '\ufeff"sep=|",,\r\nprompt|steps\r\na|3\r\n'
    assert good(tmp_path, "p.csv", text.encode()) == [{"prompt": "a", "steps": 3}]


def test_columns_and_rows_without_anything_are_none(tmp_path: Path) -> None:
    text = "\r\nprompt,,steps,,\r\na,,1,,\r\n,,,,\r\nb, ,,\r\n\r\n"
    found = read(tmp_path, "p.csv", text)
    assert found.problems == []
    assert found.entries == [
        PromptEntry(3, {"prompt": "a", "steps": 1}),
        PromptEntry(5, {"prompt": "b"}),
    ]
    wide = "prompt" + "," * 16_383 + "\na" + "," * 16_383
    assert good(tmp_path, "p.csv", wide) == [{"prompt": "a"}]


def test_a_value_outside_the_named_columns_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, "p.csv", "prompt,,steps,\na,x,1,\nb,,1,x\nc,,1,\n")
    assert found.problems == [
        PromptProblem(2, None, "column 2 has a value, and no name."),
        PromptProblem(3, None, "there are 4 cells under a header of 3."),
    ]
    assert [entry.line for entry in found.entries] == [4]


def test_a_decimal_comma_is_one_where_commas_do_not_separate(tmp_path: Path) -> None:
    found = good(tmp_path, "p.csv", "prompt;guidance_scale\na, b;7,5\n")
    assert found == [{"prompt": "a, b", "guidance_scale": 7.5}]
    (problem,) = read(tmp_path, "p.csv", 'prompt,guidance_scale\na,"7,5"\n').problems
    assert problem.message == "must be a number, not '7,5'."


def test_a_blank_cell_is_not_set_in_any_column(tmp_path: Path) -> None:
    header = ",".join(entries.ROW_FIELDS)
    blanks = "a" + ", " * (len(entries.ROW_FIELDS) - 1)
    assert good(tmp_path, "p.csv", f"{header}\n{blanks}\n") == [{"prompt": "a"}]


def test_a_json_array_is_read_with_the_lines_of_its_objects(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "steps": 7.0, "seed": -1}, {"prompt": "b", "model": None}]
    found = read(tmp_path, "p.json", json.dumps(rows, indent=2))
    assert found.problems == []
    assert found.entries == [
        PromptEntry(2, {"prompt": "a", "steps": 7}),
        PromptEntry(7, {"prompt": "b"}),
    ]
    assert good(tmp_path, "p.json", '{"prompt": "a"}\n{"prompt":\n"b"}') == [
        {"prompt": "a"},
        {"prompt": "b"},
    ]


def test_wrong_rows_of_an_array_are_named_and_the_others_read(tmp_path: Path) -> None:
    text = '[1,\n{"prompt": "a", "prompt": "b"},\n{"prompt": 3},\n{"prompt": "c"}]'
    found = read(tmp_path, "p.json", text)
    assert [(p.line, p.field) for p in found.problems] == [(1, None), (2, "prompt"), (3, "prompt")]
    assert found.entries == [PromptEntry(4, {"prompt": "c"})]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[{"prompt": "a"},\n{"prompt": "b"}', 2, "Expecting ',' or ']'"),
        ('[{"prompt": "a"},\n]', 2, "Expecting value"),
        ('[{"prompt": "a"}]\nx', 2, "Expecting value"),
        ('[{"prompt": "a"},\n{"prompt": "b", "guidance_scale": NaN}]', 2, "NaN is not JSON"),
        ('[{"prompt": "a"},\n' + "[" * 100_000, 2, "can be read"),
        ("[", 1, "Expecting value"),
    ],
)
def test_an_array_that_is_not_json_makes_nothing(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    # --skip-invalid must not leave out what stands behind the error.
    found = read(tmp_path, "p.json", text)
    assert found.entries == []
    assert [problem.line for problem in found.problems] == [line]
    assert message in found.problems[0].message


def test_an_array_in_a_jsonl_file_says_what_reads_it(tmp_path: Path) -> None:
    found = read(tmp_path, "p.jsonl", '[\n{"prompt": "a"}\n]')
    message = "this is a JSON array; --input-format json reads it."
    assert found.problems == [PromptProblem(1, None, message)]


def test_lines_of_options_are_rows(tmp_path: Path) -> None:
    found = good(
        tmp_path,
        "p.txt",
        '--prompt "a {red|blue} star" --steps 5 --cfg_scale 7 --width 64 --height 96\n'
        '--steps 5 --prompt two words --negative_prompt "rain" --sampler_name "Euler a"\n'
        '--prompt="c" --seed -1 --n_iter 2 --batch_size 3 --sd_model postcard\n'
        '--prompt "d \\"big\\"" --guidance-scale 2.5 --scheduler ddim --seed 7.0 --name x\n'
        "a star --steps 5\n",
    )
    shared = {"steps": 5, "guidance_scale": 7.0, "width": 64, "height": 96}
    assert found == [
        {"prompt": "a red star", **shared},
        {"prompt": "a blue star", **shared},
        {"steps": 5, "prompt": "two words", "negative_prompt": "rain", "scheduler": "Euler a"},
        {"prompt": "c", "count": 6, "model": "postcard"},
        {"prompt": 'd "big"', "guidance_scale": 2.5, "scheduler": "ddim", "seed": 7, "name": "x"},
        {"prompt": "a star --steps 5"},
    ]


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        ("--prompt a --stepz 3", "stepz", "unknown option; did you mean --steps?"),
        ("--prompt a --tiling x", "tiling", "t2i has no such option."),
        ("--prompt a --steps", "steps", "must be a whole number, not ''."),
        ("--prompt a --steps x", "steps", "must be a whole number, not 'x'."),
        ("--prompt a --steps 3 4", None, "'4' belongs to no option."),
        ("--prompt a --cfg_scale 3 --guidance 4", "guidance", "this option is there twice."),
        ("--prompt a --zz 3 --zz 4", "zz", "this option is there twice."),
        ("--prompt a cat's eye", None, "a quote of these options is never closed."),
        ("--prompt {a|b", "prompt", "the brace at character 1 is never closed"),
        ("--steps 3", "prompt", "there is none."),
        ("--" + "x" * 4_999 + " 1 --prompt a", "x" * 40 + "…", "unknown option; there are prompt"),
        ("--prompt " + "a " * 50_000, None, "this line has 100,008 characters; at most 100,000"),
    ],
)
def test_a_wrong_line_of_options_is_told(
    tmp_path: Path, line: str, field: str | None, message: str
) -> None:
    found = read(tmp_path, "p.txt", line + "\nb")
    assert [(p.line, p.field) for p in found.problems] == [(1, field)]
    assert found.problems[0].message.startswith(message)
    assert found.entries == [PromptEntry(2, {"prompt": "b"})]


def test_schedulers_are_called_as_in_automatic1111_as_well() -> None:
    for short, spec in NOISE_SCHEDULERS.items():
        for name in (short, spec.label, spec.label.lower()):
            assert build_request({"prompt": "a", "scheduler": name}).scheduler == short
    for short in FLOW_SCHEDULERS:
        assert build_request({"prompt": "a", "scheduler": short}).scheduler == short
    with pytest.raises(InputError, match="'Restart' is unknown"):
        build_request({"prompt": "a", "scheduler": "Restart"})


def test_whole_numbers_are_the_same_in_rows_and_bodies(tmp_path: Path) -> None:
    values = {"prompt": "a", "seed": -1.0, "steps": 7.0}
    (row,) = good(tmp_path, "p.jsonl", json.dumps(values))
    assert row == {"prompt": "a", "steps": 7}
    values["seed"] = 3.0
    (native,) = GenerateBody.model_validate({"requests": [values]}).requests
    (vertex,), _ = _parse_body(PredictionsBody.model_validate({"instances": [values]}))
    body = GenerationBody.model_validate({"prompt": "a", "seed": 3.0, "num_inference_steps": 7.0})
    for seed, steps in (
        *((request.seed, request.steps) for request in (native.request(), vertex)),
        (body.seed, body.model_dump()["num_inference_steps"]),
    ):
        assert (seed, steps, type(seed), type(steps)) == (3, 7, int, int)
    for wrong in (-2, 2**32, 2**64, -1.5):
        found = read(tmp_path, "p.jsonl", json.dumps({"prompt": "a", "seed": wrong}))
        if isinstance(wrong, float):
            assert [problem.field for problem in found.problems] == ["seed"]
        else:
            with pytest.raises(InputError, match="seed must be from 0 to 4294967295, not"):
                build_request(dict(found.entries[0].values))


@pytest.mark.parametrize("text", ["a\r\nb\rc\n", "\ra\r\r\nb"])
def test_a_carriage_return_is_in_no_prompt(text: str) -> None:
    request = GenerateRequest(prompt=text, negative_prompt=text)
    assert (
        request.prompt
        == request.negative_prompt
        == "\n".join(text.splitlines()) + "\n" * (text.endswith("\n"))
    )


def test_rows_that_cannot_be_rows_take_no_time(tmp_path: Path) -> None:
    many: dict[str, object] = {f"k{number}": number for number in range(60_000)}
    doubled = json.dumps(many)[:-1] + ', "k59999": 1}'
    deep = '{"prompt": "a", "steps": ' + "[" * 900 + "]" * 900 + "}"
    begun = time.process_time()
    (twice,) = read(tmp_path, "p.jsonl", doubled).problems
    (too_many,) = read(tmp_path, "p.jsonl", json.dumps(many)).problems
    (in_array,) = read(tmp_path, "p.json", f"[{doubled}]").problems
    (header,) = read(tmp_path, "p.csv", ",".join(many)).problems
    (nested,) = read(tmp_path, "p.jsonl", deep).problems
    # It took minutes of this when it was quadratic.
    assert time.process_time() - begun < 20
    assert (twice.field, twice.message) == ("k59999", "this field is there twice.")
    assert in_array == twice
    assert too_many.message == "there are 60,000 fields; it cannot be a row."
    assert header.message == "there are 60,000 columns in the header row."
    assert nested.message == "must be a whole number, not [[[[[[[...]]]]]]]."


def test_names_of_fields_are_shown_shortened_and_escaped(tmp_path: Path) -> None:
    row = {"prompt": "a", "x" * 4_999: 1, "\x1b[2J": 2}
    found = read(tmp_path, "p.jsonl", json.dumps(row))
    assert [problem.field for problem in found.problems] == ["x" * 40 + "…", "\\x1b[2J"]


def test_more_prompts_than_memory_is_meant_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "MAX_ENTRIES", 1_500)
    assert len(good(tmp_path, "p.txt", "{a|b|c|d|e|f|g|h|i|j}" * 3)) == 1_000
    with pytest.raises(InputError, match="more than 1,500 prompts in"):
        read(tmp_path, "p.txt", ("{a|b|c|d|e|f|g|h|i|j}" * 3 + "\n") * 2)


def test_other_programs_files_are_planned(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "excel.csv").write_bytes(
        "sep=;\r\nprompt;steps;seed;;\r\nün star;1,;-1;;\r\nb;2.0;4;;\r\n;;;;\r\n".encode("utf-16")
    )
    (tmp_path / "mac.txt").write_bytes(b"a {red|blue} star\r--prompt b --seed -1 --steps 3")
    excel = ("batch", "excel.csv", "-m", "postcard", "--dry-run", "--json", "--skip-invalid")
    plan = json.loads(t2i(*excel).stdout)
    rows = [(row["line"], row["seed"], row["prompt"]) for row in plan["rows"]]
    assert (rows, plan["invalid"]) == ([(4, 4, "b")], 1)
    shown = t2i("batch", "mac.txt", "-m", "postcard", "--dry-run")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [line.partition(": ")[2] for line in shown.stdout.splitlines()[-3:]] == [
        "a red star",
        "a blue star",
        "b",
    ]


def test_a_prompt_on_standard_input_and_no_seed(t2i: T2I) -> None:
    args = ("generate", "-", "-m", "postcard", "--seed", "-1", "--dry-run", "--json")
    done = t2i(*args, input="a red star\r\non white\r\n")
    assert done.returncode == 0, done.stderr
    (request,) = json.loads(done.stdout)["requests"]
    assert request["prompt"] == "a red star\non white"
    assert request["seed"] is None, "it is drawn when the image is made"
