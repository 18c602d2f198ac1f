"""The manifest: a JSON Lines file with the outcome of each image, synced before it is reported.

Every file begins with MANIFEST_HEADER. A line with a `status` is about an image or an invalid row;
the last line of an id counts (see `record_table`). A line with a `pin` records the commit of a
model, from the first run on. Lines that are not valid (see `manifest_lines`) are left out.
"""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, TypeVar, cast

from t2i_cli.batch import manifest_lines
from t2i_cli.batch.appended_file import AppendedFile, read_at
from t2i_cli.batch.record_table import Record, RecordKey, RecordTable
from t2i_cli.errors import InputError, StorageError, os_reason
from t2i_cli.files import atomic
from t2i_cli.files.state_files import open_regular, parse_json
from t2i_cli.output import filenames
from t2i_cli.output.image_writer import storage_error

MANIFEST_SCHEMA = 1
MANIFEST_HEADER = json.dumps({"t2i_manifest": MANIFEST_SCHEMA}).encode() + b"\n"
MAIN_MANIFEST = "manifest.jsonl"
_SHARD = re.compile(r"manifest-\d+-of-(\d+)\.jsonl")
MAX_HEADER = 1024
"""Largest header in bytes."""

RowStatus = Literal["done", "failed", "withheld"]
_Stored = TypeVar("_Stored")


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """The recorded outcome of an image; `file` is relative to the folder.

    `code` is the error code of a failure; `bytes` and `sha256` are those of the finished file.
    """

    status: RowStatus
    file: str | None
    bytes: int | None
    sha256: str | None
    code: str | None


@dataclass
class ManifestState:
    """The content of a folder's manifests.

    `rows` is by row id; `earlier` are the records of earlier requests, by id and file; `owners`
    maps a normalised file name to the id of its row; `pins` maps a model and the requested revision
    to a commit; `damaged` counts the lines left out.
    """

    rows: dict[str, ManifestEntry] = field(default_factory=dict)
    earlier: dict[RecordKey, ManifestEntry] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    pins: dict[tuple[str, str | None], str] = field(default_factory=dict)
    invalid: set[tuple[object, ...]] = field(default_factory=set)
    damaged: int = 0


def shard_manifest_name(number: int, total: int) -> str:
    """The file name of a shard's manifest."""
    return f"manifest-{number}-of-{total}.jsonl"


def manifest_files(folder: Path) -> list[Path]:
    """The manifests of a folder, in the order of their age: the main one first.

    A run without --shard joins the shards' manifests, so that they are newer than the main one.
    Where the folder was split in several ways, the split that was written last comes last. Raises
    InputError or StorageError.
    """
    main = folder / MAIN_MANIFEST
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise storage_error(error, "read", folder) from error
    shards: dict[str, list[Path]] = {}
    for name in names:
        if found := _SHARD.fullmatch(name):
            shards.setdefault(found[1], []).append(folder / name)
    splits = list(shards.values())
    if len(splits) > 1:
        splits.sort(key=lambda paths: max(map(_modified_time, paths)))
    return [main] * os.path.lexists(main) + list(itertools.chain(*splits))


class RecordSource(Protocol):
    """A folder that has manifests."""

    def manifest_records(self) -> Iterator[Iterator[dict[str, object] | None]]:
        """The lines of each manifest, the oldest one first; `None` for a damaged line."""
        ...


def load_manifests(folder: Path | RecordSource) -> ManifestState:
    """Read the folder's manifests; raises InputError for a file that is no manifest."""
    table, damaged = read_table(folder, _manifest_entry)
    files = [*table.earlier, *table.files.items()]
    return ManifestState(
        rows=table.current,
        earlier=table.earlier,
        owners={filenames.normalised_name(file): row_id for row_id, file in files if file},
        pins={key: str(record["pin"]) for key, record in table.pins.items()},
        invalid=set(table.invalid),
        damaged=damaged,
    )


def read_table(
    folder: Path | RecordSource, convert: Callable[[Record], _Stored]
) -> tuple[RecordTable[_Stored], int]:
    """The records of the folder's manifests that count, and the number of damaged lines.

    Raises InputError and StorageError as `read_records` does.
    """
    table = RecordTable(convert)
    damaged = 0

    def valid_records(records: Iterable[dict[str, object] | None]) -> Iterator[Record]:
        nonlocal damaged
        for record in records:
            if record is None:
                damaged += 1
            else:
                yield record

    manifests = (
        map(read_records, manifest_files(folder))
        if isinstance(folder, Path)
        else folder.manifest_records()
    )
    for records in manifests:
        table.read(valid_records(records))
    table.finish()
    return table, damaged


def read_records(path: Path) -> Iterator[dict[str, object] | None]:
    """Yield the lines of a manifest, `None` for a damaged one.

    A last line without a newline is left out: another process may still be writing it. Raises
    InputError if the file is no manifest that this version can read, StorageError if reading fails.
    """
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
            yield from read_open_records(file, str(path))
    except OSError as error:
        raise storage_error(error, "read", path) from error


def read_open_records(file: BinaryIO, location: str) -> Iterator[dict[str, object] | None]:
    """`read_records` of an open manifest. Raises InputError, and OSError."""
    check_header(file.readline(MAX_HEADER), location)
    while line := file.readline(manifest_lines.MAX_LINE):
        fits = True
        while line and not line.endswith(b"\n"):
            fits = False
            line = file.readline(manifest_lines.MAX_LINE)
        if not line:
            return
        yield manifest_lines.read_line(line) if fits else None


class Manifest:
    """A manifest open for appending, by one process at a time (see `lock.lock_folder`).

    If `durable`, every append is synced to the disk. Raises InputError for a file that is no
    manifest, StorageError if writing fails.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self.durable = durable
        try:
            _unshare(path)
            handle = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                _truncate_partial_line(handle, path)
                self._file = AppendedFile(path, handle)
                if os.fstat(handle).st_size == 0:
                    self._file.append(MANIFEST_HEADER, durable=durable)
                    sync_folder(path.parent)
            except BaseException:
                os.close(handle)
                raise
        except OSError as error:
            raise storage_error(error, "write", path) from error

    @property
    def restored(self) -> bool:
        """Whether another program removed the manifest, which was written again then."""
        return self._file.restored > 0

    def append(self, lines: Sequence[Mapping[str, object]], folders: Iterable[Path] = ()) -> None:
        """Append lines, all or none of them, after syncing `folders`.

        Raises StorageError, also if another program changed the manifest during the run.
        """
        data = encode_lines(lines)
        try:
            for folder in folders if self.durable else ():
                sync_folder(folder)
            self._file.append(data, durable=self.durable)
        except OSError as error:
            raise StorageError(
                f"Cannot write '{self.path}': {os_reason(error)}.",
                hint="Free some space, then run the same command again: what is done stays done.",
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def encode_lines(lines: Iterable[Mapping[str, object]]) -> bytes:
    """Encode lines as JSON Lines."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk (fsync(2)); does nothing on Windows."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _manifest_entry(record: Record) -> ManifestEntry:
    status, file, error = record["status"], record.get("file"), record.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return ManifestEntry(
        cast("RowStatus", status),
        str(file) if file else None,
        _int_or_none(record.get("bytes")),
        str(record.get("sha256")),
        str(code) if code else None,
    )


def _modified_time(path: Path) -> int:
    """Time of the last change in nanoseconds; 0 for a file that is gone by now."""
    try:
        return os.lstat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def _int_or_none(value: object) -> int | None:
    return value if isinstance(value, int) else None


def check_header(line: bytes, path: Path | str) -> None:
    """Raise InputError if it is not the first line of a manifest that this version can read."""
    if MANIFEST_HEADER.startswith(line):
        return
    try:
        header = parse_json(line)
    except ValueError:
        header = None
    version = header.get("t2i_manifest") if isinstance(header, dict) else None
    if type(version) is not int or version < MANIFEST_SCHEMA:
        raise InputError(f"'{path}' is no manifest of t2i.", hint="-o takes another folder.")
    if version > MANIFEST_SCHEMA:
        raise InputError(
            f"'{path}' was written by a newer t2i.", hint="Upgrade: pip install -U t2i-cli"
        )


def _unshare(path: Path) -> None:
    """Replace a manifest with several hard links by a copy: another folder's stays as it is."""
    with suppress(FileNotFoundError):
        with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
            if os.fstat(file.fileno()).st_nlink == 1:
                return
            data = file.read()
        check_header(data[:MAX_HEADER].partition(b"\n")[0] + b"\n" * (b"\n" in data), path)
        atomic.write_bytes(path, data, sync=True)


def _truncate_partial_line(handle: int, path: Path) -> None:
    """Truncate a last line without a newline. Raises InputError if the file is no manifest."""
    header, newline, _ = read_at(handle, MAX_HEADER, 0).partition(b"\n")
    check_header(header + newline, path)
    size = complete_size = os.fstat(handle).st_size
    while complete_size:
        # Read backwards in blocks: a line may be longer than one block.
        start = max(0, complete_size - 65_536)
        found = read_at(handle, complete_size - start, start).rfind(b"\n")
        if found >= 0:
            complete_size = start + found + 1
            break
        complete_size = start
    if complete_size < size:
        os.ftruncate(handle, complete_size)
        os.fsync(handle)
