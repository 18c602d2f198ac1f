"""What holds for every command line, whichever command it calls."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import t2i_cli
from t2i_cli.terminal.console import table_lines
from tests.conftest import T2I

SOURCE = Path(t2i_cli.__file__).parent


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


def test_help_tells_options_by_groups_with_examples() -> None:
    script = (
        "import contextlib, io, json\n"
        "from t2i_cli.cli.main import _run, command_paths\n"
        "told = {}\n"
        "for path in command_paths():\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "        assert _run([*path, '-h']) == 0\n"
        "    told[' '.join(path)] = shown.getvalue()\n"
        "print(json.dumps(told))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    told: dict[str, str] = json.loads(done.stdout)
    for path, text in told.items():
        assert "-h, --help" in text, path
        examples = text.partition("\n  Examples:\n")[2].splitlines()
        assert 2 <= len(examples) <= 3, path
        assert all("t2i" in example and len(example) <= 80 for example in examples), path
    panels = re.findall(r"^(\w[\w ]*):$", told["generate"], re.MULTILINE)
    assert panels == [
        *("Arguments", "Request", "Output", "Backend", "HTTP server", "Vertex AI"),
        *("Calls of servers", "This machine", "Options"),
    ]
    assert re.search(r"^Limits:\n  --queue", told["serve"], re.MULTILINE)


def test_no_function_takes_more_than_a_dozen_parameters() -> None:
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                taken = node.args
                count = len(taken.posonlyargs + taken.args + taken.kwonlyargs)
                assert count <= 12, (file, node.name)


def test_a_local_picture_loads_nothing_of_google(t2i_env: dict[str, str], tmp_path: Path) -> None:
    script = (
        "import sys; from t2i_cli.cli.main import _run\n"
        "code = _run(['generate', 'a red star', '-m', 'postcard', '--steps', '1', '-o', 'a.png'])\n"
        # Namespace packages have no file: accelerate looks whether there is a google.colab.
        "print(code, [name for name, module in sys.modules.items()"
        " if name.startswith(('google.', 't2i_cli.vertex')) and getattr(module, '__file__', 0)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["a.png", "0 []"]
