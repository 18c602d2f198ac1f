"""Batches in processes that are killed, run out of disk, or may not write: nothing lost, ever."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from t2i_cli.batch import manifest
from tests.amounts import full

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
SOURCE = Path(__file__).parent.parent
IMAGES = 60
KILLS = pytest.mark.parametrize("kills", [5, full(100)])

FORKING = """
import json, os, sys
import torch, diffusers, transformers
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel
from t2i_cli.cli import main as cli
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        sys.argv = ["t2i", *order["args"]]
        handle = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        cli.main()
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs `t2i` again and again as new processes that need not import torch each time."""


def prompts(folder: Path, count: int = IMAGES) -> Path:
    """A file of as many prompts as there are to be images; after the first 60 they come again."""
    path = folder / "prompts.txt"
    colours = ["red", "blue", "green", "yellow", "purple", "orange"]
    shapes = ["circle", "square", "star", "heart", "triangle"]
    lines = [
        f"a {c} {s} on a {b} background"
        for c in colours
        for s in shapes
        for b in ("white", "black")
    ]
    path.write_text("\n".join(itertools.islice(itertools.cycle(lines), count)))
    return path


def images(folder: Path) -> dict[str, bytes]:
    """Every image by its name."""
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def assert_whole(folder: Path, expected: Mapping[str, bytes]) -> None:
    """The folder holds exactly the images, a done line for each, and nothing unfinished."""
    assert images(folder) == expected
    lines = [record for record in manifest.read_records(folder / manifest.MAIN_MANIFEST) if record]
    assert sorted(str(line["file"]) for line in lines if line["status"] == "done") == sorted(
        expected
    )
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left - expected.keys() == {"manifest.jsonl", "index.html", ".t2i/lock"}


@pytest.fixture
def env(t2i_env: dict[str, str]) -> dict[str, str]:
    """The isolated environment, from which the tests' own modules can be imported."""
    return t2i_env | {"PYTHONPATH": str(SOURCE)}


def paint(source: Path, folder: Path | str, *args: str) -> list[str]:
    """The command of a painting process; the folder may be a URL."""
    return [sys.executable, "-m", "tests.fakes.batch_process", str(source), str(folder), *args]


def kill_at_random(
    command: list[str],
    env: Mapping[str, str],
    cwd: Path,
    kills: int,
    chance: random.Random,
    longest: float,
) -> None:
    """Start a painting process again and again, and kill each within `longest` s of a step.

    Counted from the first step: imports are not what is to be hit. Of half at least the work must
    not be over before.
    """
    killed = 0
    for _ in range(kills):
        process = subprocess.Popen(
            command, env=dict(env), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=cwd
        )
        assert process.stderr is not None
        while (line := process.stderr.readline()) and json.loads(line)["event"] != "step":
            pass
        time.sleep(chance.uniform(0, longest))
        process.kill()
        process.wait()
        process.stderr.close()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= kills // 2


@KILLS
def test_killed_at_random_moments_ends_as_undisturbed(
    env: dict[str, str], tmp_path: Path, kills: int
) -> None:
    count = 3 * kills
    source = prompts(tmp_path, count)
    quick, slow = env | {"PAUSE": "0"}, env | {"PAUSE": "0.02"}
    calm = paint(source, tmp_path / "calm", "--json")
    subprocess.run(calm, env=quick, check=True, capture_output=True, cwd=tmp_path)
    expected = images(tmp_path / "calm")
    assert len(expected) == count
    out = tmp_path / "out"
    command = paint(source, out, "--events")
    kill_at_random(command, slow, tmp_path, kills, random.Random(1), 0.08)  # noqa: S311
    done = subprocess.run(
        paint(source, out, "--json"), env=quick, check=True, capture_output=True, cwd=tmp_path
    )
    assert json.loads(done.stdout)["done"] == count
    assert_whole(out, expected)


@pytest.fixture
def forking(env: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has imported torch and forks `t2i`."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.stdin.close()
    process.stdout.close()
    process.wait()


@KILLS
def test_postcards_killed_at_random_moments_end_as_undisturbed(
    forking: subprocess.Popen[str], tmp_path: Path, kills: int
) -> None:
    assert forking.stdin is not None
    assert forking.stdout is not None
    count = 3 * kills
    source, log = prompts(tmp_path, count), tmp_path / "log"

    def start(folder: str) -> int:
        args = ["batch", str(source), "-m", "postcard", "--steps", "2", "--strict", "--events"]
        log.unlink(missing_ok=True)
        order = {"args": [*args, "--json", "-o", folder], "log": str(log)}
        assert forking.stdin is not None
        assert forking.stdout is not None
        forking.stdin.write(json.dumps(order) + "\n")
        forking.stdin.flush()
        return int(forking.stdout.readline())

    def ended() -> int:
        assert forking.stdout is not None
        return int(forking.stdout.readline())

    start("calm")
    assert ended() == 0, log.read_text()
    expected = images(tmp_path / "calm")
    assert len(expected) == count
    chance = random.Random(2)  # noqa: S311
    killed = 0
    for _ in range(kills):
        child = start("out")
        # Counted in images and not in time, so that a busy machine is hit as far along.
        before = chance.randrange(4)
        while not log.exists() or (
            ('"step"' not in (text := log.read_text()) or text.count('"event": "image"') < before)
            and '"finished"' not in text
            and '"error"' not in text
        ):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        killed += ended() == -signal.SIGKILL
    assert killed >= kills // 2
    start("out")
    assert ended() == 0, log.read_text()
    assert_whole(tmp_path / "out", expected)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A small file system; the test is skipped where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "t2i-test", str(folder)]
    if not ROOT or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_disk_full_in_the_middle_then_space_and_again(env: dict[str, str], tmp_path: Path) -> None:
    source = prompts(tmp_path)
    subprocess.run(
        paint(source, tmp_path / "calm"), env=env, check=True, capture_output=True, cwd=tmp_path
    )
    expected = images(tmp_path / "calm")
    with mounted(tmp_path / "small", "160k") as small:
        out = small / "out"
        command = paint(source, out, "--json")
        full = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        assert full.returncode == 8, full.stderr
        assert "No space left on device" in full.stderr
        account = json.loads(full.stdout)
        assert (account["exit"], account["images"]) == (8, IMAGES)
        made = images(out)
        # An image that the manifest had no room for is none.
        assert 0 < account["done"] <= len(made) < IMAGES
        assert account["done"] + account["failed"] + account["left"] == IMAGES
        assert made.items() <= expected.items()
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        again = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["done"] == IMAGES
        assert_whole(out, expected)


def test_folder_made_read_only_is_refused_and_gone_on_with_later(
    env: dict[str, str], tmp_path: Path
) -> None:
    source = prompts(tmp_path)
    with mounted(tmp_path / "small", "4m") as small:
        out = small / "out"
        process = subprocess.Popen(
            paint(source, out, "--events"),
            env=env | {"PAUSE": "0.05"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
        )
        assert process.stderr is not None
        while (line := process.stderr.readline()) and json.loads(line)["event"] != "image":
            pass
        process.kill()
        process.wait()
        process.stderr.close()
        before = images(out)
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        command = paint(source, out, "--json")
        refused = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        assert refused.returncode == 2, refused.stderr
        assert "Read-only file system" in refused.stderr
        assert images(out) == before
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
        again = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert len(images(out)) == IMAGES
        assert before.items() <= images(out).items()


@pytest.mark.parametrize(
    ("signals", "number", "code"),
    [
        (1, signal.SIGINT, 130),
        (2, signal.SIGINT, 130),
        (1, signal.SIGTERM, 143),
        (2, signal.SIGTERM, 143),
    ],
)
def test_signals_end_the_process_with_nothing_torn(
    env: dict[str, str], tmp_path: Path, signals: int, number: int, code: int
) -> None:
    source, out = prompts(tmp_path), tmp_path / "out"
    calm = paint(source, tmp_path / "calm")
    subprocess.run(calm, env=env, check=True, capture_output=True, cwd=tmp_path)
    process = subprocess.Popen(
        paint(source, out, "--events"),
        # Twice, it must not wait for the image in hand.
        env=env | {"PAUSE": "0.05" if signals == 1 else "30"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stderr is not None
    while (line := process.stderr.readline()) and json.loads(line)["event"] != "step":
        pass
    began = time.monotonic()
    for _ in range(signals):
        process.send_signal(number)
        time.sleep(0.2)
    events = [json.loads(line) for line in process.stderr.read().splitlines()]
    process.stderr.close()
    assert process.wait() == code
    assert time.monotonic() - began < 25
    assert events[-1]["error"]["exit"] == code
    assert events[-1]["error"]["hint"].startswith("Run the same command again")
    made = images(out)
    assert len(made) == (events[-2]["done"] if signals == 1 else 0)
    assert events[-2]["done"] >= (signals == 1)
    assert made.items() <= images(tmp_path / "calm").items()
    assert_whole(out, made)
