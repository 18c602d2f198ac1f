"""Joins the manifests of a folder's shards to one."""

import json
from pathlib import Path

from t2i_cli.batch import manifest
from t2i_cli.batch.manifest import MAIN_MANIFEST, MANIFEST_HEADER
from t2i_cli.batch.record_table import Record, RecordTable
from t2i_cli.files import atomic
from t2i_cli.output.image_writer import storage_error


def merge_manifests(folder: Path, scratch: Path | None = None) -> int:
    """Merge all shards' manifests into the main one; returns the number of shards.

    `scratch`, or else the folder, holds the unfinished file. Damaged lines are left out. Shards'
    files are removed after their lines are synced, so that a merge can be interrupted at any time.
    """
    shards = [path for path in manifest.manifest_files(folder) if path.name != MAIN_MANIFEST]
    table, _ = manifest.read_table(folder, dict)
    if not shards:
        return 0
    try:
        data = MANIFEST_HEADER + manifest.encode_lines(merged_lines(table))
        atomic.write_bytes(folder / MAIN_MANIFEST, data, scratch=scratch or folder, sync=True)
        manifest.sync_folder(folder)
        for path in shards:
            path.unlink()
    except OSError as error:
        raise storage_error(error, "write", folder / MAIN_MANIFEST) from error
    return len(shards)


def merged_lines(table: RecordTable[dict[str, object]]) -> list[Record]:
    """The lines of a manifest with all that counts of the others."""
    # Equal lines of several shards are one.
    others = {json.dumps(record): record for record in table.others}
    return [
        *table.pins.values(),
        *others.values(),
        *table.invalid.values(),
        *(record | {"earlier": True} for record in table.earlier.values()),
        *table.current.values(),
    ]
