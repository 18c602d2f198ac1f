"""Starts a `t2i` process that a test interrupts, kills, or watches on a terminal."""

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

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


def watched(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    typed: Sequence[tuple[str, str]] = (),
    piped: bool = True,
) -> tuple[int, str, str]:
    """Run a command on a terminal; its exit code, stdout, and what the terminal was sent.

    Of `typed`, the second text of each pair is typed when the first has come. Standard output is a
    pipe if `piped`, else the terminal as well.
    """
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (30, 100))
    process = subprocess.Popen(
        command,
        env={**env, "TERM": "xterm"},
        cwd=cwd,
        stdin=child,
        stdout=subprocess.PIPE if piped else child,
        stderr=child,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(child)
    seen, keys, searched = b"", list(typed), 0
    with suppress(OSError):  # Linux's way to tell that the other side is gone
        while select.select([parent], [], [], 60)[0] and (piece := os.read(parent, 4096)):
            seen += piece
            if keys and keys[0][0].encode() in seen[searched:]:
                searched = len(seen)
                os.write(parent, keys.pop(0)[1].encode())
    os.close(parent)
    output = process.stdout.read().decode() if process.stdout else ""
    if process.stdout:
        process.stdout.close()
    return process.wait(60), output, seen.decode()
