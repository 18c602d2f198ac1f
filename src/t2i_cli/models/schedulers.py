"""Schedulers by short names, as tables of strings: nothing of diffusers is imported here.

The names follow AUTOMATIC1111's and diffusers' documentation. `flow` marks what flow-matching
models take, `noise` what noise-predicting models (Stable Diffusion 1.5, XL) take.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field

from t2i_cli.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec:
    """A diffusers scheduler class and the settings laid over the model's own.

    `lacks` are settings of models that the class does not know; `needs` is a package that it needs
    and diffusers does not.
    """

    cls: str
    label: str
    settings: dict[str, object] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()
    needs: str | None = None


TRAINED_SETTINGS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""What a model was trained with: kept from its own scheduler, also where the model's config leaves
it to that scheduler's class. Other classes have other defaults (Heun and LCM of the betas)."""

LATENT_DEFAULTS: dict[str, object] = {"clip_sample": False}
"""What holds for latents where the model's config says nothing: they exceed the range of pixels,
to which DDIMScheduler and DDPMScheduler clip by default."""

# Every name says how its sigmas are spaced and its steps are solved, whatever the model's own
# scheduler does.
_PLAIN: dict[str, object] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
}
_KARRAS: dict[str, object] = {**_PLAIN, "use_karras_sigmas": True}
_SOLVER: dict[str, object] = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_SDE: dict[str, object] = {**_SOLVER, "algorithm_type": "sde-dpmsolver++"}
_FLOW: dict[str, object] = {
    **_PLAIN,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
}
_DPM2M = "DPMSolverMultistepScheduler"
_ZERO_SNR = frozenset({"rescale_betas_zero_snr"})

NOISE_SCHEDULERS: dict[str, SchedulerSpec] = {
    "euler": SchedulerSpec(cls="EulerDiscreteScheduler", label="Euler", settings=_PLAIN),
    "euler-karras": SchedulerSpec(
        cls="EulerDiscreteScheduler", label="Euler Karras", settings=_KARRAS
    ),
    "euler-a": SchedulerSpec(cls="EulerAncestralDiscreteScheduler", label="Euler a"),
    "heun": SchedulerSpec(
        cls="HeunDiscreteScheduler", label="Heun", settings=_PLAIN, lacks=_ZERO_SNR
    ),
    "dpm++2m": SchedulerSpec(cls=_DPM2M, label="DPM++ 2M", settings={**_SOLVER, **_PLAIN}),
    "dpm++2m-karras": SchedulerSpec(
        cls=_DPM2M, label="DPM++ 2M Karras", settings={**_SOLVER, **_KARRAS}
    ),
    "dpm++2m-sde": SchedulerSpec(cls=_DPM2M, label="DPM++ 2M SDE", settings={**_SDE, **_PLAIN}),
    "dpm++2m-sde-karras": SchedulerSpec(
        cls=_DPM2M, label="DPM++ 2M SDE Karras", settings={**_SDE, **_KARRAS}
    ),
    "dpm++2s": SchedulerSpec(
        cls="DPMSolverSinglestepScheduler",
        label="DPM++ 2S",
        settings={**_SOLVER, **_PLAIN},
        lacks=_ZERO_SNR,
    ),
    "ddim": SchedulerSpec(cls="DDIMScheduler", label="DDIM"),
    "ddpm": SchedulerSpec(cls="DDPMScheduler", label="DDPM"),
    # PLMS is what pseudo numerical methods are without Runge-Kutta's steps at the start.
    "pndm": SchedulerSpec(
        cls="PNDMScheduler", label="PLMS", settings={"skip_prk_steps": True}, lacks=_ZERO_SNR
    ),
    "lms": SchedulerSpec(
        cls="LMSDiscreteScheduler",
        label="LMS",
        settings=_PLAIN,
        lacks=_ZERO_SNR,
        needs="scipy",
    ),
    "lcm": SchedulerSpec(cls="LCMScheduler", label="LCM"),
    "unipc": SchedulerSpec(cls="UniPCMultistepScheduler", label="UniPC", settings=_PLAIN),
    "deis": SchedulerSpec(
        cls="DEISMultistepScheduler",
        label="DEIS",
        settings={**_PLAIN, "algorithm_type": "deis"},
        lacks=_ZERO_SNR,
    ),
}

FLOW_SCHEDULERS: dict[str, SchedulerSpec] = {
    "euler": SchedulerSpec(cls="FlowMatchEulerDiscreteScheduler", label="Euler", settings=_PLAIN),
    "heun": SchedulerSpec(
        cls="FlowMatchHeunDiscreteScheduler",
        label="Heun",
        lacks=frozenset({"use_dynamic_shifting"}),
    ),
    "dpm++2m": SchedulerSpec(cls=_DPM2M, label="DPM++ 2M", settings={**_SOLVER, **_FLOW}),
    "unipc": SchedulerSpec(cls="UniPCMultistepScheduler", label="UniPC", settings=_FLOW),
}


def scheduler_names(flow: bool | None) -> tuple[str, ...]:
    """The names that a model takes; all of them where its kind is not known."""
    if flow is None:
        return tuple({**NOISE_SCHEDULERS, **FLOW_SCHEDULERS})
    return tuple(FLOW_SCHEDULERS if flow else NOISE_SCHEDULERS)


def find_scheduler(name: str, flow: bool | None) -> SchedulerSpec:
    """The scheduler behind a short name; raises InputError listing the names the model takes."""
    table = (
        {**NOISE_SCHEDULERS, **FLOW_SCHEDULERS}
        if flow is None
        else FLOW_SCHEDULERS
        if flow
        else NOISE_SCHEDULERS
    )
    if name not in table:
        reason = (
            "does not fit this kind of model"
            if name in {**NOISE_SCHEDULERS, **FLOW_SCHEDULERS}
            else "is unknown"
        )
        raise InputError(
            f"The scheduler {name!r} {reason}; use one of: {', '.join(scheduler_names(flow))}.",
            field="scheduler",
        )
    return table[name]


def check_scheduler(name: str, flow: bool | None, own: Mapping[str, object], model: str) -> None:
    """Raise InputError if the scheduler cannot be used here, or with a model of such a config."""
    spec = find_scheduler(name, flow)
    if not is_installed(spec):
        raise InputError(
            f"The scheduler {name!r} needs {spec.needs}, which is not installed.",
            hint=f"`pip install {spec.needs}` brings it; other schedulers do without.",
            field="scheduler",
        )
    if missing := sorted(key for key in spec.lacks if own.get(key)):
        raise InputError(
            f"The scheduler {name!r} does not know {missing[0]}, which {model} is made for.",
            hint="Leave --scheduler away for the model's own.",
            field="scheduler",
        )


def is_installed(spec: SchedulerSpec) -> bool:
    """Whether all that the scheduler needs is installed."""
    return spec.needs is None or importlib.util.find_spec(spec.needs) is not None


def usable_scheduler_names(flow: bool | None) -> tuple[str, ...]:
    """The names that a model takes, as far as what they need is installed here."""
    return tuple(name for name in scheduler_names(flow) if is_installed(find_scheduler(name, flow)))


def scheduler_config(
    spec: SchedulerSpec, own: Mapping[str, object], *, latent: bool
) -> dict[str, object]:
    """The config to make a scheduler from, given that of the model's own scheduler, defaults too.

    diffusers leaves away what only that scheduler's class has set (`_use_default_values`), so that
    the new class's defaults hold. `latent` is whether a VAE makes the picture.
    """
    defaults = own.get("_use_default_values")
    unset = {str(key) for key in defaults} if isinstance(defaults, list) else set()
    chosen = {
        key: value for key, value in own.items() if key not in unset | {"_use_default_values"}
    }
    chosen |= {key: own[key] for key in TRAINED_SETTINGS if key in own}
    # FlowMatchEuler's name for what the solvers of noise schedulers call flow_shift.
    for name, other in (("shift", "flow_shift"), ("flow_shift", "shift")):
        if name not in chosen and other in own:
            chosen[name] = own[other]
    return (LATENT_DEFAULTS if latent else {}) | chosen | spec.settings
