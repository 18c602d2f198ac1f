"""Downloads models into huggingface_hub's cache: only the files that a pipeline needs."""

import glob
import re
import shutil
import stat
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import constants, snapshot_download

from t2i_cli.errors import ModelError, StorageError
from t2i_cli.events import Notice, OnEvent
from t2i_cli.files.state_files import replace_text
from t2i_cli.hub import answers, client, files
from t2i_cli.hub import snapshot as snapshots
from t2i_cli.hub.client import NullProgressBar
from t2i_cli.hub.downloader import FileDownload
from t2i_cli.hub.errors import NotDownloadedError, translate_hub_errors
from t2i_cli.hub.licence import find_licence
from t2i_cli.hub.snapshot import Snapshot
from t2i_cli.terminal.console import format_bytes

_STALE_SECONDS = 60
_PARTIAL_FILE = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})(?:\.[0-9a-f]{8})?\.incomplete")
"""huggingface_hub's names of partial downloads: the expected hash and a suffix."""


@dataclass(frozen=True, kw_only=True)
class DownloadSize:
    """Size of a model's files in bytes, and how much of that is not downloaded yet."""

    total_bytes: int
    missing_bytes: int


def fetch_configs(repo: str, *, revision: str | None, offline: bool) -> Path:
    """Download model_index.json and the components' configuration; the snapshot folder.

    Raises T2IError.
    """
    with translate_hub_errors(repo):
        snapshot = snapshots.find_snapshot(repo, revision, offline)
        missing = snapshot.missing(files.config_files(snapshot.index(), snapshot.sizes))
        if missing:
            _raise_if_unavailable(snapshot, missing)
            FileDownload(snapshot, missing).run()
        return snapshot.folder


def needs_token(repo: str) -> bool:
    """Whether the repository is gated or private. Raises T2IError."""
    with translate_hub_errors(repo):
        return answers.repository_facts(client.hub_api(), repo).restricted


def download_model(
    repo: str,
    *,
    revision: str | None,
    offline: bool,
    dtype: str,
    on_event: OnEvent,
    skip: Container[str] = (),
) -> Path:
    """Download every file that the pipeline needs; the snapshot folder. `dtype` chooses variants.

    `skip` are parts whose weights are not needed.
    Raises T2IError: ModelError, AccessError, QuotaError, RemoteError, TimedOutError, StorageError.
    """
    with translate_hub_errors(repo):
        snapshot = snapshots.find_snapshot(repo, revision, offline, on_event)
        download_files(snapshot, snapshot.needed(dtype, skip), on_event)
        if snapshot.obstacle is None and revision != snapshot.commit:
            write_ref(snapshot, revision or constants.DEFAULT_REVISION)
        return snapshot.folder


def download_files(
    snapshot: Snapshot, needed: list[str], on_event: OnEvent, shown: str | None = None
) -> None:
    """Download those of the needed files that are missing, after a notice. Raises T2IError.

    `shown` is what they are called there, if not by the repository.
    """
    missing = snapshot.missing(needed)
    if not missing:
        return
    _raise_if_unavailable(snapshot, missing)
    _remove_stale(snapshot.folder.parent.parent)
    total = sum(snapshot.sizes[path] for path in needed)
    missing_bytes = _bytes_to_download(snapshot, missing)
    _announce_download(snapshot, shown or snapshot.repo, (total, missing_bytes), on_event)
    FileDownload(snapshot, missing).run(total - missing_bytes, total, on_event)


def download_size(
    repo: str, *, revision: str | None, offline: bool, dtype: str, skip: Container[str] = ()
) -> DownloadSize:
    """The total size of `download_model`, and how much of it would be downloaded now.

    With nothing to download, all files are in the snapshot's folder afterwards. Raises T2IError.
    """
    with translate_hub_errors(repo):
        snapshot = snapshots.find_snapshot(repo, revision, offline)
        return size_of_files(snapshot, snapshot.needed(dtype, skip))


def size_of_files(snapshot: Snapshot, needed: list[str]) -> DownloadSize:
    """The total size of files, and how much of it would be downloaded now. Raises T2IError."""
    missing = snapshot.missing(needed)
    _raise_if_unavailable(snapshot, missing)
    missing_bytes = _bytes_to_download(snapshot, missing)
    if not missing_bytes:
        # Link files that an older commit's download left in the cache into this snapshot.
        FileDownload(snapshot, missing).run()
    total = sum(snapshot.sizes[path] for path in needed)
    return DownloadSize(total_bytes=total, missing_bytes=missing_bytes)


def _raise_if_unavailable(snapshot: Snapshot, missing: list[str]) -> None:
    """Raise the snapshot's obstacle if files are missing; ModelError if they are only offline."""
    if snapshot.obstacle is None or not missing:
        return
    if isinstance(snapshot.obstacle, ModelError):
        raise NotDownloadedError(
            f"{snapshot.repo} is only partly downloaded: of its files {len(missing)} are missing, "
            f"{missing[0]} among them.",
            hint=snapshot.obstacle.hint,
        )
    raise snapshot.obstacle


def _bytes_to_download(snapshot: Snapshot, missing: list[str]) -> int:
    """Bytes to download for the missing files, without blobs that are in the cache already."""
    if not missing:
        return 0
    plan = snapshot_download(
        snapshot.repo,
        revision=snapshot.commit,
        allow_patterns=[glob.escape(path) for path in missing],
        tqdm_class=NullProgressBar,
        dry_run=True,
    )
    return sum(file.file_size or 0 for file in plan if file.will_download)


def _announce_download(
    snapshot: Snapshot, shown: str, sizes: tuple[int, int], on_event: OnEvent
) -> None:
    """Send a notice of the download. Raises StorageError if the disk lacks the space.

    `sizes` are the bytes of all files, and of those that are missing.
    """
    total, missing_bytes = sizes
    cache = snapshot.folder.parents[2]
    free = check_free_disk(shown, missing_bytes, cache)
    # Not mentioned below 1 %: configuration files are always present.
    present = total - missing_bytes
    part = f", of which {format_bytes(present)} are here" if present > total // 100 else ""
    on_event(
        Notice(
            message=f"{shown} takes {format_bytes(total)}{part}; downloading.",
            hint=f"Its licence is {find_licence(snapshot) or 'not told'}. It goes to {cache}, "
            f"where {format_bytes(free)} are free.",
        )
    )


def check_free_disk(shown: str, missing_bytes: int, cache: Path | None = None) -> int:
    """The bytes free where downloads go. Raises StorageError if those to download are more."""
    cache = cache or Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(each for each in (cache, *cache.parents) if each.exists())).free
    if missing_bytes > free:
        raise StorageError(
            f"The download of {shown} needs {format_bytes(missing_bytes)}, and {cache} has "
            f"{format_bytes(free)} free.",
            hint="Make room (`t2i models list`, `t2i models remove`), or set HF_HOME to a place "
            "on another disk.",
        )
    return free


def write_ref(snapshot: Snapshot, revision: str) -> None:
    """Write the revision's commit into the cache after a complete download, for offline use.

    `refs/` in the repository's cache folder is a documented location.
    """
    reference = snapshot.folder.parent.parent / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    replace_text(reference, snapshot.commit, mode=0o666)


def _remove_stale(storage: Path) -> None:
    """Remove partial files that no process has locked; huggingface_hub never resumes them."""
    locks = storage.parent / ".locks" / storage.name
    for unfinished in storage.glob("blobs/*.incomplete"):
        try:
            found = unfinished.lstat()
        except FileNotFoundError:
            continue
        if not _PARTIAL_FILE.fullmatch(unfinished.name) or not stat.S_ISREG(found.st_mode):
            continue
        if time.time() - found.st_mtime < _STALE_SECONDS:
            continue
        lock = locks / f"{unfinished.name.split('.')[0]}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout), FileLock(lock, timeout=0.1, mode=0o664):
            unfinished.unlink(missing_ok=True)
