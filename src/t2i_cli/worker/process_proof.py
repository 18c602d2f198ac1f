"""Sends signals to the worker's process, after verifying that its process id was not reused."""

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TOKEN_VARIABLE = "T2I_WORKER_TOKEN"  # noqa: S105 - the name of a variable
"""Passes the token to the worker; its command line, which anyone can read, has the digest only."""
_START_TOLERANCE = 2.0
"""Seconds by which two readings of a process's start time may differ."""


def token_digest(token: str) -> str:
    """SHA-256 of the token, in hex; part of the worker's command line."""
    return hashlib.sha256(token.encode()).hexdigest()


def start_time(pid: int) -> float:
    """A process's start in seconds since boot, so that setting the clock does not change it.

    Raises psutil.Error.
    """
    import psutil

    return float(psutil.Process(pid).create_time() - psutil.boot_time())


def send_signal(
    number: int, pid: int, started: float | None, token: str | None, lock: Path
) -> bool:
    """Send a signal if process `pid` is the worker; return whether it was sent.

    It is the worker if it started when the worker did and its command line has the token's digest.
    Without `started` and `token`, in the state of an earlier version, it is the worker if it has
    the `lock` file open.
    """
    if pid <= 1 or pid == os.getpid():
        return False
    with _open_pidfd(pid) as pidfd:
        if pidfd is None:
            return False
        is_worker = (
            _is_worker(pid, started, token) if started and token else _has_file_open(pid, lock)
        )
        if is_worker:
            with suppress(ProcessLookupError):
                if pidfd < 0:
                    os.kill(pid, number)
                else:
                    signal.pidfd_send_signal(pidfd, number)
        return is_worker


@contextmanager
def _open_pidfd(pid: int) -> Iterator[int | None]:
    """A pidfd: it refers to this process even if its id is reused.

    None if there is no such process, -1 if the system has no pidfds.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError):
        yield None
    except (AttributeError, OSError):
        yield -1
    else:
        try:
            yield pidfd
        finally:
            os.close(pidfd)


def _is_worker(pid: int, started: float, token: str) -> bool:
    import psutil

    try:
        return abs(start_time(pid) - started) < _START_TOLERANCE and any(
            token_digest(token) in word for word in psutil.Process(pid).cmdline()
        )
    except psutil.Error:
        return False


def _has_file_open(pid: int, file: Path) -> bool:
    import psutil

    try:
        return any(
            os.path.samefile(opened.path, file) for opened in psutil.Process(pid).open_files()
        )
    except (psutil.Error, OSError):
        return False
