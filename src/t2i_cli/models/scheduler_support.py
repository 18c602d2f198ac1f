"""Whether a scheduler serves a pipeline, told from the source of both before anything is loaded."""

import ast
from collections.abc import Mapping
from functools import cache
from inspect import Parameter
from types import MappingProxyType

from t2i_cli.errors import InputError, T2IError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import (
    class_facts,
    diffusers_folder,
    library_source,
    noise_schedules,
    schedulers,
)
from t2i_cli.models.extras_support import SCHEDULES
from t2i_cli.models.schedulers import SchedulerSpec
from t2i_cli.models.source_evaluation import SourceFrame
from t2i_cli.models.source_values import (
    PRESENT,
    UNKNOWN,
    PipelineValue,
    SchedulerValue,
    SourceValue,
    UnfitScheduler,
)
from t2i_cli.request import ResolvedRequest

_GIVEN: Mapping[str, SourceValue] = {"num_inference_steps": PRESENT}
_LEFT_ALONE: Mapping[str, SourceValue] = {"timesteps": None, "sigmas": None}
"""Arguments of pipelines that t2i passes only if a user sets them."""


def check_scheduler_support(
    name: str, pipeline: str | None, flow: bool | None, own: Mapping[str, object], model: str
) -> None:
    """Raise InputError if the scheduler is not installed, or does not serve the model.

    `own` is the config of the model's own scheduler, as its file has it.
    """
    schedulers.check_scheduler(name, flow, own, model)
    if reason := _misfit(name, pipeline, flow, own):
        fitting = serving_scheduler_names(pipeline, flow, own)
        raise InputError(
            f"The scheduler {name!r} does not fit {model}: {reason}.",
            hint=f"There are {', '.join(fitting)}."
            if fitting
            else "Leave --scheduler away for the model's own.",
            field="scheduler",
        )


def check_schedule(request: ResolvedRequest, spec: ModelSpec, own: Mapping[str, object]) -> None:
    """Raise InputError if the scheduler does not take the steps that the request's extras set, or
    the schedule that it names.
    """
    given = {name: PRESENT for name, _ in request.extras or () if name in SCHEDULES}
    own_class = str(own.get("_class_name") or "")
    cls, config = own_class, _with_defaults(own_class, own)
    chosen = None
    if request.scheduler or request.schedule:
        chosen = noise_schedules.scheduled_spec(
            (request.scheduler, request.schedule), spec.flow, own, spec.name
        )
    if spec.pipeline is None or not own:
        return
    if request.schedule and chosen:  # without one, check_scheduler_support() says it
        if reason := _scheduled_misfit(chosen, spec.pipeline, own):
            raise InputError(
                f"{spec.name} takes no schedule {request.schedule!r} with its scheduler: {reason}.",
                hint="Leave --schedule away for the scheduler's own.",
                field="schedule",
            )
    if not given:
        return
    if chosen:
        cls, config = chosen.cls, _changed_config(chosen, own_class, own)
    if reason := _unfit_reason(spec.pipeline, cls, config, given):
        name = request.scheduler or cls
        raise InputError(
            f"The scheduler {name!r} does not take {next(iter(given))} in {spec.name}: {reason}.",
            field="extras",
        )


@cache
def schedulers_of(spec: ModelSpec) -> tuple[str, ...]:
    """The schedulers that serve a model, by the config of its own where that is on the disk."""
    folder, own = spec.folder, {}
    try:
        if folder is None and spec.repo:
            from t2i_cli import hub

            folder = hub.fetch_configs(spec.repo, revision=spec.revision, offline=True)
        own = diffusers_folder.component_config(folder, "scheduler") if folder else {}
    except T2IError:
        pass  # Not downloaded: the class of the pipeline tells the most.
    return serving_scheduler_names(spec.pipeline, spec.flow, own)


def serving_scheduler_names(
    pipeline: str | None, flow: bool | None, own: Mapping[str, object]
) -> tuple[str, ...]:
    """The schedulers that serve a model; none where its own cannot be replaced."""
    if flow is None:
        return ()
    return tuple(
        name
        for name in schedulers.usable_scheduler_names(flow)
        if not any(own.get(key) for key in schedulers.find_scheduler(name, flow).lacks)
        and _misfit(name, pipeline, flow, own) is None
    )


def _misfit(
    name: str, pipeline: str | None, flow: bool | None, own: Mapping[str, object]
) -> str | None:
    """Why a scheduler does not serve a pipeline, as a part of a sentence; `None` if it does."""
    spec = schedulers.find_scheduler(name, flow)
    if pipeline is None:
        return None
    if reason := KNOWN_MISFITS.get(pipeline, {}).get(name):
        return reason
    own_class = str(own.get("_class_name") or "")
    if _unfit_reason(pipeline, own_class, _with_defaults(own_class, own)):
        return None  # The model's own surely serves: this source is not understood.
    return _unfit_reason(pipeline, spec.cls, _changed_config(spec, own_class, own))


def _scheduled_misfit(
    chosen: SchedulerSpec, pipeline: str, own: Mapping[str, object]
) -> str | None:
    """Why a pipeline does not take its scheduler with a schedule; `None` if it does."""
    own_class = str(own.get("_class_name") or "")
    if _unfit_reason(pipeline, own_class, _with_defaults(own_class, own)):
        return None  # The model's own surely serves: this source is not understood.
    return _unfit_reason(pipeline, chosen.cls, _changed_config(chosen, own_class, own))


def _changed_config(
    spec: SchedulerSpec, own_class: str, own: Mapping[str, object]
) -> dict[str, SourceValue]:
    """The config that the class is created with in the place of the model's own scheduler."""
    full = _with_defaults(own_class, own)
    unset = [key for key in full if key not in own]
    chosen = schedulers.scheduler_config(spec, full | {"_use_default_values": unset}, latent=False)
    known, before = _defaults_of(spec.cls), _defaults_of(own_class)
    # As ConfigMixin.extract_init_dict: what only the former class knows is dropped.
    kept = {key: v for key, v in chosen.items() if key in known or key not in before}
    return known | kept


def _with_defaults(cls: str, own: Mapping[str, object]) -> dict[str, SourceValue]:
    return _defaults_of(cls) | dict(own)


@cache
def _defaults_of(cls: str) -> dict[str, SourceValue]:
    """The parameters of a scheduler's constructor with their defaults; none of no class."""
    if not cls:
        return {}
    literals = (type(None), bool, int, float, str)
    return {
        name: parameter.default if isinstance(parameter.default, literals) else UNKNOWN
        for name, parameter in class_facts.constructor_parameters(cls).items()
        if name != "self" and parameter.kind is not Parameter.VAR_KEYWORD
    }


def _unfit_reason(
    pipeline: str,
    cls: str,
    config: Mapping[str, SourceValue],
    extras: Mapping[str, SourceValue] = MappingProxyType({}),
) -> str | None:
    found = library_source.find_class("diffusers", pipeline)
    _, call = (library_source.find_attribute(found, "__call__") if found else None) or (None, None)
    scheduler = _scheduler_value(cls, config)
    if found is None or scheduler is None or not isinstance(call, ast.FunctionDef):
        return None
    names = [each.arg for each in (*call.args.args, *call.args.kwonlyargs)]
    given = {**dict.fromkeys(names, UNKNOWN), **_LEFT_ALONE, **_GIVEN, **extras}
    frame = SourceFrame(found.module, given | {"self": PipelineValue(found, scheduler)})
    _, created = library_source.find_attribute(scheduler.cls, "__init__") or (None, None)
    try:
        if isinstance(created, ast.FunctionDef):
            own = {**scheduler.config, "self": scheduler}
            SourceFrame(scheduler.cls.module, own, inside=True).run(created)
        frame.run(call)
    except UnfitScheduler as failure:
        return str(failure).replace("The current scheduler class …", cls)
    return None


def _scheduler_value(cls: str, config: Mapping[str, SourceValue]) -> SchedulerValue | None:
    found = library_source.find_class("diffusers", cls)
    ancestors = library_source.ancestors(found) if found else None
    if found is None or ancestors is None:
        return None
    members = {name for each in ancestors for name in _members(each.node)}
    # What the class sets anew in its config is not what it was created with.
    anew = {name for each in ancestors for name in _registered(each.node)}
    return SchedulerValue(
        cls=found,
        ancestors=ancestors,
        members=frozenset(members),
        config=dict(config) | dict.fromkeys(anew & config.keys(), UNKNOWN),
    )


@cache
def _registered(node: ast.ClassDef | None) -> set[str]:
    """The names that a class gives to `register_to_config`."""
    return {
        keyword.arg
        for each in (ast.walk(node) if node else ())
        if isinstance(each, ast.Call) and ast.unparse(each.func).endswith("register_to_config")
        for keyword in each.keywords
        if keyword.arg
    }


@cache
def _members(node: ast.ClassDef | None) -> set[str]:
    """The attributes that a class has, or sets on itself."""
    if node is None:
        return set()
    found = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
            found.add(each.attr)
        elif isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            found.add(each.id)
    return found


_NO_SIGMAS = "it takes no list of sigmas"
_FRACTIONAL = "its timesteps are no whole numbers"
_REPEATED = "its first timesteps are equal at the model's noise"
KNOWN_MISFITS: Mapping[str, Mapping[str, str]] = {
    "ErnieImagePipeline": {"unipc": "it takes no tensor of sigmas"},
    "Ideogram4Pipeline": {"unipc": _NO_SIGMAS},
    "ZImageOmniPipeline": {"unipc": _NO_SIGMAS},
    "ZImagePipeline": {"unipc": _NO_SIGMAS},
    "Kandinsky3Pipeline": dict.fromkeys(("dpm++2m-karras", "dpm++2m-sde-karras"), _REPEATED),
    "SemanticStableDiffusionPipeline": {"heun": "it makes more passes than there are steps"},
    "StableDiffusionSAGPipeline": dict.fromkeys(
        ("euler", "euler-karras", "euler-a", "heun", "lms"), _FRACTIONAL
    ),
}
"""Reasons by pipeline and scheduler, where the source alone does not settle it."""
