"""Signal handling of a batch: the first signal finishes images in progress, the second stops."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event as Flag
from types import FrameType

from t2i_cli import signals


class StopSignal:
    """Asks a run to stop. `signal` is the number of the first signal received, if any.

    `soon`: start no new image, finish those in progress. `now`: abandon those as well.
    """

    def __init__(self) -> None:
        self.soon = Flag()
        self.now = Flag()
        self.signal: int | None = None

    def request(self, number: int, _frame: FrameType | None = None) -> None:
        """Handle a signal; does not raise, so that no write is interrupted."""
        if self.soon.is_set() and self.signal is not None:
            self.now.set()
        self.signal = self.signal or number
        self.soon.set()


@contextmanager
def handle_signals(stop: StopSignal) -> Iterator[None]:
    """Forward SIGINT, SIGTERM and SIGHUP to `stop`; restore the earlier handlers on exit."""
    previous = {number: signal.getsignal(number) for number in signals.termination_signals()}
    for number in previous:
        signal.signal(number, stop.request)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
