"""How much memory a model needs on an accelerator, by the local memory plan.

model_memory.json holds the plans of the catalogue's models; `docs/generate.py` writes it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from t2i_cli.errors import ModelError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import weights
from t2i_cli.terminal.console import format_bytes


@dataclass(frozen=True, kw_only=True)
class ModelMemory:
    """Bytes of a model's weights as they are loaded, and of the peak while an image is made.

    The peak is without measures that save memory, and `None` where it is not known.
    """

    weights: int
    peak: int | None

    @property
    def least(self) -> int:
        """Bytes that an accelerator must have, by what is known."""
        return self.weights if self.peak is None else self.peak

    def text(self) -> str:
        """For people."""
        if self.peak is None:
            return f"{format_bytes(self.weights)} for its weights and an unknown amount beside them"
        return f"{format_bytes(self.peak)} for its weights and working memory"


def catalog_memory(spec: ModelSpec) -> ModelMemory | None:
    """The need of a model of the catalogue, for one image of its own size; else `None`."""
    return _plans().get(spec.name)


def folder_memory(folder: Path) -> ModelMemory | None:
    """The need of a local folder's model, of which only the weights are known, if they are."""
    try:
        parts = weights.read_weight_headers(folder, "float16")
    except ModelError:
        return None
    total = sum(part.size("float16") for part in parts.values())
    return ModelMemory(weights=total, peak=None) if total else None


@cache
def _plans() -> Mapping[str, ModelMemory]:
    file = resources.files("t2i_cli.vertex") / "model_memory.json"
    mib = 2**20
    return {
        name: ModelMemory(weights=row["weights_mib"] * mib, peak=row["peak_mib"] * mib)
        for name, row in json.loads(file.read_text(encoding="utf-8")).items()
    }
