"""Models from the Hub into huggingface_hub's cache, with nothing that a pipeline does not need."""

import glob
import re
import shutil
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import constants, snapshot_download

from t2i_cli.errors import ModelError, StorageError
from t2i_cli.events import Notice, OnEvent
from t2i_cli.files.state_files import replace_text
from t2i_cli.hub import client, files
from t2i_cli.hub import snapshot as snapshots
from t2i_cli.hub.client import NullProgressBar
from t2i_cli.hub.downloader import FileDownload
from t2i_cli.hub.errors import translate_hub_errors
from t2i_cli.hub.snapshot import Snapshot
from t2i_cli.terminal.console import format_bytes

_STALE_SECONDS = 60
_UNFINISHED = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})(?:\.[0-9a-f]{8})?\.incomplete")
"""As huggingface_hub calls them: by the hash that the file is to have."""


@dataclass(frozen=True, kw_only=True)
class DownloadSize:
    """What a model's files take, and what of that is not here yet, in bytes."""

    total_bytes: int
    missing_bytes: int


def fetch_configs(repo: str, *, revision: str | None, offline: bool) -> Path:
    """The snapshot folder with model_index.json and the components' configuration, no weights.

    Raises T2IError.
    """
    with translate_hub_errors(repo):
        snapshot = snapshots.find_snapshot(repo, revision, offline)
        missing = snapshot.missing(files.config_files(snapshot.index(), snapshot.sizes))
        if missing:
            _refuse_if_unreachable(snapshot, missing)
            FileDownload(snapshot, missing).run()
        return snapshot.folder


def needs_token(repo: str) -> bool:
    """Whether the Hub gives the repository to those only who log in. Raises T2IError."""
    with translate_hub_errors(repo):
        info = client.hub_api().model_info(repo)
        return bool(info.gated or info.private)


def download_model(
    repo: str, *, revision: str | None, offline: bool, half: bool, on_event: OnEvent
) -> Path:
    """The snapshot folder with every file that the pipeline needs; `half` prefers fp16 weights.

    Raises T2IError: ModelError, AccessError, QuotaError, RemoteError, TimedOutError, StorageError.
    """
    with translate_hub_errors(repo):
        snapshot = snapshots.find_snapshot(repo, revision, offline, on_event)
        needed = snapshot.needed(half)
        if missing := snapshot.missing(needed):
            _refuse_if_unreachable(snapshot, missing)
            _remove_stale(snapshot.folder.parent.parent)
            total = sum(snapshot.sizes[path] for path in needed)
            left = _left(snapshot, missing)
            _announce(snapshot, total, left, on_event)
            FileDownload(snapshot, missing).run(total - left, total, on_event)
        if snapshot.obstacle is None and revision != snapshot.commit:
            _remember(snapshot, revision or constants.DEFAULT_REVISION)
        return snapshot.folder


def download_size(repo: str, *, revision: str | None, offline: bool, half: bool) -> DownloadSize:
    """How much `fetch` would need in all, and how much of that it would download now.

    With nothing to download, all files are in the snapshot's folder afterwards.
    """
    with translate_hub_errors(repo):
        snapshot = snapshots.find_snapshot(repo, revision, offline)
        needed = snapshot.needed(half)
        missing = snapshot.missing(needed)
        _refuse_if_unreachable(snapshot, missing)
        left = _left(snapshot, missing)
        if not left:
            # What an older commit brought is linked into this one.
            FileDownload(snapshot, missing).run()
        total = sum(snapshot.sizes[path] for path in needed)
        return DownloadSize(total_bytes=total, missing_bytes=left)


def _refuse_if_unreachable(snapshot: Snapshot, missing: list[str]) -> None:
    """Raise why the missing files cannot be downloaded, if so."""
    if snapshot.obstacle is None or not missing:
        return
    if isinstance(snapshot.obstacle, ModelError):
        raise ModelError(
            f"{snapshot.repo} is only partly downloaded: of its files {len(missing)} are missing, "
            f"{missing[0]} among them.",
            hint=snapshot.obstacle.hint,
        )
    raise snapshot.obstacle


def _left(snapshot: Snapshot, missing: list[str]) -> int:
    """Bytes to download for the missing files: less than their size where a blob is here."""
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


def _announce(snapshot: Snapshot, total: int, left: int, on_event: OnEvent) -> None:
    """Say what will be downloaded; raise StorageError where the disk has no room for it."""
    cache = snapshot.folder.parents[2]
    free = shutil.disk_usage(cache).free
    # A few configuration files are here always, and nothing to speak of.
    here = total - left
    part = f", of which {format_bytes(here)} are here" if here > total // 100 else ""
    on_event(
        Notice(
            message=f"{snapshot.repo} takes {format_bytes(total)}{part}; downloading to {cache}, "
            f"where {format_bytes(free)} are free."
        )
    )
    if left > free:
        raise StorageError(
            f"The download of {snapshot.repo} needs {format_bytes(left)}, and {cache} has "
            f"{format_bytes(free)} free.",
            hint="Make room (`t2i models list`, `t2i models remove`), or set HF_HOME to a place "
            "on another disk.",
        )


def _remember(snapshot: Snapshot, revision: str) -> None:
    """Keep which commit the revision stands for, once all of it is here, for use offline.

    The place is documented: `refs/` in the repository's folder of the cache.
    """
    reference = snapshot.folder.parent.parent / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    replace_text(reference, snapshot.commit, mode=0o666)


def _remove_stale(storage: Path) -> None:
    """Remove unfinished files that no process holds the lock of; they are never resumed."""
    locks = storage.parent / ".locks" / storage.name
    for unfinished in storage.glob("blobs/*.incomplete"):
        try:
            found = unfinished.lstat()
        except FileNotFoundError:
            continue
        if not _UNFINISHED.fullmatch(unfinished.name) or not stat.S_ISREG(found.st_mode):
            continue
        if time.time() - found.st_mtime < _STALE_SECONDS:
            continue
        lock = locks / f"{unfinished.name.split('.')[0]}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout), FileLock(lock, timeout=0.1, mode=0o664):
            unfinished.unlink(missing_ok=True)
