"""Shows the progress of a run: a bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from t2i_cli.events import Downloading, Event, Loading, MemoryMeasure, Notice, RequestSent, Step
from t2i_cli.terminal.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

PLAIN_INTERVAL = 2.0
"""Seconds between two plain progress lines."""


class Progress:
    """Shows the events of a run on stderr; a context manager that removes the bar at its end."""

    def __init__(self, console: Console, images: int) -> None:
        self._console = console
        self._images = images
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._stage: object = None
        self._started = self._printed = 0.0
        self._seen_notes: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._end_stage()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Notice(message=message):
                # Each pass has notes of its own on its images.
                if message not in self._seen_notes:
                    self._seen_notes.add(message)
                    self._print_note(message)
            case RequestSent(indices=(0,)):
                self._print_note("waiting for the server")
            case MemoryMeasure(name=name, reason=reason):
                self._print_note(f"{reason}: {name}")
            case Loading(model=model, device=device):
                self._end_stage()
                self._print_note(f"loading {model} on {device}")
            case Downloading(model=model, done=done, total=total):
                self._advance(("download", model), f"downloading {model}", done, total, "bytes")
            case Step(indices=indices, step=step, steps=steps):
                self._advance(("steps", indices), self._title(indices), step, steps, "steps")

    def transfer(self, title: str, done: int, total: int) -> None:
        """Show how many bytes of a transfer are done."""
        self._advance(("transfer", title), title, done, total, "bytes")

    def pause(self) -> None:
        """Remove the bar from the screen before other output."""
        self._end_stage()

    def _title(self, indices: tuple[int, ...]) -> str:
        if self._images == 1:
            return "denoising"
        ends = dict.fromkeys((*indices[:1], *indices[-1:]))
        numbers = "-".join(str(index + 1) for index in ends)
        return f"image {numbers} of {self._images}"

    def _advance(self, stage: object, title: str, done: int, total: int, unit: str) -> None:
        if self._console.quiet:
            return
        now = time.monotonic()
        if stage != self._stage:
            self._end_stage()
            self._stage, self._started, self._printed = stage, now, now
            if self._console.live:
                self._bars = _bars(unit)
                self._bars.start()
                self._task = self._bars.add_task(title, total=total)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done)
        elif now - self._printed >= PLAIN_INTERVAL or done == total:
            self._printed = now
            self._console.note(_plain_line(title, done, total, unit, now - self._started))
        if done == total:
            self._end_stage()

    def _end_stage(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = self._stage = None

    def _print_note(self, message: str) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._console.note(message)
        if self._bars is not None:
            self._bars.start()


def _plain_line(title: str, done: int, total: int, unit: str, seconds: float) -> str:
    if unit == "bytes":
        return f"{title}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
    # The first step is not timed: it ended before the clock was started.
    rate = (done - 1) / seconds if seconds > 0 and done > 1 else 0.0
    left = f", {rate:.1f} steps/s, {(total - done) / rate:.0f} s left" if rate else ""
    return f"{title}: step {done} of {total}{left}"


def _bars(unit: str) -> "Bars":
    from rich import progress as rp
    from rich.console import Console as RichConsole
    from rich.text import Text

    class Rate(rp.ProgressColumn):
        """Steps per second, from the second step on."""

        def render(self, task: rp.Task) -> Text:
            return Text(f"{task.speed:.1f} steps/s" if task.speed else "")

    figures: tuple[rp.ProgressColumn, ...] = (
        (rp.DownloadColumn(), rp.TransferSpeedColumn())
        if unit == "bytes"
        else (rp.MofNCompleteColumn(), Rate())
    )
    return rp.Progress(
        rp.TextColumn("{task.description}"),
        rp.BarColumn(),
        *figures,
        rp.TimeRemainingColumn(compact=True),
        console=RichConsole(stderr=True),
        transient=True,
    )
