"""How much denoising is still expected of a loaded pipeline, by the work seen and announced."""

import time

from t2i_cli.backends.local.device import Device
from t2i_cli.backends.local.engine_measurements import synchronize

_TIMED_CALLS = (2, 3, 5)
"""Calls of a pass, from 1, before which the device is waited for: the first is a warm-up."""


class EngineWork:
    """Counts images and times calls of a denoiser.

    Images of the group in hand are known. Beyond it, as many are expected as earlier groups had: a
    server that has worked for an hour is expected to work for another. So compiling is begun at the
    latest when as much work was done as would have repaid it.
    """

    def __init__(self, device: Device) -> None:
        self.seconds_per_call: float | None = None
        self.is_measuring = False
        self._device = device
        self._left = self._made = self._made_before = 0
        self._calls = self._timed_calls = 0
        self._calls_per_image = 0.0
        self._last_time = 0.0

    def start_group(self, images: int) -> None:
        """A group of images begins."""
        self._left, self._made_before = images, self._made

    def begin_pass(self, *, measuring: bool) -> None:
        """A pass begins; `measuring` times its calls, which makes the host wait three times."""
        self._calls = 0
        self.is_measuring = measuring

    def count_call(self) -> None:
        """Count a call that is about to be made, and time it if the pass is measured."""
        self._calls += 1
        if not self.is_measuring or self._calls not in _TIMED_CALLS:
            return
        synchronize(self._device)
        now = time.perf_counter()
        if self._calls > _TIMED_CALLS[0]:
            self.seconds_per_call = (now - self._last_time) / (self._calls - self._timed_calls)
        self._last_time, self._timed_calls = now, self._calls

    def end_pass(self, images: int) -> None:
        """A pass has made its images."""
        self._made += images
        self._left = max(0, self._left - images)
        if self._calls:
            self._calls_per_image = self._calls / images
        self._calls = 0

    def seconds_left(self) -> float:
        """Seconds of denoising that are expected, by the calls of the last pass; 0 if unknown."""
        if self.seconds_per_call is None:
            return 0.0
        images = max(self._left, self._made_before)
        return self.seconds_per_call * self._calls_per_image * images
