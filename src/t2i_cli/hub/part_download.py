"""Downloads one part of a pipeline: from a repository of the part alone, or of a whole pipeline."""

from pathlib import Path

from huggingface_hub import constants

from t2i_cli.errors import ModelError
from t2i_cli.events import OnEvent
from t2i_cli.files import model_parts
from t2i_cli.hub import client, download, files, snapshot
from t2i_cli.hub.download import DownloadSize
from t2i_cli.hub.errors import translate_hub_errors
from t2i_cli.hub.snapshot import Snapshot

_CONFIG = "config.json"


def fetch_part_configs(repo: str, names: list[str], *, revision: str | None, offline: bool) -> Path:
    """Download the configs of the parts of these names, or of the root; the snapshot folder.

    Raises T2IError.
    """
    with translate_hub_errors(repo):
        found = _find_snapshot(repo, revision, offline)
        configs = [
            path
            for folder in ("", *names)
            for path in _config_paths(found, folder)
            if _path(folder, _CONFIG) in found.sizes
        ]
        if not configs:
            raise ModelError(f"{repo} has no config.json of a part of a model.")
        if found.missing(configs):
            download.download_files(found, configs, lambda _: None)
        return found.folder


def part_size(
    folder: Path, repo: str, *, revision: str | None, offline: bool, dtype: str
) -> DownloadSize:
    """The size of a part's files, and how much is still to be downloaded. Raises T2IError.

    `folder` is that of its configs, in the snapshot.
    """
    with translate_hub_errors(repo):
        found = _find_snapshot(repo, revision, offline)
        return download.size_of_files(found, _needed(found, folder, dtype))


def download_part(
    folder: Path,
    repo: str,
    *,
    revision: str | None,
    offline: bool,
    dtype: str,
    on_event: OnEvent,
) -> None:
    """Download the weights of a part whose configs are in `folder`. Raises T2IError."""
    with translate_hub_errors(repo):
        found = _find_snapshot(repo, revision, offline)
        download.download_files(found, _needed(found, folder, dtype), on_event)
        if found.obstacle is None and revision != found.commit:
            download.write_ref(found, revision or constants.DEFAULT_REVISION)


def _needed(found: Snapshot, folder: Path, dtype: str) -> list[str]:
    """The paths of a part's configs and weights."""
    inside = "" if folder == found.folder else folder.name
    weights = files.weight_names(found.repo, inside or "part", _names(found, inside), dtype)
    return [*_config_paths(found, inside), *(_path(inside, name) for name in weights)]


def _config_paths(found: Snapshot, folder: str) -> list[str]:
    names = model_parts.config_names(_names(found, folder))
    return [_path(folder, name) for name in names]


def _names(found: Snapshot, folder: str) -> list[str]:
    """The names of the files directly in a folder of the repository, "" for its root."""
    prefix = f"{folder}/" if folder else ""
    inside = [path[len(prefix) :] for path in found.sizes if path.startswith(prefix)]
    return [name for name in inside if "/" not in name]


def _path(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _find_snapshot(repo: str, revision: str | None, offline: bool) -> Snapshot:
    """The snapshot of a repository's revision, with its file list in the cache. Raises T2IError."""
    client.require_cache_folder()
    offline = offline or constants.is_offline_mode()
    commit, obstacle = snapshot.resolve_commit(repo, revision, offline, lambda _: None)
    return snapshot.list_commit(repo, commit, obstacle, _CONFIG)
