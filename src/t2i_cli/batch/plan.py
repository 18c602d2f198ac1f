"""The plan of a batch: images done, images to make, and their estimated time and size."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from t2i_cli import image_formats
from t2i_cli.batch import row_filenames, timings, unlisted_images
from t2i_cli.batch.batch_folder import BatchFolder
from t2i_cli.batch.earlier_requests import RequestChange, find_request_change
from t2i_cli.batch.lock import Shard
from t2i_cli.batch.manifest import ManifestState
from t2i_cli.batch.row_records import RecordFinder, RecordOptions, RowRecord, file_format
from t2i_cli.batch.rows import BatchRow, group_rows
from t2i_cli.batch.unlisted_images import UnlistedImage
from t2i_cli.durations import format_estimate
from t2i_cli.image_costs import estimated_cost, estimated_cost_text
from t2i_cli.image_formats import ImageFormat
from t2i_cli.image_price import ImagePrice
from t2i_cli.output import filenames
from t2i_cli.prompts.entries import PromptProblem
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import FIELDS
from t2i_cli.terminal.console import format_bytes


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image to be made in this run; `file` is its path relative to the folder, with `/`."""

    row: BatchRow
    file: str
    format: ImageFormat
    price: ImagePrice | None = None


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
    prune: bool = False

    @property
    def record_options(self) -> RecordOptions:
        """How the manifests' records are judged."""
        return RecordOptions(
            template=self.template,
            format=self.format,
            force=self.force,
            retry_failed=self.retry_failed,
            verify_files=self.verify_files,
        )


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """What a run will do. `jobs` are in the order in which they are made.

    `failed` counts the failures of earlier runs by code; `left` is the number of images beyond
    --limit; `estimates` is the backend's estimate for each model; `seconds` the estimated time;
    `unlisted` are finished images that get their manifest lines now; `max_cost` is --max-cost.
    """

    folder: BatchFolder
    rows: Sequence[BatchRow]
    jobs: Sequence[PlannedImage]
    done: int
    failed: Mapping[str, int]
    left: int
    problems: Sequence[PromptProblem]
    estimates: Sequence[Mapping[str, object]]
    disk_bytes: int
    free_bytes: int | None
    seconds: float | None
    change: RequestChange
    unlisted: Sequence[UnlistedImage]
    groups: Sequence[Mapping[str, object]] = field(default_factory=list)
    max_cost: float | None = None

    @property
    def prices(self) -> list[ImagePrice | None]:
        """The price of each image to make; `None` where images are not billed one by one."""
        return [job.price for job in self.jobs]

    def to_json(self) -> dict[str, object]:
        """The plan as `--dry-run --json` and the `planned` event print it."""
        return {
            "folder": self.folder.location(),
            "images": len(self.rows),
            "to_make": len(self.jobs),
            "done": self.done,
            "failed": sum(self.failed.values()),
            "left": self.left,
            "earlier": len(self.change.pictures),
            "invalid": len({problem.line for problem in self.problems}),
            "groups": list(self.groups),
            "models": list(self.estimates),
            "disk_bytes": self.disk_bytes,
            "free_bytes": self.free_bytes,
            "estimated_seconds": None if self.seconds is None else round(self.seconds, 1),
        } | estimated_cost(self.prices, self.max_cost)

    def text(self) -> str:
        """The plan as text for people."""
        parts = [
            f"{len(self.jobs):,} of {len(self.rows):,} images to make in {self.folder.location()}"
        ]
        parts += [f"{self.done:,} done before"] * bool(self.done)
        parts += [f"{sum(self.failed.values()):,} failed before"] * bool(self.failed)
        parts += [f"{self.left:,} left for later"] * bool(self.left)
        earlier = len(self.change.pictures)
        parts += [f"{earlier:,} of earlier requests stay"] * bool(earlier)
        lines = ["; ".join(parts)]
        for group in self.groups:
            size = f"{group['width']}x{group['height']}" if group["width"] else "its own size"
            settings = [
                known.summary_text(group[name])
                for name, known in FIELDS.items()
                if known.summary and group.get(name) is not None
            ]
            lines.append(
                f"  {group['images']:,} with {group['model']}: {', '.join([size, *settings])}"
            )
        for estimate in self.estimates:
            if download := estimate.get("download_mib"):
                lines.append(f"  to download: {estimate['model']}, {download:,} MiB")
            if url := estimate.get("url"):
                lines.append(f"  on {url}: {estimate['concurrency']} calls at a time")
            if unknown := estimate.get("not_known"):
                lines.append(f"  not known: {unknown}")
            if workers := estimate.get("workers"):
                lines.append(_describe_workers(estimate, str(workers)))
            if gpus := estimate.get("unused_gpus"):
                lines.append(
                    f"  one GPU of this machine is used, {gpus} more are not: "
                    "--backend ray uses all"
                )
            if date := estimate.get("prices_of"):
                price = estimate["usd_per_hour_at_most"]
                cost = "not known" if price is None else f"at most {price:.2f} USD per hour"
                lines.append(f"  price: {cost}, while the endpoint is up (table: {date})")
        if price := estimated_cost_text(self.prices, self.max_cost):
            lines.append(f"  price: {price}")
        needed, free = format_bytes(self.disk_bytes), self.free_bytes
        lines.append(
            f"  size: about {needed}"
            if free is None
            else f"  disk: about {needed}; {format_bytes(free)} are free"
        )
        if self.seconds is not None:
            lines.append(f"  time: about {format_estimate(self.seconds)}, as in earlier runs")
        return "\n".join(lines)


def build_plan(
    rows: Sequence[BatchRow],
    problems: Sequence[PromptProblem],
    folder: BatchFolder,
    state: ManifestState,
    selection: SelectionOptions,
    estimate: Callable[[ResolvedRequest], Mapping[str, object]] = lambda _: {},
    image_price: Callable[[ResolvedRequest], ImagePrice | None] = lambda _: None,
) -> BatchPlan:
    """Plan a run; a row without a valid file name becomes a problem of the plan.

    `estimate` is the backend's estimate for the first request of each model, `image_price` its
    price of an image.
    """
    finder = RecordFinder(state, folder, selection.record_options)
    records = {row.id: finder.find(row) for row in rows}
    missing = {row_id for row_id, record in records.items() if record.status is None}
    recorded_names = {
        row_id: (file, format)
        for row_id in missing
        if (file := records[row_id].file) and (format := file_format(file))
    }
    names, name_problems = row_filenames.assign_filenames(
        rows, selection.template, selection.format, state.owners, missing - recorded_names.keys()
    )
    names |= recorded_names
    missing_rows = [row for row in rows if row.id in missing]
    found: dict[str, UnlistedImage] = {}
    if not selection.force and folder.is_used():
        found = unlisted_images.find_unlisted(missing_rows, names, state.owners, folder)
    records |= {row_id: RowRecord("done", image.file) for row_id, image in found.items()}
    missing_rows = [row for row in missing_rows if row.id not in found]
    name_problems += _settle_taken_names(missing_rows, names, state, folder)
    invalid_lines = {problem.line for problem in name_problems}
    selected_rows = [
        row
        for row in rows
        if row.line not in invalid_lines
        and (selection.shard is None or selection.shard.includes(row.id))
    ]
    to_make = [row for row in selected_rows if records[row.id].status is None]
    chosen = to_make if selection.limit is None else to_make[: selection.limit]
    groups = list(group_rows(chosen))
    jobs = [
        PlannedImage(row, *names[row.id], image_price(row.request))
        for group in groups
        for row in group
    ]
    first_requests = {g[0].request.model_key(): g[0].request for g in reversed(groups)}
    estimates = [
        {"model": request.model, **estimate(request)} for request in first_requests.values()
    ]
    devices = {str(record["model"]): _text_or_none(record.get("device")) for record in estimates}
    statuses = [records[row.id].status for row in selected_rows]
    new_names = {
        row.id: names[row.id][0] for row in missing_rows if row.id in names and row.id in state.rows
    }
    return BatchPlan(
        folder=folder,
        rows=selected_rows,
        jobs=jobs,
        done=statuses.count("done"),
        failed=Counter(status for status in statuses if status not in (None, "done")),
        left=len(to_make) - len(chosen),
        problems=[*problems, *name_problems],
        estimates=estimates,
        disk_bytes=sum(map(_estimated_bytes, jobs)),
        free_bytes=folder.free_bytes(),
        seconds=_estimate_seconds(chosen, devices, estimates),
        groups=[_describe_group(group) for group in groups],
        change=find_request_change(state, records, new_names, selection.shard),
        unlisted=[found[row.id] for row in selected_rows if row.id in found],
    )


def _settle_taken_names(
    rows: Iterable[BatchRow],
    names: dict[str, tuple[str, ImageFormat]],
    state: ManifestState,
    folder: BatchFolder,
) -> list[PromptProblem]:
    """Rename images whose path has another picture of t2i; a problem for any other file there."""
    problems: list[PromptProblem] = []
    if folder.occupant("") is None:
        return problems
    for row in rows:
        if row.id not in names:
            continue
        file, format = names[row.id]
        if _is_taken(row, file, state, folder):
            if unlisted_images.read_own_record(folder, file):
                file = row_filenames.name_with_id(file, row.id)
                names[row.id] = (file, format)
            if _is_taken(row, file, state, folder):
                message = f"'{folder.location(file)}' is there, and not of this batch; "
                message += "move it, or use another -o."
                problems.append(PromptProblem(row.line, "name", message))
                continue
        try:
            folder.check_parents(file)
        except OSError as error:
            path = folder.location(file)
            message = f"'{error.filename}' in the path of '{path}': {error.strerror}."
            problems.append(PromptProblem(row.line, "name", message))
    return problems


def _is_taken(row: BatchRow, file: str, state: ManifestState, folder: BatchFolder) -> bool:
    """Whether the path has something that is not this row's image."""
    occupant = folder.occupant(file)
    if occupant is None:
        return False
    if state.owners.get(filenames.normalised_name(file)) == row.id:
        return occupant == "folder"
    record = unlisted_images.read_own_record(folder, file)
    return record is None or not unlisted_images.is_image_of(record, row)


def _estimate_seconds(
    rows: Sequence[BatchRow],
    devices: dict[str, str | None],
    estimates: Sequence[Mapping[str, object]],
) -> float | None:
    """The estimated time of the rows, shared by the workers, if the backend has several."""
    seconds = timings.estimate_seconds((row.request for row in rows), devices)
    workers = max((int(str(one.get("workers") or 1)) for one in estimates), default=1)
    return None if seconds is None else seconds / max(1, min(workers, len(rows)))


def _describe_workers(estimate: Mapping[str, object], workers: str) -> str:
    """The line of the plan on the workers of a Ray cluster."""
    address = estimate.get("address")
    where = (
        "Ray, started on this machine" if address == "local" else f"the Ray cluster at {address}"
    )
    share = estimate.get("gpus_per_worker")
    gpus = "" if share is None else f", {float(str(share)):g} GPU each"
    return f"  on {where}: {workers} worker{'' if workers == '1' else 's'}{gpus}"


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


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)
