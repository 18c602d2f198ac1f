"""Schedulers by short names, as tables of strings: nothing of diffusers is imported here.

The names follow AUTOMATIC1111's and diffusers' documentation. `flow` marks what flow-matching
models take, `noise` what noise-predicting models (Stable Diffusion 1.5, XL) take.
"""

from dataclasses import dataclass, field

from t2i_cli.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec:
    """A diffusers scheduler class and the settings laid over the model's own."""

    cls: str
    label: str
    settings: dict[str, object] = field(default_factory=dict)


_KARRAS: dict[str, object] = {"use_karras_sigmas": True}
_SDE: dict[str, object] = {"algorithm_type": "sde-dpmsolver++"}
_FLOW: dict[str, object] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
_DPM2M = "DPMSolverMultistepScheduler"

NOISE: dict[str, SchedulerSpec] = {
    "euler": SchedulerSpec(cls="EulerDiscreteScheduler", label="Euler"),
    "euler-karras": SchedulerSpec(
        cls="EulerDiscreteScheduler", label="Euler Karras", settings=_KARRAS
    ),
    "euler-a": SchedulerSpec(cls="EulerAncestralDiscreteScheduler", label="Euler a"),
    "heun": SchedulerSpec(cls="HeunDiscreteScheduler", label="Heun"),
    "dpm++2m": SchedulerSpec(cls=_DPM2M, label="DPM++ 2M"),
    "dpm++2m-karras": SchedulerSpec(cls=_DPM2M, label="DPM++ 2M Karras", settings=_KARRAS),
    "dpm++2m-sde": SchedulerSpec(cls=_DPM2M, label="DPM++ 2M SDE", settings=_SDE),
    "dpm++2m-sde-karras": SchedulerSpec(
        cls=_DPM2M, label="DPM++ 2M SDE Karras", settings={**_SDE, **_KARRAS}
    ),
    "dpm++2s": SchedulerSpec(cls="DPMSolverSinglestepScheduler", label="DPM++ 2S"),
    "ddim": SchedulerSpec(cls="DDIMScheduler", label="DDIM"),
    "ddpm": SchedulerSpec(cls="DDPMScheduler", label="DDPM"),
    "pndm": SchedulerSpec(cls="PNDMScheduler", label="PLMS"),
    "lms": SchedulerSpec(cls="LMSDiscreteScheduler", label="LMS"),
    "lcm": SchedulerSpec(cls="LCMScheduler", label="LCM"),
    "unipc": SchedulerSpec(cls="UniPCMultistepScheduler", label="UniPC"),
    "deis": SchedulerSpec(cls="DEISMultistepScheduler", label="DEIS"),
}

FLOW: dict[str, SchedulerSpec] = {
    "euler": SchedulerSpec(cls="FlowMatchEulerDiscreteScheduler", label="Euler"),
    "heun": SchedulerSpec(cls="FlowMatchHeunDiscreteScheduler", label="Heun"),
    "dpm++2m": SchedulerSpec(cls=_DPM2M, label="DPM++ 2M", settings=_FLOW),
    "unipc": SchedulerSpec(cls="UniPCMultistepScheduler", label="UniPC", settings=_FLOW),
}


def valid_names(flow: bool | None) -> tuple[str, ...]:
    """The names that a model takes; all of them where its kind is not known."""
    if flow is None:
        return tuple({**NOISE, **FLOW})
    return tuple(FLOW if flow else NOISE)


def find(name: str, flow: bool | None) -> SchedulerSpec:
    """The scheduler behind a short name; raises InputError listing the names the model takes."""
    table = {**NOISE, **FLOW} if flow is None else FLOW if flow else NOISE
    if name not in table:
        reason = "does not fit this kind of model" if name in {**NOISE, **FLOW} else "is unknown"
        raise InputError(
            f"The scheduler {name!r} {reason}; use one of: {', '.join(valid_names(flow))}.",
            field="scheduler",
        )
    return table[name]
