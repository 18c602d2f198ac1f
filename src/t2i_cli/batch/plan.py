"""The plan of a batch: images done, images to make, and their estimated time and size."""

import hashlib
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t2i_cli import image_formats
from t2i_cli.batch import row_filenames, timings
from t2i_cli.batch.lock import Shard
from t2i_cli.batch.manifest import ManifestEntry, ManifestState
from t2i_cli.batch.rows import BatchRow, group_rows
from t2i_cli.errors import (
    AccessError,
    InputError,
    QuotaError,
    RemoteError,
    StorageError,
    TimedOutError,
)
from t2i_cli.image_formats import ImageFormat
from t2i_cli.output import filenames
from t2i_cli.prompts.entries import PromptProblem
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import FIELDS
from t2i_cli.terminal.console import format_bytes

RETRIED_CODES = {
    kind.code for kind in (AccessError, QuotaError, TimedOutError, RemoteError, StorageError)
}
"""Codes of failures that a row does not cause; every run retries such images."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image to be made in this run; `file` is its path relative to the folder, with `/`."""

    row: BatchRow
    file: str
    format: ImageFormat


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """Which rows a run makes, and how their files are named."""

    template: str = row_filenames.DEFAULT_NAME_TEMPLATE
    format: str | None = None
    shard: Shard | None = None
    limit: int | None = None
    force: bool = False
    retry_failed: bool = False
    verify_files: bool = False


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """What a run will do. `jobs` are in the order in which they are made.

    `failed` counts the failures of earlier runs by code; `left` is the number of images beyond
    --limit; `estimates` is the backend's estimate for each model; `seconds` the estimated time.
    """

    folder: Path
    rows: Sequence[BatchRow]
    jobs: Sequence[PlannedImage]
    done: int
    failed: Mapping[str, int]
    left: int
    problems: Sequence[PromptProblem]
    estimates: Sequence[Mapping[str, object]]
    disk_bytes: int
    free_bytes: int
    seconds: float | None
    groups: Sequence[Mapping[str, object]] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """The plan as `--dry-run --json` and the `planned` event print it."""
        return {
            "folder": str(self.folder),
            "images": len(self.rows),
            "to_make": len(self.jobs),
            "done": self.done,
            "failed": sum(self.failed.values()),
            "left": self.left,
            "invalid": len({problem.line for problem in self.problems}),
            "groups": list(self.groups),
            "models": list(self.estimates),
            "disk_bytes": self.disk_bytes,
            "free_bytes": self.free_bytes,
            "estimated_seconds": None if self.seconds is None else round(self.seconds, 1),
        }

    def text(self) -> str:
        """The plan as text for people."""
        parts = [f"{len(self.jobs):,} of {len(self.rows):,} images to make in {self.folder}"]
        parts += [f"{self.done:,} done before"] * bool(self.done)
        parts += [f"{sum(self.failed.values()):,} failed before"] * bool(self.failed)
        parts += [f"{self.left:,} left for later"] * bool(self.left)
        lines = ["; ".join(parts)]
        for group in self.groups:
            size = f"{group['width']}x{group['height']}" if group["width"] else "its own size"
            settings = [
                known.summary.format(group[name])
                for name, known in FIELDS.items()
                if known.summary and name in group
            ]
            lines.append(
                f"  {group['images']:,} with {group['model']}: {', '.join([size, *settings])}"
            )
        for estimate in self.estimates:
            if download := estimate.get("download_mib"):
                lines.append(f"  to download: {estimate['model']}, {download:,} MiB")
            if url := estimate.get("url"):
                lines.append(f"  on {url}: {estimate['concurrency']} calls at a time")
            if date := estimate.get("prices_of"):
                price = estimate["usd_per_hour_at_most"]
                cost = "not known" if price is None else f"at most {price:.2f} USD per hour"
                lines.append(f"  price: {cost}, while the endpoint is up (table: {date})")
        lines.append(
            f"  disk: about {format_bytes(self.disk_bytes)}; "
            f"{format_bytes(self.free_bytes)} are free"
        )
        if self.seconds is not None:
            lines.append(f"  time: about {format_estimate(self.seconds)}, as in earlier runs")
        return "\n".join(lines)


def build_plan(
    rows: Sequence[BatchRow],
    problems: Sequence[PromptProblem],
    folder: Path,
    state: ManifestState,
    selection: SelectionOptions,
    estimate: Callable[[ResolvedRequest], Mapping[str, object]] = lambda _: {},
) -> BatchPlan:
    """Plan a run; a row without a valid file name becomes a problem of the plan.

    `estimate` is the backend's estimate for the first request of each model.
    """
    statuses = {row.id: _row_status(row, state, folder, selection) for row in rows}
    missing = {row_id for row_id, status in statuses.items() if status is None}
    recorded_names = {
        row_id: path for row_id in missing if (path := _recorded_file(state.rows.get(row_id)))
    }
    names, name_problems = row_filenames.assign_filenames(
        rows, selection.template, selection.format, state.owners, missing - recorded_names.keys()
    )
    names |= recorded_names
    name_problems += _foreign_files(rows, names, state, folder)
    invalid_lines = {problem.line for problem in name_problems}
    selected_rows = [
        row
        for row in rows
        if row.line not in invalid_lines
        and (selection.shard is None or selection.shard.includes(row.id))
    ]
    to_make = [row for row in selected_rows if row.id in missing]
    chosen = to_make if selection.limit is None else to_make[: selection.limit]
    groups = list(group_rows(chosen))
    jobs = [PlannedImage(row, *names[row.id]) for group in groups for row in group]
    first_requests = {
        (g[0].request.model, g[0].request.revision): g[0].request for g in reversed(groups)
    }
    estimates = [
        {"model": request.model, **estimate(request)} for request in first_requests.values()
    ]
    devices = {str(record["model"]): _text_or_none(record.get("device")) for record in estimates}
    return BatchPlan(
        folder=folder,
        rows=selected_rows,
        jobs=jobs,
        done=sum(statuses[row.id] == "done" for row in selected_rows),
        failed=Counter(
            status for row in selected_rows if (status := statuses[row.id]) not in (None, "done")
        ),
        left=len(to_make) - len(chosen),
        problems=[*problems, *name_problems],
        estimates=estimates,
        disk_bytes=sum(map(_estimated_bytes, jobs)),
        free_bytes=_free_bytes(folder),
        seconds=timings.estimate_seconds((row.request for row in chosen), devices),
        groups=[_describe_group(group) for group in groups],
    )


def format_estimate(seconds: float) -> str:
    """Format a number of seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _row_status(
    row: BatchRow, state: ManifestState, folder: Path, selection: SelectionOptions
) -> str | None:
    """`done`, the code of a failure that is not retried, or `None` for an image to be made."""
    entry = state.rows.get(row.id)
    if entry is None or selection.force:
        return None
    if entry.status == "done":
        return "done" if _is_whole(entry, folder, selection.verify_files) else None
    if selection.retry_failed or entry.code in RETRIED_CODES:
        return None
    return entry.code or entry.status


def _is_whole(entry: ManifestEntry, folder: Path, verify: bool) -> bool:
    """Whether the file has the recorded size and, with `verify`, the recorded SHA-256 hash."""
    path = os.path.join(folder, entry.file or "")
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry.bytes:
            return False
        if verify:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    except OSError:
        return False
    return True


def _recorded_file(entry: ManifestEntry | None) -> tuple[str, ImageFormat] | None:
    """File and format recorded in the manifest, `None` if the name is not valid for a row."""
    if entry is None or entry.file is None:
        return None
    try:
        row_filenames.check_filename(entry.file)
    except InputError:
        return None
    format = image_formats.IMAGE_FORMATS.get(entry.file.rpartition(".")[2].lower())
    return (entry.file, format) if format else None


def _foreign_files(
    rows: Iterable[BatchRow],
    names: Mapping[str, tuple[str, ImageFormat]],
    state: ManifestState,
    folder: Path,
) -> list[PromptProblem]:
    """A problem for each image to be made whose path is taken by a file of another origin."""
    problems: list[PromptProblem] = []
    if not folder.is_dir():
        return problems
    for row in rows:
        file, _ = names.get(row.id, ("", None))
        path = os.path.join(folder, file)
        if not file or not os.path.lexists(path):
            continue
        if state.owners.get(filenames.normalised_name(file)) == row.id or _belongs_to_row(
            row, Path(path)
        ):
            continue
        message = f"'{path}' is there, and not of this batch; move it, or use another -o."
        problems.append(PromptProblem(row.line, "name", message))
    return problems


def _belongs_to_row(row: BatchRow, path: Path) -> bool:
    """Whether a file missing from the manifest is the row's image, from a run that was killed."""
    from t2i_cli.output import metadata

    if path.is_symlink() or not path.is_file():
        return False
    try:
        record = metadata.read_metadata(path)
    except InputError:
        return False
    return record.source == "t2i" and dict(record.request) == row.request.to_json()


def _describe_group(group: Sequence[BatchRow]) -> dict[str, object]:
    """The fields that the rows of a group share, and the number of images."""
    request = group[0].request
    fields = request.to_json().items()
    return {name: value for name, value in fields if not FIELDS[name].per_image} | {
        "images": len(group)
    }


def _estimated_bytes(job: PlannedImage) -> int:
    pixels = (job.row.request.width or 1024) * (job.row.request.height or 1024)
    return int(pixels * image_formats.BYTES_A_PIXEL[job.format])


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(filenames.existing_parent(folder)).free


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)
