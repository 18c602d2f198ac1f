"""Records the outcomes of a run in its manifest; they are reported once their lines are stored."""

from collections.abc import Sequence
from datetime import UTC, datetime

from t2i_cli.backend import Failure
from t2i_cli.batch.batch_folder import ManifestLog
from t2i_cli.batch.plan import BatchPlan, PlannedImage
from t2i_cli.errors import ContentFilteredError, T2IError
from t2i_cli.image_costs import is_billed
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.saver_threads import Outcome


class OutcomeRecorder:
    """Appends outcomes to the manifest of a run."""

    def __init__(self, plan: BatchPlan, manifest: ManifestLog) -> None:
        self._jobs = plan.jobs
        self._manifest = manifest
        self._waiting: list[Outcome] = []

    def record(
        self, outcomes: Sequence[Outcome], *, last: bool = False
    ) -> tuple[Sequence[Outcome], str | None]:
        """Append outcomes; returns those that are stored by now, or failures and the reason.

        Lines of images may wait for others, until the `last` call at the latest: without new
        outcomes, it is asked whether they have waited long enough. A failure waits for nothing, as
        it may end the run.
        """
        self._waiting += outcomes
        if not self._waiting:
            return (), None
        last = last or any(isinstance(outcome, Failure) for outcome in outcomes)
        jobs = [(self._jobs[outcome.index], outcome) for outcome in outcomes]
        lines = [manifest_line(job, outcome) for job, outcome in jobs]
        files = [job.file for job, outcome in jobs if isinstance(outcome, SavedImage)]
        try:
            if not self._manifest.append(lines, files, last=last):
                return (), None
        except T2IError as error:
            # The next run does not find them in the manifest, and makes them again.
            failures = [
                Failure(index=outcome.index, request=outcome.request, error=error)
                for outcome in self._waiting
            ]
            self._waiting = []
            return failures, "The manifest cannot be written."
        stored, self._waiting = self._waiting, []
        return stored, None


def manifest_line(job: PlannedImage, outcome: Outcome) -> dict[str, object]:
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
