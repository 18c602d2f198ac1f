"""Sends signals to the worker's process, after verifying that its process id was not reused."""

import hashlib
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TOKEN_VARIABLE = "T2I_WORKER_TOKEN"  # noqa: S105 - the name of a variable
"""Passes the token to the worker; its command line, which anyone can read, has the digest only."""
_WORKER_MODULE = re.compile(r"t2i_cli(\.\w+)+")
"""A word of every worker's command line: `python -m t2i_cli.worker.daemon`."""
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
    Without `started` and `token`, in the state of an earlier version, it is the worker if it runs
    a module of t2i and has the `lock` file open.
    """
    if pid <= 1 or pid == os.getpid():
        return False
    with _open_pidfd(pid) as pidfd:
        if pidfd is None:
            return False
        is_worker = (
            _is_worker(pid, started, token) if started and token else _is_legacy_worker(pid, lock)
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


def _is_legacy_worker(pid: int, lock: Path) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        return any(_WORKER_MODULE.fullmatch(word) for word in process.cmdline()) and any(
            os.path.samefile(opened.path, lock) for opened in process.open_files()
        )
    except (psutil.Error, OSError):
        return False
