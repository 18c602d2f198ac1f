"""Pictures of earlier requests: which records stop or begin to be current."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from t2i_cli.batch import manifest
from t2i_cli.batch.batch_folder import BatchFolder
from t2i_cli.batch.lock import Shard
from t2i_cli.batch.manifest import ManifestEntry, ManifestState
from t2i_cli.batch.record_table import RecordKey
from t2i_cli.batch.row_records import RowRecord


@dataclass(frozen=True, kw_only=True)
class RequestChange:
    """What a run's request changes: records that are `outdated` by it, or current again.

    `pictures` are the files of earlier requests that the folder then has, by key; a shard's are
    those of its part.
    """

    outdated: frozenset[RecordKey]
    restored: frozenset[RecordKey]
    pictures: Mapping[RecordKey, ManifestEntry]


def find_request_change(
    state: ManifestState,
    records: Mapping[str, RowRecord],
    new_names: Mapping[str, str],
    shard: Shard | None,
) -> RequestChange:
    """Compare the manifests with the rows asked for.

    `records` has the record of each row, `new_names` the files of those that are to be made.
    """
    outdated: set[RecordKey] = set()
    for row_id, entry in state.rows.items():
        file = _file_of(entry)
        if shard is not None and not shard.includes(row_id):
            continue
        if row_id not in records:
            outdated.add((row_id, file))
        # A failure stays until the row is made.
        elif file and file != new_names.get(row_id, records[row_id].file or file):
            outdated.add((row_id, file))
    restored = {
        key
        for row_id, record in records.items()
        if record.status is not None
        and (shard is None or shard.includes(row_id))
        and (key := (row_id, record.file or "")) in state.earlier
    }
    known = {(row_id, _file_of(entry)): entry for row_id, entry in state.rows.items()}
    earlier = {
        key: entry
        for key, entry in state.earlier.items()
        if key not in restored and (shard is None or shard.includes(key[0]))
    } | {key: known[key] for key in outdated}
    return RequestChange(
        outdated=frozenset(outdated),
        restored=frozenset(restored),
        pictures={key: entry for key, entry in earlier.items() if key[1]},
    )


def change_lines(folder: BatchFolder, change: RequestChange) -> list[dict[str, object]]:
    """The manifest lines that mark what the change outdates and restores. Raises T2IError."""
    if not change.outdated and not change.restored:
        return []
    table, _ = manifest.read_table(folder, dict)
    now = {"time": datetime.now(UTC).isoformat(timespec="seconds")}
    # The outdated ones first: a row may have one of each.
    lines = [
        record | {"earlier": True} | now
        for row_id, record in table.current.items()
        if (row_id, table.files[row_id]) in change.outdated
    ]
    for key in change.restored:
        line = table.earlier[key] | now
        line.pop("earlier", None)
        lines.append(line)
    return lines


def _file_of(entry: ManifestEntry) -> str:
    return entry.file if entry.status == "done" and entry.file else ""
