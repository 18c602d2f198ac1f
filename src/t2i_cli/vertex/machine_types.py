"""Machine types and accelerators of replicas, and a dated table of estimated prices."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from t2i_cli.errors import InputError
from t2i_cli.files.state_files import is_amount
from t2i_cli.files.toml_files import read_toml_file
from t2i_cli.known_names import suggest_name
from t2i_cli.model_spec import ModelSpec
from t2i_cli.settings import store


@dataclass(frozen=True, kw_only=True)
class PriceTable:
    """Prices in USD per hour: of machines with included accelerators, and of one accelerator."""

    date: str
    machines: Mapping[str, float]
    accelerators: Mapping[str, float]


BUILT_IN = PriceTable(
    date="November 2026, us-central1",
    machines={
        "n1-standard-4": 0.22,
        "n1-standard-8": 0.44,
        "g2-standard-4": 0.81,
        "g2-standard-8": 0.98,
        "g2-standard-12": 1.15,
        "a2-highgpu-1g": 4.22,
    },
    accelerators={"NVIDIA_TESLA_T4": 0.40, "NVIDIA_TESLA_P100": 1.68},
)
"""Vertex AI's online prediction prices as listed or derived by third parties."""

_INCLUDED = (
    (r"g2-standard-(4|8|12|16|32)", "NVIDIA_L4", 1),
    (r"g2-standard-24", "NVIDIA_L4", 2),
    (r"a2-highgpu-1g", "NVIDIA_TESLA_A100", 1),
    (r"a2-ultragpu-1g", "NVIDIA_A100_80GB", 1),
    (r"a3-highgpu-1g", "NVIDIA_H100_80GB", 1),
)
"""Machine types with included accelerators, and their number."""
_GB = 10**9
_SMALL_WEIGHTS, _MEDIUM_WEIGHTS = 8 * _GB, 20 * _GB
"""Bytes of weights that fit an L4 (24 GB) on machines with 16 GB and 32 GB of memory."""


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
        machine = prices.machines.get(self.machine)
        if machine is None or self.accelerator is None or _included(self.machine):
            return machine
        each = prices.accelerators.get(self.accelerator)
        return None if each is None else machine + each * self.count


def choose_hardware(
    machine: str | None, accelerator: str | None, spec: ModelSpec
) -> ReplicaHardware:
    """The hardware of the options, by default one that fits the weights. Raises InputError."""
    size = spec.download_bytes
    if machine is None:
        if accelerator:
            machine = "n1-standard-8"
        elif spec.name == "postcard":
            machine = "n1-standard-4"
        elif size is None or size > _SMALL_WEIGHTS:
            machine = (
                "g2-standard-8" if size is None or size <= _MEDIUM_WEIGHTS else "a2-highgpu-1g"
            )
        else:
            machine = "g2-standard-4"
    if not re.fullmatch(r"[a-z]\w*-[a-z]+-\w+", machine):
        raise InputError(
            f"{machine} is no machine type; they look like g2-standard-4.",
            hint=suggest_name(machine, BUILT_IN.machines).strip() or None,
        )
    hardware = ReplicaHardware(machine=machine)
    included = _included(machine)
    if included:
        hardware = replace(hardware, accelerator=included[0], count=included[1])
    if accelerator == "none" and included:
        raise InputError(f"{machine} comes with {included[1]} {included[0]}, never without.")
    if accelerator is None or accelerator == "none":
        return hardware
    named, _, count = accelerator.partition(":")
    if not re.fullmatch(r"[A-Za-z0-9_]+", named) or not re.fullmatch("[1-9][0-9]?|", count):
        raise InputError(f"--accelerator {accelerator} is not of the form NVIDIA_TESLA_T4:1.")
    kind = _full_name(named)
    if included and (kind, int(count or included[1])) != included:
        raise InputError(f"{machine} comes with {included[1]} {included[0]} and takes no other.")
    return replace(hardware, accelerator=kind, count=int(count or 1))


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


def _included(machine: str) -> tuple[str, int] | None:
    return next((found[1:] for found in _INCLUDED if re.fullmatch(found[0], machine)), None)


def _full_name(accelerator: str) -> str:
    """Google's accelerator type for a full or short name, as `t4`."""
    name = accelerator.upper()
    if name.startswith("NVIDIA_"):
        return name
    old = {"T4", "P4", "P100", "V100", "A100"}
    return f"NVIDIA_TESLA_{name}" if name in old else f"NVIDIA_{name}"
