"""Resolve a model by its name, and describe a diffusers folder that is not in the catalogue."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from t2i_cli.errors import ModelError
from t2i_cli.model_spec import GuidanceArgument, ModelSpec
from t2i_cli.models import (
    call_inputs,
    catalog,
    class_facts,
    component_check,
    diffusers_folder,
    libraries,
    pipeline_task,
    required_packages,
    saved_quantization,
    schedulers,
    size_rules,
    sources,
)
from t2i_cli.models.class_facts import PipelineFacts
from t2i_cli.models.libraries import LibraryObject

_DEFAULT_SIDE = 1024
"""Pixels; the default of pipelines whose transformer has no sample size (Flux, Qwen)."""

_GUIDED_FROM_ZERO = re.compile("ZImage|Krea2")
"""Pipelines whose guidance has an effect above 0; for all others it is above 1."""


def resolve_model(
    name: str,
    revision: str | None,
    *,
    offline: bool,
    trust_remote_code: bool,
    folder: Path | None = None,
) -> ModelSpec:
    """Resolve a model name: an alias, a folder, or a repository on the Hub.

    `folder` overrides where the model lies. Raises ModelError if there is no such model or it is
    not text-to-image, InputError if a revision is given for a local folder.
    """
    spec = None if folder else catalog.find_known(name, revision)
    folder = folder or catalog.folder_named(name)
    if spec is None and folder:
        spec = describe_folder(folder, name, trust_remote_code=trust_remote_code)
    if spec is not None:
        catalog.check_revision(spec, revision)
        return spec
    if not catalog.is_repository(name):
        raise catalog.unknown_model(name)
    from t2i_cli import hub

    snapshot = hub.fetch_configs(name, revision=revision, offline=offline)
    spec = describe_folder(snapshot, name, trust_remote_code=trust_remote_code)
    return replace(spec, repo=name, folder=None, revision=revision)


def describe_folder(folder: Path, name: str, *, trust_remote_code: bool) -> ModelSpec:
    """Describe a diffusers folder from its configs and its pipeline's default arguments.

    Raises ModelError if it is not a usable text-to-image model.
    """
    facts = pipeline_facts(folder, trust_remote_code=trust_remote_code)
    if task := pipeline_task.other_task(facts):
        raise ModelError(
            f"{name} is a {facts.name}, which does not make images from text alone: it {task}.",
            hint="`t2i models list` shows models that do.",
        )
    defaults = {key: parameter.default for key, parameter in facts.call.items()}
    argument = _guidance_argument(facts, folder, defaults)
    area = size_rules.own_area(facts, folder)
    width, height = _native_size(folder, defaults, area)
    return ModelSpec(
        name=name,
        folder=folder,
        pipeline=facts.name,
        steps=_number(defaults.get("num_inference_steps")),
        guidance_argument=argument,
        guidance_scale=_number(defaults.get(argument)) if argument else None,
        guidance_off=0.0 if _GUIDED_FROM_ZERO.match(facts.name) else 1.0,
        negative_prompt=_takes_negative_prompt(folder, argument, defaults),
        width=width,
        height=height,
        multiple=_multiple(facts, folder),
        sizes=size_rules.kept_sizes(facts),
        area=area,
        flow=_flow(folder),
    )


def pipeline_facts(folder: Path, *, trust_remote_code: bool) -> PipelineFacts:
    """The facts of the pipeline class, which is imported only if needed. Raises ModelError."""
    class_path = sources.used_class_path(folder)
    if len(class_path) == 2:
        return class_facts.facts_of_class(
            pipeline_class(folder, trust_remote_code=trust_remote_code)
        )
    component_check.check_part_names(folder)
    required_packages.check_packages(folder, *class_path)
    saved_quantization.check_methods(folder)
    component_check.check_components(folder, trust_remote_code=trust_remote_code)
    return class_facts.facts_of_name(*class_path)


def pipeline_class(folder: Path, *, trust_remote_code: bool) -> LibraryObject:
    """The pipeline class: of diffusers or, if trusted, the model's own code. Raises ModelError."""
    class_path = sources.used_class_path(folder)
    if len(class_path) == 2 and not trust_remote_code:
        raise component_check.custom_code_error(folder, f"{class_path[0]}.py")
    component_check.check_imported_components(folder, trust_remote_code=trust_remote_code)
    if len(class_path) == 2:
        return libraries.load_custom_pipeline(folder, *class_path)
    return libraries.import_pipeline_class(*class_path)


def _guidance_argument(
    facts: PipelineFacts, folder: Path, defaults: Mapping[str, Any]
) -> GuidanceArgument | None:
    """The pipeline's guidance argument; `None` if the model is distilled to need no guidance.

    Such models have `is_distilled` in model_index.json. If a pipeline also has `true_cfg_scale`, or
    has neither that nor a negative prompt, its `guidance_scale` is an embedded input of the
    network: it has no effect on a network without a guidance embedding.
    """
    distilled = facts.init.get("is_distilled")
    if diffusers_folder.read_model_index(folder).get(
        "is_distilled", distilled and distilled.default
    ):
        return None
    if "guidance_scale" not in defaults or not call_inputs.reads_argument(facts, "guidance_scale"):
        return "true_cfg_scale" if "true_cfg_scale" in defaults else None
    is_embedded_input = "true_cfg_scale" in defaults or (
        "negative_prompt" not in defaults and not distilled
    )
    _, config = diffusers_folder.denoiser_config(folder)
    if (_number(defaults.get("true_cfg_scale")) or 0) > 1 and not config.get("guidance_embeds"):
        return "true_cfg_scale"
    return "guidance_scale" if not is_embedded_input or _embeds_guidance(folder) else None


def _embeds_guidance(folder: Path) -> bool:
    """Whether the network has a guidance embedding; true if its class has no such option."""
    name, config = diffusers_folder.denoiser_config(folder)
    cls = next((part.cls for part in sources.list_parts(folder) if part.name == name), "")
    option = class_facts.constructor_parameters(cls).get("guidance_embeds")
    return bool(config.get("guidance_embeds", option is None or option.default))


def _takes_negative_prompt(
    folder: Path, argument: GuidanceArgument | None, defaults: Mapping[str, Any]
) -> bool:
    """Whether a negative prompt has an effect: only with classifier-free guidance.

    If a pipeline has `true_cfg_scale` for that, its `guidance_scale` is only an embedded input of
    the network, as in a UNet distilled with a guidance embedding (`time_cond_proj_dim`).
    """
    if argument is None or "negative_prompt" not in defaults:
        return False
    _, config = diffusers_folder.denoiser_config(folder)
    if argument == "guidance_scale" and "true_cfg_scale" in defaults:
        return False
    return config.get("time_cond_proj_dim") is None


def _native_size(folder: Path, defaults: Mapping[str, Any], area: int | None) -> tuple[int, int]:
    """Width and height in pixels: the pipeline's default or area, or the network's sample size."""
    if area:
        return math.isqrt(area), math.isqrt(area)
    _, config = diffusers_folder.denoiser_config(folder)
    width, height = _number(defaults.get("width")), _number(defaults.get("height"))
    if width and height:
        return width, height
    sample = config.get("sample_size")
    if isinstance(sample, list):
        height, width = sample if len(sample) == 2 else (None, None)
    else:
        height = width = sample
    if not width or not height:
        return _DEFAULT_SIDE, _DEFAULT_SIDE
    scale = diffusers_folder.vae_scale_factor(folder)
    return width * scale, height * scale


def _multiple(facts: PipelineFacts, folder: Path) -> int:
    """The number of pixels that width and height must be multiples of.

    What the pipeline's source divides them by, and what its network needs: UNets 8. Transformers
    split the latents into patches, or pack them 2 x 2 if their config has no patch size (Flux,
    Qwen); most of their pipelines check for 16.
    """
    name, config = diffusers_folder.denoiser_config(folder)
    scale = diffusers_folder.vae_scale_factor(folder)
    key = "patch_size" if config.get("patch_size") else "all_patch_size"
    needed = max(8, scale)
    if name == "transformer":
        needed = max(16, scale * diffusers_folder.largest_size(config, key, 1))
    return math.lcm(needed, *size_rules.divisors(facts, folder))


def _flow(folder: Path) -> bool | None:
    """Whether it is a flow-matching model; `None` if its scheduler cannot be replaced."""
    config = diffusers_folder.component_config(folder, "scheduler")
    name = str(config.get("_class_name"))
    if name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
        return True
    noise_classes = {spec.cls for spec in schedulers.NOISE_SCHEDULERS.values()}
    return False if name in noise_classes else None


def _number(value: object) -> LibraryObject:
    """A default from a signature if it is a number, else `None`."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
