"""Shows the progress of a run: bars on a terminal, plain lines elsewhere."""

import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

from t2i_cli.events import (
    Downloading,
    Event,
    Loaded,
    Loading,
    MemoryMeasure,
    Notice,
    RequestSent,
    Step,
)
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.live_bars import LiveBars
from t2i_cli.terminal.throughput import ThroughputMeter, format_progress

PLAIN_INTERVAL = 2.0
"""Seconds between two plain progress lines."""


class Progress:
    """Shows the events of a run on stderr; a context manager that removes the bars at its end.

    A run of several images has a bar of its own, which `finish_image()` moves.
    """

    def __init__(self, console: Console, images: int) -> None:
        self._console = console
        self._images = images
        self._finished = 0
        self._meter = ThroughputMeter()
        self._bars = LiveBars() if console.live else None
        self._stage: object = None
        self._denoised: tuple[int, ...] | None = None
        self._started = self._printed = time.monotonic()
        self._seen_notes: set[str] = set()

    def __enter__(self) -> Self:
        self._show_overall()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bars from the screen."""
        if self._bars is not None:
            self._bars.close()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._meter.event(event)
        match event:
            case Notice(text=text):
                # Each pass has notes of its own on its images.
                if text not in self._seen_notes:
                    self._seen_notes.add(text)
                    self._print_note(text)
            case RequestSent(indices=(0,)):
                self._wait("waiting for the server")
            case MemoryMeasure(name=name, reason=reason):
                self._print_note(f"{reason}: {name}")
            case Loading(model=model, device=device):
                self._wait(f"loading {model} on {device}")
            case Loaded():
                self._end_stage()
                if self._spins:
                    self._print_note(loaded_note(event))
            case Downloading(model=model, done=done, total=total):
                self._advance(("download", model), f"downloading {model}", done, total, "bytes")
            case Step(indices=indices, step=step, steps=steps):
                self._denoised = indices
                self._advance(("steps", indices), self._title(indices), step, steps, "steps")

    def finish_image(self, index: int) -> None:
        """Note that the image of the request at this position is made, or failed."""
        self._meter.outcome(index)
        self._finished += 1
        # An image is saved while the next ones are denoised: their bar stays.
        if self._denoised is None or index in self._denoised:
            self._end_stage()
        self._show_overall()
        now = time.monotonic()
        plain = self._bars is None and self._finished < self._images
        if plain and now - self._printed >= PLAIN_INTERVAL:
            self._printed = now
            self._console.note(self._overall_text())

    def transfer(self, title: str, done: int, total: int) -> None:
        """Show how many bytes of a transfer are done."""
        self._advance(("transfer", title), title, done, total, "bytes")

    def paused(self) -> AbstractContextManager[None]:
        """Remove the bars from the screen while something else is written there."""
        return nullcontext() if self._bars is None else self._bars.paused()

    @property
    def _spins(self) -> bool:
        """Whether a wait shows a spinner, rather than a line."""
        return self._bars is not None and not self._console.json

    def _show_overall(self) -> None:
        if self._bars is not None and self._images > 1 and self._finished < self._images:
            self._bars.show_overall(self._overall_text(), self._finished, self._images)

    def _overall_text(self) -> str:
        return format_progress(self._finished, self._images, self._meter.rate)

    def _title(self, indices: tuple[int, ...]) -> str:
        if self._images == 1:
            return "denoising"
        ends = dict.fromkeys((*indices[:1], *indices[-1:]))
        numbers = "-".join(str(index + 1) for index in ends)
        return f"image {numbers} of {self._images}"

    def _wait(self, title: str) -> None:
        """Show a spinner until the next stage; elsewhere a line."""
        self._end_stage()
        if self._bars is not None and self._spins:
            self._bars.show_stage(title, title)
        else:
            self._print_note(title)

    def _advance(self, stage: object, title: str, done: int, total: int, unit: str) -> None:
        if self._console.quiet:
            return
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._printed = stage, now, now
        if self._bars is not None:
            self._show_overall()
            self._bars.show_stage(stage, title, done, total, unit)
        elif now - self._printed >= PLAIN_INTERVAL or done == total:
            self._printed = now
            if self._finished and unit == "steps":
                self._console.note(f"{title}: step {done} of {total}; {self._overall_text()}")
            else:
                self._console.note(_plain_line(title, done, total, unit, now - self._started))
        if done == total:
            self._end_stage()

    def _end_stage(self) -> None:
        self._stage = self._denoised = None
        if self._bars is not None:
            self._bars.end_stage()

    def _print_note(self, message: str) -> None:
        with self.paused():
            self._console.note(message)


def loaded_note(event: Loaded) -> str:
    """The sentence that stays where a spinner was."""
    return f"loaded {event.model} on {event.device} in {event.seconds:.1f} s"


def _plain_line(title: str, done: int, total: int, unit: str, seconds: float) -> str:
    if unit == "bytes":
        return f"{title}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
    # The first step is not timed: it ended before the clock was started.
    rate = (done - 1) / seconds if seconds > 0 and done > 1 else 0.0
    left = f", {rate:.1f} steps/s, {(total - done) / rate:.0f} s left" if rate else ""
    return f"{title}: step {done} of {total}{left}"
