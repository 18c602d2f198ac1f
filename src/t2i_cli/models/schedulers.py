"""Schedulers by short name, as tables of strings: diffusers is not imported here.

The names follow the documentation of AUTOMATIC1111 and diffusers. FLOW_SCHEDULERS are for
flow-matching models, NOISE_SCHEDULERS for noise-predicting ones (Stable Diffusion 1.5, XL).
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field

from t2i_cli.errors import InputError
from t2i_cli.known_names import name_choices


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec:
    """A diffusers scheduler class and the settings that override the model's own.

    `lacks` are settings of models that the class does not support; `needs` is a package that the
    class requires in addition to diffusers.
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
"""Settings that a model was trained with: kept from its own scheduler, also if they are defaults of
that scheduler's class. Other classes have other defaults (Heun and LCM for the betas)."""

LATENT_DEFAULTS: dict[str, object] = {"clip_sample": False}
"""Defaults for latent models whose config does not set them: latents exceed the range of pixels, to
which DDIMScheduler and DDPMScheduler clip by default."""

# Every short name fixes its sigma spacing and its solver, whatever the model's own scheduler uses.
_PLAIN: dict[str, object] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
}
_KARRAS: dict[str, object] = {**_PLAIN, "use_karras_sigmas": True}
_TRAILING: dict[str, object] = {**_PLAIN, "timestep_spacing": "trailing"}
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
    # Steps that end at the last timestep, as few-step LoRAs are trained for (SDXL-Lightning).
    "euler-trailing": SchedulerSpec(
        cls="EulerDiscreteScheduler", label="Euler SGM Uniform", settings=_TRAILING
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
    "ddim-trailing": SchedulerSpec(
        cls="DDIMScheduler", label="DDIM SGM Uniform", settings={"timestep_spacing": "trailing"}
    ),
    "ddpm": SchedulerSpec(cls="DDPMScheduler", label="DDPM"),
    # PLMS is PNDM without the initial Runge-Kutta steps.
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


_OTHER_LABELS = {
    "EDMDPMSolverMultistepScheduler": "DPM++ 2M",
    "EDMEulerScheduler": "Euler",
    "DPMSolverSDEScheduler": "DPM++ SDE",
    "FlowMatchLCMScheduler": "LCM",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "TCDScheduler": "TCD",
}
"""AUTOMATIC1111's names of further classes, which models have as their own scheduler."""


def label_of_class(cls: str | None) -> str | None:
    """AUTOMATIC1111's name of a scheduler's class, `None` where it has none."""
    tables = (*NOISE_SCHEDULERS.values(), *FLOW_SCHEDULERS.values())
    known = next((spec.label for spec in tables if spec.cls == cls), None)
    return known or _OTHER_LABELS.get(cls or "")


def name_of_label(label: str) -> str | None:
    """The short name of an AUTOMATIC1111 sampler, or `None`."""
    wanted = label.strip().lower()
    return next((n for n, spec in NOISE_SCHEDULERS.items() if spec.label.lower() == wanted), None)


_SAMPLER_NAMES = {
    "euler": "euler",
    "euler_a": "euler-a",
    "euler_ancestral": "euler-a",
    "heun": "heun",
    "dpmpp_2m": "dpm++2m",
    "dpmpp_2m_sde": "dpm++2m-sde",
    "ddim": "ddim",
    "ddpm": "ddpm",
    "plms": "pndm",
    "pndm": "pndm",
    "lms": "lms",
    "lcm": "lcm",
    "uni_pc": "unipc",
    "unipc": "unipc",
    "deis": "deis",
}
"""Short names by the samplers' names in ComfyUI, InvokeAI and NovelAI."""
_PLAIN_SPACINGS = {"", "automatic", "native", "normal", "simple"}


def name_of_sampler(sampler: str, spacing: str = "") -> str | None:
    """The short name of a sampler of ComfyUI, InvokeAI or NovelAI, or `None`.

    `spacing` is ComfyUI's scheduler or NovelAI's noise schedule. InvokeAI appends `_k` for Karras.
    """
    name = sampler.lower().removeprefix("k_").removesuffix("_gpu")
    karras = spacing.lower() == "karras" or name.endswith("_k")
    if not karras and spacing.lower() not in _PLAIN_SPACINGS:
        return None
    known = _SAMPLER_NAMES.get(name.removesuffix("_k"))
    short = f"{known}-karras" if karras else known
    return short if short in NOISE_SCHEDULERS else None


def scheduler_short_name(name: str) -> str:
    """The short name of a scheduler that is called as in AUTOMATIC1111 ("DPM++ 2M Karras").

    Other names are returned unchanged.
    """
    return name_of_label(name) or name


def scheduler_names(flow: bool | None) -> tuple[str, ...]:
    """The scheduler names that a kind of model accepts; all names if `flow` is `None`."""
    if flow is None:
        return tuple({**NOISE_SCHEDULERS, **FLOW_SCHEDULERS})
    return tuple(FLOW_SCHEDULERS if flow else NOISE_SCHEDULERS)


def find_scheduler(name: str, flow: bool | None) -> SchedulerSpec:
    """The scheduler of a short name; raises InputError that lists the names the model accepts."""
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
            f"The scheduler {name!r} {reason}; {name_choices(name, scheduler_names(flow))}",
            hint=f"There are {', '.join(scheduler_names(flow))}.",
            field="scheduler",
        )
    return table[name]


def check_scheduler(name: str, flow: bool | None, own: Mapping[str, object], model: str) -> None:
    """Raise InputError if the scheduler is not installed, or does not support the model.

    `own` is the config of the model's own scheduler.
    """
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
    """Whether the package that the scheduler needs is installed."""
    return spec.needs is None or importlib.util.find_spec(spec.needs) is not None


def usable_scheduler_names(flow: bool | None) -> tuple[str, ...]:
    """The scheduler names that a kind of model accepts and whose packages are installed."""
    return tuple(name for name in scheduler_names(flow) if is_installed(find_scheduler(name, flow)))


def scheduler_config(
    spec: SchedulerSpec, own: Mapping[str, object], *, latent: bool
) -> dict[str, object]:
    """The config to create a scheduler from, given the full config of the model's own scheduler.

    Values that `own` has only by its class's defaults (`_use_default_values`) are left out, as in
    diffusers, so that the new class's defaults apply. `latent` is whether the model has a VAE.
    """
    defaults = own.get("_use_default_values")
    unset = {str(key) for key in defaults} if isinstance(defaults, list) else set()
    chosen = {
        key: value for key, value in own.items() if key not in unset | {"_use_default_values"}
    }
    chosen |= {key: own[key] for key in TRAINED_SETTINGS if key in own}
    # FlowMatchEuler calls `shift` what the solvers of noise schedulers call `flow_shift`.
    for name, other in (("shift", "flow_shift"), ("flow_shift", "shift")):
        if name not in chosen and other in own:
            chosen[name] = own[other]
    return (LATENT_DEFAULTS if latent else {}) | chosen | spec.settings
