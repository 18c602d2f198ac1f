"""Calls that are worth another try: how often, how long, and with which pauses."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event as Flag
from typing import TypeVar

from t2i_cli.errors import QuotaError, RemoteError, T2IError, TimedOutError

MAX_PAUSE = 60.0
"""Seconds; a server that wants a longer one says so by Retry-After."""
_BREATH = 1.0
"""Seconds in which several refusals count as one: they answer calls that went out together."""

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """`retries` tries after the first; `timeout` seconds for one image, its pauses included."""

    retries: int
    timeout: float


class RetryableError(Exception):
    """A call failed for a reason that may pass; `error` is what to tell if it does not.

    `after` are the seconds that the server asks to wait, `pause` those of the first pause if it
    does not ask. `crowded` says that the server has too much to do, `waking` that it is not there
    yet but will be: only the timeout ends that.
    """

    def __init__(
        self,
        error: T2IError,
        *,
        after: float | None = None,
        pause: float = 1.0,
        crowded: bool = False,
        waking: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.after = after
        self.pause = pause
        self.crowded = crowded
        self.waking = waking


@contextmanager
def retryable() -> Iterator[None]:
    """What a connection, a server, a limit or a time-out raises in the block may pass."""
    try:
        yield
    except (RemoteError, TimedOutError, QuotaError) as error:
        raise RetryableError(error) from error


class CallCancelledError(Exception):
    """Nobody waits for the call any more."""


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
            if now - self._slowed >= _BREATH:
                self._slowed = now
                self._room = max(1.0, self._room / 2)

    def speed_up(self) -> None:
        """The server answered."""
        with self._lock:
            self._room = min(float(self._most), self._room + 1 / self._room)


def call_with_retry(
    attempt: Callable[[float], Made], patience: RetryPolicy, throttle: Throttle, stop: Flag
) -> Made:
    """What `attempt(seconds left)` returns in the end.

    Raises its T2IError, or that of its last Again; and Abandoned once `stop` is set.
    """
    end = time.monotonic() + patience.timeout
    tries = wakes = 0
    while True:
        try:
            made = attempt(max(0.001, end - time.monotonic()))
        except RetryableError as again:
            if again.waking:
                wakes += 1
            else:
                tries += 1
            if again.crowded:
                # A server must not hold all calls up for longer than one is waited for.
                throttle.slow_down(min(again.after or 0.0, patience.timeout))
            pause = _pause(again, wakes if again.waking else tries)
            spent = tries > patience.retries and not again.waking
            if spent or time.monotonic() + pause > end:
                raise _given_up(again, tries + wakes) from again
            if stop.wait(pause):
                raise CallCancelledError from again
            continue
        if stop.is_set():
            raise CallCancelledError
        throttle.speed_up()
        return made


def _pause(again: RetryableError, tries: int) -> float:
    """Seconds to wait: twice as long every time, and as the server asks at least; with jitter."""
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    backoff = min(MAX_PAUSE, again.pause * 2.0 ** (tries - 1)) * jitter
    if again.after is None:
        return backoff
    return max(backoff, again.after + jitter * min(1.0, 0.1 + again.after / 10))


def _given_up(again: RetryableError, tries: int) -> T2IError:
    """The error to tell, with how often it was met."""
    error = again.error
    often = "once" if tries == 1 else f"{tries} times"
    wait = f" and asks to wait {again.after:.0f} s" if again.after else ""
    sets = "--timeout sets" if again.waking else "--retries and --timeout set"
    told = f"It was tried {often}{wait}; {sets} the patience."
    error.hint = f"{error.hint} {told}" if error.hint else told
    return error
