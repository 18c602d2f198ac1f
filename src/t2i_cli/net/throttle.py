"""Adaptive limit on the calls in flight to one server."""

import threading
import time

BURST_SECONDS = 1.0
"""Seconds in which several overload responses count as one: their calls were sent together."""


class Throttle:
    """The number of calls that may be in flight, from 1 to `max_calls`, and are. Thread-safe.

    An overloaded server halves it, and every response raises it a little (additive increase,
    multiplicative decrease; Chiu and Jain, 1989).
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._limit = float(max_calls)
        self._in_flight = 0
        self._lock = threading.Lock()
        self._last_slow_down = self._paused_until = 0.0

    @property
    def limit(self) -> int:
        """Calls that may be in flight now; 0 during a pause that the server asked for."""
        with self._lock:
            return 0 if time.monotonic() < self._paused_until else int(self._limit)

    def begin_call(self) -> bool:
        """Count a call that begins; returns False where no more may be in flight."""
        with self._lock:
            paused = time.monotonic() < self._paused_until
            if paused or self._in_flight >= int(self._limit):
                return False
            self._in_flight += 1
            return True

    def end_call(self) -> None:
        """Count a call that has ended."""
        with self._lock:
            self._in_flight -= 1

    def slow_down(self, after: float | None = None) -> None:
        """Halve the limit: the server is overloaded. Start no call for `after` seconds."""
        now = time.monotonic()
        with self._lock:
            self._paused_until = max(self._paused_until, now + (after or 0.0))
            if now - self._last_slow_down >= BURST_SECONDS:
                self._last_slow_down = now
                self._limit = max(1.0, self._limit / 2)

    def speed_up(self) -> None:
        """Raise the limit a little: the server responded."""
        with self._lock:
            self._limit = min(float(self._max_calls), self._limit + 1 / self._limit)
