"""Images of t2i that no manifest lists: a run was killed between an image and its line."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from t2i_cli.batch.batch_folder import BatchFolder
from t2i_cli.batch.row_records import file_format
from t2i_cli.batch.rows import BatchRow
from t2i_cli.errors import InputError
from t2i_cli.files.image_files import ImageFileError, open_image
from t2i_cli.image_formats import ImageFormat
from t2i_cli.output import filenames, metadata

_SEARCHED_BYTES = 2**17
"""Bytes at each end of a file that are searched for t2i's record."""


@dataclass(frozen=True, kw_only=True)
class UnlistedImage:
    """A finished image of a row; `lock` is the generation info that it holds."""

    row: BatchRow
    file: str
    bytes: int
    sha256: str
    lock: Mapping[str, object]


def find_unlisted(
    rows: Iterable[BatchRow],
    names: Mapping[str, tuple[str, ImageFormat]],
    owners: Mapping[str, str],
    folder: BatchFolder,
) -> dict[str, UnlistedImage]:
    """The finished images of rows that no manifest lists, by row id.

    `names` are those that the rows would have; the folder says where to look. `owners` has the
    names that the manifests list.
    """
    by_request: dict[str, list[BatchRow]] = {}
    for row in rows:
        if row.id in names:
            by_request.setdefault(_request_key(row.request.to_json()), []).append(row)
    found: dict[str, UnlistedImage] = {}
    candidates = folder.unlisted_candidates(file for file, _ in names.values())
    for file in candidates if by_request else ():
        if not file_format(file) or filenames.normalised_name(file) in owners:
            continue
        record = read_own_record(folder, file)
        if record is None:
            continue
        waiting = [
            row
            for row in by_request.get(_request_key(record.request), ())
            if row.id not in found and names[row.id][1] == file_format(file)
        ]
        # Of equal rows the one of that name.
        waiting.sort(key=lambda row: names[row.id][0] != file)
        if waiting:
            with folder.open_file(file) as opened:
                data = opened.read()
            found[waiting[0].id] = UnlistedImage(
                row=waiting[0],
                file=file,
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                lock=record.lock,
            )
    return found


def read_own_record(folder: BatchFolder, file: str) -> metadata.ImageMetadata | None:
    """What t2i wrote into an image; `None` for any other file, a link, or a damaged image."""
    try:
        size = folder.file_size(file)
        with folder.open_file(file) as opened:
            # A folder may hold thousands of other images: few are worth decoding.
            beginning = opened.read(_SEARCHED_BYTES)
            opened.seek(max(0, size - _SEARCHED_BYTES))
            if b'"t2i":' not in beginning and b'"t2i":' not in opened.read(_SEARCHED_BYTES):
                return None
            opened.seek(0)
            record = metadata.read_open_metadata(opened, folder.location(file))
            if record.source != "t2i" or record.problems:
                return None
            opened.seek(0)
            open_image(opened.read())  # all is decoded: the run may have ended as it was written
    except (OSError, InputError, ImageFileError):
        return None
    return record


def is_image_of(record: metadata.ImageMetadata, row: BatchRow) -> bool:
    """Whether an image was made for the row's request."""
    return dict(record.request) == row.request.to_json()


def _request_key(request: Mapping[str, object]) -> str:
    return repr(sorted(request.items()))
