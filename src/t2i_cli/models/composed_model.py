"""Finds what a request names as its model: one that is whole, a single file, or one with parts.

A single file is used with the configs of its family's base, which the Hub's cache holds or which
are fetched once; parts that it lacks are the base's own.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from t2i_cli.buckets.bucket_url import check_no_url
from t2i_cli.errors import InputError, ModelError
from t2i_cli.model_spec import Composition, ModelSpec, PartOverride
from t2i_cli.models import (
    bucket_models,
    catalog,
    composition,
    family_bases,
    part_check,
    part_source_files,
    resolution,
    single_file_classes,
    single_file_parts,
    sources,
    weight_sources,
)
from t2i_cli.models.checkpoint_file import CheckpointFile
from t2i_cli.models.checkpoint_task import check_text_to_image
from t2i_cli.models.diffusers_folder import DENOISERS
from t2i_cli.models.sources import Part
from t2i_cli.models.weight_sources import WeightSource
from t2i_cli.part_source import PART_FIELDS, PartSource

PartSources = Mapping[str, PartSource]
"""The sources that a request names, by its fields."""


def parts_of(request: object) -> dict[str, PartSource]:
    """The parts from elsewhere that a request or a model's spec names, by field."""
    named = ((name, getattr(request, name)) for name in PART_FIELDS)
    return {name: source for name, source in named if source is not None}


@bucket_models.naming_urls()
def resolve_with_parts(
    name: str,
    revision: str | None,
    parts: PartSources,
    *,
    offline: bool,
    trust_remote_code: bool,
    folder: Path | None = None,
) -> ModelSpec:
    """Resolve a model name, also of a single file, with parts from elsewhere. Raises T2IError."""
    bucket = None if folder else bucket_models.find_if_url(name, offline=offline)
    file = None
    if bucket and bucket.file is None:
        folder = bucket.fetch_configs()
    elif not (folder or catalog.find_known(name)):
        file = weight_sources.find_weight_file(name, revision, offline=offline)
    if file is None:
        if "base" in parts:
            raise InputError(
                f"--base goes with a single file, and {name} is none.",
                hint="Leave --base away.",
                field="base",
            )
        spec = resolution.resolve_model(
            name, revision, offline=offline, trust_remote_code=trust_remote_code, folder=folder
        )
        spec = replace(spec, copy_folder=bucket.copy.folder) if bucket else spec
        return _with_parts(spec, parts, offline=offline) if parts else spec
    if revision and file.hub is None:
        raise InputError(f"{name} is a file, which has no revisions.", field="revision")
    with file.named():
        spec = _describe_file(
            file, name, parts.get("base"), offline=offline, trust_remote_code=trust_remote_code
        )
    others = {field: source for field, source in parts.items() if field != "base"}
    return _with_parts(spec, others, offline=offline) if others else spec


def _describe_file(
    file: WeightSource,
    name: str,
    given_base: PartSource | None,
    *,
    offline: bool,
    trust_remote_code: bool,
) -> ModelSpec:
    """The spec of a model that is a single file. Raises T2IError."""
    checkpoint = file.read_checkpoint()
    check_text_to_image(checkpoint, with_base=given_base is not None)
    if how := checkpoint.quantization:
        part_check.check_loadable(checkpoint, how)
    base, configs = _find_base(checkpoint, given_base, offline, trust_remote_code)
    composed = _file_composition(checkpoint, file, base, configs)
    made = composition.compose_folder(composed, configs)
    if base.name in catalog.MODELS:
        spec = replace(base, name=name, folder=made)
    else:
        spec = resolution.describe_folder(made, name, trust_remote_code=trust_remote_code)
    return replace(
        spec,
        repo=None,
        revision=file.hub.revision if file.hub else None,
        summary=None,
        download_bytes=None,
        gated=False,
        base=given_base and part_source_files.with_digest(given_base),
        # One in a bucket is known by its URL, as it may not be fetched yet.
        file_digest=None if file.bucket else file.digest(),
        copy_folder=file.bucket.copy.folder if file.bucket else None,
        composition=composed,
    )


def config_folder(spec: ModelSpec, *, offline: bool) -> Path:
    """The folder with a plain model's configs, which are fetched if needed. Raises T2IError."""
    if spec.folder:
        return spec.folder
    from t2i_cli import hub

    return hub.fetch_configs(spec.repo or spec.name, revision=spec.revision, offline=offline)


def _find_base(
    checkpoint: CheckpointFile, given: PartSource | None, offline: bool, trust_remote_code: bool
) -> tuple[ModelSpec, Path]:
    """The model whose configs a file is used with, and their folder.

    Raises T2IError, with how to get the configs.
    """
    if given and weight_sources.names_file(given.source):
        raise InputError(
            f"--base takes a model with configs, and {given.source} is a single file.",
            hint="A short name, a repository or a folder of diffusers is one.",
            field="base",
        )
    revision = None
    if given:
        name, revision = catalog.parse_address(given.source)
        check_no_url("base", name, "base")
    else:
        name = family_bases.find_base(checkpoint.family, checkpoint.path)
    try:
        spec = resolution.resolve_model(
            name, revision, offline=offline, trust_remote_code=trust_remote_code
        )
        return spec, config_folder(spec, offline=offline)
    except ModelError as error:
        hint = error.hint
        if catalog.is_repository(name) or catalog.find_known(name):
            hint = f"`t2i models pull {checkpoint.path}` fetches them once, without the weights."
        message = f"{checkpoint.path} needs the configs of {name}: {error.message}"
        raise type(error)(message, hint=hint) from error


def _file_composition(
    checkpoint: CheckpointFile, file: WeightSource, base: ModelSpec, configs: Path
) -> Composition:
    """What a single file is put together from. Raises ModelError if the base has no such part."""
    parts = sources.list_parts(configs)
    family_bases.check_family(checkpoint, configs, "base")
    whole = single_file_parts.is_whole(checkpoint.tensors)
    if whole:
        held = single_file_parts.parts_inside(checkpoint, parts)
        inside = [part for part in held if single_file_classes.is_converted(part)]
    else:
        inside = [part for part in parts if part.name in DENOISERS]
    if not any(part.name in DENOISERS for part in inside):
        raise ModelError(
            f"{checkpoint.path} holds no network that {base.name} makes images with, or one that "
            "diffusers does not read from single files.",
            hint="--base names another model; `-m` takes a model's folder or repository, too.",
        )
    for part in inside:
        if part.name == "vae":
            part_check.check_latents(checkpoint, part)
    return Composition(
        overrides=tuple(_override(part, file, whole=whole) for part in inside),
        folder=base.folder,
        repo=None if base.folder else base.repo or base.name,
        revision=base.revision,
        left_out=tuple(part.name for part in parts if part.name == "safety_checker"),
        scheduler=_scheduler_changes(checkpoint),
    )


def _override(part: Part, file: WeightSource, *, whole: bool) -> PartOverride:
    """A file of weights in place of a part."""
    path = Path(os.path.abspath(file.path))
    if file.hub is None:
        return PartOverride(part.name, path, whole=whole)
    repo, revision, name = file.hub
    return PartOverride(part.name, path, repo, whole=whole, revision=revision, file=name)


def _scheduler_changes(checkpoint: CheckpointFile) -> tuple[tuple[str, str], ...]:
    """What a file says of its noise: keys of trainers, or the metadata of modelspec.

    `v_pred` and `ztsnr` are empty tensors that trainers of SDXL write for ComfyUI and A1111.
    """
    told = checkpoint.metadata.get("modelspec.prediction_type", "").lower()
    kinds = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}
    kind = "v_prediction" if "v_pred" in checkpoint.tensors else kinds.get(told)
    changes: dict[str, object] = {"prediction_type": kind} if kind else {}
    if "ztsnr" in checkpoint.tensors:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return tuple((key, json.dumps(value)) for key, value in changes.items())


def _with_parts(spec: ModelSpec, parts: PartSources, *, offline: bool) -> ModelSpec:
    """The spec of a model with parts in place of its own. Raises T2IError."""
    known = spec.composed
    folder = config_folder(spec, offline=offline)
    listed = sources.list_parts(folder)
    overrides = {each.part: each for each in known.overrides}
    settled = {}
    for field, source in parts.items():
        override, digest = _find_override(field, source, listed, folder, offline=offline)
        overrides[override.part] = override
        settled[field] = source._replace(sha256=digest)
    composed = replace(known, overrides=tuple(overrides.values()))
    return replace(spec, composition=composed, **settled)  # type: ignore[arg-type]


def _find_override(
    field: str, source: PartSource, parts: list[Part], base: Path, *, offline: bool
) -> tuple[PartOverride, str | None]:
    """What takes a part's place, and its content's SHA-256. Raises T2IError."""
    own = _parts_of_field(field, parts)
    if not own:
        raise InputError(f"The model has no {part_check.NOUNS[field]}.", field=field)
    name, revision = catalog.parse_address(source.source)
    file = None
    if not bucket_models.is_bucket_model(name):
        file = weight_sources.find_weight_file(name, revision, offline=offline)
    if file:
        with file.named():
            return _file_override(field, file, own, base), file.digest()
    found = part_source_files.find_folder(field, source, own, offline=offline)
    digest = None if found.repo else part_source_files.digest_of(found.folder)
    override = PartOverride(found.part.name, found.folder, repo=found.repo, revision=found.revision)
    return override, digest


def _file_override(field: str, file: WeightSource, own: list[Part], base: Path) -> PartOverride:
    """A file in place of one of a model's own parts, if it fits. Raises T2IError."""
    checkpoint = file.read_checkpoint()
    part_check.check_file(field, checkpoint, base)
    part = part_check.encoder_in_file(checkpoint, own) if field == "text_encoder" else own[0]
    if field == "vae":
        part_check.check_latents(checkpoint, part)
    whole = single_file_parts.is_whole(checkpoint.tensors)
    if whole and not single_file_parts.parts_inside(checkpoint, [part]):
        raise InputError(f"{file.path} holds no {part_check.NOUNS[field]}.", field=field)
    override = _override(part, file, whole=whole)
    if field == "text_encoder":
        part_check.check_encoder_file(checkpoint, part)
    elif not composition.loads_single_file(part, override):
        part_check.check_plain_file(checkpoint, part)
    elif not single_file_classes.is_converted(part):
        raise part_check.unread_layout(checkpoint, part)
    return override


def _parts_of_field(field: str, parts: list[Part]) -> list[Part]:
    """The parts of a pipeline that a field can take the place of."""
    if field == "vae":
        return [part for part in parts if part.name == "vae"]
    if field == "transformer":
        return [part for part in parts if part.name in DENOISERS]
    return [part for part in parts if part.name.startswith("text_encoder")]
