"""The copy on this machine of a bucket's folder or object: each version of it has a folder.

A folder of the user's cache for each URL holds what was listed there (`VERSION.json`), a folder for
the files of that version, and a lock, so that the processes of a machine fetch a file once.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from t2i_cli.buckets.bucket_url import BucketUrl
from t2i_cli.buckets.object_store import ObjectVersion
from t2i_cli.errors import StorageError, os_reason
from t2i_cli.files.state_files import is_count, is_text, read_json, replace_text
from t2i_cli.files.user_folders import NoHomeError, user_folder
from t2i_cli.files.weight_files import is_plain_name

_FORMAT = 1
_INCOMPLETE = ".incomplete"
_KEPT_VERSIONS = 2
"""The newest version, and the one before it, which a process may have loaded from."""


@dataclass(frozen=True, kw_only=True)
class LocalCopy:
    """One version of what a URL has, and the folder of this machine's copy of it.

    `files` are all that are there by their paths, which may not be fetched yet.
    """

    url: BucketUrl
    folder: Path
    files: Mapping[str, ObjectVersion]

    def path(self, name: str) -> Path:
        """Where a file lies once it is fetched."""
        return self.folder / name

    def header_path(self, name: str) -> Path:
        """Where the header of a file lies that is not fetched yet."""
        return self.folder / ".header" / name

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of the files that are not fetched yet."""
        return [name for name in names if not self.path(name).is_file()]

    def size(self, names: Sequence[str]) -> int:
        """Bytes of the files."""
        return sum(self.files[name].size for name in names)

    def missing_bytes(self, names: Sequence[str]) -> int:
        """Bytes of the files that are still to be fetched."""
        return sum(
            max(0, self.files[name].size - fetched_bytes(self.incomplete(name)))
            for name in self.missing(names)
        )

    def incomplete(self, name: str) -> Path:
        """Where a file lies while it is fetched."""
        path = self.path(name)
        return path.with_name(path.name + _INCOMPLETE)

    @property
    def is_begun(self) -> bool:
        """Whether anything of the files was fetched."""
        return any(p.is_file() for n in self.files for p in (self.path(n), self.incomplete(n)))

    def earlier(self) -> "list[LocalCopy]":
        """The copies of other versions of the same URL."""
        others = [each for each in _version_folders(self.folder.parent) if each != self.folder]
        return [found for folder in others if (found := copy_in(folder))]


def known_copy(url: BucketUrl, files: Mapping[str, ObjectVersion]) -> LocalCopy:
    """The copy of a version with these files, which is noted as the newest. Raises StorageError."""
    safe = {
        name: found
        for name, found in files.items()
        if all(map(is_plain_name, name.split("/"))) and not name.endswith(_INCOMPLETE)
    }
    key = hashlib.sha256(json.dumps(sorted(safe.items())).encode()).hexdigest()[:16]
    folder = _place_of(url) / key
    listing = folder.with_suffix(".json")
    content = {"format": _FORMAT, "url": url.text, "files": {n: list(v) for n, v in safe.items()}}
    with storage_errors(folder.parent):
        folder.mkdir(parents=True, exist_ok=True)
        if _read_listing(listing) is None:
            replace_text(listing, json.dumps(content, indent=1))
        os.utime(listing)
    return LocalCopy(url=url, folder=folder, files=safe)


def newest_copy(url: BucketUrl) -> LocalCopy | None:
    """The copy of the version that was noted last, without asking the bucket."""
    for folder in _version_folders(_place_of(url)):
        if found := copy_in(folder):
            return found
    return None


def copy_in(folder: Path) -> LocalCopy | None:
    """The copy whose files are in a folder, or `None` if it is no folder of a copy."""
    return _read_listing(folder.with_suffix(".json"))


def with_urls(text: str) -> str:
    """The text with URLs in place of paths of their copies."""
    try:
        pattern = re.escape(str(_root())) + "/[0-9a-f]{16}/[0-9a-f]{16}"
    except NoHomeError:  # where there are no copies
        return text
    for folder in set(re.findall(pattern, text)):
        copy = copy_in(Path(folder))
        if copy is None:
            continue
        for name in copy.files:
            # A single file's own name is in its URL.
            if copy.url.text.endswith(f"/{name}"):
                text = text.replace(f"{folder}/.header/{name}", folder)
                text = text.replace(f"{folder}/{name}", folder)
        text = text.replace(folder, copy.url.text)
    return text


def list_copies() -> list[LocalCopy]:
    """The newest copy of each URL that was asked for."""
    with suppress(OSError, NoHomeError):
        places = sorted(each for each in _root().iterdir() if each.is_dir())
        versions = [folders[0] for each in places if (folders := _version_folders(each))]
        return [found for folder in versions if (found := copy_in(folder))]
    return []


def remove_copy(copy: LocalCopy) -> None:
    """Remove all versions of a copy. Raises StorageError."""
    with storage_errors(copy.folder.parent):
        shutil.rmtree(copy.folder.parent)


def disk_bytes(copy: LocalCopy) -> int:
    """Bytes on the disk of all versions of a copy; a file that two versions share counts once."""
    states = [each.stat() for each in copy.folder.parent.rglob("*") if each.is_file()]
    return sum({state.st_ino: _used_bytes(state) for state in states}.values())


def _used_bytes(state: os.stat_result) -> int:
    """Bytes of a file, or those of its blocks where it has fewer, as a header alone has."""
    blocks = getattr(state, "st_blocks", None)
    return state.st_size if blocks is None else min(state.st_size, blocks * 512)


def _root() -> Path:
    return user_folder("cache") / "buckets"


def _place_of(url: BucketUrl) -> Path:
    return _root() / hashlib.sha256(url.text.encode()).hexdigest()[:16]


def _version_folders(place: Path) -> list[Path]:
    """The folders of versions, the one that was noted last first."""
    found: list[tuple[float, Path]] = []
    with suppress(OSError):
        found = [(each.stat().st_mtime, each.with_suffix("")) for each in place.glob("*.json")]
    return [folder for _, folder in sorted(found, reverse=True)]


def remove_older(folder: Path) -> None:
    """Remove the versions of a URL that no new process uses; `folder` is that of the newest."""
    for old in _version_folders(folder.parent)[_KEPT_VERSIONS:]:
        old.with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)


def _read_listing(file: Path) -> LocalCopy | None:
    """The copy that a listing describes; `None` for one that is missing or damaged."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return None
    url, files = content.get("url"), content.get("files")
    if not is_text(url) or not isinstance(files, dict):
        return None
    found = {}
    for name, entry in files.items():
        if not all(map(is_plain_name, name.split("/"))) or not isinstance(entry, list):
            return None
        if len(entry) != 2 or not is_count(entry[0], 2**60) or not isinstance(entry[1], str):
            return None
        found[name] = ObjectVersion(*entry)
    return LocalCopy(url=BucketUrl(url), folder=file.with_suffix(""), files=found)


def fetched_bytes(incomplete: Path) -> int:
    """Bytes of a file that is being fetched; 0 where it was not begun."""
    try:
        return incomplete.stat().st_size
    except OSError:
        return 0


@contextmanager
def storage_errors(place: Path) -> Iterator[None]:
    """Translate failures of this machine's disk."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"Cannot keep the copy in {place}: {os_reason(error)}.") from error
