"""Calls that are worth another try: how often, how long, and with which pauses.

Every wait for a server goes through `call_with_retry`. tenacity is no help with it: its loop does
not end when an Event is set in a pause (`sleep_using_event` only cuts the pause short), hands no
attempt the seconds that are left, and counts a server that wakes up as a failure; stop, wait and
sleep would all be callbacks of ours, around a loop of ten lines.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import TIMEOUT_MAX
from threading import Event as Flag
from typing import TypeVar

from t2i_cli.errors import QuotaError, RemoteError, T2IError, TimedOutError
from t2i_cli.net.throttle import Throttle

MAX_PAUSE = 60.0
"""Seconds; a server that wants a longer one says so by Retry-After."""

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """`retries` tries after the first; `timeout` seconds for all of it, its pauses included.

    The first pause is of `first_pause` seconds, each next one `growth` times as long, up to
    `longest_pause`; each is cut by up to half, so that callers do not come back at the same time.
    `from_options` says that --retries and --timeout set it, which the error then tells.
    """

    retries: int
    timeout: float = math.inf
    first_pause: float = 1.0
    growth: float = 2.0
    longest_pause: float = MAX_PAUSE
    from_options: bool = False


class RetryableError(Exception):
    """A call failed for a reason that may pass; `error` is what to tell if it does not.

    `after` are the seconds that the server asks to wait, `pause` those of the first pause if it
    does not ask and the policy's does not suit. `crowded` says that the server has too much to do,
    `waking` that it is not there yet but will be: only the timeout ends that.
    """

    def __init__(
        self,
        error: T2IError,
        *,
        after: float | None = None,
        pause: float | None = None,
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


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After asks to wait, as a number or a date of HTTP (RFC 9110, 10.2.3).

    The headers' names are in lower case. None where it is not there or makes no sense.
    """
    value = headers.get("retry-after", "").strip()
    if value.replace(".", "", 1).isdecimal():
        return min(float(value), TIMEOUT_MAX)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def call_with_retry(
    attempt: Callable[[float], Made],
    policy: RetryPolicy,
    throttle: Throttle | None = None,
    stop: Flag | None = None,
) -> Made:
    """What `attempt(seconds left)` returns in the end.

    Raises its T2IError, or that of its last RetryableError; and CallCancelledError once `stop` is
    set.
    """
    end = time.monotonic() + policy.timeout
    tries = wakes = 0
    while True:
        try:
            made = attempt(max(0.001, end - time.monotonic()))
        except RetryableError as again:
            if again.waking:
                wakes += 1
            else:
                tries += 1
            if again.crowded and throttle:
                # A server must not hold all calls up for longer than one is waited for.
                throttle.slow_down(min(again.after or 0.0, policy.timeout))
            if tries > policy.retries and not again.waking:
                raise _given_up(again, tries + wakes, policy) from again
            pause = _pause(again, wakes if again.waking else tries, policy)
            if time.monotonic() + pause > end:
                raise _given_up(again, tries + wakes, policy) from again
            if stop is None:
                time.sleep(pause)
            elif stop.wait(pause):
                raise CallCancelledError from again
            continue
        if stop and stop.is_set():
            raise CallCancelledError
        if throttle:
            throttle.speed_up()
        return made


def _pause(again: RetryableError, tries: int, policy: RetryPolicy) -> float:
    """Seconds to wait: longer every time, and as the server asks at least; with jitter."""
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    first = policy.first_pause if again.pause is None else again.pause
    # A wait of hours has more steps than a float has exponents.
    growth = policy.growth ** min(tries - 1, 64)
    backoff = min(policy.longest_pause, first * growth) * jitter
    if again.after is None:
        return backoff
    return max(backoff, again.after + jitter * min(1.0, 0.1 + again.after / 10))


def _given_up(again: RetryableError, tries: int, policy: RetryPolicy) -> T2IError:
    """The error to tell, with how often it was met."""
    error = again.error
    if not policy.from_options:
        return error
    often = "once" if tries == 1 else f"{tries} times"
    wait = f" and asks to wait {again.after:.0f} s" if again.after else ""
    sets = "--timeout sets" if again.waking else "--retries and --timeout set"
    told = f"It was tried {often}{wait}; {sets} the patience."
    error.hint = f"{error.hint} {told}" if error.hint else told
    return error
