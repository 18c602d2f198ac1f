"""LoRAs that change how many steps a model takes: their names, and what they are used with.

The settings are those of the repositories' public cards on the Hub: LCM (Luo et al., 2023),
SDXL-Lightning (Lin et al., 2024) and Hyper-SD (Ren et al., 2024).
"""

import re
from dataclasses import dataclass

from t2i_cli.request_adapters import Adapter


@dataclass(frozen=True, kw_only=True)
class FewStepLora:
    """A LoRA that is distilled for few steps, and the settings that it is made for.

    `pattern` finds it by a file's or repository's name. `scheduler` `None` is the model's own;
    `guidance_scale` `None` leaves the model's guidance. `weight` is the weight that its card says.
    """

    name: str
    repo: str
    file: str
    pattern: re.Pattern[str]
    scheduler: str | None
    steps: int
    guidance_scale: float | None
    weight: float = 1.0


def _lcm(name: str, repo: str, pattern: str) -> FewStepLora:
    return FewStepLora(
        name=name,
        repo=f"latent-consistency/{repo}",
        file="pytorch_lora_weights.safetensors",
        pattern=re.compile(pattern, re.IGNORECASE),
        scheduler="lcm",
        steps=4,
        guidance_scale=1.0,
    )


def _lightning(steps: int) -> FewStepLora:
    return FewStepLora(
        name=f"lightning-sdxl-{steps}",
        repo="ByteDance/SDXL-Lightning",
        file=f"sdxl_lightning_{steps}step_lora.safetensors",
        pattern=re.compile(rf"lightning[_-]{steps}[_-]?steps?[_-]lora", re.IGNORECASE),
        scheduler="euler-trailing",
        steps=steps,
        guidance_scale=1.0,
    )


def _hyper(family: str, label: str, steps: int) -> FewStepLora:
    return FewStepLora(
        name=f"hyper-{family}-{steps}",
        repo="ByteDance/Hyper-SD",
        file=f"Hyper-{label}-{steps}step{'s' if steps > 1 else ''}-lora.safetensors",
        pattern=re.compile(rf"hyper[_-]?{label}[_-]{steps}[_-]?steps?[_-]lora", re.IGNORECASE),
        scheduler="ddim-trailing",
        steps=steps,
        guidance_scale=1.0,
    )


def _hyper_flux(steps: int) -> FewStepLora:
    return FewStepLora(
        name=f"hyper-flux-{steps}",
        repo="ByteDance/Hyper-SD",
        file=f"Hyper-FLUX.1-dev-{steps}steps-lora.safetensors",
        pattern=re.compile(rf"hyper[_-]?flux\.?1?[_-]dev[_-]{steps}[_-]?steps?[_-]lora", re.I),
        scheduler=None,
        steps=steps,
        guidance_scale=None,
        weight=0.125,
    )


_ENTRIES = (
    _lcm("lcm-sd15", "lcm-lora-sdv1-5", r"lcm[_-]?lora[_-]?sdv?1[._-]?5"),
    _lcm("lcm-sdxl", "lcm-lora-sdxl", r"lcm[_-]?lora[_-]?sdxl"),
    *(_lightning(steps) for steps in (2, 4, 8)),
    *(_hyper("sdxl", "SDXL", steps) for steps in (2, 4, 8)),
    *(_hyper("sd15", "SD15", steps) for steps in (2, 4, 8)),
    *(_hyper_flux(steps) for steps in (8, 16)),
)
ENTRIES: dict[str, FewStepLora] = {entry.name: entry for entry in _ENTRIES}
"""The LoRAs that have a short name."""


def find_entry(name: str) -> FewStepLora | None:
    """The entry with this short name, or `None`."""
    return ENTRIES.get(name)


def recognize_lora(adapter: Adapter) -> FewStepLora | None:
    """The few-step LoRA that an adapter is by its name, or `None`: one of 0 weight has no effect.

    Known are short names, the repositories with those files, and names of files like theirs.
    """
    if adapter.kind != "lora" or adapter.weight <= 0:
        return None
    if entry := ENTRIES.get(adapter.source):
        return entry
    return next((each for each in _ENTRIES if each.pattern.search(adapter.source)), None)
