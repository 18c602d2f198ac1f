"""Writes a batch's events as NDJSON to stderr; docs/events.schema.json is their schema."""

from t2i_cli.backend import Failure
from t2i_cli.batch.plan import BatchPlan, PlannedImage
from t2i_cli.batch.runner import RunStats
from t2i_cli.events import Downloading, Event, Loading, MemoryMeasure, Notice, RequestSent, Step
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.terminal.console import Console


class EventWriter:
    """Writes every event of a run as one line."""

    def __init__(self, console: Console, plan: BatchPlan) -> None:
        self._console = console
        self._jobs = plan.jobs
        self._total = len(plan.jobs)

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def event(self, event: Event) -> None:
        """Write an event of the backend."""
        match event:
            case Step(indices=indices, step=step, steps=steps):
                ids = [self._jobs[index].row.id for index in indices]
                self._console.event("step", ids=ids, step=step, steps=steps)
            case RequestSent(indices=indices):
                self._console.event("sent", ids=[self._jobs[index].row.id for index in indices])
            case MemoryMeasure(name=name, reason=reason):
                self._console.event("measure", name=name, reason=reason)
            case Loading(model=model, device=device):
                self._console.event("loading", model=model, device=device)
            case Downloading(model=model, done=done, total=total):
                self._console.event("downloading", model=model, done=done, total=total)
            case Notice(text=text, indices=indices):
                ids = [self._jobs[index].row.id for index in indices]
                self._console.event("note", message=text, **({"ids": ids} if ids else {}))

    def image(self, job: PlannedImage, saved: SavedImage, stats: RunStats) -> None:
        """Write that an image is saved and in the manifest."""
        self._console.event(
            "image",
            **self._position(job, stats),
            file=job.file,
            seed=saved.request.seed,
            bytes=saved.size_bytes,
            sha256=saved.sha256,
            seconds=round(saved.seconds, 3),
            **({"notes": list(saved.notes)} if saved.notes else {}),
            **({"usd": job.price.usd} if job.price else {}),
        )

    def failed(self, job: PlannedImage, failure: Failure, stats: RunStats) -> None:
        """Write that an image failed and is recorded as failed."""
        self._console.event("failed", **self._position(job, stats), error=failure.error.to_json())
        self._console.cause(failure.error)

    def _position(self, job: PlannedImage, stats: RunStats) -> dict[str, object]:
        row = job.row
        return {
            "id": row.id,
            "index": row.index,
            "line": row.line,
            "tried": stats.attempted,
            "to_make": self._total,
        }
