"""Resolves a revision to a commit, with its file list and the cached files."""

import math
import re
import time
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import (
    HfApi,
    constants,
    get_cached_repo_tree,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub import errors as hf

from t2i_cli.errors import (
    InputError,
    ModelError,
    QuotaError,
    RemoteError,
    T2IError,
    TimedOutError,
    os_reason,
)
from t2i_cli.events import Notice, OnEvent
from t2i_cli.files import model_parts, weight_files
from t2i_cli.files.input_files import read_input
from t2i_cli.files.state_files import parse_json
from t2i_cli.hub import answers, client, files
from t2i_cli.hub.client import NullProgressBar
from t2i_cli.hub.errors import hub_error, not_downloaded

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_INDEX_BYTES = 2**20
_COMMIT_TTL = 60
"""Seconds to cache a resolved commit: a run resolves its model several times and must see one."""

_resolved: dict[tuple[str, str | None], tuple[float, str, T2IError | None]] = {}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One commit of a repository: its folder in the cache, and its files' sizes in bytes.

    `obstacle` is the error that prevents downloads now, if any.
    """

    repo: str
    commit: str
    folder: Path
    sizes: Mapping[str, int]
    obstacle: T2IError | None

    def index(self) -> dict[str, Any]:
        """The content of model_index.json. Raises ModelError if it is invalid."""
        try:
            index = parse_json(read_input(self.folder / files.MODEL_INDEX, _MAX_INDEX_BYTES))
        except ValueError as error:
            raise ModelError(f"{self.repo} has a broken {files.MODEL_INDEX}.") from error
        except OSError as error:
            raise ModelError(
                f"Cannot read {files.MODEL_INDEX} of {self.repo}: {os_reason(error)}."
            ) from error
        if not isinstance(index, dict):
            raise ModelError(f"{self.repo} has a broken {files.MODEL_INDEX}.")
        return index

    def missing(self, paths: list[str]) -> list[str]:
        """The paths that are not in the cache."""
        return [path for path in paths if not (self.folder / path).exists()]

    def needed(self, dtype: str, skip: Container[str] = ()) -> list[str]:
        """The files to load; those of another dtype win if all of them are in the cache.

        `skip` are parts whose weights are not needed.
        """
        index = self.index()
        wanted = files.needed_files(self.repo, index, self.sizes, dtype, skip)
        if self.missing(wanted):
            for other in ("float32", *weight_files.VARIANTS):
                found = files.needed_files(self.repo, index, self.sizes, other, skip)
                if not self.missing(found):
                    return found
        return wanted


def find_snapshot(
    repo: str, revision: str | None, offline: bool, on_event: OnEvent = lambda _: None
) -> Snapshot:
    """Resolve a revision, and have its file list and model_index.json in the cache.

    Asks the Hub once, or not at all for a commit whose list is cached. Raises T2IError.
    """
    client.require_cache_folder()
    offline = offline or constants.is_offline_mode()
    if revision and _COMMIT.fullmatch(revision):
        if snapshot := _cached_snapshot(repo, revision, not_downloaded(repo) if offline else None):
            return snapshot
    commit, obstacle = resolve_commit(repo, revision, offline, on_event)
    if snapshot := _cached_snapshot(repo, commit, obstacle):
        return snapshot
    if obstacle is None:
        snapshot_download(
            repo, revision=commit, allow_patterns=[files.MODEL_INDEX], tqdm_class=NullProgressBar
        )
        if snapshot := _cached_snapshot(repo, commit, obstacle):
            return snapshot
        raise _not_diffusers(repo, commit)
    found = try_to_load_from_cache(repo, files.MODEL_INDEX, revision=commit)
    if not isinstance(found, str):
        raise obstacle
    # Downloaded by another program without the file list: use the files in the folder.
    folder = Path(found).parent
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    return Snapshot(repo=repo, commit=commit, folder=folder, sizes=sizes, obstacle=obstacle)


def list_commit(repo: str, commit: str, obstacle: T2IError | None, kept: str) -> Snapshot:
    """A commit with its file list, which is fetched with the file `kept` if the cache lacks it.

    Raises `obstacle` if it is not to be had.
    """
    try:
        tree = get_cached_repo_tree(repo, revision=commit)
    except hf.CachedRepoTreeNotFoundError:
        if obstacle is not None:
            raise obstacle from None
        snapshot_download(repo, revision=commit, allow_patterns=[kept], tqdm_class=NullProgressBar)
        tree = get_cached_repo_tree(repo, revision=commit)
    return Snapshot(
        repo=repo,
        commit=commit,
        folder=snapshot_folder(repo, commit),
        sizes={file.path: file.size for file in tree},
        obstacle=obstacle,
    )


def snapshot_folder(repo: str, commit: str) -> Path:
    """Where the cache has a commit's files."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}/snapshots/{commit}"


def _not_diffusers(repo: str, commit: str) -> ModelError:
    """The error for a repository without model_index.json, by what it has."""
    names = [file.path for file in get_cached_repo_tree(repo, revision=commit)]
    config: dict[str, Any] = {}
    if "config.json" in names:
        snapshot_download(
            repo, revision=commit, allow_patterns=["config.json"], tqdm_class=NullProgressBar
        )
        found = try_to_load_from_cache(repo, "config.json", revision=commit)
        with suppress(ValueError, OSError):
            parsed = parse_json(read_input(Path(str(found)), _MAX_INDEX_BYTES))
            config = parsed if isinstance(parsed, dict) else {}
    if content := model_parts.other_content([n for n in names if "/" not in n], config):
        return ModelError(f"{repo} {content[0]}.", hint=content[1])
    return ModelError(
        f"{repo} is not a diffusers repository: it has no {files.MODEL_INDEX}.",
        hint="`t2i models list` shows the models t2i knows.",
    )


def _cached_snapshot(repo: str, commit: str, obstacle: T2IError | None) -> Snapshot | None:
    """The snapshot if the cache has the commit's file list and model_index.json, else None."""
    found = try_to_load_from_cache(repo, files.MODEL_INDEX, revision=commit)
    try:
        tree = get_cached_repo_tree(repo, revision=commit)
    except hf.CachedRepoTreeNotFoundError:
        return None
    if not isinstance(found, str):
        return None
    return Snapshot(
        repo=repo,
        commit=commit,
        folder=Path(found).parent,
        sizes={file.path: file.size for file in tree},
        obstacle=obstacle,
    )


def resolve_commit(
    repo: str, revision: str | None, offline: bool, on_event: OnEvent
) -> tuple[str, T2IError | None]:
    """The commit of a revision, and the error that prevents downloads, if any. Raises T2IError."""
    try:
        # Local, without the token, which may be missing or broken.
        api = HfApi(token=False)
        cached = api.resolve_revision(repo, revision=revision, local_files_only=True).resolved
    except hf.RevisionResolutionError:
        cached = None
    if offline:
        if cached is None:
            raise not_downloaded(repo)
        return cached, not_downloaded(repo)
    resolved_at, commit, failure = _resolved.get((repo, revision), (-math.inf, "", None))
    if time.monotonic() - resolved_at > _COMMIT_TTL:
        commit, failure = _fetch_commit(repo, revision, cached)
        _resolved[repo, revision] = (time.monotonic(), commit, failure)
    if failure:
        on_event(Notice(message=f"{failure.message} The copy of {repo} in the cache is used."))
    return commit, failure


def _fetch_commit(
    repo: str, revision: str | None, cached: str | None
) -> tuple[str, T2IError | None]:
    """The commit from the Hub, or the `cached` one with the error if the failure is transient."""
    try:
        return answers.repository_facts(client.hub_api(), repo, revision).commit, None
    except (InputError, hf.HfHubHTTPError, httpx2.HTTPError, RemoteError) as error:
        failure = error if isinstance(error, InputError | RemoteError) else hub_error(error, repo)
        transient = isinstance(failure, InputError | RemoteError | TimedOutError | QuotaError)
        if cached is None or not transient:
            raise failure from error
        return cached, failure
