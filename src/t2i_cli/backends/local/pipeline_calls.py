"""Adapt the arguments of a call to pipelines that take them otherwise than most.

By the call's signature where that says it; the rest is in small tables.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models.class_facts import SignatureParameters
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request import ResolvedRequest

_ONE_PROMPT = {"DreamLiteMobilePipeline"}
"""Classes that write a list of prompts into their text as it stands, though they say otherwise."""
_UNGUIDED_FAILS = {"HunyuanDiTPAGPipeline": "its perturbed attention"}
"""Classes whose call fails in diffusers 0.42 without guidance, and what fails in it."""
_INTERMEDIATE_STEPS = 2
"""The only number of steps for which intermediate_timesteps may be set."""


def call_arguments(
    pipe: LibraryObject, arguments: Mapping[str, Any], requests: Sequence[ResolvedRequest]
) -> dict[str, Any]:
    """The arguments as the pipeline's call takes them, and the random generators.

    Each image has its own CPU generator, so that its noise depends on its seed alone.
    """
    import torch

    parameters = inspect.signature(pipe.__call__).parameters
    generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
    adapted = {**arguments, **_belonging(parameters, arguments), "generator": generators}
    if len(requests) == 1:
        one_prompt = type(pipe).__name__ in _ONE_PROMPT
        for name in ("prompt", "negative_prompt", "generator"):
            takes_list = _takes_list(parameters.get(name)) and not (one_prompt and "prompt" in name)
            if isinstance(adapted.get(name), list) and not takes_list:
                (adapted[name],) = adapted[name]
    return adapted


def check_guidance(spec: ModelSpec, request: ResolvedRequest) -> None:
    """Raise InputError for a call without guidance where the pipeline fails in it."""
    part = _UNGUIDED_FAILS.get(spec.pipeline or "")
    if part and request.guidance_scale is not None and request.guidance_scale <= spec.guidance_off:
        raise InputError(
            f"{spec.pipeline} makes no images without guidance: {part} needs a guidance scale "
            f"above {spec.guidance_off:g}.",
            field="guidance_scale",
        )


def _takes_list(parameter: inspect.Parameter | None) -> bool:
    """Whether an argument may be a list; true for one whose annotation does not say."""
    if parameter is None or parameter.annotation is inspect.Parameter.empty:
        return True
    words = str(parameter.annotation)
    is_told = any(word in words for word in ("str", "Generator"))
    return not is_told or any(word in words.lower() for word in ("list", "sequence", "iterable"))


def _belonging(parameters: SignatureParameters, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a pipeline has a default for which those that are set do not go with."""
    steps = arguments.get("num_inference_steps")
    found: dict[str, Any] = {}
    schedule = parameters.get("guidance_schedule")
    if schedule is not None and "guidance_schedule" not in arguments:
        scales = schedule.default
        if "guidance_scale" in arguments:
            found["guidance_schedule"] = None
        elif steps and isinstance(scales, tuple | list) and scales:
            found["guidance_schedule"] = _resampled(scales, steps)
    if "intermediate_timesteps" in parameters and steps not in (None, _INTERMEDIATE_STEPS):
        found.setdefault("intermediate_timesteps", arguments.get("intermediate_timesteps"))
    return found


def _resampled(scales: Sequence[float], steps: int) -> list[float]:
    """One scale for each step: that of the default schedule in the middle of the step."""
    return [scales[(2 * step + 1) * len(scales) // (2 * steps)] for step in range(steps)]
