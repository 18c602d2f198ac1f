"""Finds the machine types that hold a model, by accelerator, number and region."""

from collections.abc import Iterable

from t2i_cli.vertex import hardware_table
from t2i_cli.vertex.hardware_table import MachineFacts
from t2i_cli.vertex.model_memory import ModelMemory

_HOST_SHARE = 0.6
"""Of a machine's memory for the weights as they are loaded; the container takes the rest."""
_LEAST_HOST, _CAREFUL_HOST = 15, 30
"""GiB of a chosen machine's memory at least; the second one on N1, whose price hardly depends on
it, and for a model whose need is not known."""


def machines_hint(kind: str, count: int | None) -> str | None:
    """The hint at the machines with an accelerator, in that number."""
    machines = [
        name
        for name in hardware_table.machines_with(kind)
        if count is None or count in _facts(name).accelerators[kind]
    ]
    return f"{hardware_table.name_list(machines, 3)} would do." if machines else None


def machines_holding(
    kind: str | None, count: int | None, need: ModelMemory | None, region: str | None
) -> list[str]:
    """Machines whose host and accelerator hold the model in a region, the cheapest first.

    Without a `kind`, those that come with accelerators, and whose regions and prices are known.
    """
    table = hardware_table.hardware_table()
    names = hardware_table.machines_with(kind, region) if kind else _machines_by_price(region)
    found = []
    for name in names:
        facts = _facts(name)
        one = kind or next(iter(facts.accelerators))
        numbers = facts.accelerators[one]
        usable = hardware_table.accelerator_memory(one) or 0
        careful = need is None or not facts.included
        holds = facts.memory_gib >= (_CAREFUL_HOST if careful else _LEAST_HOST)
        if need is not None:
            host = facts.memory_gib * 2**30 * _HOST_SHARE
            holds = holds and need.weights <= host and need.least <= usable
        if holds and (count is None or count in numbers) and not table.accelerators[one].ended:
            found.append(name)
    return found


def _machines_by_price(region: str | None) -> list[str]:
    machines = hardware_table.hardware_table().machines
    known = {
        name: facts.usd_per_hour
        for name, facts in machines.items()
        if facts.included and facts.regions is not None and facts.usd_per_hour is not None
    }
    return sorted(
        (name for name in known if hardware_table.offered_in(region, name)), key=known.__getitem__
    )


def nearest_regions(regions: Iterable[str], region: str) -> list[str]:
    """Regions in order, those of the same continent first."""
    continent = region.split("-")[0]
    return sorted(regions, key=lambda one: (one.split("-")[0] != continent, one))


def _facts(machine: str) -> MachineFacts:
    return hardware_table.hardware_table().machines[machine]
