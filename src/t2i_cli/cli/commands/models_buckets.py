"""What `t2i models` does with models in buckets, which are named by their URLs."""

from pathlib import Path

from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import bucket_models
from t2i_cli.terminal.console import console, format_bytes


def described_spec(url: str, revision: str | None) -> ModelSpec:
    """The model of a folder in a bucket, by its configs. Raises T2IError."""
    from t2i_cli.models import composed_model

    return composed_model.resolve_with_parts(
        url, revision, {}, offline=False, trust_remote_code=False
    )


def copied_models() -> list[ModelSpec]:
    """The models in buckets of which anything was fetched, by their URLs."""
    from t2i_cli.buckets import local_copy

    return [
        ModelSpec(name=copy.url.text, folder=copy.folder, copy_folder=copy.folder)
        for copy in local_copy.list_copies()
        if copy.is_begun
    ]


def copy_bytes(folder: Path) -> int | None:
    """Bytes on the disk of the copy in a folder; `None` if it was removed meanwhile."""
    from t2i_cli.buckets import local_copy

    copy = local_copy.copy_in(folder)
    return local_copy.disk_bytes(copy) if copy else None


def downloaded_path(url: str) -> Path:
    """The folder or file of a model's copy on this machine. Raises ModelError without a whole one.

    The bucket is not asked.
    """
    model = bucket_models.find_bucket_model(url, offline=True)
    if model.obstacle and not bucket_models.has_all_files(model):
        raise model.obstacle
    return model.file_path or model.copy.folder


def remove_copy(url: str, *, yes: bool, json: bool) -> None:
    """Remove a model's copy from this machine, not from its bucket. Raises T2IError."""
    from t2i_cli.buckets import local_copy

    copy = bucket_models.find_bucket_model(url, offline=True).copy
    size = local_copy.disk_bytes(copy)
    if not yes:
        console.confirm(f"Remove the copy of {url} ({format_bytes(size)}) from this machine?")
    local_copy.remove_copy(copy)
    if json:
        console.result_json({"model": url, "repo": None, "freed_bytes": size})
    else:
        console.note(f"Removed the copy of {url}; {format_bytes(size)} are free again.")
