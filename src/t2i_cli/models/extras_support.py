"""Whether a pipeline's call takes the extras of a request, told before its weights are loaded."""

import ast
import re
from collections.abc import Container, Mapping
from functools import cache
from inspect import Parameter
from typing import Any

from t2i_cli.errors import InputError, T2IError
from t2i_cli.known_names import closest_name, name_choices
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import class_facts, library_source
from t2i_cli.models.class_facts import PipelineFacts
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_extras import ExtraValue, extras_to_json
from t2i_cli.request_fields import FIELDS

TRUE_GUIDANCE = "true_cfg_scale"
"""The scale of classifier-free guidance, where other guidance is an input of the network."""
SCHEDULES = ("sigmas", "timesteps")
"""Arguments that are a schedule of steps."""

_OPTIONS = {
    known.pipeline or name: known.flags[0] if known.flags else f"the {name}"
    for name, known in FIELDS.items()
    if name not in {"extras", "seed", "clip_skip", "guidance_rescale", "prompt_2"}
}
"""Arguments that request fields have, with the options that set them.

`--set` gave some of them before they had options: rows that say so are still made.
"""
_SET_BY_T2I = {
    *("self", "args", "kwargs", "generator", "num_images_per_prompt", "output_type"),
    *("return_dict", "callback", "callback_steps", "latents", "max_area"),
    *("use_resolution_binning", "use_resolution_bucket", "images_per_prompt"),
}
_OF_FILES = re.compile(r"image|mask|embeds|latent|callback|path|file|folder|video|audio|url")
"""Parts of the names of arguments that take tensors, images, functions or files."""
_WORD = re.compile(r"[A-Za-z_]\w*")
_KINDS = {"bool": "bool", "int": "int", "float": "float", "str": "str", "list": "list"} | {
    "List": "list",
    "Tuple": "list",
    "tuple": "list",
    "Sequence": "list",
}
_NOUNS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list of numbers",
}
_MAX_SKIPPED = 64


def check_extras(request: ResolvedRequest, spec: ModelSpec, facts: PipelineFacts) -> None:
    """Raise InputError for an extra that the pipeline's call does not take, or not so."""
    taken = _taken(facts)
    for name, value in request.extras or ():
        if name in _OPTIONS or (name == TRUE_GUIDANCE and spec.guidance_argument == TRUE_GUIDANCE):
            raise InputError(
                f"--set cannot give {name}: {_OPTIONS.get(name, '--guidance')} does.",
                field="extras",
            )
        if name not in facts.call or name.startswith("_"):
            raise InputError(
                f"{spec.name} takes no {name}; {name_choices(name, taken)}",
                # Where no name is near, the message lists them.
                hint=f"Its {facts.name} takes {', '.join(taken)}."
                if closest_name(name, taken)
                else None,
                field="extras",
            )
        if name not in taken:
            raise InputError(
                f"--set cannot give {name}: t2i sets it, or it is no plain value.", field="extras"
            )
        _check_kind(name, value, taken[name])
    _check_values(request)


def extra_arguments(
    request: ResolvedRequest, parameters: Container[str], count: int
) -> dict[str, Any]:
    """The arguments of a pipeline's call for the extras of `count` requests that share a pass."""
    given = extras_to_json(request.extras or ())
    # One text for each image: some pipelines compare the numbers of their prompts.
    arguments: dict[str, Any] = {
        name: [value] * count if isinstance(value, str) and _is_prompt(name) else value
        for name, value in given.items()
    }
    if acts_by_true_guidance(request) and not request.negative_prompt:
        # Without a negative prompt, these pipelines silently skip guidance.
        if "negative_prompt" in parameters:
            arguments["negative_prompt"] = [" "] * count
    return arguments


def acts_by_true_guidance(request: object) -> bool:
    """Whether a request's extras turn on classifier-free guidance."""
    scale = dict(getattr(request, "extras", None) or ()).get(TRUE_GUIDANCE)
    return isinstance(scale, int | float) and scale > 1


def takes_true_guidance(pipeline: str | None) -> bool:
    """Whether a class of diffusers has a negative prompt that acts by `true_cfg_scale`."""
    if pipeline is None:
        return False
    try:
        call = class_facts.facts_of_name(pipeline).call
    except T2IError:
        return False  # A model's own code.
    return {TRUE_GUIDANCE, "negative_prompt"} <= call.keys()


def _is_prompt(name: str) -> bool:
    return name.startswith(("prompt", "negative_prompt"))


def _taken(facts: PipelineFacts) -> dict[str, frozenset[str]]:
    """The arguments that extras may set, with the kinds of values that they take."""
    annotations = _annotations(facts.name, facts.module)
    found = {}
    for name, parameter in facts.call.items():
        if name in _OPTIONS or name in _SET_BY_T2I or _OF_FILES.search(name):
            continue
        if parameter.kind in {Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL}:
            continue
        if kinds := _kinds(parameter, annotations.get(name, "")):
            found[name] = kinds
    return found


def _kinds(parameter: Parameter, annotation: str) -> frozenset[str]:
    """The kinds of values by the annotation, or by the default; none for other objects."""
    if not annotation and parameter.annotation is not Parameter.empty:
        annotation = str(parameter.annotation)
    kinds = frozenset(_KINDS[word] for word in _WORD.findall(annotation) if word in _KINDS)
    if "dict" in annotation.lower() or "Callable" in annotation:
        return frozenset()
    if isinstance(parameter.default, bool | int | float | str):
        kinds |= {type(parameter.default).__name__}
    # A list of numbers is no number.
    is_list = re.fullmatch(r"(Optional\[)?[Ll]ist\[\w+\]( \| None|\])?", annotation)
    return frozenset({"list"}) if is_list else kinds


@cache
def _annotations(name: str, module: str) -> Mapping[str, str]:
    """The annotations of the call of a class of diffusers, as its source has them."""
    found = library_source.find_class("diffusers", name)
    if found is None or found.module != module:
        return {}
    _, call = library_source.find_attribute(found, "__call__") or (None, None)
    if not isinstance(call, ast.FunctionDef):
        return {}
    return {
        each.arg: ast.unparse(each.annotation)
        for each in (*call.args.args, *call.args.kwonlyargs)
        if each.annotation
    }


def _check_kind(name: str, value: ExtraValue, kinds: frozenset[str]) -> None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    kind = "list" if isinstance(value, tuple) else type(value).__name__
    fits = kind in kinds or (kind == "int" and "float" in kinds)
    if not fits:
        wanted = " or ".join(noun for kind, noun in _NOUNS.items() if kind in kinds)
        raise InputError(f"{name} must be {wanted}.", field="extras")


def _check_values(request: ResolvedRequest) -> None:
    extras = dict(request.extras or ())
    skip = extras.get("clip_skip")
    if isinstance(skip, int | float) and not 0 <= skip <= _MAX_SKIPPED:
        raise InputError(f"clip_skip must be from 0 to {_MAX_SKIPPED}.", field="extras")
    given = [name for name in SCHEDULES if name in extras]
    if len(given) > 1:
        raise InputError("Give sigmas or timesteps, not both.", field="extras")
    for name in given:
        schedule = extras[name]
        if not isinstance(schedule, tuple) or not all(
            isinstance(each, int | float) and not isinstance(each, bool) and each >= 0
            for each in schedule
        ):
            raise InputError(f"{name} must be a list of numbers from 0.", field="extras")
        # Schedules of some schedulers end with a 0 that is no step.
        if request.steps is not None and len(schedule) - request.steps not in {0, 1}:
            raise InputError(
                f"{name} has {len(schedule)} numbers, and there are {request.steps} steps.",
                hint=f"--steps {len(schedule)} goes with it.",
                field="extras",
            )
