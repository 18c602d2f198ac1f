"""Which records of a folder's manifests count: the current ones, and those of earlier requests.

All that reads manifests (plan, merge, gallery, sheet) reads them through `RecordTable`, so that
they agree. A record with `earlier` is of a request that is no longer asked for; its picture stays.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from t2i_cli.batch.manifest_lines import DONE_STATUS, PRUNED_STATUS, RESULT_STATUSES
from t2i_cli.output import filenames

Record = Mapping[str, object]
RecordKey = tuple[str, str]
"""A row's id and the file of its record; "" for one without a file."""
_Stored = TypeVar("_Stored")


class RecordTable(Generic[_Stored]):
    """The records that count; those of images are what `convert` makes of their lines.

    `current` is by row id, `earlier` by id and file, `invalid` by line, field and message, `pins`
    by model and revision; `others` are lines of another kind. Call `finish()` after the last
    `read()`.
    """

    def __init__(self, convert: Callable[[Record], _Stored]) -> None:
        self.current: dict[str, _Stored] = {}
        self.earlier: dict[RecordKey, _Stored] = {}
        self.invalid: dict[tuple[object, ...], Record] = {}
        self.pins: dict[tuple[str, str | None], Record] = {}
        self.others: list[Record] = []
        self.files: dict[str, str] = {}
        """The file of each current record, "" for none, by row id."""
        self._convert = convert
        self._in_this_file: set[str] = set()

    def read(self, records: Iterable[Record]) -> None:
        """Add the records of one manifest, in their order."""
        self._in_this_file.clear()
        for record in records:
            self._add(record)

    def finish(self) -> None:
        """Drop earlier records whose file a current one has by now."""
        used = {filenames.normalised_name(file) for file in self.files.values() if file}
        for key in [key for key in self.earlier if filenames.normalised_name(key[1]) in used]:
            del self.earlier[key]

    def _add(self, record: Record) -> None:
        status = record.get("status")
        if "pin" in record:
            revision = record.get("revision")
            key = (str(record["model"]), None if revision is None else str(revision))
            self.pins.setdefault(key, record)
        elif status == "invalid":
            self._add_invalid(record)
        elif status in RESULT_STATUSES:
            self._add_result(record)
        elif status == PRUNED_STATUS:
            self.earlier.pop((str(record["id"]), str(record["file"])), None)
        else:
            self.others.append(record)

    def _add_invalid(self, record: Record) -> None:
        key = tuple(record.get(name) for name in ("line", "field", "message"))
        if record.get("earlier"):
            self.invalid.pop(key, None)
        else:
            self.invalid[key] = record

    def _add_result(self, record: Record) -> None:
        row_id = str(record["id"])
        # A failure may name the file that could not be made; there is none.
        file = str(record["file"]) if record["status"] == DONE_STATUS else ""
        if record.get("earlier"):
            if self.files.get(row_id) == file:
                del self.files[row_id], self.current[row_id]
            self.earlier[row_id, file] = self._convert(record)
            return
        before = self.files.get(row_id)
        if before and not file and row_id not in self._in_this_file:
            return  # Another shard's failure does not undo a picture.
        if before and before != file:
            self.earlier[row_id, before] = self.current[row_id]
        self.earlier.pop((row_id, file), None)
        self.earlier.pop((row_id, ""), None)
        self.current[row_id] = self._convert(record)
        self.files[row_id] = file
        self._in_this_file.add(row_id)
