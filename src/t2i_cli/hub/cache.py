"""Models in huggingface_hub's cache, whole or by single files: list and remove."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from t2i_cli.errors import ModelError
from t2i_cli.files.weight_files import SAFE_WEIGHT_ENDINGS
from t2i_cli.hub import client, files
from t2i_cli.hub.download import download_model
from t2i_cli.hub.errors import not_downloaded, translate_hub_errors


@dataclass(frozen=True, kw_only=True)
class CachedRepo:
    """A cached repository: its size on disk in bytes, and the snapshot that would be used.

    `complete` is whether a pipeline can be loaded from the snapshot without downloads. `files` are
    the files of weights there, by their paths, if it holds no pipeline.
    """

    repo: str
    commit: str
    folder: Path
    size: int
    complete: bool
    files: tuple[str, ...] = ()


def cache_folder() -> Path:
    """The cache's folder, which may not exist yet."""
    return Path(constants.HF_HUB_CACHE)


def cached_repos() -> dict[str, CachedRepo]:
    """The cached models by repository, without network access. Raises InputError, StorageError."""
    client.require_cache_folder()
    with translate_hub_errors():
        found = {}
        for repo in sorted(_cached_models(), key=lambda repo: repo.repo_id):
            usable = [r for r in repo.revisions if (r.snapshot_path / files.MODEL_INDEX).exists()]
            weights = {r: names for r in repo.revisions if (names := _weight_files(r))}
            if not (usable or weights):
                continue
            revision = max(usable or weights, key=lambda r: ("main" in r.refs, r.last_modified))
            found[repo.repo_id] = CachedRepo(
                repo=repo.repo_id,
                commit=revision.commit_hash,
                folder=revision.snapshot_path,
                size=repo.size_on_disk,
                complete=bool(usable) and _is_complete(repo.repo_id, revision.commit_hash),
                files=() if usable else tuple(sorted({*sum(weights.values(), [])})),
            )
        return found


def cached_size(repo: str, file: str | None, revision: str | None) -> int:
    """Bytes on disk of a repository, or of a file in it. Raises ModelError if it is not there."""
    client.require_cache_folder()
    with translate_hub_errors(repo):
        if file is not None:
            return sum(_size(blob) for blob in {b for _, b in _copies(repo, file, revision)})
        for found in _cached_models():
            if found.repo_id == repo:
                return found.size_on_disk
        raise not_downloaded(repo)


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


def remove_cached_file(repo: str, file: str, revision: str | None) -> int:
    """Remove a file of a repository, of every revision without one; returns the bytes freed.

    The repository goes with its last file of weights. Raises ModelError if it is not there.
    """
    client.require_cache_folder()
    with translate_hub_errors(repo):
        copies = _copies(repo, file, revision)
        for link, _ in copies:
            link.unlink(missing_ok=True)
        freed = 0
        for blob in {blob for _, blob in copies}:
            # Another revision may have the same content.
            if not any(link.resolve() == blob for link in blob.parents[1].glob("snapshots/*/**/*")):
                freed += _size(blob)
                blob.unlink(missing_ok=True)
        if repo not in cached_repos():
            with suppress(ModelError):
                freed += remove_cached(repo)
        return freed


def _cached_models() -> list[CachedRepoInfo]:
    try:
        return [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    except CacheNotFound:
        return []


def _copies(repo: str, file: str, revision: str | None) -> list[tuple[Path, Path]]:
    """A file in each revision, and where its content lies. Raises ModelError if there is none."""
    found = [
        (path, cached.blob_path)
        for one in _cached_models()
        if one.repo_id == repo
        for each in one.revisions
        if revision is None or revision == each.commit_hash or revision in each.refs
        for cached in each.files
        if (path := cached.file_path) == each.snapshot_path / file
    ]
    if not found:
        raise not_downloaded(f"{repo}/{file}")
    return found


def _weight_files(revision: CachedRevisionInfo) -> list[str]:
    """The files of weights of a revision that holds no pipeline; none of a language model's."""
    names = [
        file.file_path.relative_to(revision.snapshot_path).as_posix()
        for file in revision.files
        if file.file_name.endswith(SAFE_WEIGHT_ENDINGS)
    ]
    config = revision.snapshot_path / "config.json"
    with suppress(OSError, ValueError):
        record = json.loads(config.read_bytes())
        # diffusers writes the class of a part; the cache is shared with whatever else there is.
        if not (isinstance(record, dict) and "_class_name" in record):
            return []
    return names


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_complete(repo: str, commit: str) -> bool:
    try:
        download_model(
            repo, revision=commit, offline=True, dtype="float32", on_event=lambda _: None
        )
    except ModelError:
        return False
    return True
