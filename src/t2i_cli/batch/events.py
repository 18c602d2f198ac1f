"""A batch as NDJSON on stderr; docs/events.schema.json is the contract."""

from t2i_cli.backend import Failure
from t2i_cli.batch.plan import BatchPlan, PlannedImage
from t2i_cli.batch.runner import RunStats
from t2i_cli.events import Downloading, Event, Loading, MemoryMeasure, Notice, RequestSent, Step
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.terminal.console import Console


class EventWriter:
    """Tells every event of a run as one line."""

    def __init__(self, console: Console, plan: BatchPlan) -> None:
        self._console = console
        self._jobs = plan.jobs
        self._total = len(plan.jobs)

    def close(self) -> None:
        """Nothing is left open."""

    def event(self, event: Event) -> None:
        """The backend tells something."""
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
            case Notice(message=message):
                self._console.event("note", message=message)

    def image(self, job: PlannedImage, saved: SavedImage, tally: RunStats) -> None:
        """An image is on the disk, and in the manifest."""
        self._console.event(
            "image",
            **self._place(job, tally),
            file=job.file,
            seed=saved.request.seed,
            bytes=saved.size_bytes,
            sha256=saved.sha256,
            seconds=round(saved.seconds, 3),
        )

    def failed(self, job: PlannedImage, failure: Failure, tally: RunStats) -> None:
        """An image could not be made, and the manifest says so."""
        self._console.event("failed", **self._place(job, tally), error=failure.error.to_json())
        self._console.cause(failure.error)

    def _place(self, job: PlannedImage, tally: RunStats) -> dict[str, object]:
        row = job.row
        return {
            "id": row.id,
            "index": row.index,
            "line": row.line,
            "tried": tally.attempted,
            "to_make": self._total,
        }
