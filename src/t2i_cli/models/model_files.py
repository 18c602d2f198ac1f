"""The files of a resolved model: its folder, what of it is still to be downloaded, the download."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from t2i_cli.events import OnEvent
from t2i_cli.model_spec import ModelSpec, PartOverride
from t2i_cli.models import bucket_models, composition

_Place = tuple[str | None, str | None, str | Path]


class ModelFiles:
    """The files of a model that is whole in a folder or on the Hub, or put together from parts."""

    def __init__(self, spec: ModelSpec, *, offline: bool) -> None:
        self._spec = spec
        self._offline = offline
        self._composed = spec.composed
        self._skip = {each.part for each in self._composed.overrides} | {*self._composed.left_out}

    def config_folder(self) -> Path:
        """The folder of a pipeline with its configs, which may lack weights. Raises T2IError."""
        base = self._composed.folder
        if base is None:
            from t2i_cli import hub

            base = hub.fetch_configs(
                self._composed.repo or self._spec.name,
                revision=self._composed.revision,
                offline=self._offline,
            )
        return self._compose(base)

    def size(self, dtype: str) -> tuple[int, int]:
        """Bytes of the files from elsewhere, and of those still to be fetched. Raises T2IError."""
        total = missing = 0
        if self._spec.copy_folder:
            bucket = bucket_models.model_of_copy(self._spec.copy_folder, offline=self._offline)
            total, missing = bucket.download_size(dtype, self._skip)
        if self._composed.repo is not None:
            from t2i_cli import hub

            size = hub.download_size(
                self._composed.repo,
                revision=self._composed.revision,
                offline=self._offline,
                dtype=dtype,
                skip=self._skip,
            )
            total, missing = total + size.total_bytes, missing + size.missing_bytes
        for override in self._remote():
            size_bytes, missing_bytes = self._size_of(override, dtype)
            total, missing = total + size_bytes, missing + missing_bytes
        return total, missing

    def download(self, dtype: str, on_event: OnEvent) -> Path | None:
        """Download what is missing; the folder, `None` where all is local. Raises T2IError."""
        self._check_free_disk(dtype)
        base = self._composed.folder
        if self._composed.repo is not None:
            from t2i_cli import hub

            base = hub.download_model(
                self._composed.repo,
                revision=self._composed.revision,
                offline=self._offline,
                dtype=dtype,
                on_event=on_event,
                skip=self._skip,
            )
        if self._spec.copy_folder:
            bucket = bucket_models.model_of_copy(self._spec.copy_folder, offline=self._offline)
            bucket.download(dtype, on_event, self._skip)
        paths = {_place(each): self._fetch(each, dtype, on_event) for each in self._remote()}
        fetched = self._composed.repo or paths or self._spec.copy_folder
        if base is None or not fetched:
            return None
        return self._compose(base, paths)

    def _check_free_disk(self, dtype: str) -> None:
        """Raise StorageError if all sources together need more than is free, before the first."""
        # What is fetched from a bucket goes elsewhere, perhaps to another disk.
        if self._remote() and not self._spec.copy_folder:
            from t2i_cli.hub import download

            _, missing = self.size(dtype)
            download.check_free_disk(self._spec.name, missing)

    def _remote(self) -> list[PartOverride]:
        """One override of each source on the Hub: a file may hold several parts."""
        found = {_place(each): each for each in self._composed.overrides if each.repo}
        return list(found.values())

    def _size_of(self, override: PartOverride, dtype: str) -> tuple[int, int]:
        """Bytes of a part on the Hub, and those still to be downloaded. Raises T2IError."""
        from t2i_cli.hub import part_download, repository_file

        repo, revision, offline = str(override.repo), override.revision, self._offline
        if override.file is None:
            size = part_download.part_size(
                override.path, repo, revision=revision, offline=offline, dtype=dtype
            )
            return size.total_bytes, size.missing_bytes
        file = repository_file.find_file(repo, override.file, revision=revision, offline=offline)
        return (file.path.stat().st_size, 0) if file.path else (file.size, file.size)

    def _fetch(self, override: PartOverride, dtype: str, on_event: OnEvent) -> Path:
        """The file or folder of a part on the Hub, whole. Raises T2IError."""
        from t2i_cli.hub import part_download, repository_file

        repo, revision, offline = str(override.repo), override.revision, self._offline
        if override.file is not None:
            return repository_file.fetch_file(
                repo, override.file, revision=revision, offline=offline, on_event=on_event
            )
        part_download.download_part(
            override.path, repo, revision=revision, offline=offline, dtype=dtype, on_event=on_event
        )
        return override.path

    def _compose(self, base: Path, paths: Mapping[_Place, Path] | None = None) -> Path:
        """The folder on that base; `paths` are where parts of the Hub lie."""
        composed = self._spec.composition
        if composed is None:
            return base
        overrides = tuple(
            each._replace(path=(paths or {}).get(_place(each), each.path))
            for each in composed.overrides
        )
        return composition.compose_folder(replace(composed, overrides=overrides), base)


def _place(override: PartOverride) -> _Place:
    """What tells one source from another."""
    return override.repo, override.revision, override.file or override.path
