"""Shows a batch's progress: live bars on a terminal, plain lines at intervals elsewhere."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.batch.note_groups import NoteGroups
from t2i_cli.batch.plan import BatchPlan, PlannedImage
from t2i_cli.batch.runner import RunStats
from t2i_cli.events import Downloading, Event, Loaded, Loading, MemoryMeasure, Notice, Step
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.live_bars import LiveBars
from t2i_cli.terminal.progress import loaded_note
from t2i_cli.terminal.throughput import format_progress

if TYPE_CHECKING:
    from PIL.Image import Image

ShowImage = Callable[["Image"], None]

PLAIN_LINE_INTERVAL = 10.0
"""Seconds between two plain lines."""
SHOW_INTERVAL = 2.0
"""Seconds between two images drawn in the terminal: drawing is slow."""


class BatchProgress:
    """Shows progress, rate, time left and failures; `close()` removes the bars.

    `latest` is the image saved last, which `show` draws every SHOW_INTERVAL seconds.
    """

    def __init__(self, console: Console, plan: BatchPlan, show: ShowImage | None = None) -> None:
        self.latest: GeneratedImage | None = None
        self._console = console
        self._jobs = plan.jobs
        self._notes = NoteGroups()
        self._total = len(plan.jobs)
        self._show = show
        self._bars = LiveBars() if console.live and plan.jobs else None
        self._last_printed = time.monotonic()
        self._last_shown = -SHOW_INTERVAL
        if self._bars is not None:
            self._bars.show_overall(f"0 of {self._total:,}", 0, self._total)

    def close(self) -> None:
        """Remove the bars from the screen, and print the notes on images."""
        if self._bars is not None:
            self._bars.close()
        for text in self._notes.texts():
            self._console.note(text)

    def event(self, event: Event) -> None:
        """Show an event of the backend."""
        match event:
            case Notice(text=text, indices=()):
                self._print_note(text)
            case Notice(text=text, indices=indices):
                for index in indices:
                    row = self._jobs[index].row
                    self._notes.add(text, row.id, row.line)
            case MemoryMeasure(name=name, reason=reason):
                self._print_note(f"{reason}: {name}")
            case Loading(model=model, device=device):
                self._wait(f"loading {model} on {device}")
            case Loaded() if self._bars is not None:
                self._bars.end_stage()
                if not self._console.json:
                    self._print_note(loaded_note(event))
            case Downloading(model=model, done=done, total=total):
                self._advance(f"downloading {model}", f"downloading {model}", done, total, "bytes")
            case Step(indices=indices, step=step, steps=steps):
                images = f"{len(indices)} images" if len(indices) > 1 else "image"
                title = f"{images}, step {step} of {steps}"
                self._advance(("steps", indices), title, step, steps)

    def image(self, job: PlannedImage, saved: SavedImage, stats: RunStats) -> None:
        """Print the path of an image that is saved and in the manifest; update the progress."""
        if not self._console.json:
            terminal = sys.__stdout__ is not None and sys.__stdout__.isatty()
            with self._paused(terminal):
                self._console.result(str(saved.path))
        now = time.monotonic()
        if self._show and self.latest is not None and now - self._last_shown >= SHOW_INTERVAL:
            self._last_shown = now
            with self._paused():
                self._show(self.latest.image)
        self._update_count(stats)

    def failed(self, job: PlannedImage, failure: Failure, stats: RunStats) -> None:
        """Warn of an image that failed and is recorded as failed; update the progress."""
        prompt = job.row.request.prompt
        short = prompt if len(prompt) <= 60 else f"{prompt[:60]}…"
        with self._paused():
            self._console.warn(f"line {job.row.line} ({short!r}): {failure.error.message}")
            self._console.cause(failure.error)
        self._update_count(stats)

    def _update_count(self, stats: RunStats) -> None:
        title = progress_text(stats, self._total)
        if self._bars is not None:
            self._bars.show_overall(title, stats.attempted, self._total)
            return
        now = time.monotonic()
        if now - self._last_printed >= PLAIN_LINE_INTERVAL:
            self._last_printed = now
            self._console.note(title)

    def _wait(self, title: str) -> None:
        if self._bars is not None and not self._console.json:
            self._bars.show_stage(title, title)
        else:
            self._print_note(title)

    def _advance(self, key: object, title: str, done: int, total: int, unit: str = "") -> None:
        if self._bars is not None and done < total:
            self._bars.show_stage(key, title, done, total, unit)
        elif self._bars is not None:
            self._bars.end_stage()

    def _print_note(self, message: str) -> None:
        with self._paused():
            self._console.note(message)

    def _paused(self, needed: bool = True) -> AbstractContextManager[None]:
        """Remove the bars, if `needed`, while something else is written on the terminal."""
        return nullcontext() if self._bars is None else self._bars.paused(needed)


def progress_text(stats: RunStats, total: int) -> str:
    """Format images done, rate, time left and number of failures."""
    return format_progress(stats.attempted, total, stats.throughput.rate, stats.failed.total())
