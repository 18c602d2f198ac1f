"""The command of an image in the gallery: a shell runs it, and it makes the same pixels."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from t2i_cli.batch.generate_command import generate_command
from tests.conftest import T2I

STRANGE = [
    """it's "a" $(touch pwned) `touch pwned` star; touch pwned & !! \\ \\n {a|b} *""",
    "two\nlines\tand a tab",
    "-rf --help",
    "\u202eright to left \u05d0\u05d1 * ? ~ #",
]
RUN_ALL = """
import json, sys
from t2i_cli.cli import main as cli
for arguments in json.load(sys.stdin):
    assert cli._run(arguments) == 0, arguments
"""


def line(**values: object) -> dict[str, object]:
    """A manifest's line."""
    return {"status": "done", "file": "1.png", "request": {"prompt": "a star"}} | values


def shell_arguments(command: str, folder: Path) -> list[str]:
    """What a POSIX shell passes to t2i."""
    tool = folder / "bin" / "t2i"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text("#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done\n")
    tool.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env={"PATH": f"{tool.parent}:{os.environ['PATH']}"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split("\0")[:-1]


def test_the_gallerys_commands_make_the_same_pixels(
    t2i: T2I, t2i_env: dict[str, str], tmp_path: Path
) -> None:
    rows = [{"prompt": prompt, "seed": n, "steps": 2} for n, prompt in enumerate(STRANGE)]
    rows[0] |= {"negative_prompt": "it's a circle", "width": 64, "guidance_scale": 3.5}
    rows[1] |= {"negative_prompt": "", "scheduler": "euler"}
    rows[2] |= {"loras": "snow:0.5"}
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loras = Path(__file__).parent / "adapters"
    made = t2i(
        *("batch", "p.jsonl", "-m", "postcard", "-o", "out", "--strict", "--lora-dir", loras)
    )
    assert made.returncode == 0, made.stderr
    found = re.search(r"^const entries = (.*);$", (tmp_path / "out/index.html").read_text(), re.M)
    assert found is not None
    entries = json.loads(found[1])
    runs = [shell_arguments(" ".join(entry["command"]), tmp_path) for entry in entries]
    assert not (tmp_path / "pwned").exists()
    commands = [[*run, "-o", f"again-{n}.png"] for n, run in enumerate(runs)]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps(commands),
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for number, entry in enumerate(entries):
        assert entry["prompt"] == STRANGE[number]
        with (
            Image.open(tmp_path / "out" / entry["file"]) as first,
            Image.open(tmp_path / f"again-{number}.png") as second,
        ):
            assert first.size == second.size
            assert (
                ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getbbox() is None
            )


def test_a_prompt_that_is_a_hyphen_comes_from_standard_input(
    t2i_env: dict[str, str], tmp_path: Path
) -> None:
    command = generate_command(line(request={"prompt": "-", "model": "postcard", "seed": 3}))
    assert command is not None
    done = subprocess.run(
        ["/bin/sh", "-c", " ".join([*command, "--dry-run", "--json"])],
        env=t2i_env | {"PATH": f"{Path(sys.executable).parent}:{t2i_env['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["requests"][0]["prompt"] == "-"


def test_what_made_the_image_is_in_the_command() -> None:
    lock = {"backend": "local", "device": "cuda:0", "dtype": "float16", "endpoint": None}
    request = {"prompt": "a star", "model": "o/n", "revision": "a" * 40, "seed": 0, "steps": None}
    assert generate_command(line(request=request, lock=lock, file="a/1.JPG")) == [
        *("t2i", "generate", "'a star'", "--model", "o/n", "--revision", "a" * 40, "--seed", "0"),
        *("--device", "cuda:0", "--dtype", "float16", "--format", "jpeg"),
    ]
    alone: dict[str, object] = {"device": "cpu", "threads": 1, "batch_size": 1}
    of_one_thread = ["t2i", "generate", "'a star'", "--device", "cpu", "--strict"]
    assert generate_command(line(lock=alone)) == of_one_thread
    for other in ({"threads": 2}, {"batch_size": 2}, {"threads": None}):
        assert generate_command(line(lock=alone | other)) == of_one_thread[:-1]
    lock = {"backend": "http", "endpoint": "http://127.0.0.1:1/v1", "device": None}
    assert generate_command(line(lock=lock)) == [
        *("t2i", "generate", "'a star'", "--backend", "http", "--url", "http://127.0.0.1:1/v1"),
    ]
    lock = {"backend": "hf", "endpoint": "https://router.huggingface.co/fal-ai"}
    assert generate_command(line(lock=lock)) == [
        *("t2i", "generate", "'a star'", "--backend", "hf", "--provider", "fal-ai"),
    ]
    lock = {"backend": "vertex", "endpoint": "projects/1/endpoints/2"}
    assert generate_command(line(lock=lock, file="1.webp")) == [
        *("t2i", "generate", "'a star'", "--backend", "vertex"),
        *("--endpoint", "projects/1/endpoints/2", "--format", "webp"),
    ]


@pytest.mark.parametrize(
    "request_",
    [
        None,
        {},
        {"prompt": None},
        {"prompt": ""},
        {"prompt": "escape \x1b[2J"},
        {"prompt": "one\rtwo"},
        {"prompt": "a", "steps": "4; touch pwned"},
        {"prompt": "a", "steps": True},
        {"prompt": "a", "steps": 0},
        {"prompt": "a", "seed": [1]},
        {"prompt": "a", "scheduler": "no such"},
        {"prompt": "a", "a field of a newer version": 1},
    ],
)
def test_a_record_that_is_no_request_has_no_command(request_: object) -> None:
    assert generate_command(line(request=request_)) is None


def test_a_damaged_lock_adds_nothing() -> None:
    for lock in ("x", {"backend": 1, "device": ["a"]}, {"device": "\x1b", "dtype": None}):
        assert generate_command(line(lock=lock)) == ["t2i", "generate", "'a star'"]
