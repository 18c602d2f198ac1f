"""Settles the LoRAs and embeddings of a request: tags in its prompt, digests, few-step settings.

A tag `<lora:name:0.8>` is read where a folder of LoRAs is known; the prompt keeps it in records.
The form is that of AUTOMATIC1111 (`modules/extra_networks.py`).
"""

import os
import re
from collections.abc import Callable, Container
from dataclasses import replace
from typing import Any

from t2i_cli.errors import InputError
from t2i_cli.files.user_paths import expand_home
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import adapter_catalog, adapter_sources, schedulers
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_adapters import MAX_ADAPTERS, Adapter, Adapters, checked_weight

_TAG = re.compile(r"<(?:lora|lyco):([^<>:]{1,200})((?::[^<>:]{0,40}){0,3})>", re.IGNORECASE)
_SPACE = re.compile(r"[ \t]{2,}")
Values = dict[str, Any]
"""Values of a request's fields by name."""


def settle_values(
    values: Values,
    spec: ModelSpec,
    user_set: set[str],
    on_note: Callable[[str], None],
    own: Container[str] = (),
) -> None:
    """Settle the adapters among a request's values; what few-step LoRAs need is set and told.

    `own` are the fields whose values are the model's own defaults, which may be any file. Raises
    T2IError.
    """
    prompt = str(values["prompt"])
    values["loras"] = _settled(values["loras"], spec, prompt, own="loras" in own)
    values["embeddings"] = _settled(values["embeddings"], spec, own="embeddings" in own)
    if values["loras"]:
        _set_few_step_values(values, spec, user_set, on_note)


def settle_prompt(request: ResolvedRequest, spec: ModelSpec) -> ResolvedRequest:
    """The request with the LoRAs of tags that its wildcards brought. Raises T2IError."""
    if not _reads_tags(spec) or not _TAG.search(request.prompt):
        return request
    return replace(request, loras=_settled(request.loras, spec, request.prompt))


def without_tags(prompt: str, spec: ModelSpec) -> str:
    """The prompt as it is encoded: without the tags that were read as LoRAs."""
    if not _reads_tags(spec) or "<" not in prompt:
        return prompt
    stripped = _TAG.sub("", prompt)
    return _SPACE.sub(" ", stripped).strip() if stripped != prompt else prompt


def prompt_loras(prompt: str) -> Adapters:
    """The LoRAs that a prompt's tags name. Raises InputError for a tag with a wrong weight."""
    found: dict[str, Adapter] = {}
    for match in _TAG.finditer(prompt):
        name, weights = match[1].strip(), match[2].split(":")[1:]
        numbers = {_tag_weight(text, match[0]) for text in weights if text.strip()}
        if len(numbers) > 1:
            raise InputError(
                f"{match[0]} has different weights for the text encoder and the denoiser; t2i "
                "takes one.",
                field="prompt",
            )
        weight = numbers.pop() if numbers else 1.0
        if name in found and found[name].weight != weight:
            raise InputError(f"The prompt names the LoRA {name} with two weights.", field="prompt")
        found[name] = Adapter(kind="lora", source=name, weight=weight)
    return tuple(found.values())


def _tag_weight(text: str, tag: str) -> float:
    value = re.sub(r"^(?:te|unet)=", "", text.strip())
    try:
        return checked_weight(float(value), "loras")
    except ValueError:
        raise InputError(f"{tag} has no number as its weight.", field="prompt") from None


def _reads_tags(spec: ModelSpec) -> bool:
    return spec.adapters != "remote" and spec.adapter_folder is not None


def _settled(
    given: Adapters | None, spec: ModelSpec, prompt: str = "", *, own: bool = False
) -> Adapters | None:
    """Adapters with their digests, and those of the prompt's tags that are not among them."""
    named = prompt_loras(prompt) if _reads_tags(spec) and "<" in prompt else ()
    if not given and not named:
        return None
    if spec.adapters == "remote":
        _check_names(given or ())
        return given

    served = spec.adapters == "names"

    def settle(adapters: Adapters, *, named_only: bool) -> Adapters:
        return adapter_sources.settle_adapters(
            adapters,
            spec.adapter_folder,
            offline=spec.adapters_offline,
            named_only=named_only,
            served=served,
        )

    found = list(settle(given or (), named_only=served and not own))
    for each in settle(named, named_only=True):
        if not any((one.digest, one.weight) == (each.digest, each.weight) for one in found):
            found.append(each)
    _check_once(found)
    return tuple(found)


def _check_once(adapters: list[Adapter]) -> None:
    """Raise InputError for a file that is there twice, by different names or weights."""
    field = "loras" if adapters[0].kind == "lora" else "embeddings"
    seen: dict[str | None, Adapter] = {}
    for each in adapters:
        if other := seen.get(each.digest):
            raise InputError(f"{other.source} and {each.source} are the same file.", field=field)
        seen[each.digest] = each
    if len(adapters) > MAX_ADAPTERS:
        raise InputError(f"At most {MAX_ADAPTERS} {field} are taken.", field=field)


def _check_names(adapters: Adapters) -> None:
    """Raise InputError for a file of this machine, which a server does not have."""
    for each in adapters:
        if os.path.exists(expand_home(each.source)):
            what = "LoRAs" if each.kind == "lora" else "embeddings"
            raise InputError(
                f"{each.source} is a file here; a server takes the names of its own {what}.",
                hint="Its operator lists them by `t2i serve --lora-dir`.",
                field="loras" if each.kind == "lora" else "embeddings",
            )


def _set_few_step_values(
    values: Values, spec: ModelSpec, user_set: set[str], on_note: Callable[[str], None]
) -> None:
    """Set the steps, scheduler and guidance of a LoRA for few steps, where the user set none."""
    for each in values["loras"]:
        if (entry := adapter_catalog.recognize_lora(each)) is None:
            continue
        fitting: Values = {"steps": entry.steps}
        names = schedulers.scheduler_names(spec.flow)
        if entry.scheduler in names:
            fitting["scheduler"] = entry.scheduler
        if entry.guidance_scale is not None and spec.guidance_argument is not None:
            fitting["guidance_scale"] = entry.guidance_scale
        chosen = {
            name: value
            for name, value in fitting.items()
            if name not in user_set and value != values[name]
        }
        if entry.weight != 1 and each.weight == 1:
            on_note(f"{each.name} is made for a weight of {entry.weight:g}, not of 1.")
        if chosen:
            values |= chosen
            words = ", ".join(f"{name.replace('_', ' ')} {v}" for name, v in chosen.items())
            on_note(f"{each.name} is a LoRA for few steps ({entry.name}): {words}.")
        return
