"""Retries of calls to a server: how many, how long, and with which pauses.

Every wait for a server goes through `call_with_retry`. tenacity is no help with it: its loop does
not end when an Event is set in a pause (`sleep_using_event` only cuts the pause short), passes no
attempt the seconds that are left, and counts a cold start as a failure; stop, wait and sleep would
all be callbacks of ours, around a loop of ten lines.
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
from t2i_cli.net.unreachable import UnreachableError

MAX_PAUSE = 60.0
"""Longest backoff in seconds; a server that wants a longer one sends Retry-After."""
MAX_COLD_PAUSE = 15.0
"""The same while a server starts up, so that it is noticed soon."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """`retries` attempts after the first; `timeout` seconds for all attempts and pauses.

    Exponential backoff with jitter: the first pause is `first_pause` seconds, each next one
    `growth` times as long, up to `longest_pause`; each is shortened at random by up to half, so
    that callers do not retry at the same time. `from_options`: --retries and --timeout set the
    policy, and the final error names them. Without `retry_unreachable` a server that cannot be
    reached, or does not answer, is asked once.
    """

    retries: int
    timeout: float = math.inf
    first_pause: float = 1.0
    growth: float = 2.0
    longest_pause: float = MAX_PAUSE
    from_options: bool = False
    retry_unreachable: bool = True


class RetryableError(Exception):
    """A call failed for a reason that may be temporary; `error` is raised if it is not.

    `after` is the server's Retry-After in seconds; `pause` replaces the policy's first pause, in
    seconds. `overloaded`: the server asks for fewer calls. `cold_start`: the server is starting up;
    such failures count against the timeout only, not against the retries.
    """

    def __init__(
        self,
        error: T2IError,
        *,
        after: float | None = None,
        pause: float | None = None,
        overloaded: bool = False,
        cold_start: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.after = after
        self.pause = pause
        self.overloaded = overloaded
        self.cold_start = cold_start


@contextmanager
def retryable() -> Iterator[None]:
    """Turn a RemoteError, TimedOutError or QuotaError of the block into a RetryableError.

    A Retry-After of the block's own last attempt is kept.
    """
    try:
        yield
    except (RemoteError, TimedOutError, QuotaError) as error:
        last = error.__cause__
        after = last.after if isinstance(last, RetryableError) else None
        raise RetryableError(error, after=after) from error


class CallCancelledError(Exception):
    """The call was cancelled: its result is no longer wanted."""


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by Retry-After, a number or an HTTP date (RFC 9110, section 10.2.3).

    Header names are in lower case. None if the header is missing or invalid.
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
    attempt: Callable[[float], Result],
    policy: RetryPolicy,
    throttle: Throttle | None = None,
    stop: Flag | None = None,
    on_wait: Callable[[RetryableError], None] = lambda _: None,
) -> Result:
    """Call `attempt(seconds left)` until it raises no RetryableError; return its result.

    `on_wait` is called before each pause. Raises the T2IError of `attempt`, or that of its last
    RetryableError once the policy allows no more, and CallCancelledError once `stop` is set.
    """
    deadline = time.monotonic() + policy.timeout
    failures = cold_starts = 0
    while True:
        try:
            result = attempt(max(0.001, deadline - time.monotonic()))
        except RetryableError as failure:
            unreachable = isinstance(failure.error, UnreachableError | TimedOutError)
            if unreachable and not policy.retry_unreachable:
                raise failure.error from failure
            if failure.cold_start:
                cold_starts += 1
            else:
                failures += 1
            if failure.overloaded and throttle:
                # A Retry-After must not block all calls for longer than the timeout of one.
                throttle.slow_down(min(failure.after or 0.0, policy.timeout))
            if failures > policy.retries and not failure.cold_start:
                raise _final_error(failure, failures + cold_starts, policy) from failure
            pause = _pause(failure, cold_starts if failure.cold_start else failures, policy)
            if time.monotonic() + pause > deadline:
                raise _final_error(failure, failures + cold_starts, policy) from failure
            on_wait(failure)
            if stop is None:
                time.sleep(pause)
            elif stop.wait(pause):
                raise CallCancelledError from failure
            continue
        except TimedOutError as error:
            # The last attempt had only the seconds that the ones before had left.
            if tries := failures + cold_starts:
                _add_tries(error, f"{tries + 1} times in {policy.timeout:.3g} s", policy)
            raise
        if stop and stop.is_set():
            raise CallCancelledError
        if throttle:
            throttle.speed_up()
        return result


def _pause(failure: RetryableError, attempt: int, policy: RetryPolicy) -> float:
    """Seconds to wait: exponential backoff with jitter, and at least the Retry-After."""
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    first = policy.first_pause if failure.pause is None else failure.pause
    # Bounded: in a wait of hours the power would overflow a float.
    growth = policy.growth ** min(attempt - 1, 64)
    longest = policy.longest_pause
    if failure.cold_start:
        longest = min(longest, MAX_COLD_PAUSE)
    backoff = min(longest, first * growth) * jitter
    if failure.after is None:
        return backoff
    return max(backoff, failure.after + jitter * min(1.0, 0.1 + failure.after / 10))


def _final_error(failure: RetryableError, attempts: int, policy: RetryPolicy) -> T2IError:
    """The error to raise, with the number of attempts in its hint."""
    count = "once" if attempts == 1 else f"{attempts} times"
    wait = f" and asks to wait {failure.after:.0f} s" if failure.after else ""
    sets = "--timeout sets" if failure.cold_start else "--retries and --timeout set"
    _add_tries(failure.error, f"{count}{wait}", policy, sets)
    return failure.error


def _add_tries(
    error: T2IError, count: str, policy: RetryPolicy, sets: str = "--retries and --timeout set"
) -> None:
    """Add to the hint how often was tried, if the user's options decide it."""
    if policy.from_options:
        detail = f"It was tried {count}; {sets} the patience."
        error.hint = f"{error.hint} {detail}" if error.hint else detail
