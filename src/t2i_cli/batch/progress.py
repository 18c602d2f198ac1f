"""A batch for people: one live line on a terminal, a plain one now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from t2i_cli.backend import Failure, GeneratedImage
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
"""Seconds between two pictures in the terminal, so that it keeps up."""


class BatchProgress:
    """Shows progress, rate, time left and failures; `close()` takes it off the screen.

    `latest` is the image saved last, which `show` draws in the terminal now and then.
    """

    def __init__(self, console: Console, plan: BatchPlan, show: ShowImage | None = None) -> None:
        self.latest: GeneratedImage | None = None
        self._console = console
        self._total = len(plan.jobs)
        self._show = show
        self._bars = _bars() if console.live and plan.jobs else None
        self._printed = time.monotonic()
        self._shown = -SHOW_INTERVAL
        if self._bars is not None:
            self._batch = self._bars.add_task(f"0 of {self._total:,}", total=self._total)
            self._inner = self._bars.add_task("", total=1, visible=False)
            self._bars.start()

    def close(self) -> None:
        """Take the live line off the screen."""
        if self._bars is not None:
            self._bars.stop()

    def event(self, event: Event) -> None:
        """The backend tells something."""
        match event:
            case Notice(message=message):
                self._say(message)
            case MemoryMeasure(name=name, reason=reason):
                self._say(f"{reason}: {name}")
            case Loading(model=model, device=device):
                self._say(f"loading {model} on {device}")
            case Downloading(model=model, done=done, total=total):
                self._advance(f"downloading {model}", done, total)
            case Step(indices=indices, step=step, steps=steps):
                images = f"{len(indices)} images" if len(indices) > 1 else "image"
                self._advance(f"{images}, step {step} of {steps}", step, steps)

    def image(self, job: PlannedImage, saved: SavedImage, tally: RunStats) -> None:
        """An image is on the disk, and in the manifest: print where, and go on."""
        if not self._console.json:
            self._clear(sys.__stdout__ is not None and sys.__stdout__.isatty())
            self._console.result(str(saved.path))
        now = time.monotonic()
        if self._show and self.latest is not None and now - self._shown >= SHOW_INTERVAL:
            self._shown = now
            self._clear(True)
            self._show(self.latest.image)
        self._count(tally)

    def failed(self, job: PlannedImage, failure: Failure, tally: RunStats) -> None:
        """An image could not be made, and the manifest says so."""
        prompt = job.row.request.prompt
        short = prompt if len(prompt) <= 60 else f"{prompt[:60]}…"
        self._clear(True)
        self._console.warn(f"line {job.row.line} ({short!r}): {failure.error.message}")
        self._console.cause(failure.error)
        self._count(tally)

    def _count(self, tally: RunStats) -> None:
        title = progress_text(tally, self._total)
        if self._bars is not None:
            self._bars.start()
            self._bars.update(self._batch, completed=tally.attempted, description=title)
            return
        now = time.monotonic()
        if now - self._printed >= PLAIN_LINE_INTERVAL:
            self._printed = now
            self._console.note(title)

    def _advance(self, title: str, done: int, total: int) -> None:
        if self._bars is not None:
            self._bars.update(
                self._inner, completed=done, total=total, description=title, visible=done < total
            )

    def _say(self, message: str) -> None:
        self._clear(True)
        self._console.note(message)
        if self._bars is not None:
            self._bars.start()

    def _clear(self, needed: bool) -> None:
        """Take the live line away while something else is printed on the same terminal."""
        if self._bars is not None and needed:
            self._bars.stop()


def progress_text(tally: RunStats, total: int) -> str:
    """How far a run is, how fast, how long it will take, and what failed."""
    text = f"{tally.attempted:,} of {total:,}"
    if tally.seconds > 0 and tally.attempted:
        rate = tally.attempted / tally.seconds
        pace = f"{rate:.1f} images/s" if rate >= 1 else f"{1 / rate:.1f} s an image"
        text += f", {pace}, {format_estimate((total - tally.attempted) / rate)} left"
    if failed := tally.failed.total():
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
