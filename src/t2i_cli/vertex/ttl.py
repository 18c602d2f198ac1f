"""Enforces an ephemeral endpoint's TTL; ignores signals while it is deleted."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from t2i_cli import signals
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import operations
from t2i_cli.vertex.client import GoogleClient


@contextmanager
def terminate_at(expires: float, client: GoogleClient, console: Console) -> Iterator[None]:
    """Send SIGTERM to this process at `expires` (unix seconds) if the block is still running."""

    def terminate() -> None:
        console.warn("The TTL of the endpoint is over.")
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(
        min(max(0.0, expires - client.server_time()), threading.TIMEOUT_MAX), terminate
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def ignore_signals(console: Console) -> Iterator[None]:
    """Ignore termination signals: a half-deleted endpoint still costs money."""

    def warn_busy(number: int, _frame: FrameType | None) -> None:
        console.warn("The endpoint is being removed; please wait. Until then it is paid for.")

    with operations.block_signals():
        before = {
            number: signal.signal(number, warn_busy) for number in signals.termination_signals()
        }
    try:
        yield
    finally:
        with operations.block_signals():
            for number, handler in before.items():
                signal.signal(number, handler)
