"""Diffusers models in huggingface_hub's cache: list and remove."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from t2i_cli.errors import ModelError
from t2i_cli.hub import client, files
from t2i_cli.hub.download import download_model
from t2i_cli.hub.errors import not_downloaded, translate_hub_errors


@dataclass(frozen=True, kw_only=True)
class CachedRepo:
    """A cached repository: its size on disk in bytes, and the snapshot that would be used.

    `complete` is whether a pipeline can be loaded from the snapshot without downloads.
    """

    repo: str
    commit: str
    folder: Path
    size: int
    complete: bool


def cache_folder() -> Path:
    """The cache's folder, which may not exist yet."""
    return Path(constants.HF_HUB_CACHE)


def cached_repos() -> dict[str, CachedRepo]:
    """The cached models by repository, without network access. Raises InputError, StorageError."""
    client.require_cache_folder()
    with translate_hub_errors():
        try:
            repos = scan_cache_dir().repos
        except CacheNotFound:
            return {}
        found = {}
        for repo in sorted(repos, key=lambda repo: repo.repo_id):
            usable = [r for r in repo.revisions if (r.snapshot_path / files.MODEL_INDEX).exists()]
            if repo.repo_type != "model" or not usable:
                continue
            revision = max(usable, key=lambda r: ("main" in r.refs, r.last_modified))
            found[repo.repo_id] = CachedRepo(
                repo=repo.repo_id,
                commit=revision.commit_hash,
                folder=revision.snapshot_path,
                size=repo.size_on_disk,
                complete=_is_complete(repo.repo_id, revision.commit_hash),
            )
        return found


def remove_cached(repo: str) -> int:
    """Remove every revision of a repository from the cache; returns the bytes freed.

    Raises ModelError if it is not in the cache.
    """
    client.require_cache_folder()
    with translate_hub_errors(repo):
        try:
            cache = scan_cache_dir()
        except CacheNotFound as error:
            raise not_downloaded(repo) from error
        revisions = [
            revision.commit_hash
            for found in cache.repos
            if found.repo_id == repo and found.repo_type == "model"
            for revision in found.revisions
        ]
        if not revisions:
            raise not_downloaded(repo)
        strategy = cache.delete_revisions(*revisions)
        strategy.execute()
        return strategy.expected_freed_size


def _is_complete(repo: str, commit: str) -> bool:
    try:
        download_model(
            repo, revision=commit, offline=True, dtype="float32", on_event=lambda _: None
        )
    except ModelError:
        return False
    return True
