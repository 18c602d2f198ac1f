"""Noise schedules as settings of diffusers' schedulers, and which scheduler takes which.

The settings are those that diffusers' documentation lists for the schedules of AUTOMATIC1111 and
k-diffusion. Whether a class has one is told from its source; diffusers is not imported here.
"""

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from t2i_cli.errors import InputError
from t2i_cli.models import class_facts, library_source, schedulers
from t2i_cli.models.schedulers import SchedulerSpec
from t2i_cli.schedule_names import AUTO_SCHEDULE, SCHEDULE_LABELS, find_schedule_name

_SPACING = "timestep_spacing"
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Settings of which a scheduler has one at most."""


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The setting of a scheduler that makes the schedule, and a package that it needs."""

    setting: str
    value: object = True
    needs: str | None = None


NOISE_SCHEDULES: Mapping[str, NoiseSchedule] = {
    "normal": NoiseSchedule(setting=_SPACING, value="linspace"),
    "karras": NoiseSchedule(setting="use_karras_sigmas"),
    "exponential": NoiseSchedule(setting="use_exponential_sigmas"),
    "beta": NoiseSchedule(setting="use_beta_sigmas", needs="scipy"),
    "sgm": NoiseSchedule(setting=_SPACING, value="trailing"),
}


def scheduled_spec(
    chosen: tuple[str | None, str | None],
    flow: bool | None,
    own: Mapping[str, object],
    model: str,
) -> SchedulerSpec:
    """The scheduler of `chosen`, its name and a schedule, with the settings of both.

    Without a name it is the model's own, whose config is `own`. Raises InputError if it does not
    take the schedule.
    """
    name, schedule = chosen
    if name is not None and schedule is None:
        return schedulers.find_scheduler(name, flow)
    assert schedule is not None  # noqa: S101 - the caller asks for one of both
    wanted = NOISE_SCHEDULES[schedule]
    if wanted.needs and not _is_installed(wanted):
        raise InputError(
            f"The schedule {schedule!r} needs {wanted.needs}, which is not installed.",
            hint=f"`pip install {wanted.needs}` brings it; other schedules do without.",
            field="schedule",
        )
    if name is None and not own:
        raise InputError(f"The scheduler of {model} cannot be changed.", field="schedule")
    if name is None:
        spec = SchedulerSpec(cls=str(own.get("_class_name")), label="")
        told = f"{model}'s own scheduler, {spec.cls},"
    else:
        spec, told = schedulers.find_scheduler(name, flow), f"The scheduler {name!r}"
    if reason := _unfit_reason(spec, schedule) or _own_reason(spec, schedule, own, name is None):
        takers = [each for each in _takers(schedule, flow) if each != name]
        raise InputError(
            f"{told} takes no schedule {schedule!r}: {reason}.",
            hint=f"--scheduler {', '.join(takers)} can."
            if takers
            else "Leave --schedule away for the scheduler's own.",
            field="schedule",
        )
    plain = dict.fromkeys(_SIGMAS, False)
    return replace(spec, settings=spec.settings | plain | {wanted.setting: wanted.value})


def usable_schedules(flow: bool | None) -> tuple[str, ...]:
    """The schedules that at least one scheduler of a kind of model takes here."""
    if flow is None:
        return ()
    return tuple(
        name
        for name, schedule in NOISE_SCHEDULES.items()
        if _is_installed(schedule) and next(_takers(name, flow), None)
    )


def schedules_of(name: str, flow: bool) -> tuple[str, ...]:
    """The schedules that a scheduler takes beside its own."""
    spec = schedulers.find_scheduler(name, flow)
    return tuple(each for each in NOISE_SCHEDULES if _unfit_reason(spec, each) is None)


def read_sampler_labels(sampler: str, schedule_type: str) -> tuple[str | None, str | None]:
    """Scheduler and schedule of AUTOMATIC1111's sampler and schedule type, `None` for unknown ones.

    Versions before 1.9 wrote the schedule behind the sampler ("DPM++ 2M SDE Exponential").
    """
    if find_schedule_name(schedule_type) == AUTO_SCHEDULE:
        schedule_type = _AUTOMATIC.get(sampler.strip().lower(), "")
    for label in SCHEDULE_LABELS.values():
        if not schedule_type and sampler.endswith(f" {label}"):
            sampler, schedule_type = sampler.removesuffix(f" {label}"), label
    if known := schedulers.name_of_label(f"{sampler.strip()} {schedule_type}"):
        return known, None
    if schedule_type.strip().lower() == _NATIVE:
        schedule_type = ""
    return _with_schedule(schedulers.name_of_label(sampler), schedule_type)


def read_sampler_names(sampler: str, spacing: str) -> tuple[str | None, str | None]:
    """Scheduler and schedule of a sampler of ComfyUI, InvokeAI or NovelAI, and its spacing."""
    if known := schedulers.name_of_sampler(sampler, spacing):
        return known, None
    found = _with_schedule(schedulers.name_of_sampler(sampler), spacing)
    return found if found[1] else (None, None)


_NATIVE = "simple"
"""What flow-matching models do by themselves; it says nothing of the model that there was."""
_AUTOMATIC: Mapping[str, str] = {"dpm++ 2m": "Karras", "dpm++ 2m sde": "Exponential"}
"""What "Automatic" stands for with samplers of AUTOMATIC1111 from 1.9 on."""


def _with_schedule(scheduler: str | None, schedule: str) -> tuple[str | None, str | None]:
    found = find_schedule_name(schedule)
    return scheduler, found if scheduler and found in NOISE_SCHEDULES else None


def _takers(schedule: str, flow: bool | None) -> Iterator[str]:
    """The schedulers of a kind of model, without those of a fixed schedule, that take one."""
    for name in schedulers.usable_scheduler_names(flow):
        spec = schedulers.find_scheduler(name, flow)
        if not _fixed_schedule(spec) and _unfit_reason(spec, schedule) is None:
            yield name


def _unfit_reason(spec: SchedulerSpec, schedule: str) -> str | None:
    """Why a scheduler does not take a schedule, as a part of a sentence; `None` if it does."""
    wanted = NOISE_SCHEDULES[schedule]
    fixed = _fixed_schedule(spec)
    if fixed and fixed != schedule:
        return f"its name says {fixed}"
    if not _acts_by(spec.cls, wanted.setting):
        return f"{spec.cls} has none"
    # diffusers' solvers of noise take the noise levels of flow matching, or these, not both.
    return _OF_FLOW if spec.settings.get("use_flow_sigmas") else None


def _own_reason(
    spec: SchedulerSpec, schedule: str, own: Mapping[str, object], is_own: bool
) -> str | None:
    """As _unfit_reason(), by the config of the model's own scheduler."""
    if is_own and own.get("use_flow_sigmas"):
        return _OF_FLOW
    by_sigmas = NOISE_SCHEDULES[schedule].setting in _SIGMAS
    if by_sigmas and spec.cls in _WHOLE_TIMESTEPS and own.get("beta_schedule") == _COSINE:
        return "its first timesteps are equal at the model's noise"
    return None


_OF_FLOW = "its noise levels are those of flow matching"
_COSINE = "squaredcos_cap_v2"
_WHOLE_TIMESTEPS = {
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"),
}
"""Classes that round timesteps, and lose count of them where two are equal."""


def _fixed_schedule(spec: SchedulerSpec) -> str | None:
    """The schedule that a scheduler's short name says."""
    for name, schedule in NOISE_SCHEDULES.items():
        if spec.settings.get(schedule.setting) == schedule.value:
            return name
    return None


def _is_installed(schedule: NoiseSchedule) -> bool:
    return schedule.needs is None or importlib.util.find_spec(schedule.needs) is not None


@cache
def _acts_by(cls: str, setting: str) -> bool:
    """Whether a scheduler's class takes a setting, and reads it when it sets its timesteps."""
    if setting not in class_facts.constructor_parameters(cls):
        return False
    found = library_source.find_class("diffusers", cls)
    _, method = (library_source.find_attribute(found, "set_timesteps") if found else None) or (
        None,
        None,
    )
    if method is None:
        return True  # No source to read.
    return any(isinstance(e, ast.Attribute) and e.attr == setting for e in ast.walk(method))
