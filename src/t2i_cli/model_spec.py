"""What t2i knows of a model before any of its weights is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GuidanceArgument = Literal["guidance_scale", "true_cfg_scale"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What t2i needs to know of a model before it loads it; `None` means not known.

    `name` is how the user may call it (alias, repository or folder); either `repo` (on the Hub) or
    `folder` (a diffusers folder) says where it lies, for a local model. `download_bytes` counts the
    files t2i fetches. `guidance_argument` is the pipeline argument that carries guidance, or `None`
    if the model takes none. Guidance, and with it the negative prompt, acts above `guidance_off`.
    Width and height are pixels and must be multiples of `multiple`. `flow` tells flow-matching
    models from noise-predicting ones, which take other schedulers. `refuses` names fields of a
    request that the place where the model runs cannot honour, each with a sentence that says so.
    """

    name: str
    repo: str | None = None
    folder: Path | None = None
    revision: str | None = None
    pipeline: str | None = None
    summary: str | None = None
    licence: str | None = None
    download_bytes: int | None = None
    gated: bool = False
    steps: int | None = None
    guidance_argument: GuidanceArgument | None = "guidance_scale"
    guidance_scale: float | None = None
    guidance_off: float = 1.0
    negative_prompt: bool = True
    width: int | None = None
    height: int | None = None
    multiple: int = 8
    flow: bool | None = None
    refuses: tuple[tuple[str, str], ...] = ()
