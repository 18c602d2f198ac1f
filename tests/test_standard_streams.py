"""Standard streams that are closed, full or not UTF-8: the work is done, and no traceback."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import T2I

FAULTS = {
    "<&-": 0,
    ">&-": 0,
    "2>&-": 0,
    "<&- >&- 2>&-": 0,
    "< /dev/null > /dev/full": 11,
    "2> /dev/full": 0,
}
"""Redirections of a shell, and the exit code of a command that succeeds otherwise."""
PROMPTS = ("a café ☆ star", "a 赤い star 🌟")

HELP_OF_ALL = """
import os, pathlib, sys
from t2i_cli.cli import main
from t2i_cli.terminal import streams
streams.open_standard_streams()
codes = []
for path in main.command_paths():
    codes.append(main._run([*path, "--help"]))
pathlib.Path("codes.txt").write_text(" ".join(map(str, codes)))
os._exit(0)
"""
Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def shell(t2i_env: dict[str, str], tmp_path: Path) -> Shell:
    """Runs a line of sh in which `t2i` is this program."""

    def run(line: str, **env: str) -> subprocess.CompletedProcess[str]:
        script = f't2i() {{ "{sys.executable}" -m t2i_cli "$@"; }}\n{line}'
        return subprocess.run(
            ["sh", "-c", script],
            env=t2i_env | env,
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
            check=False,
        )

    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_the_help_of_every_command(t2i_env: dict[str, str], tmp_path: Path, fault: str) -> None:
    (tmp_path / "all.py").write_text(HELP_OF_ALL)
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" all.py {fault}'],
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes = (tmp_path / "codes.txt").read_text().split()
    assert len(codes) > 25
    assert set(codes) == {str(FAULTS[fault])}
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("fault", list(FAULTS)[3:])
def test_commands_with_a_result(shell: Shell, tmp_path: Path, fault: str) -> None:
    text = PngInfo()
    settings = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8x8"
    text.add_text("parameters", f"a red star\n{settings}")
    Image.new("RGB", (8, 8)).save(tmp_path / "star.png", pnginfo=text)
    commands = ("config list", "models list", "models show postcard", "inspect star.png --json")
    lines = [f"t2i {command} {fault}; echo $? >> codes.txt" for command in commands]
    lines.append(f"t2i no-such-command {fault}; echo $? >> codes.txt")
    done = shell("\n".join(lines))
    codes = (tmp_path / "codes.txt").read_text().split()
    assert codes == [str(FAULTS[fault])] * len(commands) + ["2"], done.stderr
    assert "Traceback" not in done.stderr


def test_a_picture_is_made_with_every_stream_closed(shell: Shell, tmp_path: Path) -> None:
    made = "t2i generate 'a red star' -m postcard --steps 2 --seed 1 -o"
    done = shell(f"{made} a.png <&- >&- 2>&-; echo $?; {made} - >&-; echo $?; ls")
    assert done.stdout.split() == ["0", "2", "a.png", "home"]
    assert "Standard output is closed." in done.stderr
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.size == (128, 128)


def test_a_batch_ends_at_a_full_output_and_keeps_what_is_made(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    done = shell("t2i batch p.txt -m postcard --steps 2 -o images > /dev/full")
    assert done.returncode == 11, done.stderr
    assert "Cannot write to standard output: No space left on device." in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "images").glob("*.png"))) >= 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_an_encoding_lacks_is_escaped(shell: Shell, tmp_path: Path, encoding: str) -> None:
    show = f"t2i generate '{PROMPTS[0]}' -m 'é☆/{PROMPTS[1]}'"
    done = shell(
        f"{show} --json 2> error.json; {show} 2> error.txt; "
        f"t2i inspect 'é☆.png' --json 2> inspect.json; t2i config set output '☆/é/🌟' 2> set.txt; "
        "t2i config get output > get.txt 2> told.txt; t2i config get output --json > get.json",
        PYTHONIOENCODING=encoding,
    )
    assert done.returncode == 0, done.stderr

    def read(name: str) -> str:
        return (tmp_path / name).read_bytes().decode(encoding)

    assert "é☆/a 赤い star 🌟" in json.loads(read("error.json"))["error"]["message"]
    assert "\\u2606/a \\u8d64\\u3044 star \\U0001f31f" in read("error.txt")
    assert "é☆.png" in json.loads(read("inspect.json"))["error"]["message"]
    assert json.loads(read("get.json"))["value"] == "☆/é/🌟"
    assert read("get.txt").startswith("\\u2606/")
    assert read("told.txt").count("are escaped on standard output") == 1
    assert all("Traceback" not in read(name) for name in ("error.txt", "set.txt", "told.txt"))


def test_a_batch_where_names_are_not_utf_8(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    (tmp_path / "named.jsonl").write_text('{"prompt": "a star", "name": "caf\\u00e9.png"}\n')
    done = shell(
        "t2i batch p.txt -m postcard --steps 2 --events -o images 2> events.txt; echo $?; "
        "t2i batch named.jsonl -m postcard -o other --dry-run; echo $?",
        LC_ALL="C",
        PYTHONCOERCECLOCALE="0",
        PYTHONUTF8="0",
    )
    assert done.stdout.split() == ["0", "2"], done.stderr
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    lines = (tmp_path / "events.txt").read_text("ascii").splitlines()
    events = [json.loads(line) for line in lines]
    assert {"error", "log"}.isdisjoint(event["event"] for event in events)
    assert "the encoding of file names on this system, ascii, lacks" in done.stderr


def test_input_that_is_no_text_is_refused(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x80key\n")
    (tmp_path / "p").touch()
    done = shell(
        "t2i config set http_api_key - < bytes; echo $?; t2i login --token-stdin < bytes; echo $?; "
        "t2i generate - -m postcard < bytes; echo $?; t2i generate - -m postcard <&-; echo $?; "
        "t2i config set http_api_key - 0> p; echo $?; t2i batch - -m postcard 0> p; echo $?"
    )
    assert done.stdout.split() == ["2"] * 6, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Cannot read standard input: Bad file descriptor.") == 2


def test_a_server_whose_address_cannot_be_printed_ends(t2i_env: dict[str, str], t2i: T2I) -> None:
    serve = [sys.executable, "-m", "t2i_cli", "serve", "-m", "postcard", "--port", "0"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            serve, env=t2i_env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 11
    assert "error: Cannot write to standard output: No space left on device.\n" in done.stderr
    assert "Traceback" not in done.stderr
