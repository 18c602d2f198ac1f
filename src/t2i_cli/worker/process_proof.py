"""Signals to the worker's process, and to no other that has its process id by now."""

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TOKEN_VARIABLE = "T2I_WORKER_TOKEN"  # noqa: S105 - the name of a variable
"""How a worker is handed its token; anyone may read a command line, which has its proof only."""
_SAME = 2.0
"""Seconds by which two readings of a process's start may differ."""


def token_digest(token: str) -> str:
    """What a worker's command line has of its token: a hash, which gives nothing of it away."""
    return hashlib.sha256(token.encode()).hexdigest()


def start_time(pid: int) -> float:
    """When a process began, in seconds from the system's start: setting the clock changes nothing.

    Raises psutil.Error.
    """
    import psutil

    return float(psutil.Process(pid).create_time() - psutil.boot_time())


def send_signal(number: int, pid: int, began: float | None, token: str | None, lock: Path) -> bool:
    """Send a signal if the process is the worker that says so of itself; whether it was sent.

    It began when the worker did, and has the proof of its token in its command line. What a version
    before these wrote has neither: its worker is the process that has its lock file open.
    """
    if pid <= 1 or pid == os.getpid():
        return False
    with _process(pid) as handle:
        if handle is None:
            return False
        ours = _is_worker(pid, began, token) if began and token else _has_open(pid, lock)
        if ours:
            with suppress(ProcessLookupError):
                if handle < 0:
                    os.kill(pid, number)
                else:
                    signal.pidfd_send_signal(handle, number)
        return ours


@contextmanager
def _process(pid: int) -> Iterator[int | None]:
    """A descriptor that stands for the process however its id is used again.

    None if there is no such process, -1 where the system has no such descriptors.
    """
    try:
        handle = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError):
        yield None
    except (AttributeError, OSError):
        yield -1
    else:
        try:
            yield handle
        finally:
            os.close(handle)


def _is_worker(pid: int, began: float, token: str) -> bool:
    import psutil

    try:
        return abs(start_time(pid) - began) < _SAME and any(
            token_digest(token) in word for word in psutil.Process(pid).cmdline()
        )
    except psutil.Error:
        return False


def _has_open(pid: int, file: Path) -> bool:
    import psutil

    try:
        return any(os.path.samefile(one.path, file) for one in psutil.Process(pid).open_files())
    except (psutil.Error, OSError):
        return False
