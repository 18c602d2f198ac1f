"""Shows a batch's progress: a live bar on a terminal, plain lines at intervals elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.batch.note_groups import NoteGroups
from t2i_cli.batch.plan import BatchPlan, PlannedImage, format_estimate
from t2i_cli.batch.runner import RunStats
from t2i_cli.events import Downloading, Event, Loading, MemoryMeasure, Notice, Step
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.terminal.console import Console

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.progress import Progress as Bars

ShowImage = Callable[["Image"], None]

PLAIN_LINE_INTERVAL = 10.0
"""Seconds between two plain lines."""
SHOW_INTERVAL = 2.0
"""Seconds between two images drawn in the terminal: drawing is slow."""


class BatchProgress:
    """Shows progress, rate, time left and failures; `close()` removes the bar.

    `latest` is the image saved last, which `show` draws every SHOW_INTERVAL seconds.
    """

    def __init__(self, console: Console, plan: BatchPlan, show: ShowImage | None = None) -> None:
        self.latest: GeneratedImage | None = None
        self._console = console
        self._jobs = plan.jobs
        self._notes = NoteGroups()
        self._total = len(plan.jobs)
        self._show = show
        self._bars = _bars() if console.live and plan.jobs else None
        self._last_printed = time.monotonic()
        self._last_shown = -SHOW_INTERVAL
        if self._bars is not None:
            self._batch = self._bars.add_task(f"0 of {self._total:,}", total=self._total)
            self._detail = self._bars.add_task("", total=1, visible=False)
            self._bars.start()

    def close(self) -> None:
        """Remove the bar from the screen, and print the notes on images."""
        if self._bars is not None:
            self._bars.stop()
        for text in self._notes.texts():
            self._console.note(text)

    def event(self, event: Event) -> None:
        """Show an event of the backend."""
        match event:
            case Notice(message=message, indices=()):
                self._print_note(message)
            case Notice(message=message, indices=indices):
                for index in indices:
                    row = self._jobs[index].row
                    self._notes.add(message, row.id, row.line)
            case MemoryMeasure(name=name, reason=reason):
                self._print_note(f"{reason}: {name}")
            case Loading(model=model, device=device):
                self._print_note(f"loading {model} on {device}")
            case Downloading(model=model, done=done, total=total):
                self._advance(f"downloading {model}", done, total)
            case Step(indices=indices, step=step, steps=steps):
                images = f"{len(indices)} images" if len(indices) > 1 else "image"
                self._advance(f"{images}, step {step} of {steps}", step, steps)

    def image(self, job: PlannedImage, saved: SavedImage, stats: RunStats) -> None:
        """Print the path of an image that is saved and in the manifest; update the progress."""
        if not self._console.json:
            self._hide_bars(sys.__stdout__ is not None and sys.__stdout__.isatty())
            self._console.result(str(saved.path))
        now = time.monotonic()
        if self._show and self.latest is not None and now - self._last_shown >= SHOW_INTERVAL:
            self._last_shown = now
            self._hide_bars(True)
            self._show(self.latest.image)
        self._update_count(stats)

    def failed(self, job: PlannedImage, failure: Failure, stats: RunStats) -> None:
        """Warn of an image that failed and is recorded as failed; update the progress."""
        prompt = job.row.request.prompt
        short = prompt if len(prompt) <= 60 else f"{prompt[:60]}…"
        self._hide_bars(True)
        self._console.warn(f"line {job.row.line} ({short!r}): {failure.error.message}")
        self._console.cause(failure.error)
        self._update_count(stats)

    def _update_count(self, stats: RunStats) -> None:
        title = progress_text(stats, self._total)
        if self._bars is not None:
            self._bars.start()
            self._bars.update(self._batch, completed=stats.attempted, description=title)
            return
        now = time.monotonic()
        if now - self._last_printed >= PLAIN_LINE_INTERVAL:
            self._last_printed = now
            self._console.note(title)

    def _advance(self, title: str, done: int, total: int) -> None:
        if self._bars is not None:
            self._bars.update(
                self._detail, completed=done, total=total, description=title, visible=done < total
            )

    def _print_note(self, message: str) -> None:
        self._hide_bars(True)
        self._console.note(message)
        if self._bars is not None:
            self._bars.start()

    def _hide_bars(self, needed: bool) -> None:
        """Remove the bar, if `needed`, before other output on the same terminal."""
        if self._bars is not None and needed:
            self._bars.stop()


def progress_text(stats: RunStats, total: int) -> str:
    """Format images done, rate, time left and number of failures."""
    text = f"{stats.attempted:,} of {total:,}"
    if stats.seconds > 0 and stats.attempted:
        rate = stats.attempted / stats.seconds
        rate_text = f"{rate:.1f} images/s" if rate >= 1 else f"{1 / rate:.1f} s an image"
        text += f", {rate_text}, {format_estimate((total - stats.attempted) / rate)} left"
    if failed := stats.failed.total():
        text += f", {failed:,} failed"
    return text


def _bars() -> "Bars":
    from rich import progress as rp
    from rich.console import Console as RichConsole

    return rp.Progress(
        rp.TextColumn("{task.description}", markup=False),
        rp.BarColumn(),
        console=RichConsole(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
