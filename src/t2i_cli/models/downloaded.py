"""Names of downloaded models by the folders of huggingface_hub's cache, without loading `hub`."""

from pathlib import Path

from t2i_cli.models import catalog
from t2i_cli.models.bucket_models import is_bucket_model

_PREFIX = "models--"
"""Beginning of a model's folder; "--" stands for the "/" of its name."""


def downloaded_repositories() -> list[str]:
    """The repositories with a snapshot in the cache that has a model_index.json."""
    return sorted(
        folder.name.removeprefix(_PREFIX).replace("--", "/", 1)
        for folder in _cache_folder().glob(f"{_PREFIX}*--*")
        if any(folder.glob("snapshots/*/model_index.json"))
    )


def is_local(model: str) -> bool:
    """Whether a resolved request's model is inside t2i, a folder, a file or a URL: on no Hub."""
    if is_bucket_model(model):
        return True
    if "/" not in model or catalog.folder_named(model) is not None:
        return True
    return catalog.is_file(model)


def has_weights(repo: str) -> bool:
    """Whether any weight file of a repository is in the cache, so that its download began."""
    folder = _cache_folder() / f"{_PREFIX}{repo.replace('/', '--')}"
    return any(folder.glob("snapshots/*/*/*.safetensors"))


def _cache_folder() -> Path:
    # The constants alone take a few milliseconds, t2i_cli.hub half a second.
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
