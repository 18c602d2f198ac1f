"""A `t2i` that the tests fork is the one that they would start: its streams, codes and signals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LONG_FILES, Starter

FRESH = [sys.executable, "-m", "t2i_cli"]


@pytest.fixture
def command(t2i_starter: Starter, t2i_env: dict[str, str]) -> list[str]:
    """What starts a fork here."""
    found = t2i_starter.command(t2i_env)
    if found == FRESH:
        pytest.skip("T2I_TEST_FRESH is set, or this system has no pidfd.")
    return found


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("generate", "-", "-m", "postcard", "--dry-run", "--json", "-s", "1"), 0),
        (("generate", "x", "--no-such-option"), 2),
    ],
)
def test_a_fork_says_what_a_process_of_its_own_says(
    command: list[str],
    t2i_env: dict[str, str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
) -> None:
    said = [
        subprocess.run(
            [*start, *arguments],
            env=t2i_env,
            cwd=tmp_path,
            input="a red star",
            capture_output=True,
            text=True,
            check=False,
        )
        for start in (command, FRESH)
    ]
    assert [one.returncode for one in said] == [code, code]
    # What is free of memory changes from one to the next.
    plans = [json.loads(one.stdout)["requests"] for one in said] if code == 0 else [0, 0]
    assert plans[0] == plans[1]
    assert said[0].stderr == said[1].stderr


def test_signals_reach_it_and_it_ends_with_its_caller(
    command: list[str], t2i_env: dict[str, str], tmp_path: Path
) -> None:
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        # It says that it loads when it runs, and is at it for longer than a signal takes.
        with subprocess.Popen(
            [*command, *("generate", "a red star", "-m", "postcard", "--steps", "1000")],
            env=t2i_env,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stderr is not None
            assert process.stderr.read(7) == b"loading"
            process.send_signal(number)
            process.stderr.read()  # to its end: the command has closed it, too
            assert process.wait(60) == code


def test_variables_that_python_or_torch_read_first_start_it_afresh(
    t2i_starter: Starter, t2i_env: dict[str, str]
) -> None:
    for name in ("OMP_NUM_THREADS", "PYTHONWARNINGS", "TORCH_LOGS", "HTTPS_PROXY", "NO_COLOR"):
        assert t2i_starter.command(t2i_env | {name: "2"}) == FRESH
    without = {name: value for name, value in t2i_env.items() if name != "OMP_NUM_THREADS"}
    assert t2i_starter.command(without) == FRESH


def test_the_long_files_are_there() -> None:
    names = os.listdir(Path(__file__).parent)
    assert set(LONG_FILES) <= set(names)
