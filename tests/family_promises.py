"""Measure what t2i promises of a text-to-image class: by its tiny pipeline, against diffusers'.

A promise is kept, or refused by name before weights are loaded; anything else is broken.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.models import schedulers
from tests.families import PACKAGES, REFUSED
from tests.family_runs import (
    PROMPTS,
    Broken,
    Family,
    Pixels,
    Refused,
    difference,
    lacks_package,
)

State = Literal["kept", "refused", "broken", "unknown"]

NEGATIVE = "rain, grey fog, snow and ice upon the roads"
MOST_MEMORY = 8192
"""MiB beside the weights that the plan for a tiny pipeline may want, at the model's own size."""
SAME, OTHER = 1, 1
"""Levels of 255: at most so far apart are equal pictures, and further apart are others."""


@dataclass(frozen=True)
class Verdict:
    """What became of one promise, with what was seen."""

    state: State
    detail: str = ""

    @property
    def holds(self) -> bool:
        """Whether the promise is kept, or refused before weights are loaded."""
        return self.state in {"kept", "refused"}


def _equal(one: Pixels, other: Pixels, what: str) -> None:
    if (apart := difference(one, other)) > SAME:
        raise Broken(f"{what}: {apart} of 255 apart")


def _differ(one: Pixels, other: Pixels, what: str) -> None:
    if difference(one, other) <= OTHER:
        raise Broken(what)


def _makes_a_picture(family: Family) -> str:
    """What plain diffusers runs, t2i runs; a class of REFUSED may be refused by name."""
    family.plain()
    try:
        family.picture()
    except Refused as refusal:
        if family.name in REFUSED:
            raise
        raise Broken(f"refused, though diffusers runs it: {refusal}") from refusal
    return ""


def _is_plain(family: Family) -> str:
    # t2i gives an empty negative prompt where plain diffusers would drop guidance without one.
    spec = family.spec()
    true_guidance = spec.guidance_argument == "true_cfg_scale" and spec.negative_prompt
    more = {"negative_prompt": " "} if true_guidance else {}
    _equal(family.plain(**more), family.picture(), "not plain diffusers' picture")
    return ""


def _keeps_the_seed(family: Family) -> str:
    first = family.picture()
    (again,) = family.run([family.ask()])
    if difference(first, again):
        raise Broken(f"the same seed twice: {difference(first, again)} of 255 apart")
    _differ(first, family.picture(seed=2), "another seed makes the same picture")
    _differ(first, family.picture(prompt=PROMPTS[1]), "another prompt makes the same picture")
    return ""


def _keeps_the_size(family: Family) -> str:
    side, refused = family.side, []
    for width, height in ((side, side), (2 * side, side), (side, 2 * side), (side + 16, side)):
        try:
            shape = family.picture(width=width, height=height).shape[:2]
        except Refused as refusal:
            refused.append(f"{width}x{height}: {refusal}")
            continue
        if shape != (height, width):
            raise Broken(f"{shape[1]}x{shape[0]} for {width}x{height}")
    return "; ".join(refused)


def _keeps_the_steps(family: Family) -> str:
    """Other numbers of steps work, and show."""
    _differ(family.picture(), family.picture(steps=5), "the number of steps does nothing")
    return ""


def _keeps_a_batch(family: Family) -> str:
    """Three rows as t2i likes, and three in one pass, are what they are alone."""
    alone = [family.picture(prompt=prompt, seed=seed) for seed, prompt in enumerate(PROMPTS, 1)]
    said = ""
    for size in (None, 3):
        backend = LocalBackend(LocalOptions(batch_size=size))
        try:
            rows = [
                family.ask(backend, prompt=prompt, seed=seed)
                for seed, prompt in enumerate(PROMPTS, 1)
            ]
            shared = family.run(rows, backend)
        except Refused as refusal:
            said = str(refusal)
            continue
        finally:
            backend.close()
        for one, other in zip(shared, alone, strict=True):
            _equal(one, other, f"a row of a batch (--batch-size {size or 'auto'}) and alone")
    return said


def _guidance_acts(family: Family) -> str:
    spec, said = family.spec(), []
    strong, first = (spec.guidance_scale or 1.0) + 3.0, family.picture()
    # A scale and a schedule of scales exclude each other.
    scheduled = {"guidance_schedule": None} if family.takes("guidance_schedule") else {}
    try:
        _differ(first, family.picture(guidance_scale=strong), "the guidance scale does nothing")
        argument = {str(spec.guidance_argument): strong}
        more = {"negative_prompt": " "} if "true_cfg_scale" in argument else {}
        plain = family.plain(**argument, **more, **scheduled)
        _equal(family.picture(guidance_scale=strong), plain, "guided, not plain's picture")
    except Refused as refusal:
        said.append(f"{refusal}{_plain_acts(family)}")
    off = {str(spec.guidance_argument): spec.guidance_off}
    try:
        unguided = family.picture(guidance_scale=spec.guidance_off)
        if spec.guidance_argument:
            _equal(unguided, family.plain(**off, **scheduled), "unguided, not plain's picture")
    except Refused as refusal:
        said.append(str(refusal))
    return "; ".join(dict.fromkeys(said))


def _plain_acts(family: Family) -> str:
    """What a refusal of the guidance scale holds back, if plain diffusers has it."""
    for name in ("guidance_scale", "true_cfg_scale"):
        more = {"negative_prompt": NEGATIVE} if name == "true_cfg_scale" else {}
        if family.takes(name) and all(map(family.takes, more)):
            acts = difference(family.plain(**{name: 4.0}, **more), family.plain()) > OTHER
            if acts:
                return f" (plain diffusers' {name} acts)"
    return ""


def _negative_acts(family: Family) -> str:
    spec = family.spec()
    fields: dict[str, object] = {"negative_prompt": NEGATIVE}
    plain_fields = dict(fields)
    if spec.guidance_argument and (spec.guidance_scale or 0) <= spec.guidance_off:
        fields["guidance_scale"] = plain_fields[spec.guidance_argument] = 4.0
    without = {k: v for k, v in fields.items() if k != "negative_prompt"}
    try:
        worded = family.picture(**fields)
    except Refused as refusal:
        return f"{refusal}{_plain_negative_acts(family)}"
    _differ(worded, family.picture(**without), "the negative prompt does nothing")
    _equal(worded, family.plain(**plain_fields), "with a negative prompt, not plain's picture")
    return ""


def _plain_negative_acts(family: Family) -> str:
    if not family.takes("negative_prompt"):
        return ""
    for name in ("true_cfg_scale", "guidance_scale"):
        if family.takes(name):
            scale: dict[str, object] = {name: 4.0}
            apart = difference(
                family.plain(negative_prompt=NEGATIVE, **scale),
                family.plain(negative_prompt="x", **scale),
            )
            if apart > OTHER:
                return f" (plain diffusers' negative_prompt acts with {name})"
    return ""


def _schedulers_work(family: Family) -> str:
    """Each scheduler that the model's kind has works, or a dry run refuses it."""
    family.picture()
    refused, broken = [], []
    for name in schedulers.usable_scheduler_names(family.spec().flow):
        try:
            family.picture(scheduler=name, steps=4)
        except Refused:
            refused.append(name)
        except Broken as finding:
            broken.append(f"{name}: {finding}")
    if broken:
        raise Broken(f"{len(broken)} fail after loading: {'; '.join(broken)}")
    return f"refused: {', '.join(refused)}" if refused else ""


def _dry_run_agrees(family: Family) -> str:
    """A dry run says yes to what can be made, and plans the memory that it takes, not a guess."""
    asked = [family.ask()]
    family.picture()
    try:
        asked.append(family.ask(width=None, height=None))
    except Refused as refusal:
        raise Broken(f"at the model's own size: {refusal}") from refusal
    for request in asked:
        if (wanted := family.planned_mib(request) or 0) > MOST_MEMORY:
            size = f"{request.width}x{request.height}"
            raise Broken(f"the plan wants {wanted:,} MiB to work with for {size} pixels")
    return ""


def _names_the_package(family: Family) -> str:
    """A package that the class lacks is named before its weights are loaded."""
    package = PACKAGES.get(family.name)
    if package is None or importlib.util.find_spec(package):
        return ""
    try:
        family.ask()
    except Refused as refusal:
        if package in str(refusal):
            return str(refusal)
        raise Broken(f"refused, but not for want of {package}: {refusal}") from refusal
    family.picture()
    raise Broken(f"a dry run says yes although {package} is missing")


PROMISES: dict[str, Callable[[Family], str]] = {
    "picture": _makes_a_picture,
    "is plain's": _is_plain,
    "seed": _keeps_the_seed,
    "size": _keeps_the_size,
    "steps": _keeps_the_steps,
    "batch": _keeps_a_batch,
    "guidance": _guidance_acts,
    "negative prompt": _negative_acts,
    "schedulers": _schedulers_work,
    "dry run": _dry_run_agrees,
    "package": _names_the_package,
}


def measure(family: Family, promise: str) -> Verdict:
    """What becomes of one promise. An unexpected exception is told as broken, by its type."""
    if lacks_package(family.name) and promise != "package":
        return Verdict("unknown", f"{PACKAGES[family.name]} is not installed")
    try:
        said = PROMISES[promise](family)
    except Refused as refusal:
        if not refusal.names_it:
            return Verdict("broken", f"refused without a name: {refusal}")
        return Verdict("refused", str(refusal))
    except Broken as finding:
        return Verdict("broken", str(finding))
    except Exception as error:  # noqa: BLE001 - pipelines may raise anything
        reason = " ".join(str(error).split())[:200]
        return Verdict("broken", f"{type(error).__name__}: {reason}")
    return Verdict("refused" if said else "kept", said)
