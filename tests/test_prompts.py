"""Prompts files: what each format takes, and every way in which a line can be wrong."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t2i_cli import prompts
from t2i_cli.errors import InputError
from t2i_cli.prompts import PromptsError, alternatives, entries
from t2i_cli.prompts.entries import PromptEntry, PromptProblem
from t2i_cli.request_fields import FIELDS


def read(folder: Path, name: str, content: str | bytes) -> prompts.PromptsFile:
    """The prompts of a file with this content."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return prompts.read_prompts(str(path), prompts.prompts_format(str(path), None))


def test_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "p.txt",
        b"\xef\xbb\xbfa red star\r\n\r\n# no prompt\r\n  a {blue|green} house \r\n\\#1 of all\n",
    )
    assert found.problems == []
    assert found.entries == [
        PromptEntry(1, {"prompt": "a red star"}),
        PromptEntry(4, {"prompt": "a blue house"}),
        PromptEntry(4, {"prompt": "a green house"}),
        PromptEntry(5, {"prompt": "#1 of all"}),
    ]


@pytest.mark.parametrize(
    ("prompt", "expanded"),
    [
        ("plain", ["plain"]),
        ("{a|b} {c|d}", ["a c", "a d", "b c", "b d"]),
        ("{very |}big", ["very big", "big"]),
        ("{a {x|y}|b}", ["a x", "a y", "b"]),
        ("a {single} word", ["a {single} word"]),
        (r"a \{b\|c\} \\ {d\|e|f}", [r"a {b|c} \ d|e", r"a {b|c} \ f"]),
        ("a|b} \\n", ["a|b} \\n"]),
    ],
)
def test_alternatives_make_all_combinations(prompt: str, expanded: list[str]) -> None:
    assert alternatives.expand_alternatives(prompt) == expanded


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a {red|blue star", "the brace at character 3 is never closed"),
        ("{a|b}" * 14, r"make 16,384 combinations; 10,000"),
        ("{a|b}" * 20_000, r"make more than 1,000,000,000,000 combinations; 10,000"),
        ("x" * 4_999 + "{a|bb}", r"make prompts of 5,001 characters; at most 5,000"),
        ("{a|" * 30 + "b" + "}" * 30, "nested more than 20"),
        ("{" * 5000, "nested more than 20"),
    ],
)
def test_alternatives_that_cannot_be_expanded(prompt: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        alternatives.expand_alternatives(prompt)


def test_jsonl_sets_any_field(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "prompt": "{a|b}",
        "negative_prompt": "rain",
        "model": "postcard",
        "seed": 7,
        "steps": 10,
        "guidance_scale": 5,
        "width": 64,
        "height": 96,
        "scheduler": "euler",
        "count": 2,
        "name": "x",
        "revision": None,
    }
    found = read(tmp_path, "p.jsonl", json.dumps(row) + '\n\n{"prompt": "a"}')
    assert found.problems == []
    del row["revision"]
    assert found.entries == [PromptEntry(1, row), PromptEntry(3, {"prompt": "a"})]
    assert isinstance(found.entries[0].values["guidance_scale"], float)


def test_csv_has_a_header_and_empty_cells_are_not_set(tmp_path: Path) -> None:
    text = '\ufeffprompt,steps,guidance_scale\r\n"a, ""b""\nc",10,5\r\n\r\nd,,7.5\r\n'
    found = read(tmp_path, "p.csv", text)
    assert found.problems == []
    assert found.entries == [
        PromptEntry(2, {"prompt": 'a, "b"\nc', "steps": 10, "guidance_scale": 5.0}),
        PromptEntry(5, {"prompt": "d", "guidance_scale": 7.5}),
    ]


@pytest.mark.parametrize(
    ("name", "line", "field", "message"),
    [
        ("p.txt", b"\xff", None, "byte 1 is not UTF-8"),
        ("p.txt", b"a {b|c", "prompt", "never closed"),
        ("p.txt", b'{"prompt": "a"}', None, "--input-format jsonl"),
        ("p.jsonl", b'{"prompt": "a"', None, "this is not JSON: Expecting ',' delimiter at column"),
        ("p.jsonl", b"[1]", None, "no object"),
        ("p.jsonl", b'{"prompt": "a", "step": 3}', "step", "unknown field; did you mean steps?"),
        (
            "p.jsonl",
            b'{"prompt": "a", "xyzzy": null}',
            "xyzzy",
            "unknown field; there are prompt",
        ),
        ("p.jsonl", b'{"prompt": "a", "steps": "10"}', "steps", "must be a whole number, not '10'"),
        ("p.jsonl", b'{"prompt": "a", "steps": 10.5}', "steps", "must be a whole number, not 10.5"),
        ("p.jsonl", b'{"prompt": "a", "steps": true}', "steps", "must be a whole number, not True"),
        ("p.jsonl", b'{"prompt": 3}', "prompt", "must be text, not 3"),
        ("p.jsonl", b'{"prompt": "a", "guidance_scale": NaN}', None, "NaN is not JSON"),
        ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', "prompt", "twice"),
        ("p.jsonl", b'{"steps": 3}', "prompt", "there is none"),
        ("p.jsonl", b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", None, "can be read"),
        ("p.jsonl", b"[" * 100_000, None, "can be read"),
        ("p.csv", b"prompt,steps\na,b", "steps", "must be a whole number, not 'b'"),
        ("p.csv", b"prompt,steps\na,1e2", "steps", "must be a whole number"),
        ("p.csv", b"prompt,guidance_scale\na,nan", "guidance_scale", "must be a number"),
        ("p.csv", b"prompt,guidance_scale\na,1..2", "guidance_scale", "must be a number"),
        ("p.csv", b"prompt,steps\na", None, "1 cells under a header of 2"),
        ("p.csv", b"prompt,steps\na,1,2", None, "3 cells under a header of 2"),
        ("p.csv", b'prompt\n"a"b', None, "this is not CSV"),
        ("p.csv", b'prompt\n"a', None, "this is not CSV"),
        ("p.csv", b"prompt\n" + b"a" * 200_000, None, "this is not CSV: field larger"),
        ("p.csv", b"prompt\n\xff", None, "not UTF-8"),
        ("p.csv", b"steps,prompt\n,x\n1,", "prompt", "there is none"),
    ],
)
def test_a_wrong_line_is_named_and_the_others_are_read(
    tmp_path: Path, name: str, line: bytes, field: str | None, message: str
) -> None:
    found = read(tmp_path, name, line)
    number = line.count(b"\n") + 1
    assert [(p.line, p.field) for p in found.problems] == [(number, field)]
    assert message in found.problems[0].message


@pytest.mark.parametrize(
    ("header", "field", "message"),
    [
        (b"prompt,prompt", "prompt", "twice"),
        (b"prompt,stepps", "stepps", "did you mean steps"),
        (b"steps", "prompt", "no such column"),
    ],
)
def test_a_wrong_header_is_named_once(
    tmp_path: Path, header: bytes, field: str, message: str
) -> None:
    found = read(tmp_path, "p.csv", header + b"\n1,2\n3,4\n")
    assert [(p.line, p.field) for p in found.problems] == [(1, field)]
    assert message in found.problems[0].message


def test_every_wrong_field_of_a_row_is_named(tmp_path: Path) -> None:
    found = read(tmp_path, "p.jsonl", b'{"prompt": 1, "steps": "x", "cfg": 3}\n{"prompt": "a"}\n')
    assert [p.field for p in found.problems] == ["prompt", "steps", "cfg"]
    assert found.entries == [PromptEntry(2, {"prompt": "a"})]


def test_a_csv_row_after_a_broken_one_is_still_read(tmp_path: Path) -> None:
    found = read(tmp_path, "p.csv", b'prompt\n"a"b\nc\n')
    assert [p.line for p in found.problems] == [2]
    assert found.entries == [PromptEntry(3, {"prompt": "c"})]


@pytest.mark.parametrize("content", [b"", b"# only\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="There is no prompt in"):
        read(tmp_path, "p.txt", content)


def test_standard_input_is_text_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    assert prompts.prompts_format("-", None) == "txt"
    assert prompts.prompts_format("-", "csv") == "csv"
    found = prompts.read_prompts("-", "txt")
    assert [entry.values["prompt"] for entry in found.entries] == ["a", "b"]
    assert found.name == "standard input"


def test_unclear_formats_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not clear from its name"):
        prompts.prompts_format("prompts.md", None)
    with pytest.raises(InputError, match="'xml' is unknown; use one of: txt, jsonl, csv"):
        prompts.prompts_format("p.txt", "xml")
    with pytest.raises(InputError, match="Cannot read .*No such file"):
        prompts.read_prompts(str(tmp_path / "none.txt"), "txt")
    with pytest.raises(InputError, match="Cannot read .*: it is a folder"):
        prompts.read_prompts(str(tmp_path), "txt")


def test_the_first_twenty_problems_are_told_and_the_others_counted() -> None:
    problems = [PromptProblem(line, "steps", "bad.") for line in range(30, 0, -1)]
    error = PromptsError("p.csv", problems)
    assert str(error.hint).endswith("or --skip-invalid goes on with the others.")
    assert (
        PromptsError("p.csv", problems, skipped=True).hint == "Nothing was made. Correct the file."
    )
    lines = error.message.splitlines()
    assert lines[0] == "p.csv is wrong in 30 lines:"
    assert lines[1] == "  p.csv:1: steps: bad."
    assert lines[20:] == ["  p.csv:20: steps: bad.", "  and 10 more problems"]
    told = error.to_json()
    assert told["problems_total"] == 30
    assert told["problems"][0] == {  # type: ignore[index]
        "file": "p.csv",
        "line": 1,
        "field": "steps",
        "message": "bad.",
    }


def test_alternatives_may_be_as_many_and_as_deep_as_is_said() -> None:
    assert len(alternatives.expand_alternatives("{a|b|c|d|e|f|g|h|i|j}" * 4)) == 10_000
    deepest = "{a|" * 20 + "b" + "}" * 20
    assert alternatives.expand_alternatives(deepest) == ["a"] * 20 + ["b"]
    with pytest.raises(InputError, match="nested more than 20"):
        alternatives.expand_alternatives("{a|" + deepest + "}")
    assert alternatives.expand_alternatives("{aX|bX}") == ["aX", "bX"]


def test_an_open_brace_says_how_to_write_one() -> None:
    with pytest.raises(InputError) as caught:
        alternatives.expand_alternatives("a {b")
    assert caught.value.message == (
        "the brace at character 3 is never closed; \\{ is a brace of the prompt's own."
    )


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("prompt", " a ", " a "),
        ("prompt", "5", "5"),
        ("steps", " 7 ", 7),
        ("steps", "+7", 7),
        ("steps", "7.0", 7),
        ("seed", "7.", 7),
        ("seed", "-1", None),
        ("seed", "-1.0", None),
        ("guidance_scale", " 5 ", 5.0),
        ("guidance_scale", "1E1", 10.0),
        ("guidance_scale", "-1.5e-1", -0.15),
    ],
)
def test_text_is_read_as_the_fields_kind(field: str, text: str, value: object) -> None:
    found = entries.parse_value(field, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stepz", 1, "unknown field; did you mean steps?"),
        ("xyzzy", 1, f"unknown field; there are {', '.join(entries.ROW_FIELDS)}."),
        ("steps", "x" * 38, f"must be a whole number, not '{'x' * 38}'."),
        ("steps", "x" * 39, f"must be a whole number, not '{'x' * 39}…."),
        ("guidance_scale", "1e999", "must be a number, not '1e999'."),
        ("guidance_scale", True, "must be a number, not True."),
        ("guidance_scale", 10**400, f"1{'0' * 39}… is too large."),
        ("prompt", 5, "must be text, not 5."),
    ],
)
def test_a_wrong_value_is_told_with_its_field(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        if value == "1e999":
            entries.parse_value(field, value)
        else:
            entries.check_value(field, value)
    assert (caught.value.message, caught.value.field) == (message, field)


def test_a_field_may_read_its_values_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(FIELDS["scheduler"], parse=lambda value: f"<{value}>")
    monkeypatch.setitem(FIELDS, "scheduler", own)
    assert entries.check_value("scheduler", 3) == "<3>"


PROBLEMS = {
    "p.txt": (
        b'\xff\n{a|b\n{"prompt": "a"}\n{x|y} z\n',
        [
            PromptProblem(1, None, "byte 1 is not UTF-8."),
            PromptProblem(
                2,
                "prompt",
                "the brace at character 1 is never closed; \\{ is a brace of the prompt's own.",
            ),
            PromptProblem(3, None, "this is JSON; --input-format jsonl reads it."),
        ],
        [PromptEntry(4, {"prompt": "x z"}), PromptEntry(4, {"prompt": "y z"})],
    ),
    "p.jsonl": (
        b"\xff\n[1]\n" + b"[" * 100_000 + b"\n"
        b'{"steps": 1, "prompt": "a", "prompt": "b"}\n{"steps": 1}\n{"prompt": "x"}\n',
        [
            PromptProblem(1, None, "byte 1 is not UTF-8."),
            PromptProblem(2, None, "this is JSON, and no object with fields."),
            PromptProblem(3, None, "this is not JSON that can be read."),
            PromptProblem(4, "prompt", "this field is there twice."),
            PromptProblem(5, "prompt", "there is none."),
        ],
        [PromptEntry(6, {"prompt": "x"})],
    ),
    "p.csv": (
        b'prompt,steps\n\xff,1\n"a"b,2\nc\n ,1\nx,3\n',
        [
            PromptProblem(2, None, "byte 1 is not UTF-8."),
            PromptProblem(3, None, "this is not CSV: ',' expected after '\"'."),
            PromptProblem(4, None, "there are 1 cells under a header of 2."),
            PromptProblem(5, "prompt", "there is none."),
        ],
        [PromptEntry(6, {"prompt": "x", "steps": 3})],
    ),
    "h.csv": (
        b"steps,steps,xyzzy\n1,2,3\n",
        [
            PromptProblem(1, "steps", "this column is there twice."),
            PromptProblem(1, "xyzzy", f"unknown field; there are {', '.join(entries.ROW_FIELDS)}."),
            PromptProblem(1, "prompt", "the header row has no such column."),
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_is_told_and_what_follows_is_read(name: str, tmp_path: Path) -> None:
    content, problems, rows = PROBLEMS[name]
    found = read(tmp_path, name, content)
    assert found.name == str(tmp_path / name)
    assert found.problems == problems
    assert found.entries == rows


@pytest.mark.parametrize(
    ("problems", "text"),
    [
        ([PromptProblem(3, None, "no.")], "p is wrong in 1 line:\n  p:3: no."),
        (
            [PromptProblem(3, "steps", "no."), PromptProblem(2, None, "nor.")],
            "p is wrong in 2 lines:\n  p:2: nor.\n  p:3: steps: no.",
        ),
        (
            [PromptProblem(1, None, "no.")] * 20,
            "p is wrong in 1 line:" + "\n  p:1: no." * 20,
        ),
    ],
)
def test_problems_are_told_by_line(problems: list[PromptProblem], text: str) -> None:
    assert PromptsError("p", problems).message == text


def test_a_name_that_tells_no_format_says_what_does() -> None:
    with pytest.raises(InputError) as caught:
        prompts.prompts_format("prompts", None)
    assert caught.value.message == "What 'prompts' holds is not clear from its name."
    assert caught.value.hint == "--input-format says it: txt, jsonl, csv, tsv or json."
