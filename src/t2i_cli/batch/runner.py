"""The main loop of a batch: run the executor, record outcomes in the manifest, report them."""

import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.batch import timings
from t2i_cli.batch.executor import LocalExecutor
from t2i_cli.batch.interrupt import StopSignal
from t2i_cli.batch.manifest import Manifest
from t2i_cli.batch.note_groups import NoteGroups
from t2i_cli.batch.plan import BatchPlan, PlannedImage
from t2i_cli.batch.row_records import RETRIED_CODES
from t2i_cli.driver import with_notes
from t2i_cli.durations import format_estimate
from t2i_cli.errors import (
    ContentFilteredError,
    InputError,
    InternalError,
    PipelineError,
    StorageError,
    os_reason,
)
from t2i_cli.events import Event, Finishing, Notice
from t2i_cli.files.inside_folder import check_parents
from t2i_cli.image_costs import ImageCosts, is_billed
from t2i_cli.image_formats import ImageFormat
from t2i_cli.output.image_writer import ImageWriter, SavedImage
from t2i_cli.saver_threads import Outcome, SaveImage
from t2i_cli.terminal.throughput import ThroughputMeter

FAILURES_IN_A_ROW = 3
"""Consecutive failures with a code of RETRIED_CODES that end a run: the next would fail too."""
FAILURES_AT_THE_START = 3
"""Equal unexpected errors as the first outcomes that end a run: no row is the cause."""


@dataclass
class RunStats:
    """Counts of a run so far: `failed` by error code, `stop_reason` if it was ended early.

    `costs` are those of images made, and of failed ones that may be billed; `over_limit` says
    whether images are left because of --max-cost.
    """

    made: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    stop_reason: str | None = None
    throughput: ThroughputMeter = field(default_factory=ThroughputMeter)
    first_messages: dict[str, str] = field(default_factory=dict)
    """The first message of each code."""
    notes: NoteGroups = field(default_factory=NoteGroups)
    """The notes on the images that were made."""
    costs: ImageCosts = field(default_factory=ImageCosts)
    over_limit: bool = False
    first_outcomes: list[str | None] = field(default_factory=list)
    """The unexpected errors of the first outcomes, `None` for any other outcome."""

    @property
    def attempted(self) -> int:
        """Number of images made or failed."""
        return self.made + self.failed.total()


class ProgressListener(Protocol):
    """Receives the events and outcomes of a batch."""

    def event(self, event: Event) -> None:
        """Handle an event of the backend."""
        ...

    def image(self, job: PlannedImage, saved: SavedImage, stats: RunStats) -> None:
        """Handle an image that is saved and in the manifest."""
        ...

    def failed(self, job: PlannedImage, failure: Failure, stats: RunStats) -> None:
        """Handle an image that could not be made or recorded."""
        ...


class BatchWriter:
    """Saves the image of each planned job to its file; thread-safe."""

    def __init__(self, plan: BatchPlan, scratch: Path) -> None:
        paths = [plan.folder / job.file for job in plan.jobs]
        self._folder = plan.folder
        self._files = [job.file for job in plan.jobs]
        self._notes = [job.row.notes for job in plan.jobs]
        self._formats = [job.format for job in plan.jobs]
        self._writers: dict[ImageFormat, ImageWriter] = {
            format: ImageWriter(paths, format, overwrite=True, scratch=scratch)
            for format in set(self._formats)
        }

    def __call__(self, generated: GeneratedImage) -> SavedImage:
        """Save one image. Raises StorageError."""
        try:
            check_parents(self._folder, self._files[generated.index])
        except OSError as error:
            raise StorageError(f"Cannot write '{error.filename}': {os_reason(error)}.") from error
        try:
            noted = with_notes(generated, self._notes[generated.index])
            return self._writers[self._formats[generated.index]].save(noted)
        except InputError as error:
            # The folder was writable when the run began, so the path is not at fault.
            raise StorageError(error.message) from error


def run_plan(
    plan: BatchPlan,
    executor: LocalExecutor,
    save: SaveImage,
    manifest: Manifest,
    listener: ProgressListener,
    stop: StopSignal,
    *,
    max_failures: int | None = None,
) -> RunStats:
    """Make the plan's images; returns the counts."""
    stats = RunStats()
    measured: dict[tuple[str, str | None], float] = {}
    started = time.monotonic()
    in_a_row = 0
    requests = [job.row.request for job in plan.jobs]

    def on_event(event: Event) -> None:
        stats.throughput.event(event)
        if isinstance(event, Finishing):
            event = Notice(message=_finishing_message(event, stats.throughput, stop))
        listener.event(event)

    try:
        for outcomes in executor.run(requests, save, on_event, stop):
            outcomes, write_error = _record_outcomes(outcomes, plan, manifest)
            stats.stop_reason = stats.stop_reason or write_error
            for outcome in outcomes:
                stats.seconds = time.monotonic() - started
                stats.throughput.outcome(outcome.index)
                job = plan.jobs[outcome.index]
                if is_billed(outcome.error if isinstance(outcome, Failure) else None):
                    stats.costs.add(job.price)
                if len(stats.first_outcomes) < FAILURES_AT_THE_START:
                    stats.first_outcomes.append(_unexpected_error(outcome))
                if isinstance(outcome, SavedImage):
                    in_a_row = 0
                    stats.made += 1
                    for note in outcome.notes:
                        stats.notes.add(note, job.row.id, job.row.line)
                    if outcome.info.endpoint is None:
                        key = (outcome.request.model, outcome.info.device)
                        measured[key] = outcome.seconds / timings.relative_cost(outcome.request)
                    listener.image(job, outcome, stats)
                else:
                    code = outcome.error.code
                    in_a_row = in_a_row + 1 if code in RETRIED_CODES else 0
                    stats.failed[code] += 1
                    stats.first_messages.setdefault(code, outcome.error.message)
                    listener.failed(job, outcome, stats)
            stats.stop_reason = stats.stop_reason or _stop_reason(stats, in_a_row, max_failures)
            if stats.stop_reason:
                stop.soon.set()
    except BaseException:
        stop.soon.set()
        stop.now.set()
        raise
    stats.seconds = time.monotonic() - started
    for (model, device), seconds_per_cost in measured.items():
        timings.record_timing(model, device, seconds_per_cost)
    return stats


def _finishing_message(event: Finishing, throughput: ThroughputMeter, stop: StopSignal) -> str:
    """What a run that was asked to stop still does, for how long, and how to stop it now."""
    if not event.indices:
        return "stopping: no image is in progress"
    images = "1 image" if len(event.indices) == 1 else f"{len(event.indices)} images"
    seconds = throughput.seconds_left(event.indices)
    duration = "" if seconds is None else f", about {format_estimate(seconds)}"
    again = "Ctrl-C again" if stop.signal == signal.SIGINT else "the same signal again"
    return f"finishing {images} of this pass{duration}; {again} stops now"


def _record_outcomes(
    outcomes: Sequence[Outcome], plan: BatchPlan, manifest: Manifest
) -> tuple[Sequence[Outcome], str | None]:
    """Append the outcomes to the manifest; if that fails, return failures and the reason."""
    folders = {
        outcome.path.parent
        for outcome in outcomes
        if isinstance(outcome, SavedImage) and outcome.path
    }
    try:
        manifest.append(
            [_manifest_line(plan.jobs[outcome.index], outcome) for outcome in outcomes], folders
        )
    except StorageError as error:
        # The next run does not find them in the manifest, and makes them again.
        failures = [
            Failure(index=outcome.index, request=outcome.request, error=error)
            for outcome in outcomes
        ]
        return failures, "The manifest cannot be written."
    return outcomes, None


def _stop_reason(stats: RunStats, in_a_row: int, max_failures: int | None) -> str | None:
    """The reason to end the run now, or `None`."""
    if max_failures is not None and stats.failed.total() >= max_failures:
        return f"{stats.failed.total()} images failed, as many as --max-failures allows."
    if in_a_row >= FAILURES_IN_A_ROW:
        return f"{in_a_row} images in a row failed for a reason that the next would meet, too."
    if (
        len(stats.first_outcomes) == FAILURES_AT_THE_START
        and stats.first_outcomes[0]
        and len(set(stats.first_outcomes)) == 1
    ):
        return (
            f"The first {FAILURES_AT_THE_START} images failed alike and unexpectedly: "
            "so would the others."
        )
    return None


def _unexpected_error(outcome: Outcome) -> str | None:
    """Type and message of an unexpected exception, `None` for any other outcome."""
    if isinstance(outcome, Failure) and isinstance(outcome.error, InternalError | PipelineError):
        return f"{type(outcome.error.__cause__).__name__}: {outcome.error.message}"
    return None


def _manifest_line(job: PlannedImage, outcome: Outcome) -> dict[str, object]:
    """The manifest line of an outcome."""
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
            "lock": outcome.info.to_json(),
        } | ({"notes": list(outcome.notes)} if outcome.notes else {})
    else:
        withheld = isinstance(outcome.error, ContentFilteredError)
        line |= {
            "status": "withheld" if withheld else "failed",
            "error": outcome.error.to_json(),
        }
    if job.price and is_billed(outcome.error if isinstance(outcome, Failure) else None):
        line["usd"] = job.price.usd
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return line | {"request": outcome.request.to_json(), "time": now}
