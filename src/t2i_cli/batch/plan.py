"""The plan: which images are there, which are to be made, and what that will take."""

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
"""Failures that say nothing of the row: they are tried again by every run."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """A row to be made now: its file, relative to the folder with `/`, and its format."""

    row: BatchRow
    file: str
    format: ImageFormat


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """Which of the rows a run is to make, and how their files are called."""

    template: str = row_filenames.DEFAULT_NAME_TEMPLATE
    format: str | None = None
    shard: Shard | None = None
    limit: int | None = None
    force: bool = False
    retry_failed: bool = False
    verify_files: bool = False


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """What a run will do. `jobs` are in the order of their making.

    `failed` are those that an earlier run gave up, by the code of the failure; `left` is what
    --limit leaves out; `needs` is what the backend says of each model.
    """

    folder: Path
    rows: Sequence[BatchRow]
    jobs: Sequence[PlannedImage]
    done: int
    failed: Mapping[str, int]
    left: int
    problems: Sequence[PromptProblem]
    needs: Sequence[Mapping[str, object]]
    disk_bytes: int
    free_bytes: int
    seconds: float | None
    groups: Sequence[Mapping[str, object]] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """The plan as `--dry-run --json` and the `planned` event tell it."""
        return {
            "folder": str(self.folder),
            "images": len(self.rows),
            "to_make": len(self.jobs),
            "done": self.done,
            "failed": sum(self.failed.values()),
            "left": self.left,
            "invalid": len({problem.line for problem in self.problems}),
            "groups": list(self.groups),
            "models": list(self.needs),
            "disk_bytes": self.disk_bytes,
            "free_bytes": self.free_bytes,
            "estimated_seconds": None if self.seconds is None else round(self.seconds, 1),
        }

    def text(self) -> str:
        """The plan for a person."""
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
        for need in self.needs:
            if download := need.get("download_mib"):
                lines.append(f"  to download: {need['model']}, {download:,} MiB")
            if url := need.get("url"):
                lines.append(f"  on {url}: {need['concurrency']} calls at a time")
            if date := need.get("prices_of"):
                price = need["usd_per_hour_at_most"]
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
    choice: SelectionOptions,
    needs: Callable[[ResolvedRequest], Mapping[str, object]] = lambda _: {},
) -> BatchPlan:
    """Find out what is to be made; a row that cannot be named joins the problems."""
    looked = {row.id: _standing(row, state, folder, choice) for row in rows}
    missing = {row_id for row_id, standing in looked.items() if standing is None}
    kept = {row_id: path for row_id in missing if (path := _recorded(state.rows.get(row_id)))}
    found, unnamed = row_filenames.assign_filenames(
        rows, choice.template, choice.format, state.owners, missing - kept.keys()
    )
    found |= kept
    unnamed += _strangers(rows, found, state, folder)
    wrong = {problem.line for problem in unnamed}
    part = [
        row
        for row in rows
        if row.line not in wrong and (choice.shard is None or choice.shard.includes(row.id))
    ]
    wanted = [row for row in part if row.id in missing]
    chosen = wanted if choice.limit is None else wanted[: choice.limit]
    groups = list(group_rows(chosen))
    jobs = [PlannedImage(row, *found[row.id]) for group in groups for row in group]
    firsts = {(g[0].request.model, g[0].request.revision): g[0].request for g in reversed(groups)}
    told = [{"model": request.model, **needs(request)} for request in firsts.values()]
    devices = {str(need["model"]): _text(need.get("device")) for need in told}
    return BatchPlan(
        folder=folder,
        rows=part,
        jobs=jobs,
        done=sum(looked[row.id] == "done" for row in part),
        failed=Counter(s for row in part if (s := looked[row.id]) not in (None, "done")),
        left=len(wanted) - len(chosen),
        problems=[*problems, *unnamed],
        needs=told,
        disk_bytes=sum(map(_size, jobs)),
        free_bytes=_free(folder),
        seconds=timings.estimate_seconds((row.request for row in chosen), devices),
        groups=[_described(group) for group in groups],
    )


def format_estimate(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _standing(
    row: BatchRow, state: ManifestState, folder: Path, choice: SelectionOptions
) -> str | None:
    """ "done", the code of a failure that stands, or `None` for what is to be made."""
    known = state.rows.get(row.id)
    if known is None or choice.force:
        return None
    if known.status == "done":
        return "done" if _is_whole(known, folder, choice.verify_files) else None
    if choice.retry_failed or known.code in RETRIED_CODES:
        return None
    return known.code or known.status


def _is_whole(known: ManifestEntry, folder: Path, verify: bool) -> bool:
    path = os.path.join(folder, known.file or "")
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size != known.bytes:
            return False
        if verify:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == known.sha256
    except OSError:
        return False
    return True


def _recorded(known: ManifestEntry | None) -> tuple[str, ImageFormat] | None:
    """The name that a row has had, if it is one that a row may have."""
    if known is None or known.file is None:
        return None
    try:
        row_filenames.check_filename(known.file)
    except InputError:
        return None
    format = image_formats.IMAGE_FORMATS.get(known.file.rpartition(".")[2].lower())
    return (known.file, format) if format else None


def _strangers(
    rows: Iterable[BatchRow],
    found: Mapping[str, tuple[str, ImageFormat]],
    state: ManifestState,
    folder: Path,
) -> list[PromptProblem]:
    """Files in the place of an image to be made that are none of this batch's."""
    problems: list[PromptProblem] = []
    if not folder.is_dir():
        return problems
    for row in rows:
        file, _ = found.get(row.id, ("", None))
        path = os.path.join(folder, file)
        if not file or not os.path.lexists(path):
            continue
        if state.owners.get(filenames.normalised_name(file)) == row.id or _is_of(row, Path(path)):
            continue
        message = f"'{path}' is there, and not of this batch; move it, or use another -o."
        problems.append(PromptProblem(row.line, "name", message))
    return problems


def _is_of(row: BatchRow, path: Path) -> bool:
    """Whether a file that no manifest has is the row's: a run died before it could say so."""
    from t2i_cli.output import metadata

    if path.is_symlink() or not path.is_file():
        return False
    try:
        record = metadata.read_metadata(path)
    except InputError:
        return False
    return record.source == "t2i" and dict(record.request) == row.request.to_json()


def _described(group: Sequence[BatchRow]) -> dict[str, object]:
    """What the rows of a group have in common, and how many they are."""
    request = group[0].request
    told = request.to_json().items()
    return {n: value for n, value in told if not FIELDS[n].per_image} | {"images": len(group)}


def _size(job: PlannedImage) -> int:
    pixels = (job.row.request.width or 1024) * (job.row.request.height or 1024)
    return int(pixels * image_formats.BYTES_A_PIXEL[job.format])


def _free(folder: Path) -> int:
    return shutil.disk_usage(filenames.existing_parent(folder)).free


def _text(value: object) -> str | None:
    return None if value is None else str(value)
