"""Machine types and accelerators of replicas, chosen and checked, and their estimated prices."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from t2i_cli.errors import InputError
from t2i_cli.files.state_files import is_amount
from t2i_cli.files.toml_files import read_toml_file
from t2i_cli.model_spec import ModelSpec
from t2i_cli.price_dates import with_age
from t2i_cli.settings import store
from t2i_cli.terminal.console import format_bytes
from t2i_cli.vertex import hardware_table, machine_search, model_memory
from t2i_cli.vertex.hardware_table import AcceleratorFacts, MachineFacts
from t2i_cli.vertex.model_memory import ModelMemory


@dataclass(frozen=True, kw_only=True)
class PriceTable:
    """Prices in USD per hour: of machines with included accelerators, and of one accelerator.

    `spot` and `flex_start` have both by name, as far as their prices are known.
    """

    date: str
    machines: Mapping[str, float]
    accelerators: Mapping[str, float]
    spot: Mapping[str, float] = field(default_factory=dict)
    flex_start: Mapping[str, float] = field(default_factory=dict)


def built_in_prices() -> PriceTable:
    """The prices of the table that t2i brings."""
    table = hardware_table.hardware_table()
    return PriceTable(
        date=with_age(table.date),
        machines=_known_prices(table.machines),
        accelerators=_known_prices(table.accelerators),
    )


def _known_prices(
    rows: Mapping[str, MachineFacts] | Mapping[str, AcceleratorFacts],
) -> dict[str, float]:
    return {name: row.usd_per_hour for name, row in rows.items() if row.usd_per_hour is not None}


BUILT_IN = built_in_prices()
"""Vertex AI's online prediction prices, derived from Compute Engine's."""

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
        return self._sum(
            None if machine is None else machine.spot_usd_per_hour,
            None if each is None else each.spot_usd_per_hour,
        )

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


def check_hardware_names(machine: str | None, accelerator: str | None) -> None:
    """Raise InputError for names that are none, whatever the model."""
    if accelerator is not None and accelerator != "none":
        hardware_table.parse_accelerator(accelerator)
    if machine is not None:
        hardware_table.known_machine(machine)


def check_region(hardware: ReplicaHardware, region: str | None) -> None:
    """Raise InputError if a region has no such machine or accelerator."""
    regions = hardware_table.regions_of(hardware.machine, hardware.accelerator)
    if region is None or regions is None or region in regions:
        return
    near = machine_search.nearest_regions(regions, region)
    raise InputError(
        f"{region} has no {hardware.text()}.",
        hint=f"--region takes for that: {hardware_table.name_list(near)}.",
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
    would = machine_search.machines_holding(None, None, need, region)
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
                hint=machine_search.machines_hint(kind or name, count),
            )
        return ReplicaHardware(machine=machine, accelerator=name, count=number)
    if kind is None:
        return ReplicaHardware(machine=machine)
    if kind not in takes:
        raise InputError(
            f"{machine} takes no {kind}.", hint=machine_search.machines_hint(kind, count)
        )
    if (number := count or takes[kind][0]) not in takes[kind]:
        numbers = " or ".join(str(one) for one in takes[kind])
        raise InputError(f"{machine} takes {numbers} {kind}, not {number}.")
    return ReplicaHardware(machine=machine, accelerator=kind, count=number)


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
    machines = machine_search.machines_holding(kind, count, need, region)
    if machines:
        return _named_hardware(machines[0], kind, count, without=False)
    there = machine_search.machines_holding(kind, count, None, None)
    if kind and not there:
        raise InputError(
            f"There is no machine with {count} {kind}.",
            hint=machine_search.machines_hint(kind, None),
        )
    if kind and (beside := machine_search.machines_holding(kind, count, None, region)):
        return _named_hardware(beside[-1], kind, count, without=False)  # its memory is refused
    if kind:
        return _named_hardware(there[0], kind, count, without=False)  # its region is refused
    everywhere = machine_search.machines_holding(None, None, need, None)
    regions = hardware_table.regions_of(everywhere[0]) if everywhere else None
    raise InputError(
        f"{region} has no machine that is known to hold {spec.name}, which needs "
        f"{need.text() if need else 'an unknown amount of memory'}.",
        hint=f"--region takes for {everywhere[0]}: "
        f"{hardware_table.name_list(machine_search.nearest_regions(regions or (), str(region)))}."
        if everywhere
        else None,
    )


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
        date=f"{with_age(format(str(record.get('date', 'no date')), '.100'))}, {file}",
        machines={**BUILT_IN.machines, **_prices(record, "machines", file)},
        accelerators={**BUILT_IN.accelerators, **_prices(record, "accelerators", file)},
        spot={**BUILT_IN.spot, **_prices(record, "spot", file)},
        flex_start={**BUILT_IN.flex_start, **_prices(record, "flex-start", file)},
    )


def _prices(record: Mapping[str, object], table: str, file: Path) -> dict[str, float]:
    found = record.get(table, {})
    valid = isinstance(found, dict) and all(is_amount(value) for value in found.values())
    if not isinstance(found, dict) or not valid:
        raise InputError(f"{file}: [{table}] must give USD an hour for each name.")
    return {name: float(value) for name, value in found.items()}
