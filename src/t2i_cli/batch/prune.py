"""Removes pictures of earlier requests, for --prune."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from t2i_cli.batch.batch_folder import BatchFolder, ManifestLog
from t2i_cli.batch.manifest import ManifestEntry
from t2i_cli.batch.manifest_lines import PRUNED_STATUS
from t2i_cli.batch.plan import BatchPlan
from t2i_cli.batch.plan_listing import listed_images, listed_lines
from t2i_cli.batch.record_table import RecordKey
from t2i_cli.errors import T2IError
from t2i_cli.terminal.console import Console


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """Files that --prune removed or would remove, and those that it leaves as they were changed."""

    removed: list[str]
    changed: list[str]
    lines: list[dict[str, object]]

    def to_json(self) -> dict[str, object]:
        """The files, as `--dry-run --json` prints them."""
        return {"remove": self.removed, "changed": self.changed}


def show_plan(batch_plan: BatchPlan, console: Console, *, prune: bool) -> None:
    """Print what a run would make and, with --prune, remove."""
    pruned = None
    if prune:
        pruned = prune_pictures(batch_plan.folder, batch_plan.change.pictures, dry_run=True)
    images = listed_images(batch_plan)
    if console.json:
        record = batch_plan.to_json() | {"rows": images}
        console.result_json(record | ({"prune": pruned.to_json()} if pruned else {}))
        return
    console.result("\n".join([batch_plan.text(), *listed_lines(images)]))
    if pruned:
        for file in pruned.removed:
            console.result(f"  would remove {batch_plan.folder.location(file)}")
        for file in pruned.changed:
            console.result(f"  would leave {batch_plan.folder.location(file)}: it was changed")


def prune_folder(
    batch_plan: BatchPlan,
    manifest_file: ManifestLog,
    console: Console,
    error: T2IError | None,
) -> list[str]:
    """Remove the pictures of earlier requests and return them; none if the run had an `error`.

    Raises T2IError.
    """
    pictures = batch_plan.change.pictures
    if pictures and error:
        console.warn("Pictures of earlier requests stay, as not every image is done.")
        pictures = {}
    pruned = prune_pictures(batch_plan.folder, pictures)
    manifest_file.append(pruned.lines)
    if pruned.removed:
        console.note(f"{len(pruned.removed):,} pictures of earlier requests are removed.")
    for file in pruned.removed:
        console.detail(f"removed {batch_plan.folder.location(file)}")
    for file in pruned.changed:
        console.warn(
            f"'{batch_plan.folder.location(file)}' was changed since it was made, and stays."
        )
    return pruned.removed


def prune_pictures(
    folder: BatchFolder, pictures: Mapping[RecordKey, ManifestEntry], *, dry_run: bool = False
) -> PruneResult:
    """Remove pictures of earlier requests that are as the manifest says, and no others.

    Links are not followed. Raises T2IError if a file cannot be removed.
    """
    result = PruneResult(removed=[], changed=[], lines=[])
    for (row_id, file), entry in sorted(pictures.items(), key=lambda pair: pair[0][1]):
        found = _is_unchanged(folder, file, entry)
        if found is False:
            result.changed.append(file)
            continue
        if found:
            result.removed.append(file)
        if found and not dry_run:
            folder.remove_file(file)
        result.lines.append({"id": row_id, "status": PRUNED_STATUS, "file": file})
    return result


def _is_unchanged(folder: BatchFolder, file: str, entry: ManifestEntry) -> bool | None:
    """Whether the file is the one that the manifest records; `None` if it is gone."""
    try:
        if folder.file_size(file) != entry.bytes:
            return False
        with folder.open_file(file) as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == entry.sha256
    except FileNotFoundError:
        return None
    except OSError:
        return False
