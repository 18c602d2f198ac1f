"""Images of t2i that no manifest lists: a run was killed between an image and its line."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from t2i_cli.batch.row_records import file_format
from t2i_cli.batch.rows import BatchRow
from t2i_cli.errors import InputError
from t2i_cli.files.image_files import ImageFileError, open_image
from t2i_cli.files.inside_folder import check_parents, open_inside, stat_inside
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
    folder: Path,
) -> dict[str, UnlistedImage]:
    """The finished images of rows that no manifest lists, by row id.

    `names` are those that the rows would have; their folders are searched. `owners` has the names
    that the manifests list.
    """
    by_request: dict[str, list[BatchRow]] = {}
    for row in rows:
        if row.id in names:
            by_request.setdefault(_request_key(row.request.to_json()), []).append(row)
    found: dict[str, UnlistedImage] = {}
    parents = {str(PurePosixPath(file).parent) for file, _ in names.values()}
    for file in _unlisted_files(folder, parents, owners) if by_request else ():
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
            data = (folder / file).read_bytes()
            found[waiting[0].id] = UnlistedImage(
                row=waiting[0],
                file=file,
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                lock=record.lock,
            )
    return found


def read_own_record(folder: Path, file: str) -> metadata.ImageMetadata | None:
    """What t2i wrote into an image; `None` for any other file, a link, or a damaged image."""
    try:
        status = stat_inside(folder, file)
        with os.fdopen(open_inside(folder, file), "rb") as opened:
            # A folder may hold thousands of other images: few are worth decoding.
            beginning = opened.read(_SEARCHED_BYTES)
            opened.seek(max(0, status.st_size - _SEARCHED_BYTES))
            if b'"t2i":' not in beginning and b'"t2i":' not in opened.read(_SEARCHED_BYTES):
                return None
        record = metadata.read_metadata(folder / file)
        if record.source != "t2i" or record.problems:
            return None
        open_image(folder / file)  # all of it is decoded: the run may have ended as it was written
    except (OSError, InputError, ImageFileError):
        return None
    return record


def is_image_of(record: metadata.ImageMetadata, row: BatchRow) -> bool:
    """Whether an image was made for the row's request."""
    return dict(record.request) == row.request.to_json()


def _request_key(request: Mapping[str, object]) -> str:
    return repr(sorted(request.items()))


def _unlisted_files(
    folder: Path, parents: Iterable[str], owners: Mapping[str, str]
) -> Iterator[str]:
    """Paths, relative to the folder, of image files that the manifests do not list."""
    for parent in sorted(parents):
        prefix = "" if parent == "." else f"{parent}/"
        try:
            check_parents(folder, f"{prefix}x")
            entries = sorted(os.listdir(folder / parent))
        except OSError:
            continue  # not there yet, or not to be read
        for name in entries:
            file = prefix + name
            if file_format(name) and filenames.normalised_name(file) not in owners:
                yield file
