"""The files of a resolved model: its folder, what of it is still to be downloaded, the download."""

from pathlib import Path

from t2i_cli.events import OnEvent
from t2i_cli.model_spec import Composition, ModelSpec
from t2i_cli.models import bucket_models, composition


class ModelFiles:
    """The files of a model that is whole in a folder or on the Hub, or put together from parts."""

    def __init__(self, spec: ModelSpec, *, offline: bool) -> None:
        self._spec = spec
        self._offline = offline
        self._composed = spec.composition or Composition(
            overrides=(),
            folder=spec.folder,
            repo=None if spec.folder else spec.repo or spec.name,
            revision=spec.revision,
        )
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
            total, missing = size.total_bytes, size.missing_bytes
        for override in self._composed.overrides:
            if override.repo:
                from t2i_cli.hub import part_download

                size = part_download.part_size(
                    override.path, override.repo, offline=self._offline, dtype=dtype
                )
                total, missing = total + size.total_bytes, missing + size.missing_bytes
        return total, missing

    def download(self, dtype: str, on_event: OnEvent) -> Path | None:
        """Download what is missing; the folder, `None` where all is local. Raises T2IError."""
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
        remote = [each for each in self._composed.overrides if each.repo]
        for override in remote:
            from t2i_cli.hub import part_download

            part_download.download_part(
                override.path,
                str(override.repo),
                offline=self._offline,
                dtype=dtype,
                on_event=on_event,
            )
        fetched = self._composed.repo or remote or self._spec.copy_folder
        if base is None or not fetched:
            return None
        return self._compose(base)

    def _compose(self, base: Path) -> Path:
        if self._spec.composition is None:
            return base
        return composition.compose_folder(self._spec.composition, base)
