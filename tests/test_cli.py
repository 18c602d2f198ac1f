"""What holds for every command line, whichever command it calls."""

import json
from pathlib import Path

import pytest

from t2i_cli.console import table_lines
from tests.conftest import T2I


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("generate", "x", "-m", ""), "--model"),
        (("generate", "x", "-m", "postcard", "--format="), "--format"),
        (("batch", "p.txt", "-m", "postcard", "--shard", ""), "--shard"),
        (("batch", "p.txt", "-m", "postcard", "-o", ""), "--output"),
        (("batch", "p.txt", "-m", "postcard", "--vary", "steps=1,2", "--vary", ""), "--vary"),
        (("serve", "--api-key-file", ""), "--api-key-file"),
        (("remote", "deploy", "--ttl", ""), "--ttl"),
        (("models", "pull", "postcard", "--revision", ""), "--revision"),
    ],
)
def test_an_empty_option_is_no_default(
    t2i: T2I, tmp_path: Path, arguments: tuple[str, ...], flag: str
) -> None:
    (tmp_path / "p.txt").write_text("a red star\n")
    done = t2i(*arguments, "--json")
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stderr)["error"]
    assert error["message"] == f"{flag} is empty."
    assert done.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == {"home", "p.txt"}


def test_an_empty_negative_prompt_is_one(t2i: T2I) -> None:
    done = t2i(*("generate", "x", "-m", "postcard", "--negative-prompt", "", "--dry-run", "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["requests"][0]["negative_prompt"] == ""


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("t2i mod", {"models"}),
        ("t2i models pu", {"pull"}),
        ("t2i generate --gui", {"--guidance", "--guidance-scale"}),
        ('t2i generate --model "" --neg', {"--negative-prompt"}),
    ],
)
def test_the_shell_completes_commands_and_options(t2i: T2I, line: str, offered: set[str]) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = t2i(env={"_T2I_COMPLETE": "complete_bash"} | words)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == offered


def test_a_table_shows_its_cells_as_they_are() -> None:
    rows = [("NAME", "SIZE", ""), ("[red]x[/] :smile:", "", "日本"), ("日本", "1.5 GB", "y" * 300)]
    assert table_lines(rows) == [
        "NAME               SIZE",
        "[red]x[/] :smile:          日本",
        # Each of these takes the place of two.
        f"日本               1.5 GB  {'y' * 300}",
    ]
    folded = table_lines(rows, 40)
    assert max(map(len, folded)) <= 40
    assert "".join(folded).count("y") == 300
