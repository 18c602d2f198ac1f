"""The loop of a batch: an executor makes the images, the manifest hears of each, then the user."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.batch import timings
from t2i_cli.batch.executor import LocalExecutor, Outcome
from t2i_cli.batch.interrupt import StopSignal
from t2i_cli.batch.manifest import Manifest
from t2i_cli.batch.plan import RETRIED_CODES, BatchPlan, PlannedImage
from t2i_cli.driver import SaveImage
from t2i_cli.errors import (
    ContentFilteredError,
    InputError,
    InternalError,
    PipelineError,
    StorageError,
)
from t2i_cli.events import Event
from t2i_cli.image_formats import ImageFormat
from t2i_cli.output.image_writer import ImageWriter, SavedImage

FAILURES_IN_A_ROW = 3
"""Failures one after the other that no row is to blame for: the next would fail as well."""
FAILURES_AT_THE_START = 3
"""Outcomes at the start that are one unexpected failure: it is no row's, and ends the run."""


@dataclass
class RunStats:
    """How a run has gone so far: `failed` by code, `stopped` is why it was ended early."""

    made: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    stopped: str | None = None
    first: dict[str, str] = field(default_factory=dict)
    """The first message of each code."""
    opening: list[str | None] = field(default_factory=list)
    """What the first outcomes raised unexpectedly, `None` for any other outcome."""

    @property
    def attempted(self) -> int:
        """Images made and failed."""
        return self.made + self.failed.total()


class ProgressListener(Protocol):
    """Who is told how a batch goes."""

    def event(self, event: Event) -> None:
        """The backend tells something."""
        ...

    def image(self, job: PlannedImage, saved: SavedImage, tally: RunStats) -> None:
        """An image is on the disk, and in the manifest."""
        ...

    def failed(self, job: PlannedImage, failure: Failure, tally: RunStats) -> None:
        """An image could not be made or recorded."""
        ...


class BatchWriter:
    """Saves each job's image under its name; may be called from several threads."""

    def __init__(self, plan: BatchPlan, scratch: Path) -> None:
        paths = [plan.folder / job.file for job in plan.jobs]
        self._formats = [job.format for job in plan.jobs]
        self._sinks: dict[ImageFormat, ImageWriter] = {
            format: ImageWriter(paths, format, overwrite=True, scratch=scratch)
            for format in set(self._formats)
        }

    def __call__(self, generated: GeneratedImage) -> SavedImage:
        """Save one image. Raises StorageError."""
        try:
            return self._sinks[self._formats[generated.index]].save(generated)
        except InputError as error:
            # The folder could be written to when the run began.
            raise StorageError(error.message) from error


def run_plan(
    plan: BatchPlan,
    executor: LocalExecutor,
    save: SaveImage,
    book: Manifest,
    listener: ProgressListener,
    stop: StopSignal,
    *,
    max_failures: int | None = None,
) -> RunStats:
    """Make the plan's images; returns how it went."""
    tally = RunStats()
    paces: dict[tuple[str, str | None], float] = {}
    started = time.monotonic()
    in_a_row = 0
    requests = [job.row.request for job in plan.jobs]
    try:
        for outcomes in executor.run(requests, save, listener.event, stop):
            outcomes, lost = _recorded(outcomes, plan, book)
            tally.stopped = tally.stopped or lost
            for outcome in outcomes:
                tally.seconds = time.monotonic() - started
                job = plan.jobs[outcome.index]
                if len(tally.opening) < FAILURES_AT_THE_START:
                    tally.opening.append(_unexpected(outcome))
                if isinstance(outcome, SavedImage):
                    in_a_row = 0
                    tally.made += 1
                    if outcome.lock.endpoint is None:
                        key = (outcome.request.model, outcome.lock.device)
                        paces[key] = outcome.seconds / timings.relative_cost(outcome.request)
                    listener.image(job, outcome, tally)
                else:
                    code = outcome.error.code
                    in_a_row = in_a_row + 1 if code in RETRIED_CODES else 0
                    tally.failed[code] += 1
                    tally.first.setdefault(code, outcome.error.message)
                    listener.failed(job, outcome, tally)
            tally.stopped = tally.stopped or _reason(tally, in_a_row, max_failures)
            if tally.stopped:
                stop.soon.set()
    except BaseException:
        stop.soon.set()
        stop.now.set()
        raise
    tally.seconds = time.monotonic() - started
    for (model, device), pace in paces.items():
        timings.record_timing(model, device, pace)
    return tally


def _recorded(
    outcomes: Sequence[Outcome], plan: BatchPlan, book: Manifest
) -> tuple[Sequence[Outcome], str | None]:
    """The outcomes once the manifest has them; else failures, and why."""
    folders = {o.path.parent for o in outcomes if isinstance(o, SavedImage) and o.path}
    try:
        book.append([_line(plan.jobs[o.index], o) for o in outcomes], folders)
    except StorageError as error:
        # The next run knows nothing of them, and makes them again.
        lost = [Failure(index=o.index, request=o.request, error=error) for o in outcomes]
        return lost, "The manifest cannot be written."
    return outcomes, None


def _reason(tally: RunStats, in_a_row: int, max_failures: int | None) -> str | None:
    """Why the run should end now, if it should."""
    if max_failures is not None and tally.failed.total() >= max_failures:
        return f"{tally.failed.total()} images failed, as many as --max-failures allows."
    if in_a_row >= FAILURES_IN_A_ROW:
        return f"{in_a_row} images in a row failed for a reason that the next would meet, too."
    if (
        len(tally.opening) == FAILURES_AT_THE_START
        and tally.opening[0]
        and len(set(tally.opening)) == 1
    ):
        return (
            f"The first {FAILURES_AT_THE_START} images failed alike and unexpectedly: "
            "so would the others."
        )
    return None


def _unexpected(outcome: Outcome) -> str | None:
    """The type and the text of an exception that nobody expected, if the outcome is one."""
    if isinstance(outcome, Failure) and isinstance(outcome.error, InternalError | PipelineError):
        return f"{type(outcome.error.__cause__).__name__}: {outcome.error.message}"
    return None


def _line(job: PlannedImage, outcome: Outcome) -> dict[str, object]:
    """What the manifest keeps of an image."""
    row = job.row
    line: dict[str, object] = {"id": row.id, "index": row.index, "line": row.line}
    if isinstance(outcome, SavedImage):
        line |= {
            "status": "done",
            "file": job.file,
            "bytes": outcome.size_bytes,
            "sha256": outcome.sha256,
            "seconds": round(outcome.seconds, 3),
            **outcome.timing_record(),
            "lock": asdict(outcome.lock),
        }
    else:
        withheld = isinstance(outcome.error, ContentFilteredError)
        line |= {
            "status": "withheld" if withheld else "failed",
            "error": outcome.error.to_json(),
        }
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return line | {"request": outcome.request.to_json(), "time": now}
