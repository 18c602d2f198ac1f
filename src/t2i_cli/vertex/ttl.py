"""What keeps an endpoint of one command from outliving it: its TTL, and an end left in peace."""

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
def terminate_at(expires: float, rest: GoogleClient, console: Console) -> Iterator[None]:
    """End the block as SIGTERM would, once the TTL is over."""

    def end() -> None:
        console.warn("The TTL of the endpoint is over.")
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(min(max(0.0, expires - rest.server_time()), threading.TIMEOUT_MAX), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def ignore_signals(console: Console) -> Iterator[None]:
    """Let nothing interrupt the removal: what is left half removed is paid for."""

    def refuse(number: int, _frame: FrameType | None) -> None:
        console.warn("The endpoint is being removed; please wait. Until then it is paid for.")

    with operations.block_signals():
        before = {number: signal.signal(number, refuse) for number in signals.termination_signals()}
    try:
        yield
    finally:
        with operations.block_signals():
            for number, handler in before.items():
                signal.signal(number, handler)
