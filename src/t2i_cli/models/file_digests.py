"""SHA-256 of weight files, remembered so that a file of gigabytes is read for it only once."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from t2i_cli.errors import ModelError, os_reason
from t2i_cli.files.state_files import is_count, open_regular, read_json, replace_text
from t2i_cli.files.user_folders import NoHomeError, user_folder
from t2i_cli.terminal.console import console, format_bytes

_FORMAT = 1
_MAX_REMEMBERED = 1000
_LEAST_BYTES = 2**20
"""Bytes of the smallest file that is worth an entry; smaller ones are hashed in milliseconds."""
_SETTLED_SECONDS = 2.0
"""Age of a file's last change from which its time tells it from the next change.

File systems give times in steps of up to two seconds (FAT).
"""
_HEX_DIGITS = frozenset("0123456789abcdef")


class _FileState(NamedTuple):
    """What tells one content of a path from another, without reading it."""

    size: int
    mtime_ns: int
    inode: int
    device: int


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content in 64 hex digits. Raises ModelError if it is unreadable.

    It is remembered in the user's cache folder by path, size, time of change and inode.
    """
    try:
        return _sha256(path)
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}.") from None
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {os_reason(error)}.") from error


def autov2(sha256: str) -> str:
    """The first 10 hex digits of a SHA-256, which Civitai and AUTOMATIC1111 call AutoV2."""
    return sha256[:10]


def _sha256(path: Path) -> str:
    """The digest, remembered or computed. Raises OSError."""
    key = os.path.realpath(path)
    with os.fdopen(open_regular(path, os.O_RDONLY, follow_links=True), "rb") as file:
        before = _state(file.fileno())
        if before.size >= _LEAST_BYTES and (known := _read().get(key)) and known[0] == before:
            return known[1]
        console.trace(f"hashing {path}: {format_bytes(before.size)}")
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = _state(file.fileno())
    settled = time.time() - after.mtime_ns / 1e9 > _SETTLED_SECONDS
    if before == after and after.size >= _LEAST_BYTES and settled:
        _remember(key, after, digest)
    return digest


def _state(descriptor: int) -> _FileState:
    status = os.fstat(descriptor)
    return _FileState(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


def _path() -> Path:
    return user_folder("cache") / "digests.json"


def _remember(key: str, state: _FileState, digest: str) -> None:
    """Remember a digest; where nothing can be written, it is computed anew in the next run."""
    found = _read()
    found.pop(key, None)
    found[key] = (state, digest)
    kept = list(found.items())[-_MAX_REMEMBERED:]
    entries = {name: {**one[0]._asdict(), "sha256": one[1]} for name, one in kept}
    with suppress(OSError, NoHomeError):
        file = _path()
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps({"format": _FORMAT, "files": entries}, indent=1))


def _read() -> dict[str, tuple[_FileState, str]]:
    """All digests; a damaged file counts as empty, a damaged entry is left out."""
    try:
        document = read_json(_path())
    except (OSError, ValueError, NoHomeError):
        return {}
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        return {}
    entries = document.get("files")
    return {
        key: (_FileState(*(entry[name] for name in _FileState._fields)), entry["sha256"])
        for key, entry in (entries.items() if isinstance(entries, dict) else ())
        if isinstance(entry, dict)
        and all(is_count(entry.get(name), 2**64) for name in _FileState._fields)
        and _is_digest(entry.get("sha256"))
    }


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and _HEX_DIGITS.issuperset(value)
