"""Metadata of a model, known before its weights are loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from t2i_cli.part_source import PartSource

GuidanceArgument = Literal["guidance_scale", "true_cfg_scale"]
AdapterPlace = Literal["files", "names", "remote"]


class PartOverride(NamedTuple):
    """A part of a model that is read from elsewhere: a file, or a folder with config and weights.

    `repo` is the repository on the Hub that the folder is a snapshot of, of that `revision`, which
    may still lack the weights; or the one that has the `file`, in whose place `path` may have its
    header alone. `whole` is whether a file holds other parts of a pipeline as well.
    """

    part: str
    path: Path
    repo: str | None = None
    whole: bool = False
    revision: str | None = None
    file: str | None = None


@dataclass(frozen=True, kw_only=True)
class Composition:
    """What a model is put together from: a base, and the parts that are read from elsewhere.

    The base is a folder, or a repository with its revision. `left_out` are parts of the base that
    the model does without; `scheduler` are values laid over the scheduler's config.
    """

    overrides: tuple[PartOverride, ...]
    folder: Path | None = None
    repo: str | None = None
    revision: str | None = None
    left_out: tuple[str, ...] = ()
    scheduler: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Metadata of a model; `None` means unknown.

    `name` is an alias, repository or folder. A local model has its weights in `repo` (on the Hub)
    or `folder` (a diffusers folder). `download_bytes` is the size of the files that t2i downloads.
    `guidance_argument` is the pipeline's argument for guidance, `None` if it has none. Guidance and
    the negative prompt have an effect above `guidance_off`. Width and height are in pixels and
    multiples of `multiple`; where `sizes` has any, they are one of these pairs, and where `area` is
    set, they have about so many pixels, to which the pipeline scales other sizes. `flow` is whether
    the model is a flow-matching one, which decides its schedulers. `quantize` is the quantisation
    of its weights where a request names none. `refuses` has pairs of a request's field that the
    backend cannot honour, and a sentence that says so. `base`, `vae`, `text_encoder` and
    `transformer` are the parts that are read from elsewhere, and `composition` what follows from
    them; `file_digest` is the SHA-256 of a model that is a single file. `copy_folder` is this
    machine's copy of a model in a bucket, which may lack weights. `adapters` says what a
    request's LoRAs and embeddings are: files on this machine or the Hub and names in
    `adapter_folder`, only those names (as for clients of a server), or what a server knows; with
    `adapters_offline` the Hub is not asked. `own_name` is the user's own name for the model, and
    `defaults` the values of a request's fields that it brings.
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
    sizes: tuple[tuple[int, int], ...] = ()
    area: int | None = None
    flow: bool | None = None
    quantize: str | None = None
    refuses: tuple[tuple[str, str], ...] = ()
    base: PartSource | None = None
    vae: PartSource | None = None
    text_encoder: PartSource | None = None
    transformer: PartSource | None = None
    file_digest: str | None = None
    copy_folder: Path | None = None
    composition: Composition | None = None
    adapters: AdapterPlace = "remote"
    adapter_folder: str | None = None
    adapters_offline: bool = False
    own_name: str | None = None
    defaults: tuple[tuple[str, Any], ...] = ()

    @property
    def composed(self) -> Composition:
        """Its composition; of a model that is whole, itself as the base."""
        return self.composition or Composition(
            overrides=(),
            folder=self.folder,
            repo=None if self.folder else self.repo or self.name,
            revision=self.revision,
        )

    @property
    def own_negative_prompt(self) -> str | None:
        """The negative prompt that the user's own name for the model brings."""
        return dict(self.defaults).get("negative_prompt")

    @property
    def shown_name(self) -> str:
        """The name by which it was asked for, where that is an alias or the user's own name."""
        return self.own_name or self.name
