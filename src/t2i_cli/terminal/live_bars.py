"""Bars on a terminal: one for a whole run, and below it one, or a spinner, for its stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from t2i_cli.terminal.console import escape_controls

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


class LiveBars:
    """Draws from the first bar on; `close()` removes everything from the screen."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._live: Live | None = None
        self._overall: TaskID | None = None
        self._stage: TaskID | None = None
        self._key: object = None

    def show_overall(self, title: str, done: int, total: int) -> None:
        """Show how much of the run is done."""
        bars = self._draw()
        title = escape_controls(title)
        if self._overall is None:
            self._overall = bars.add_task(title, total=total, unit="")
        bars.update(self._overall, description=title, completed=done)

    def show_stage(
        self, key: object, title: str, done: int = 0, total: int | None = None, unit: str = ""
    ) -> None:
        """Show how much of the current stage is done; without a total, a spinner.

        Another `key` is another stage. `unit` is `steps` or `bytes`, for its figures.
        """
        bars = self._draw()
        title = escape_controls(title)
        if self._stage is None or key != self._key:
            self._remove_stage()
            self._key, self._stage = key, bars.add_task(title, total=total, unit=unit)
        bars.update(self._stage, description=title, completed=done)

    def end_stage(self) -> None:
        """Remove the current stage."""
        self._remove_stage()
        if self._overall is None:
            self.close()

    @contextmanager
    def paused(self, needed: bool = True) -> Iterator[None]:
        """Remove the bars, if `needed`, while something else is written on the terminal."""
        if not needed or self._live is None:
            yield
            return
        self._stop()
        try:
            yield
        finally:
            self._start()

    def close(self) -> None:
        """Remove all bars."""
        self._stop()
        self._bars = self._overall = self._stage = self._key = None

    def _draw(self) -> "Bars":
        self._bars = self._bars or _make_bars()
        if self._live is None:
            self._start()
        return self._bars

    def _start(self) -> None:
        from rich.live import Live

        if self._bars is None:
            return
        # A new one each time: one that is started again would erase the lines written meanwhile.
        self._live = Live(
            console=self._bars.console,
            get_renderable=self._bars.get_renderable,
            refresh_per_second=10,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = None

    def _remove_stage(self) -> None:
        if self._bars is not None and self._stage is not None:
            self._bars.remove_task(self._stage)
        self._stage = self._key = None


def _make_bars() -> "Bars":
    from rich import progress as rp
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.spinner import Spinner
    from rich.table import Column
    from rich.text import Text

    console = RichConsole(stderr=True)
    spinner = Spinner("dots" if console.encoding.startswith("utf") else "line")

    class Title(rp.ProgressColumn):
        """The title, never read as markup; behind a spinner where there is no total."""

        def render(self, task: rp.Task) -> Text:
            title = Text(task.description)
            if task.total is not None:
                return title
            return Text.assemble(spinner.render(task.get_time()), " ", title)  # type: ignore[arg-type]

    class Bar(rp.BarColumn):
        """A bar, where there is a total."""

        def render(self, task: rp.Task) -> RenderableType:  # type: ignore[override]
            return Text() if task.total is None else super().render(task)

    class Rate(rp.ProgressColumn):
        """Steps per second, from the second step on."""

        def render(self, task: rp.Task) -> Text:
            return Text(f"{task.speed:.1f} steps/s" if task.speed else "")

    left = rp.TimeRemainingColumn(compact=True)
    figures: dict[str, tuple[rp.ProgressColumn, ...]] = {
        "bytes": (rp.DownloadColumn(), rp.TransferSpeedColumn(), left),
        "steps": (rp.MofNCompleteColumn(), Rate(), left),
    }

    class Figures(rp.ProgressColumn):
        """The figures of a stage; how long a stage without a total takes already."""

        def render(self, task: rp.Task) -> Text:
            if task.total is None:
                return Text(f"{task.elapsed or 0:.0f} s")
            columns = figures.get(task.fields["unit"], ())
            return Text(" ").join(Text(str(column(task))) for column in columns)

    no_wrap = Column(no_wrap=True)
    return rp.Progress(Title(no_wrap), Bar(), Figures(no_wrap), console=console)
