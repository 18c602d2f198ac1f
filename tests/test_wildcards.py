"""Wildcards: values by seed, what is refused, and the notes on syntax that stands as words."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.rows import BatchRow, expand_rows
from t2i_cli.errors import InputError
from t2i_cli.prompts import wildcards
from t2i_cli.prompts.entries import PromptEntry, PromptProblem
from t2i_cli.prompts.literal_syntax import literal_syntax_notes
from t2i_cli.prompts.wildcards import WildcardFolder
from t2i_cli.request import ResolvedRequest
from tests import factories
from tests.conftest import T2I
from tests.fakes.stub_backend import StubBackend


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of wildcards."""
    made = tmp_path / "wildcards"
    (made / "deep").mkdir(parents=True)
    (made / "color.txt").write_bytes("red\r\r# no\rblue\r".encode("utf-16"))
    (made / "deep/pattern.txt").write_text("{light|dark} stripes of __color__\n")
    (made / "notes.md").write_text("no wildcard")
    return made


def filled(folder: Path, prompt: str, **changes: object) -> ResolvedRequest:
    """A request with the wildcards of its prompt replaced."""
    return WildcardFolder(folder).fill_request(factories.request(prompt=prompt, **changes))


def chosen(seed: int, number: int, values: list[str], field: str = "prompt") -> str:
    """The value that the documentation says is chosen."""
    digest = hashlib.sha256(f"{seed} {field} {number}".encode()).digest()
    return values[int.from_bytes(digest[:8], "big") % len(values)]


def test_a_value_follows_from_the_seed_alone(folder: Path) -> None:
    seen = set()
    for seed in range(30):
        request = filled(
            folder, "a __color__ star, __color__", seed=seed, negative_prompt="__color__"
        )
        first, second = (chosen(seed, n, ["red", "blue"]) for n in (0, 1))
        assert request.prompt == f"a {first} star, {second}"
        assert request.negative_prompt == chosen(seed, 0, ["red", "blue"], "negative_prompt")
        seen.add(request.prompt)
    assert len(seen) == 4


def test_wildcards_in_folders_and_in_one_another(folder: Path) -> None:
    made = {filled(folder, "__deep/pattern__!", seed=seed).prompt for seed in range(60)}
    assert made == {
        f"{light} stripes of {color}!" for light in ("light", "dark") for color in ("red", "blue")
    }


@pytest.mark.parametrize(
    "prompt", ["plain", "__", "____", "a __ b", "a_b", "__color", "__ color__"]
)
def test_what_is_no_wildcard_stays(folder: Path, prompt: str) -> None:
    assert filled(folder, prompt).prompt == prompt


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("__colr__", "There is no colr.txt in '.*' for a wildcard; did you mean __color__?"),
        ("__zzz__", "there are __color__, __deep/pattern__."),
        ("__../secret__", "There is no ../secret.txt"),
        ("__/etc/passwd__", "There is no /etc/passwd.txt"),
        ("__deep/*__", r"There is no deep/\*.txt"),
        (f"__{'x' * 4_990}__", "There is no x{40}….txt"),
        ("__one__", "Wildcards contain each other: __one__ → __two__ → __one__."),
        ("__self__", "Wildcards contain each other: __self__ → __self__."),
        ("__chain0__", "Wildcards are nested more than 20 deep"),
        ("__wide0__", "The wildcards take more than 1,000 values"),
        ("__long__ __long__", "prompt has 8,001 characters; at most 5,000"),
        ("__longer__", "line 1: this value has more than 5,000 characters"),
        ("__blank__", "has no value"),
        ("__bytes__", "is wrong in line 2: byte 1 is not UTF-8"),
        ("__open__", "is wrong in line 1: the brace at character 1 is never closed"),
        ("__pipe__", "is no file of at most"),
        ("__folder__", "is no file of at most|There is no folder.txt"),
    ],
)
def test_wildcards_that_cannot_be_filled(folder: Path, prompt: str, message: str) -> None:
    files = {
        "one": "__two__",
        "two": "a\n__one__",
        "self": "__self__",
        "long": "x" * 4_000,
        "longer": "x" * 5_001,
        "blank": "# nothing\n\n",
        "open": "{a|b",
    }
    files |= {f"chain{n}": f"__chain{n + 1}__" for n in range(30)} | {"chain30": "end"}
    files |= {f"wide{n}": f"__wide{n + 1}__ __wide{n + 1}__" for n in range(15)} | {"wide15": "x"}
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "bytes.txt").write_bytes(b"a\n\xff")
    (folder / "folder.txt").mkdir()
    os.mkfifo(folder / "pipe.txt")
    if prompt == "__zzz__":
        for name in (*files, "bytes", "pipe"):
            (folder / f"{name}.txt").unlink()
    with pytest.raises(InputError, match=message) as caught:
        filled(folder, prompt)
    assert caught.value.field == "prompt"


def test_a_folder_that_is_none_or_far_too_large_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (folder / "none", folder / "color.txt", folder / ("x" * 4_999)):
        with pytest.raises(InputError, match="Cannot read the wildcards in"):
            WildcardFolder(path)
    monkeypatch.setattr(wildcards, "_MAX_FILES", 1)
    with pytest.raises(InputError, match="more than 1 files"):
        WildcardFolder(folder)
    with pytest.raises(InputError, match="the folder has no .txt file"):
        (folder / "empty").mkdir()
        filled(folder / "empty", "__a__")


def rows(folder: Path, *prompts: str, **options: object) -> list[BatchRow]:
    """The rows of prompts with this folder's wildcards."""
    entries = [PromptEntry(line, {"prompt": prompt}) for line, prompt in enumerate(prompts, 1)]
    chosen_options = BatchOptions(wildcards=WildcardFolder(folder), **options)  # type: ignore[arg-type]
    found, problems = expand_rows(entries, chosen_options, StubBackend())
    assert problems == []
    return found


def test_rows_have_values_by_their_seeds_and_ids_of_what_is_made(folder: Path) -> None:
    made = rows(folder, "a __color__ star", "a __color__ star", count=20)
    assert {row.request.prompt for row in made} == {"a red star", "a blue star"}
    assert len({row.id for row in made}) == 40
    for row in made:
        assert row.request.prompt == f"a {chosen(row.request.seed, 0, ['red', 'blue'])} star"
        assert row.id == row.request.identity()
    # Resuming, and other rows before, change nothing.
    again = rows(folder, "b", "a __color__ star", "a __color__ star", count=20)
    assert [row.id for row in again[20:]] == [row.id for row in made]
    # The value is the seed's: the cells of a grid show the same.
    grid = rows(folder, "a __color__ star", seeds=(1, 2), vary=[("steps", [5, 10])])
    assert [r.request.prompt for r in grid[:2]] == [r.request.prompt for r in grid[2:]]


def test_a_row_with_a_wrong_wildcard_is_named_and_an_option_once(folder: Path) -> None:
    options = BatchOptions(wildcards=WildcardFolder(folder))
    entries = [PromptEntry(1, {"prompt": "__colr__"}), PromptEntry(2, {"prompt": "__color__"})]
    found, problems = expand_rows(entries, options, StubBackend())
    assert [row.line for row in found] == [2]
    assert [(problem.line, problem.field) for problem in problems] == [(1, "prompt")]
    assert isinstance(problems[0], PromptProblem)
    bad = BatchOptions(defaults={"negative_prompt": "__n__"}, wildcards=WildcardFolder(folder))
    with pytest.raises(InputError, match=r"There is no n\.txt"):
        expand_rows([PromptEntry(1, {"prompt": "a"})], bad, StubBackend())


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a {red|blue} star", ["`{red|blue}` is read as it stands; `t2i batch` makes"]),
        ("a __color__ star", ["`__color__` is read as words; with --wildcards DIR"]),
        (
            "<lora:detail:0.8> star",
            ["`<lora:detail:0.8>` is read as words; with --lora-dir"],
        ),
        ("a (big:1.3) star", ["`(big:1.3)` is read as words; --prompt-syntax a1111 reads"]),
        ("a (big 7:.9) star", ["`(big 7:.9)` is read as words; --prompt-syntax a1111 reads"]),
        ("(:2)(a: 2 )", ["`(a: 2 )` is read as words; --prompt-syntax a1111 reads"]),
        ("((big)) star", ["`((big))` is read as words"]),
        ("a [red:blue:0.5] star", ["`[red:blue:0.5]` is read as words"]),
        ("a star --ar 3:4", ["`--ar` is read as a word"]),
        ("a {single} (plain) [text] a:b <b> __ - -- 1:2 (at 10:30)", []),
        ("a\nstar, 5 > 3 (see: this)", []),
    ],
)
def test_other_programs_syntax_is_told_to_be_words(prompt: str, words: list[str]) -> None:
    for fields in ({"prompt": prompt}, {"prompt": "a", "negative_prompt": prompt}):
        notes = literal_syntax_notes([factories.request(**fields)])
        assert len(notes) == len(words)
        assert all(note.startswith(word) for note, word in zip(notes, words, strict=True))


def test_a_kind_of_syntax_is_told_once_and_only_where_it_is_not_meant() -> None:
    requests = [factories.request(prompt=f"(a{n}:1.1) {{b|c}}") for n in range(5)]
    notes = literal_syntax_notes(requests, expanded=True)
    assert len(notes) == 1
    assert notes[0].startswith("`(a0:1.1)` (and the like in 4 more prompts) is read as words")
    assert len(literal_syntax_notes(requests)) == 2


@pytest.mark.parametrize(
    "text", ["{|", "(:", "((", "[:", "<lora:", "__a", "__", "--a", "(1.", "_a "]
)
def test_looking_for_syntax_takes_no_time(text: str) -> None:
    begun = time.process_time()
    for prompt in (text * (5_000 // len(text)), text[0] + text[-1] * 4_990, text + " " * 4_990):
        literal_syntax_notes([factories.request(prompt=prompt)])
    assert time.process_time() - begun < 2


def test_batch_and_generate_fill_wildcards_and_tell_of_words(
    t2i: T2I, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a __color__ {a|b}", "count": 2, "seed": 5}\n')
    plan = ("batch", "p.jsonl", "-m", "postcard", "--dry-run", "--json")
    done = t2i(*plan, "--wildcards", folder)
    assert done.returncode == 0, done.stderr
    expected = [f"a {chosen(seed, 0, ['red', 'blue'])} {{a|b}}" for seed in (5, 6)]
    assert [row["prompt"] for row in json.loads(done.stdout)["rows"]] == expected
    assert "`{a|b}` is read as it stands; `t2i batch`" in done.stderr
    one = ("generate", "a __color__ {a|b}", "-m", "postcard", "-s", "5", "-n", "2", "--dry-run")
    made = t2i(*one, "--json", "--wildcards", folder)
    assert [r["prompt"] for r in json.loads(made.stdout)["requests"]] == expected
    without = t2i(*one)
    assert "`__color__` is read as words; with --wildcards DIR" in without.stderr
    assert "`{a|b}` is read as it stands" in without.stderr
    missing = t2i("generate", "a __colour__", "-m", "postcard", "--wildcards", folder)
    assert missing.returncode == 2
    assert "did you mean __color__?" in missing.stderr
