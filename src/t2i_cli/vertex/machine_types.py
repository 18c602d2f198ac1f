"""Machine types and accelerators of replicas, chosen and checked, and their estimated prices."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from t2i_cli.errors import InputError
from t2i_cli.files.state_files import is_amount
from t2i_cli.files.toml_files import read_toml_file
from t2i_cli.model_spec import ModelSpec
from t2i_cli.settings import store
from t2i_cli.terminal.console import format_bytes
from t2i_cli.vertex import hardware_table, model_memory
from t2i_cli.vertex.hardware_table import AcceleratorFacts, MachineFacts
from t2i_cli.vertex.model_memory import ModelMemory


@dataclass(frozen=True, kw_only=True)
class PriceTable:
    """Prices in USD per hour: of machines with included accelerators, and of one accelerator."""

    date: str
    machines: Mapping[str, float]
    accelerators: Mapping[str, float]


def _built_in() -> PriceTable:
    table = hardware_table.hardware_table()
    return PriceTable(
        date=table.date,
        machines=_known_prices(table.machines),
        accelerators=_known_prices(table.accelerators),
    )


def _known_prices(
    rows: Mapping[str, MachineFacts] | Mapping[str, AcceleratorFacts],
) -> dict[str, float]:
    return {name: row.usd_per_hour for name, row in rows.items() if row.usd_per_hour is not None}


BUILT_IN = _built_in()
"""Vertex AI's online prediction prices, derived from Compute Engine's."""

_HOST_SHARE = 0.6
"""Of a machine's memory for the weights as they are loaded; the container takes the rest."""
_LEAST_HOST, _UNKNOWN_HOST = 15, 30
"""GiB of a chosen machine's memory at least, and for a model whose need is not known."""
_UNKNOWN_ACCELERATOR = "NVIDIA_L4"
"""For a model whose need of memory is not known."""


@dataclass(frozen=True, kw_only=True)
class ReplicaHardware:
    """One replica's machine type, accelerator type and number of accelerators."""

    machine: str
    accelerator: str | None = None
    count: int = 0

    def spec(self) -> dict[str, object]:
        """Vertex AI's MachineSpec."""
        value: dict[str, object] = {"machineType": self.machine}
        if self.accelerator:
            value |= {"acceleratorType": self.accelerator, "acceleratorCount": self.count}
        return value

    def text(self) -> str:
        """As `g2-standard-4 with 1 NVIDIA_L4`."""
        return (
            f"{self.machine} with {self.count} {self.accelerator}" if self.count else self.machine
        )

    def price(self, prices: PriceTable) -> float | None:
        """USD per hour for one replica, None if the table lacks the price."""
        return self._sum(
            prices.machines.get(self.machine), prices.accelerators.get(self.accelerator or "")
        )

    def spot_price(self) -> float | None:
        """USD per hour for one replica on Spot, by t2i's own table; None if it is not known."""
        table = hardware_table.hardware_table()
        machine = table.machines.get(self.machine)
        each = table.accelerators.get(self.accelerator or "")
        return self._sum(machine and machine.spot_usd_per_hour, each and each.spot_usd_per_hour)

    def _sum(self, machine: float | None, each: float | None) -> float | None:
        facts = hardware_table.hardware_table().machines.get(self.machine)
        if machine is None or self.accelerator is None or (facts and facts.included):
            return machine
        return None if each is None else machine + each * self.count


def choose_hardware(
    machine: str | None,
    accelerator: str | None,
    spec: ModelSpec,
    *,
    region: str | None = None,
    memory: ModelMemory | None = None,
) -> ReplicaHardware:
    """The hardware of the options, by default the smallest that holds the model in the region.

    `memory` is the model's need, by default that of the catalogue. Raises InputError.
    """
    need = memory or model_memory.catalog_memory(spec)
    kind, count = None, None
    if accelerator is not None and accelerator != "none":
        kind, count = hardware_table.parse_accelerator(accelerator)
    if machine is not None:
        hardware = _named_hardware(machine, kind, count, without=accelerator == "none")
    elif accelerator == "none" or (kind is None and spec.name == "postcard"):
        hardware = ReplicaHardware(machine="n1-standard-4")
    else:
        hardware = _smallest_hardware(kind, count, spec, need, region)
    check_region(hardware, region)
    check_memory(hardware, spec, need, region)
    return hardware


def check_region(hardware: ReplicaHardware, region: str | None) -> None:
    """Raise InputError if a region has no such machine or accelerator."""
    regions = hardware_table.regions_of(hardware.machine, hardware.accelerator)
    if region is None or regions is None or region in regions:
        return
    raise InputError(
        f"{region} has no {hardware.text()}.",
        hint=f"--region takes for that: {hardware_table.name_list(_nearest(regions, region))}.",
    )


def check_memory(
    hardware: ReplicaHardware, spec: ModelSpec, need: ModelMemory | None, region: str | None
) -> None:
    """Raise InputError if the accelerator has too little memory for the model, by what is known.

    A model runs on one accelerator, however many a machine has.
    """
    if need is None or hardware.accelerator is None:
        return
    usable = hardware_table.accelerator_memory(hardware.accelerator)
    if usable is None or need.least <= usable:
        return
    would = _machines_holding(None, None, need, region)
    raise InputError(
        f"{spec.name} needs {need.text()}, and one {hardware.accelerator} has "
        f"{format_bytes(usable)} for it.",
        hint=f"{hardware_table.name_list(would, 3)} would do."
        if would
        else "No machine of the region would do.",
    )


def _named_hardware(
    machine: str, kind: str | None, count: int | None, *, without: bool
) -> ReplicaHardware:
    """The machine of --machine-type with the accelerator of --accelerator. Raises InputError."""
    facts = hardware_table.known_machine(machine)
    takes = facts.accelerators if facts else {}
    if facts is not None and facts.included:
        ((name, (number,)),) = takes.items()
        if without:
            raise InputError(f"{machine} comes with {number} {name}, never without.")
        if (kind or name, count or number) != (name, number):
            raise InputError(
                f"{machine} comes with {number} {name} and takes no other.",
                hint=_with_accelerator(kind or name, count),
            )
        return ReplicaHardware(machine=machine, accelerator=name, count=number)
    if kind is None:
        return ReplicaHardware(machine=machine)
    if kind not in takes:
        raise InputError(f"{machine} takes no {kind}.", hint=_with_accelerator(kind, count))
    if (number := count or takes[kind][0]) not in takes[kind]:
        numbers = " or ".join(str(one) for one in takes[kind])
        raise InputError(f"{machine} takes {numbers} {kind}, not {number}.")
    return ReplicaHardware(machine=machine, accelerator=kind, count=number)


def _with_accelerator(kind: str, count: int | None) -> str | None:
    """The hint at the machines with an accelerator, in that number."""
    machines = [
        name
        for name in hardware_table.machines_with(kind)
        if count is None or count in _facts(name).accelerators[kind]
    ]
    return f"{hardware_table.name_list(machines, 3)} would do." if machines else None


def _smallest_hardware(
    kind: str | None,
    count: int | None,
    spec: ModelSpec,
    need: ModelMemory | None,
    region: str | None,
) -> ReplicaHardware:
    """The cheapest machine that holds the model, with that accelerator if one is named."""
    if need is None:
        kind = kind or _UNKNOWN_ACCELERATOR
    machines = _machines_holding(kind, count, need, region)
    if machines:
        return _named_hardware(machines[0], kind, count, without=False)
    there = _machines_holding(kind, count, None, None)
    if kind and not there:
        raise InputError(
            f"There is no machine with {count} {kind}.", hint=_with_accelerator(kind, None)
        )
    if kind and (beside := _machines_holding(kind, count, None, region)):
        return _named_hardware(beside[-1], kind, count, without=False)  # its memory is refused
    if kind:
        return _named_hardware(there[0], kind, count, without=False)  # its region is refused
    everywhere = _machines_holding(None, None, need, None)
    regions = hardware_table.regions_of(everywhere[0]) if everywhere else None
    raise InputError(
        f"{region} has no machine that is known to hold {spec.name}, which needs "
        f"{need.text() if need else 'an unknown amount of memory'}.",
        hint=f"--region takes for {everywhere[0]}: "
        f"{hardware_table.name_list(_nearest(regions or (), str(region)))}."
        if everywhere
        else None,
    )


def _machines_holding(
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
        if need is None:
            holds = facts.memory_gib >= _UNKNOWN_HOST
        else:
            host = facts.memory_gib * 2**30 * _HOST_SHARE
            enough = facts.memory_gib >= _LEAST_HOST and need.weights <= host
            holds = enough and need.least <= usable
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


def _nearest(regions: Iterable[str], region: str) -> list[str]:
    """Regions in order, those of the same continent first."""
    continent = region.split("-")[0]
    return sorted(regions, key=lambda one: (one.split("-")[0] != continent, one))


def _facts(machine: str) -> MachineFacts:
    return hardware_table.hardware_table().machines[machine]


def hardware_from_api(resources: Mapping[str, object]) -> ReplicaHardware:
    """The hardware in a DeployedModel's dedicatedResources."""
    machine = resources.get("machineSpec")
    spec = machine if isinstance(machine, dict) else {}
    return ReplicaHardware(
        machine=str(spec.get("machineType", "unknown")),
        accelerator=spec.get("acceleratorType"),
        count=int(spec.get("acceleratorCount", 0)),
    )


def load_prices() -> PriceTable:
    """The built-in prices, overridden by the TOML file of the setting `vertex_prices`.

    Raises InputError or StorageError.
    """
    named = store.get_setting("vertex_prices")
    return BUILT_IN if named is None else read_prices(named)


def read_prices(named: str) -> PriceTable:
    """The built-in prices, overridden by a TOML file. Raises InputError or StorageError."""
    file, record = read_toml_file(named)
    return PriceTable(
        date=f"{record.get('date', 'no date')!s:.100}, {file}",
        machines={**BUILT_IN.machines, **_prices(record, "machines", file)},
        accelerators={**BUILT_IN.accelerators, **_prices(record, "accelerators", file)},
    )


def _prices(record: Mapping[str, object], table: str, file: Path) -> dict[str, float]:
    found = record.get(table, {})
    valid = isinstance(found, dict) and all(is_amount(value) for value in found.values())
    if not isinstance(found, dict) or not valid:
        raise InputError(f"{file}: [{table}] must give USD an hour for each name.")
    return {name: float(value) for name, value in found.items()}
