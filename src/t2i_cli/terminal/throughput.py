"""Measures a run's throughput: images per second, without loading and the first pass after it."""

import time
from collections.abc import Callable, Sequence

from t2i_cli.durations import format_estimate
from t2i_cli.events import Downloading, Event, Loading, RequestSent, Step

_MIN_SECONDS = 0.05
"""Shortest measured time that gives a rate: below it, the clock says more than the device."""


class ThroughputMeter:
    """Measures images per second from a run's events and outcomes, in their order.

    What a model takes to be downloaded and loaded is left out, and so is its first pass, in which
    kernels are chosen and memory is reserved. Until a second pass is done, the rate is an estimate
    from the first one's later steps.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.monotonic
        self._images = 0
        self._seconds = 0.0
        self._estimate: float | None = None
        self._pass: Sequence[int] = ()
        self._step = self._steps = 0
        self._pass_began = self._stepped = 0.0
        self._first_pass: set[int] = set()
        self._first_began = 0.0
        self._warm_since: float | None = None
        self._last_outcome = 0.0
        self._counted = 0

    @property
    def rate(self) -> float | None:
        """Images per second, `None` as long as nothing is known."""
        images, seconds = self._images + self._counted, self._seconds + self._warm_seconds
        return images / seconds if images and seconds >= _MIN_SECONDS else self._estimate

    def event(self, event: Event) -> None:
        """Note an event of the backend."""
        match event:
            case Downloading() | Loading():
                self._images += self._counted
                self._seconds += self._warm_seconds
                self._first_pass, self._first_began = set(), 0.0
                self._warm_since, self._counted = None, 0
            case RequestSent(indices=indices):
                self._begin_pass(indices, self._clock())
            case Step(indices=indices, step=step, steps=steps):
                now = self._clock()
                if indices != self._pass or step <= self._step:
                    self._begin_pass(indices, now)
                    self._pass, self._steps, self._pass_began = indices, steps, now
                self._step, self._stepped = step, now

    def outcome(self, index: int) -> None:
        """Note that the image of the request at this position is made, or failed."""
        now = self._clock()
        if self._warm_since is None:
            self._first_pass.add(index)
            self._end_first_pass(now)
        if index not in self._first_pass:
            self._counted += 1
            self._last_outcome = now

    def seconds_left(self, indices: Sequence[int]) -> float | None:
        """Seconds until the images in progress at these positions are made, if that is known."""
        if self._step > 1 and set(indices) <= set(self._pass):
            a_step = (self._stepped - self._pass_began) / (self._step - 1)
            left = (self._steps - self._step) * a_step - (self._clock() - self._stepped)
            return max(0.0, left)
        return len(indices) / self.rate if self.rate else None

    @property
    def _warm_seconds(self) -> float:
        return 0.0 if self._warm_since is None else self._last_outcome - self._warm_since

    def _begin_pass(self, indices: Sequence[int], now: float) -> None:
        if self._warm_since is not None:
            return
        if self._first_pass and self._steps and self._first_pass.isdisjoint(indices):
            self._end_first_pass(now)  # its images are still being saved
            return
        self._first_began = self._first_began or now
        self._first_pass.update(indices)

    def _end_first_pass(self, now: float) -> None:
        self._warm_since = self._last_outcome = now
        seconds = now - self._first_began
        if self._first_began and seconds >= _MIN_SECONDS:
            # The clock was started when the first step, which is the slow one, had ended.
            whole = self._steps / (self._steps - 1) if self._steps > 1 else 1.0
            self._estimate = len(self._first_pass) / (seconds * whole)


def format_progress(attempted: int, total: int, rate: float | None, failed: int = 0) -> str:
    """Format images done, rate, time left and number of failures."""
    text = f"{attempted:,} of {total:,}"
    if rate and attempted:
        rate_text = f"{rate:.1f} images/s" if rate >= 1 else f"{1 / rate:.1f} s an image"
        text += f", {rate_text}, {format_estimate((total - attempted) / rate)} left"
    return f"{text}, {failed:,} failed" if failed else text
