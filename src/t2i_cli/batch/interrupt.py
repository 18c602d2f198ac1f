"""Ctrl-C, SIGTERM, SIGHUP: once, and the images in hand are finished; twice, all stops now."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event as Flag
from types import FrameType

from t2i_cli import signals


class StopSignal:
    """How a run is asked to end. `signal` is the one that asked, if one did.

    `soon` starts nothing new and keeps what is in hand; `now` leaves that, too.
    """

    def __init__(self) -> None:
        self.soon = Flag()
        self.now = Flag()
        self.signal: int | None = None

    def request(self, number: int, _frame: FrameType | None = None) -> None:
        """Take a signal; it raises nothing, so that no write is torn."""
        if self.soon.is_set() and self.signal is not None:
            self.now.set()
        self.signal = self.signal or number
        self.soon.set()


@contextmanager
def handle_signals(stop: StopSignal) -> Iterator[None]:
    """Have the signals that end a process ask `stop`, for as long as a run goes on."""
    before = {number: signal.getsignal(number) for number in signals.termination_signals()}
    for number in before:
        signal.signal(number, stop.request)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
