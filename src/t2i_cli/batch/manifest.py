"""The manifest: one JSON line an image, durable before it is told of; what is done is read here.

Every file begins with HEADER. A line with a `status` is an image's or an invalid row's; the last
one of an id holds. A line with a `pin` keeps the commit of a model from the first run on. What is
not as t2i writes it (see `lines`) is damaged, and counts for nothing.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from t2i_cli.batch import manifest_lines
from t2i_cli.errors import InputError, StorageError, os_reason
from t2i_cli.files import atomic
from t2i_cli.files.state_files import open_regular, parse_json
from t2i_cli.output import filenames
from t2i_cli.output.image_writer import storage_error

MANIFEST_SCHEMA = 1
MANIFEST_HEADER = json.dumps({"t2i_manifest": MANIFEST_SCHEMA}).encode() + b"\n"
MAIN_MANIFEST = "manifest.jsonl"
_SHARD = re.compile(r"manifest-\d+-of-\d+\.jsonl")
_MAX_HEADER = 1024
"""Bytes."""

RowStatus = Literal["done", "failed", "withheld"]


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """What the manifest says of an image: `file` is relative to the folder.

    `code` is a failure's; `bytes` and `sha256` are those of the finished file.
    """

    status: RowStatus
    file: str | None
    bytes: int | None
    sha256: str | None
    code: str | None


@dataclass
class ManifestState:
    """All that a folder's manifests say; `owners` gives the row of each file's name."""

    rows: dict[str, ManifestEntry] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    pins: dict[tuple[str, str | None], str] = field(default_factory=dict)
    invalid: set[tuple[object, ...]] = field(default_factory=set)
    damaged: int = 0


def shard_manifest_name(number: int, total: int) -> str:
    """The manifest of one machine of several."""
    return f"manifest-{number}-of-{total}.jsonl"


def manifest_files(folder: Path) -> list[Path]:
    """Every manifest of a folder, the main one first."""
    main = folder / MAIN_MANIFEST
    shards = [path for path in folder.glob("manifest-*-of-*.jsonl") if _SHARD.fullmatch(path.name)]
    return [main] * os.path.lexists(main) + sorted(shards)


def load_manifests(folder: Path) -> ManifestState:
    """What the folder's manifests say; raises InputError for a file that is no manifest."""
    state = ManifestState()
    for path in manifest_files(folder):
        for record in read_records(path):
            if record is None:
                state.damaged += 1
            elif "pin" in record:
                _take_pin(state, record)
            elif record.get("status") == "invalid":
                state.invalid.add(tuple(record.get(key) for key in ("line", "field", "message")))
            elif isinstance(record.get("id"), str):
                _take_row(state, record)
    return state


def read_records(path: Path) -> Iterator[dict[str, object] | None]:
    """The lines of a manifest, `None` for a damaged one.

    A last line that was never finished is left out: it may still be being written. Raises
    InputError if the file is no manifest that this t2i can read.
    """
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
            _check_header(file.readline(_MAX_HEADER), path)
            while line := file.readline(manifest_lines.MAX_LINE):
                whole = True
                while line and not line.endswith(b"\n"):
                    whole = False
                    line = file.readline(manifest_lines.MAX_LINE)
                if not line:
                    return
                yield manifest_lines.read_line(line) if whole else None
    except OSError as error:
        raise storage_error(error, "read", path) from error


class Manifest:
    """A manifest open for writing. One process at a time: the folder's lock sees to that.

    What is appended is on the disk at once, unless it is not to be `durable`.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self.durable = durable
        try:
            self._file = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                _repair(self._file, path)
                if os.fstat(self._file).st_size == 0:
                    self._write(MANIFEST_HEADER)
                    sync_folder(path.parent)
            except BaseException:
                os.close(self._file)
                raise
        except OSError as error:
            raise storage_error(error, "write", path) from error

    def append(self, lines: Sequence[Mapping[str, object]], folders: Iterable[Path] = ()) -> None:
        """Write lines, all or none of them, once the names in `folders` are durable.

        Raises StorageError.
        """
        data = encode_lines(lines)
        try:
            for folder in folders if self.durable else ():
                sync_folder(folder)
            self._write(data)
        except OSError as error:
            raise StorageError(
                f"Cannot write '{self.path}': {os_reason(error)}.",
                hint="Free some space, then run the same command again: what is done stays done.",
            ) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            if self.durable:
                os.fsync(self._file)
        except OSError:
            # A full disk leaves no half line behind.
            with suppress(OSError):
                os.ftruncate(self._file, size)
            raise


def encode_lines(lines: Iterable[Mapping[str, object]]) -> bytes:
    """The lines of a manifest as JSON Lines."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can (fsync(2))."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def merge_manifests(folder: Path, scratch: Path | None = None) -> int:
    """Put every shard's lines into the main manifest; returns how many shards there were.

    `scratch`, or else the folder, takes the new one while it is unfinished. Damaged lines are left
    out. A shard's file goes only once its lines are safe, so that a merge can be broken off
    anywhere.
    """
    parts = [path for path in manifest_files(folder) if path.name != MAIN_MANIFEST]
    latest: dict[str, dict[str, object]] = {}
    pins: dict[str, dict[str, object]] = {}
    for record in _all(manifest_files(folder)):
        if "pin" in record:
            pins.setdefault(json.dumps([record["model"], record.get("revision")]), record)
            continue
        key = str(record.get("id") or json.dumps(record))
        if latest.get(key, {}).get("status") != "done" or record.get("status") == "done":
            latest[key] = record
    if not parts:
        return 0
    try:
        data = MANIFEST_HEADER + encode_lines([*pins.values(), *latest.values()])
        atomic.write_bytes(folder / MAIN_MANIFEST, data, scratch=scratch or folder, sync=True)
        sync_folder(folder)
        for path in parts:
            path.unlink()
    except OSError as error:
        raise storage_error(error, "write", folder / MAIN_MANIFEST) from error
    return len(parts)


def _all(paths: Iterable[Path]) -> Iterator[dict[str, object]]:
    for path in paths:
        yield from (record for record in read_records(path) if record is not None)


def _take_row(state: ManifestState, record: Mapping[str, object]) -> None:
    status, file, error = record.get("status"), record.get("file"), record.get("error")
    if status not in {"done", "failed", "withheld"}:
        return
    row_id = str(record["id"])
    code = error.get("code") if isinstance(error, dict) else None
    state.rows[row_id] = ManifestEntry(
        status,
        str(file) if file else None,
        _number(record.get("bytes")),
        str(record.get("sha256")),
        str(code) if code else None,
    )
    if file:
        state.owners[filenames.normalised_name(str(file))] = row_id


def _take_pin(state: ManifestState, record: Mapping[str, object]) -> None:
    asked = record.get("revision")
    key = (str(record.get("model")), None if asked is None else str(asked))
    state.pins.setdefault(key, str(record["pin"]))


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _check_header(line: bytes, path: Path) -> None:
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


def _repair(handle: int, path: Path) -> None:
    """Cut off a last line that was never finished. Raises InputError if it is no manifest."""
    header, newline, _ = os.pread(handle, _MAX_HEADER, 0).partition(b"\n")
    _check_header(header + newline, path)
    end = kept = os.fstat(handle).st_size
    while kept:
        # A line may be longer than one look back.
        start = max(0, kept - 65_536)
        found = os.pread(handle, kept - start, start).rfind(b"\n")
        if found >= 0:
            kept = start + found + 1
            break
        kept = start
    if kept < end:
        os.ftruncate(handle, kept)
        os.fsync(handle)
