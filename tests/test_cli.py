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
        ("t2i generate --gui", {"--guidance", "--guidance-scale", "--guidance-rescale"}),
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
        *("Arguments", "Request", "How prompts are read", "Parts and LoRAs"),
        *("Output", "Backend", "HTTP server"),
        *("Hugging Face Inference Providers", "Vertex AI"),
        *("Calls of servers", "This machine", "Ray", "Options"),
    ]
    for option in ("Parts and LoRAs:.*^  --lora ", "How prompts are read:\n  --styles "):
        assert re.search(rf"^{option}", told["generate"], re.MULTILINE | re.DOTALL)
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


@pytest.mark.parametrize("line", [("--version",), ("-V",), ("version",)])
def test_every_spelling_of_the_version(t2i: T2I, line: tuple[str, ...]) -> None:
    done = t2i(*line)
    assert (done.returncode, done.stdout) == (0, f"t2i {t2i_cli.__version__}\n")


@pytest.mark.parametrize("path", [(), ("generate",), ("models", "pull")])
def test_help_is_a_command_too(t2i: T2I, path: tuple[str, ...]) -> None:
    done = t2i("help", *path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == t2i(*path, "--help").stdout


def test_help_of_no_command_is_an_error(t2i: T2I) -> None:
    done = t2i("help", "nosuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert "t2i has no command 'nosuch'." in done.stderr


@pytest.mark.parametrize("group", ["models", "config"])
def test_lists_have_their_short_name(t2i: T2I, group: str) -> None:
    done = t2i(group, "ls", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == t2i(group, "list", "--json").stdout


def test_help_names_no_type_of_python() -> None:
    pages = Path(__file__).parent.parent / "docs" / "cli.md"
    shown = pages.read_text(encoding="utf-8")
    assert not re.search(r"<[a-z]+( range)?>|\blist\[|\bstr\b|\bint\b|\bfloat\b|\bPath\b", shown)
    assert "--steps INTEGER" in shown
    assert re.search(r"^  PROMPT  What the image", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "x", "--steps", "1.5"), "--steps must be a whole number, not '1.5'."),
        (("generate", "x", "-s", "3", "-s", "abc"), "--seed must be a whole number, not 'abc'."),
        (("generate", "x", "--guidance", "much"), "--guidance must be a number, not 'much'."),
        (
            ("generate", "x", "--retries", "1000"),
            "--retries must be a whole number from 0 to 999, not '1000'.",
        ),
        (("batch", "p", "--limit", "0"), "--limit must be a whole number of at least 1, not '0'."),
        (("serve", "--port", "http"), "--port must be a whole number from 0 to 65535, not 'http'."),
        (
            ("remote", "deploy", "--max-cost", "5 USD"),
            "--max-cost must be a number, not '5 USD'.",
        ),
        (
            ("generate", "x", "--width", "9" * 5000),
            f"--width must be a whole number, not '{'9' * 59}…'.",
        ),
    ],
)
def test_a_wrong_number_is_shown(t2i: T2I, arguments: tuple[str, ...], message: str) -> None:
    done = t2i(*arguments, "--json")
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["message"] == message


def test_seeds_sizes_and_precisions_have_short_spellings(t2i: T2I) -> None:
    done = t2i(
        *("generate", "x", "-m", "postcard", "--seeds", "1-3,9", "--size", "64"),
        *("--dtype", "fp32", "--dry-run", "--json"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [made["seed"] for made in told["requests"]] == [1, 2, 3, 9]
    assert {(made["width"], made["height"]) for made in told["requests"]} == {(64, 64)}
    assert told["plan"]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", "1-2", "-s", "3"), "Give --seed or --seeds, not both."),
        (("--seeds", "1-2", "-n", "2"), "Give several seeds or a count, not both."),
        (("--seeds", "4-1"), "--seeds 4-1 is no range of seeds."),
        (("--size", "64 px"), "The size '64 px' is not of the form 512x768 or 512."),
        (
            ("--dtype", "fp8"),
            "--dtype must be float16 (fp16), bfloat16 (bf16) or float32 (fp32), not 'fp8'.",
        ),
    ],
)
def test_what_short_spellings_refuse(t2i: T2I, options: tuple[str, ...], message: str) -> None:
    done = t2i("generate", "x", "-m", "postcard", *options, "--dry-run", "--json")
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["message"] == message
