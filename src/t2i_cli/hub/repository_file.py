"""One file of a repository of the Hub, alone: a model, a part of one, a LoRA or an embedding."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_url,
    hf_raise_for_status,
    try_to_load_from_cache,
)
from huggingface_hub.utils._headers import build_hf_headers

from t2i_cli.errors import ModelError, RemoteError, T2IError
from t2i_cli.events import OnEvent
from t2i_cli.files.weight_files import SAFE_WEIGHT_ENDINGS
from t2i_cli.hub import client, download, snapshot
from t2i_cli.hub.errors import NotDownloadedError, translate_hub_errors
from t2i_cli.hub.licence import CARD
from t2i_cli.hub.snapshot import Snapshot

_SHA256 = re.compile("[0-9a-f]{64}")
_MAX_LISTED = 5

FileChoice = str | Callable[[str, list[str]], str]
"""A file's path in its repository; or what chooses one, by the repository and all its files."""


@dataclass(frozen=True, kw_only=True)
class RepositoryFile:
    """A file of one commit: where it is in the cache, or its size in bytes and its SHA-256."""

    repo: str
    commit: str
    name: str
    path: Path | None
    size: int = 0
    sha256: str | None = None


def find_file(
    repo: str, choice: FileChoice, *, revision: str | None, offline: bool
) -> RepositoryFile:
    """Where a file is in the cache, or what its download is. Raises T2IError.

    A file whose SHA-256 the Hub does not tell is in the cache afterwards.
    """
    with translate_hub_errors(repo):
        found, name = _look_up(repo, choice, revision, offline)
        path = _cached(found.repo, found.commit, name)
        sha256 = None
        if path is None:
            _raise_if_unavailable(found, name)
            sha256 = _digest(repo, found.commit, name)
            if sha256 is None:
                # The Hub tells no hash of small files: they are had in a moment.
                path = _download(found, name, revision, lambda _: None)
        return RepositoryFile(
            repo=repo,
            commit=found.commit,
            name=name,
            path=path,
            size=found.sizes.get(name, 0),
            sha256=sha256,
        )


def fetch_file(
    repo: str, choice: FileChoice, *, revision: str | None, offline: bool, on_event: OnEvent
) -> Path:
    """The file in the cache, downloaded if it is not there. Raises T2IError."""
    with translate_hub_errors(repo):
        found, name = _look_up(repo, choice, revision, offline)
        if path := _cached(found.repo, found.commit, name):
            return path
        _raise_if_unavailable(found, name)
        return _download(found, name, revision, on_event)


def is_downloaded(repo: str, name: str, revision: str | None) -> bool:
    """Whether a file is in the cache; the Hub is not asked."""
    try:
        return find_file(repo, name, revision=revision, offline=True).path is not None
    except T2IError:
        return False


def read_remote_beginning(file: RepositoryFile, count: int) -> bytes:
    """The first bytes of a file that is not in the cache, at most `count`. Raises T2IError."""
    url = hf_hub_url(file.repo, file.name, revision=file.commit, endpoint=constants.ENDPOINT)
    headers = build_hf_headers(token=client.hub_api().token)
    headers |= {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    content = bytearray()
    with translate_hub_errors(file.repo):
        with get_session().stream("GET", url, headers=headers) as response:
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            # A server that knows no ranges sends all; the rest is not read.
            for piece in response.iter_raw():
                content += piece
                if len(content) >= count:
                    break
    if len(content) < min(count, file.size):
        raise RemoteError(f"The download of {file.repo} broke off.", hint="Try again.")
    return bytes(content[:count])


def _look_up(
    repo: str, choice: FileChoice, revision: str | None, offline: bool
) -> tuple[Snapshot, str]:
    """The commit with its files, and the name of the one that is meant. Raises T2IError."""
    client.require_cache_folder()
    offline = offline or constants.is_offline_mode()
    try:
        commit, obstacle = snapshot.resolve_commit(repo, revision, offline, lambda _: None)
    except NotDownloadedError:
        raise _not_downloaded(repo, choice if isinstance(choice, str) else "its file") from None
    if isinstance(choice, str) and _cached(repo, commit, choice):
        folder = snapshot.snapshot_folder(repo, commit)
        return Snapshot(
            repo=repo, commit=commit, folder=folder, sizes={}, obstacle=obstacle
        ), choice
    found = snapshot.list_commit(repo, commit, obstacle, CARD)
    if not isinstance(choice, str):
        return found, choice(repo, list(found.sizes))
    if choice not in found.sizes:
        raise ModelError(f"{repo} has no file {choice}.", hint=listed_files(found.sizes))
    return found, choice


def listed_files(names: Iterable[str]) -> str:
    """A sentence with the first files of weights of a repository."""
    found = [name for name in names if name.endswith(SAFE_WEIGHT_ENDINGS)]
    more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
    return f"It has {', '.join(found[:_MAX_LISTED]) or 'no safetensors file'}{more}."


@lru_cache(maxsize=64)
def _digest(repo: str, commit: str, name: str) -> str | None:
    """The SHA-256 of a file that the Hub keeps as a large one; it refuses gated ones here."""
    url = hf_hub_url(repo, name, revision=commit, endpoint=constants.ENDPOINT)
    etag = get_hf_file_metadata(url, token=client.hub_api().token).etag
    return etag if etag and _SHA256.fullmatch(etag) else None


def _cached(repo: str, commit: str, name: str) -> Path | None:
    path = try_to_load_from_cache(repo, name, revision=commit)
    return Path(path) if isinstance(path, str) else None


def _download(found: Snapshot, name: str, revision: str | None, on_event: OnEvent) -> Path:
    """Download a file, after its size, licence and the free disk are told."""
    download.download_files(found, [name], on_event, shown=f"{found.repo}/{name}")
    if revision != found.commit:
        download.write_ref(found, revision or constants.DEFAULT_REVISION)
    path = _cached(found.repo, found.commit, name)
    if path is None:
        raise ModelError(f"{found.repo}/{name} could not be downloaded.")
    return path


def _raise_if_unavailable(found: Snapshot, name: str) -> None:
    if isinstance(found.obstacle, ModelError):
        raise _not_downloaded(found.repo, name)
    if found.obstacle is not None:
        raise found.obstacle


def _not_downloaded(repo: str, name: str) -> NotDownloadedError:
    return NotDownloadedError(
        f"{name} of {repo} is not downloaded.", hint="A run that is online downloads it."
    )
