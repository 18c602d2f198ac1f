"""How many calls may be in flight to a server that may have too much to do."""

import threading
import time

BURST_SECONDS = 1.0
"""Seconds in which several refusals count as one: they answer calls that went out together."""


class Throttle:
    """How many calls may be in flight; for several threads.

    A server with too much to do halves the number, and every answer brings it back a little
    (additive increase, multiplicative decrease; Chiu and Jain, 1989).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._room = float(most)
        self._lock = threading.Lock()
        self._slowed = self._rest_until = 0.0

    @property
    def room(self) -> int:
        """Calls that may be in flight now; 0 while the server wants a rest."""
        with self._lock:
            return 0 if time.monotonic() < self._rest_until else int(self._room)

    def slow_down(self, after: float | None = None) -> None:
        """The server has too much to do, and may ask for `after` seconds of rest."""
        now = time.monotonic()
        with self._lock:
            self._rest_until = max(self._rest_until, now + (after or 0.0))
            if now - self._slowed >= BURST_SECONDS:
                self._slowed = now
                self._room = max(1.0, self._room / 2)

    def speed_up(self) -> None:
        """The server answered."""
        with self._lock:
            self._room = min(float(self._most), self._room + 1 / self._room)
