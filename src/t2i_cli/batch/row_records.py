"""What the manifests say of each row: done, failed, or to be made, and under which name."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from t2i_cli import image_formats
from t2i_cli.batch import row_filenames
from t2i_cli.batch.batch_folder import BatchFolder
from t2i_cli.batch.manifest import ManifestEntry, ManifestState
from t2i_cli.batch.rows import BatchRow
from t2i_cli.errors import (
    AccessError,
    InputError,
    QuotaError,
    RemoteError,
    StorageError,
    TimedOutError,
)
from t2i_cli.image_formats import ImageFormat

RETRIED_CODES = {
    kind.code for kind in (AccessError, QuotaError, TimedOutError, RemoteError, StorageError)
}
"""Codes of failures that a row does not cause; every run retries such images."""


@dataclass(frozen=True, slots=True)
class RowRecord:
    """A row's record. `status` is `done`, the code of a failure, or `None` for an image to be made.

    `file` is the record's file, "" for a failure; of an image to be made, the name that it had.
    """

    status: str | None
    file: str | None


_UNKNOWN = RowRecord(None, None)
"""That of a row of which the manifests say nothing."""


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """How records are judged: name template and format of a run, and what it makes again."""

    template: str
    format: str | None
    force: bool
    retry_failed: bool
    verify_files: bool


class RecordFinder:
    """Finds the record of each row, among the current ones and those of earlier requests."""

    def __init__(self, state: ManifestState, folder: BatchFolder, options: RecordOptions) -> None:
        self._state = state
        self._folder = folder
        self._options = options
        self._earlier: dict[str, list[ManifestEntry]] = {}
        for (row_id, _), entry in state.earlier.items():
            self._earlier.setdefault(row_id, []).append(entry)

    def find(self, row: BatchRow) -> RowRecord:
        """The row's record: a whole picture in the format asked for is done, of any request."""
        known = list(self._entries(row))
        if not known:
            return _UNKNOWN
        options = self._options
        format = row_filenames.row_format(row, options.template, options.format)
        pictures = [(entry, entry.file) for entry in known if entry.status == "done" and entry.file]
        fitting = [(entry, file) for entry, file in pictures if _has_format(file, format)]
        if not options.force:
            for entry, file in fitting:
                if _is_whole(entry, file, self._folder, options.verify_files):
                    return RowRecord("done", file)
            failure = next((entry for entry in known[:1] if entry.status != "done"), None)
            retried = options.retry_failed or (failure and failure.code in RETRIED_CODES)
            if failure and not retried:
                return RowRecord(failure.code or failure.status, "")
        return RowRecord(None, next((file for _, file in fitting if _is_valid_name(file)), None))

    def _entries(self, row: BatchRow) -> Iterator[ManifestEntry]:
        """The row's records, the one that counts first."""
        if current := self._state.rows.get(row.id):
            yield current
        yield from self._earlier.get(row.id, ())


def file_format(file: str) -> ImageFormat | None:
    """The format that a file's extension names."""
    return image_formats.IMAGE_FORMATS.get(file.rpartition(".")[2].lower())


def _has_format(file: str, format: ImageFormat | None) -> bool:
    """Whether the file has the format; `None` stands for any."""
    return format is None or file_format(file) == format


def _is_valid_name(file: str) -> bool:
    try:
        row_filenames.check_filename(file)
    except InputError:
        return False
    return file_format(file) is not None


def _is_whole(entry: ManifestEntry, file: str, folder: BatchFolder, verify: bool) -> bool:
    """Whether the file has the recorded size and, with `verify`, the recorded SHA-256 hash."""
    try:
        if folder.file_size(file) != entry.bytes:
            return False
        if verify:
            with folder.open_file(file) as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest() == entry.sha256
    except OSError:
        return False
    return True
