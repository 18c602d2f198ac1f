"""Starts a `t2i` process that a test interrupts or kills."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.fakes.vertex import FakeVertex


@contextmanager
def running(
    t2i_env: dict[str, str], vertex: FakeVertex, *args: str
) -> Iterator["subprocess.Popen[str]"]:
    """A `t2i` process in a session of its own, ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "t2i_cli", *args],
        env=t2i_env | vertex.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(reached: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Wait until the condition holds or the process has ended."""
    end = time.monotonic() + 120
    while not reached() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
