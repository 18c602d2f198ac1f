"""What a person sees while images are made: on a terminal, and in lines elsewhere."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2i_cli.events import Downloading, Loaded, Loading, RequestSent, Step
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.progress import Progress
from tests.processes import watched

ROOT = Path(__file__).parent.parent
BATCH = [sys.executable, "-m", "tests.fakes.batch_process", "p.txt", "out"]
IMAGES = 9


@pytest.fixture
def env(t2i_env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Of processes in a folder with the prompts of nine images, in passes of three."""
    (tmp_path / "p.txt").write_text("\n".join(f"a red star {n}" for n in range(IMAGES)))
    return t2i_env | {"PYTHONPATH": str(ROOT), "PASS": "3"}


def screen(text: str, width: int = 100) -> list[str]:
    """The lines of a terminal that was sent the text; understands what rich sends."""
    lines: list[str] = [""]
    row = column = 0
    for code, plain in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", text):
        if code == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif code == "\r":
            column = 0
        elif code.endswith("A"):
            row -= int(code[2:-1] or 1)
        elif code.endswith("K"):
            lines[row] = ""
        elif plain:
            lines[row] = (
                lines[row][:column].ljust(column) + plain + lines[row][column + len(plain) :]
            )
            column += len(plain)
    return [line.rstrip() for line in lines]


def stop_after(
    env: dict[str, str], tmp_path: Path, sign: str, *options: str, number: int = signal.SIGINT
) -> Iterator[tuple[float, str]]:
    """Seconds after the signal, sent when `sign` is on stderr, and the line; the code at last."""
    process = subprocess.Popen(
        [*BATCH, *options],
        env=env,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    sent = 0.0
    with process.stderr:
        for line in process.stderr:
            if sent:
                yield time.monotonic() - sent, line.rstrip()
            elif sign in line:
                process.send_signal(number)
                sent = time.monotonic()
    yield time.monotonic() - sent, str(process.wait(60))


def test_ctrl_c_says_at_once_what_is_finished_and_what_a_second_one_does(
    env: dict[str, str], tmp_path: Path
) -> None:
    code, _, text = watched(
        BATCH,
        env=env | {"PAUSE": "1.5"},
        cwd=tmp_path,
        typed=[("3 of 9", ""), ("3 images, step 1 of 2", "\x03")],
    )
    assert code == 130
    shown = screen(text)
    (said,) = [line for line in shown if line.startswith("finishing")]
    assert re.fullmatch(
        r"finishing 3 images of this pass, about [\d.]+ s; Ctrl-C again stops now", said
    )
    assert "6 of 9 images are done, 3 left" in "\n".join(shown)
    assert len(list((tmp_path / "out").glob("*.png"))) == 6


def test_second_ctrl_c_stops_now(env: dict[str, str], tmp_path: Path) -> None:
    began = time.monotonic()
    code, _, text = watched(
        BATCH,
        env=env | {"PAUSE": "50"},
        cwd=tmp_path,
        typed=[("3 images, step 1 of 2", "\x03"), ("stops now", "\x03")],
    )
    assert code == 130
    assert time.monotonic() - began < 40
    # How long a pass takes is not known yet.
    assert "finishing 3 images of this pass; Ctrl-C again stops now" in screen(text)


@pytest.mark.parametrize("option", ["--events", "-q", "--json"])
def test_the_answer_is_an_event_or_is_left_out(
    env: dict[str, str], tmp_path: Path, option: str
) -> None:
    sign = '"step"' if option == "--events" else "warning"
    # The first row fails, which is told with -q, too.
    (tmp_path / "p.txt").write_text("a bug\n" + "a red star\n" * 5)
    told = list(stop_after(env | {"PAUSE": "1", "PASS": "1"}, tmp_path, sign, option))
    assert told[-1][1] == "130"
    lines = [line for _, line in told[:-1]]
    if option == "--events":
        events = [json.loads(line) for line in lines]
        lines = [event["message"] for event in events if event["event"] == "note"]
    # After a failure no image may be in progress yet.
    said = [line for line in lines if line.startswith(("finishing 1 image of this", "stopping:"))]
    assert len(said) == (option != "-q")


def test_a_model_that_loads_for_minutes_does_not_hold_up_the_end(
    env: dict[str, str], tmp_path: Path
) -> None:
    told = list(stop_after(env | {"LOAD": "300"}, tmp_path, "loading stub on cpu"))
    assert told[0][1] == "stopping: no image is in progress"
    assert told[-1][1] == "130"
    assert told[-1][0] < 30


def test_another_signal_is_named_as_it_is(env: dict[str, str], tmp_path: Path) -> None:
    told = list(
        stop_after(env | {"PAUSE": "1"}, tmp_path, '"step"', "--events", number=signal.SIGTERM)
    )
    assert "the same signal again stops now" in told[0][1]
    assert told[-1][1] == "143"


def test_loading_is_a_spinner_that_leaves_one_line(env: dict[str, str], tmp_path: Path) -> None:
    code, output, text = watched(BATCH, env=env | {"LOAD": "0.7"}, cwd=tmp_path, piped=False)
    assert (code, output) == (0, "")
    frames = set(re.findall(r"([^\s]) loading stub on cpu", text))
    assert len(frames) > 2, "it turns"
    shown = screen(text)
    assert [line for line in shown if "loading" in line] == []
    assert shown.count("loaded stub on cpu in 0.7 s") == 1
    # Nothing that was printed meanwhile is erased.
    assert len([line for line in shown if line.endswith(".png")]) == IMAGES
    assert shown[-2].startswith("9 of 9 images are done; 9 made in ")


def test_loading_is_a_line_elsewhere(env: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        BATCH, env=env | {"LOAD": "0.3"}, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("loading stub on cpu\n") == 1
    assert "loaded" not in done.stderr
    assert "\x1b" not in done.stderr
    code, _, text = watched([*BATCH, "-q"], env=env | {"LOAD": "0.3"}, cwd=tmp_path)
    assert (code, text) == (0, "")


def test_several_images_of_generate_show_the_whole(t2i_env: dict[str, str], tmp_path: Path) -> None:
    code, output, text = watched(
        [
            *(sys.executable, "-m", "t2i_cli", "generate", "a red star", "-m", "postcard"),
            *("--steps", "10", "-n", "3", "-o", "{index}.png"),
        ],
        env=t2i_env,
        cwd=tmp_path,
    )
    assert (code, output.split()) == (0, ["1.png", "2.png", "3.png"])
    assert "0 of 3" in text
    assert "image 1-2 of 3" in text
    assert "image 3 of 3" in text
    assert re.search("[^\\s] loading postcard on cpu", text)
    shown = [line for line in screen(text) if line]
    assert re.fullmatch(r"loaded postcard on cpu in [\d.]+ s", shown[0])
    assert re.fullmatch(r"3 images in [\d.]+ s", shown[1])


def test_plain_lines_tell_the_whole_and_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress(Console(), 30) as progress:
        progress(Downloading(model="m", done=5_000_000, total=5_000_000))
        progress(Loading(model="m", device="cpu"))
        now += 60
        progress(Loaded(model="m", device="cpu", seconds=60))
        for index in range(3):
            for step in (1, 2):
                now += 5
                progress(Step(indices=(index,), step=step, steps=2))
            progress.finish_image(index)
    assert capsys.readouterr().err.splitlines() == [
        "downloading m: 5 of 5 MB",
        "loading m on cpu",
        "image 1 of 30: step 2 of 2, 0.2 steps/s, 0 s left",
        "image 2 of 30: step 2 of 2; 1 of 30, 10.0 s an image, 5 min left",
        "image 3 of 30: step 2 of 2; 2 of 30, 10.0 s an image, 5 min left",
    ]


def test_images_of_a_server_without_steps_are_counted_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress(Console(), 4) as progress:
        for index in range(4):
            progress(RequestSent(indices=(index,)))
        for index in range(4):
            now += 3
            progress.finish_image(index)
    assert capsys.readouterr().err.splitlines() == [
        "waiting for the server",
        "1 of 4, 1.3 images/s, 2 s left",
        "2 of 4, 1.3 images/s, 2 s left",
        "3 of 4, 1.3 images/s, 0.8 s left",
    ]
