"""The table of Vertex AI's machine types and accelerators, with their regions and prices.

It is read from hardware.json, which benchmarks/vertex_hardware.py writes, with its sources.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from t2i_cli.errors import InputError
from t2i_cli.known_names import suggest_name

USABLE_SHARE = 0.94
"""Of an accelerator's memory; the driver and the CUDA context take the rest."""
_COUNT = re.compile("[1-9][0-9]?")


@dataclass(frozen=True, kw_only=True)
class AcceleratorFacts:
    """An accelerator: memory in GiB, the regions that have it on N1, USD an hour on N1.

    `None` is not known, or said by the machine that brings it. `ended` is the day of its end.
    """

    memory_gib: int
    quota_id: str | None
    regions: frozenset[str] | None
    usd_per_hour: float | None
    spot_usd_per_hour: float | None
    ended: str | None


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """A machine type: memory of the host in GiB, accelerators and their possible numbers.

    With `included` it comes with its accelerator, and its prices, in USD an hour, hold both;
    regions and prices are `None` where they are not known.
    """

    vcpus: int
    memory_gib: float
    accelerators: Mapping[str, tuple[int, ...]]
    included: bool
    regions: frozenset[str] | None
    usd_per_hour: float | None
    spot_usd_per_hour: float | None


@dataclass(frozen=True, kw_only=True)
class HardwareTable:
    """Machines and accelerators by name, and the table's date."""

    date: str
    machines: Mapping[str, MachineFacts]
    accelerators: Mapping[str, AcceleratorFacts]


@cache
def hardware_table() -> HardwareTable:
    """The table that t2i brings."""
    file = resources.files("t2i_cli.vertex") / "hardware.json"
    content = json.loads(file.read_text(encoding="utf-8"))

    def facts(row: dict[str, Any]) -> dict[str, Any]:
        regions = row["regions"]
        return row | {"regions": None if regions is None else frozenset(regions)}

    return HardwareTable(
        date=content["date"],
        accelerators={
            name: AcceleratorFacts(**facts(row)) for name, row in content["accelerators"].items()
        },
        machines={
            name: MachineFacts(
                **facts(row)
                | {"accelerators": {one: tuple(n) for one, n in row["accelerators"].items()}}
            )
            for name, row in content["machines"].items()
        },
    )


def regions_of(machine: str, accelerator: str | None = None) -> frozenset[str] | None:
    """The regions that may have a machine with an accelerator; `None` if they are not known."""
    table = hardware_table()
    known = [
        facts.regions
        for facts in (table.machines.get(machine), table.accelerators.get(accelerator or ""))
        if facts is not None and facts.regions is not None
    ]
    return frozenset.intersection(*known) if known else None


def machines_with(accelerator: str, region: str | None = None) -> list[str]:
    """The machine types that can have an accelerator, the cheapest first; also only of a region."""
    found = [
        name
        for name, facts in hardware_table().machines.items()
        if accelerator in facts.accelerators and offered_in(region, name, accelerator)
    ]
    return sorted(found, key=_price_and_size)


def offered_in(region: str | None, machine: str, accelerator: str | None = None) -> bool:
    """Whether a region may have a machine with an accelerator: true where it is not known."""
    regions = regions_of(machine, accelerator)
    return region is None or regions is None or region in regions


def accelerator_memory(accelerator: str) -> int | None:
    """Bytes of one accelerator's memory that a model may take; `None` for an unknown one."""
    facts = hardware_table().accelerators.get(accelerator)
    return None if facts is None else int(facts.memory_gib * 2**30 * USABLE_SHARE)


def parse_accelerator(text: str) -> tuple[str, int | None]:
    """Google's name of an accelerator as people spell it, and the number after a colon.

    Raises InputError for one that is none, has ended, or is a TPU.
    """
    spelled, colon, number = text.partition(":")
    if colon and not _COUNT.fullmatch(number) or not re.fullmatch(r"[\w -]*[A-Za-z0-9]", spelled):
        raise InputError(f"--accelerator {text} is not of the form NVIDIA_TESLA_T4:1.")
    accelerators = hardware_table().accelerators
    words = re.sub("[-_ ]+", "_", spelled.upper())
    if words.startswith(("TPU", "CT5", "CT6", "V5E", "V6E")):
        raise InputError(
            f"--accelerator {spelled}: t2i serves no TPU.", hint="Name a GPU, such as L4."
        )
    short = _short_name(words)
    name = _names().get(short) or (None if " " in spelled else _names().get(short.replace("_", "")))
    if name is None:
        hint = suggest_name(short, [_short_name(one) for one in accelerators])
        kinds = ", ".join(
            _short_name(one) for one, facts in accelerators.items() if not facts.ended
        )
        raise InputError(
            f"There is no machine of Vertex AI's with an accelerator {spelled}.",
            hint=f"{hint}There are {kinds}.",
        )
    if ended := accelerators[name].ended:
        raise InputError(
            f"Google ended the {name} on {ended}.", hint="Name another one, such as T4 or L4."
        )
    return name, int(number) if number else None


def known_machine(name: str) -> MachineFacts | None:
    """The facts of a machine type; `None` for one without accelerators that is not in the table.

    Raises InputError for one that there cannot be.
    """
    machines = hardware_table().machines
    if facts := machines.get(name):
        return facts
    if re.match(r"(ct|tpu)[0-9a-z]*-", name):
        raise InputError(f"{name} has TPUs, and t2i serves no TPU.", hint="Name a g2 machine.")
    families = {one.split("-")[0] for one in machines}
    form = re.fullmatch(r"([a-z]\d+[a-z]*)-(standard|highmem|highcpu)-\d+", name)
    if form and form[1] not in families:
        return None  # a machine without accelerators, whose price no source tells
    raise InputError(
        f"{name} is no machine type of Vertex AI's; they look like g2-standard-4.",
        hint=suggest_name(name, machines).strip() or None,
    )


def name_list(names: Iterable[str], most: int = 6) -> str:
    """Names in order for a sentence, the first ones of many."""
    ordered = list(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def _price_and_size(machine: str) -> tuple[float, float]:
    """What machines are ordered by; one of unknown price comes last."""
    facts = hardware_table().machines[machine]
    price = float("inf") if facts.usd_per_hour is None else facts.usd_per_hour
    return price, facts.memory_gib


def _short_name(name: str) -> str:
    return name.removeprefix("NVIDIA_").removeprefix("TESLA_")


@cache
def _names() -> Mapping[str, str]:
    """Google's names by spelling: with and without vendor, memory and underscores."""
    found: dict[str, str] = {}
    for name in hardware_table().accelerators:
        short = _short_name(name)
        for spelling in (short, short.removesuffix("GB"), re.sub(r"_\d+GB$", "", short)):
            found.setdefault(spelling, name)
            found.setdefault(spelling.replace("_", ""), name)
    # The A100 of 40 GB is the older name without a number; RTX 6000 leaves out "PRO".
    found |= {"A100_40GB": "NVIDIA_TESLA_A100", "A10040GB": "NVIDIA_TESLA_A100"}
    return found | {"RTX_6000": "NVIDIA_RTX_PRO_6000", "RTX6000": "NVIDIA_RTX_PRO_6000"}
