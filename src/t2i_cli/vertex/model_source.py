"""Where a deployment takes its model's weights from."""

from dataclasses import dataclass
from pathlib import Path

from t2i_cli.model_spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model, and its weights: of the Hub, or else at `uri`, or in a local folder to upload.

    `fetch` tells that they come from the Hub through this machine: a token is needed for them, and
    none may enter the container.
    """

    spec: ModelSpec
    uri: str | None = None
    folder: Path | None = None
    fetch: bool = False

    @property
    def needs_upload(self) -> bool:
        """Whether weights go from here into a bucket."""
        return self.fetch or self.folder is not None

    @property
    def label_name(self) -> str:
        """The model as labels tell it."""
        return self.spec.repo or self.uri or self.spec.name
