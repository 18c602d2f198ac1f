"""Finds and downloads one file of a LoRA or an embedding from a repository of the Hub."""

import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import (
    constants,
    get_cached_repo_tree,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub import errors as hf
from huggingface_hub.hf_api import RepoFile

from t2i_cli.errors import ModelError, StorageError, T2IError
from t2i_cli.events import Notice, OnEvent
from t2i_cli.files.input_files import read_input
from t2i_cli.hub import client, download, snapshot
from t2i_cli.hub.client import NullProgressBar
from t2i_cli.hub.downloader import FileDownload
from t2i_cli.hub.errors import NotDownloadedError, translate_hub_errors
from t2i_cli.terminal.console import format_bytes

_ENDING = ".safetensors"
_CARD = "README.md"
_MAX_CARD = 2**20
_NAMES = ("pytorch_lora_weights", "adapter_model", "learned_embeds")
"""Names under which diffusers and PEFT save, which are taken before others."""
_LICENCE = re.compile(r"^license(?:_name)?:[ \t]*[\"']?([\w.+ -]{1,60})", re.MULTILINE)


class _HubFile(NamedTuple):
    """A file of one commit: its path there, and its size in bytes."""

    path: str
    size: int


def find_file(
    repo: str, name: str | None, *, revision: str | None, offline: bool
) -> tuple[Path | None, str | None, int]:
    """Where a file is in the cache, or its SHA-256 and the bytes to download. Raises T2IError.

    A file whose SHA-256 the Hub does not tell is in the cache afterwards.
    """
    with translate_hub_errors(repo):
        commit, file, obstacle = _look_up(repo, name, revision, offline)
        path = _cached(repo, commit, file.path)
        if path is None and obstacle is not None:
            raise _unavailable(repo, file.path, obstacle)
        if path is not None:
            return path, None, 0
        if digest := _digests(repo, commit).get(file.path):
            return None, digest, file.size
        # The Hub tells no hash of small files: they are had in a moment.
        return _download(repo, commit, file, revision, lambda _: None), None, 0


def fetch_file(
    repo: str, name: str | None, *, revision: str | None, offline: bool, on_event: OnEvent
) -> Path:
    """The file in the cache, downloaded if it is not there. Raises T2IError."""
    with translate_hub_errors(repo):
        commit, file, obstacle = _look_up(repo, name, revision, offline)
        if path := _cached(repo, commit, file.path):
            return path
        if obstacle is not None:
            raise _unavailable(repo, file.path, obstacle)
        return _download(repo, commit, file, revision, on_event)


def _look_up(
    repo: str, name: str | None, revision: str | None, offline: bool
) -> tuple[str, _HubFile, T2IError | None]:
    """The commit, the file in it, and the error that prevents downloads, if any."""
    client.require_cache_folder()
    offline = offline or constants.is_offline_mode()
    try:
        commit, obstacle = snapshot.resolve_commit(repo, revision, offline, lambda _: None)
    except NotDownloadedError as error:
        raise _unavailable(repo, name or "its file", error) from None
    return commit, _choose(repo, _files(repo, commit, obstacle), name), obstacle


def _files(repo: str, commit: str, obstacle: T2IError | None) -> list[_HubFile]:
    """The files of a commit; the list and the card are kept in the cache."""
    try:
        tree = get_cached_repo_tree(repo, revision=commit)
    except hf.CachedRepoTreeNotFoundError:
        if obstacle is not None:
            raise obstacle from None
        snapshot_download(repo, revision=commit, allow_patterns=[_CARD], tqdm_class=NullProgressBar)
        tree = get_cached_repo_tree(repo, revision=commit)
    return [_HubFile(file.path, file.size) for file in tree]


@lru_cache(maxsize=64)
def _digests(repo: str, commit: str) -> dict[str, str]:
    """The SHA-256 of a commit's large files, which the list in the cache lacks."""
    entries = client.hub_api().list_repo_tree(repo, recursive=True, revision=commit)
    return {
        each.path: each.lfs.sha256 for each in entries if isinstance(each, RepoFile) and each.lfs
    }


def _choose(repo: str, files: list[_HubFile], name: str | None) -> _HubFile:
    """The named file, or the one that can be meant. Raises ModelError."""
    by_path = {file.path: file for file in files}
    if name is not None:
        if name not in by_path:
            raise ModelError(f"{repo} has no file {name}.", hint=_listed(files))
        return by_path[name]
    found = [file for file in files if file.path.endswith(_ENDING) and "/" not in file.path]
    for known in _NAMES:
        if file := by_path.get(f"{known}{_ENDING}"):
            return file
    if len(found) == 1:
        return found[0]
    if "model_index.json" in by_path:
        raise ModelError(f"{repo} is a whole model, and no LoRA.", hint="-m takes it.")
    if not found:
        pickles = any(file.path.endswith((".bin", ".pt", ".ckpt")) for file in files)
        told = "pickle files only, which can run code" if pickles else "no safetensors file"
        raise ModelError(f"{repo} has {told}; adapters are loaded from safetensors.")
    raise ModelError(
        f"{repo} has {len(found)} files that may be meant.",
        hint=f"Name one: {repo}/{found[0].path}. {_listed(found)}",
    )


def _listed(files: list[_HubFile]) -> str:
    names = [file.path for file in files if file.path.endswith(_ENDING)]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""  # noqa: PLR2004
    return f"It has {', '.join(names[:5]) or 'no safetensors file'}{more}."


def _cached(repo: str, commit: str, path: str) -> Path | None:
    found = try_to_load_from_cache(repo, path, revision=commit)
    return Path(found) if isinstance(found, str) else None


def _download(
    repo: str, commit: str, file: _HubFile, revision: str | None, on_event: OnEvent
) -> Path:
    """Download a file, after its size, licence and the free disk are told."""
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    licence = _licence(repo, commit)
    on_event(
        Notice(
            message=f"{repo}/{file.path} takes {format_bytes(file.size)}; downloading.",
            hint=f"Its licence is {licence or 'not told'}. It goes to {cache}, where "
            f"{format_bytes(free)} are free.",
        )
    )
    if file.size > free:
        raise StorageError(
            f"The download of {repo} needs {format_bytes(file.size)}, and {cache} has "
            f"{format_bytes(free)} free.",
            hint="Make room, or set HF_HOME to a place on another disk.",
        )
    folder = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
    found = snapshot.Snapshot(
        repo=repo, commit=commit, folder=folder, sizes={file.path: file.size}, obstacle=None
    )
    FileDownload(found, [file.path]).run(0, file.size, on_event)
    if revision != commit:
        download.write_ref(found, revision or constants.DEFAULT_REVISION)
    path = _cached(repo, commit, file.path)
    if path is None:
        raise ModelError(f"{repo}/{file.path} could not be downloaded.")
    return path


def _licence(repo: str, commit: str) -> str | None:
    """The licence that the repository's card names."""
    card = _cached(repo, commit, _CARD)
    if card is None:
        return None
    try:
        text = read_input(card, _MAX_CARD).decode(errors="replace")
    except (OSError, T2IError, ValueError):
        return None
    match = _LICENCE.search(text)
    return match[1].strip() if match else None


def _unavailable(repo: str, path: str, obstacle: T2IError) -> T2IError:
    if isinstance(obstacle, ModelError):
        return NotDownloadedError(
            f"{path} of {repo} is not downloaded.", hint="A run that is online downloads it."
        )
    return obstacle
