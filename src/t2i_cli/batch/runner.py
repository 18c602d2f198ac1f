"""The main loop of a batch: run the executor, record outcomes in the manifest, report them."""

import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.batch import timings
from t2i_cli.batch.batch_folder import ManifestLog
from t2i_cli.batch.executor import LocalExecutor
from t2i_cli.batch.interrupt import StopSignal
from t2i_cli.batch.note_groups import NoteGroups
from t2i_cli.batch.outcome_recorder import OutcomeRecorder
from t2i_cli.batch.plan import BatchPlan, PlannedImage
from t2i_cli.batch.row_records import RETRIED_CODES
from t2i_cli.driver import with_notes
from t2i_cli.durations import format_estimate
from t2i_cli.errors import InternalError, PipelineError
from t2i_cli.events import Event, Finishing, Notice
from t2i_cli.image_costs import ImageCosts, is_billed
from t2i_cli.output import metadata
from t2i_cli.output.image_writer import SavedImage, saved_image
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

    def __init__(self, plan: BatchPlan) -> None:
        self._folder = plan.folder
        self._jobs = plan.jobs

    def __call__(self, generated: GeneratedImage) -> SavedImage:
        """Save one image. Raises T2IError."""
        job = self._jobs[generated.index]
        noted = with_notes(generated, job.row.notes)
        data = metadata.image_file_bytes(noted, job.format)
        self._folder.save_image(job.file, data)
        return saved_image(noted, self._folder.location(job.file), job.format, data)


def run_plan(
    plan: BatchPlan,
    executor: LocalExecutor,
    save: SaveImage,
    manifest: ManifestLog,
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

    recorder = OutcomeRecorder(plan, manifest)

    def record(outcomes: Sequence[Outcome], *, last: bool = False) -> None:
        """Record outcomes, and report those that are stored by now."""
        nonlocal in_a_row
        for outcome in outcomes:
            stats.throughput.outcome(outcome.index)
        stored, write_error = recorder.record(outcomes, last=last)
        stats.stop_reason = stats.stop_reason or write_error
        for outcome in stored:
            stats.seconds = time.monotonic() - started
            in_a_row = _count(outcome, plan.jobs[outcome.index], stats, in_a_row)
            _measure(outcome, measured)
            _report(outcome, plan.jobs[outcome.index], stats, listener)
        stats.stop_reason = stats.stop_reason or _stop_reason(stats, in_a_row, max_failures)
        if stats.stop_reason:
            stop.soon.set()

    try:
        for outcomes in executor.run(requests, save, on_event, stop):
            record(outcomes)
        record((), last=True)
    except BaseException:
        stop.soon.set()
        stop.now.set()
        raise
    stats.seconds = time.monotonic() - started
    for (model, device), seconds_per_cost in measured.items():
        timings.record_timing(model, device, seconds_per_cost)
    return stats


def _count(outcome: Outcome, job: PlannedImage, stats: RunStats, in_a_row: int) -> int:
    """Count an outcome; returns the failures in a row that the next image would meet, too."""
    if is_billed(outcome.error if isinstance(outcome, Failure) else None):
        stats.costs.add(job.price)
    if len(stats.first_outcomes) < FAILURES_AT_THE_START:
        stats.first_outcomes.append(_unexpected_error(outcome))
    if isinstance(outcome, SavedImage):
        stats.made += 1
        for note in outcome.notes:
            stats.notes.add(note, job.row.id, job.row.line)
        return 0
    code = outcome.error.code
    stats.failed[code] += 1
    stats.first_messages.setdefault(code, outcome.error.message)
    return in_a_row + 1 if code in RETRIED_CODES else 0


def _measure(outcome: Outcome, measured: dict[tuple[str, str | None], float]) -> None:
    """Note how long an image took on this machine's device, or a worker's."""
    if isinstance(outcome, SavedImage) and outcome.info.endpoint is None:
        key = (outcome.request.model, outcome.info.device)
        measured[key] = outcome.seconds / timings.relative_cost(outcome.request)


def _report(
    outcome: Outcome, job: PlannedImage, stats: RunStats, listener: ProgressListener
) -> None:
    if isinstance(outcome, SavedImage):
        listener.image(job, outcome, stats)
    else:
        listener.failed(job, outcome, stats)


def _finishing_message(event: Finishing, throughput: ThroughputMeter, stop: StopSignal) -> str:
    """What a run that was asked to stop still does, for how long, and how to stop it now."""
    if not event.indices:
        return "stopping: no image is in progress"
    images = "1 image" if len(event.indices) == 1 else f"{len(event.indices)} images"
    seconds = throughput.seconds_left(event.indices)
    duration = "" if seconds is None else f", about {format_estimate(seconds)}"
    again = "Ctrl-C again" if stop.signal == signal.SIGINT else "the same signal again"
    return f"finishing {images} of this pass{duration}; {again} stops now"


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
