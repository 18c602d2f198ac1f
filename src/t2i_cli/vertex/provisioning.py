"""How a deployment gets its machines: on demand, spot, by flex-start, or out of a reservation.

Fields: `DedicatedResources` and `ReservationAffinity` in google.cloud.aiplatform_v1 and v1beta1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from t2i_cli.durations import format_duration
from t2i_cli.errors import InputError
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.vertex.location import Location
from t2i_cli.vertex.machine_types import PriceTable, ReplicaHardware

FLEX_START_LIMIT = 7 * 24 * 3600
"""Seconds: the longest `maxRuntimeDuration` (docstring of v1beta1's FlexStart)."""
FLEX_START_MACHINES: Mapping[str, bool] = {"g2": False, "a2": True, "a3": True, "a4": True}
"""Machine series that flex-start has, and whether they cost less by it than on demand.

"All accelerator-optimized machine types (except A4X and G4)" and "For A4, A3, A2 … at a discounted
price": https://docs.cloud.google.com/compute/docs/instances/about-flex-start-vms, read in November
2026. That Vertex AI takes flex-start (Preview), and undeploys at its end:
https://docs.cloud.google.com/vertex-ai/docs/predictions/use-flex-start-vms. Neither lists regions.
"""
ON_DEMAND, SPOT, FLEX_START = "on demand", "spot", "flex-start"

_RESERVATION = re.compile(
    r"(?:projects/(?P<project>[a-z0-9][a-z0-9.:-]*)/zones/)?"
    r"(?P<zone>(?P<region>[a-z]+-[a-z]+\d+)-[a-z])(?(project)/reservations)/"
    r"(?P<name>[a-z]([a-z0-9-]{0,61}[a-z0-9])?)"
)
"""A reservation's full resource name, or ZONE/NAME for one of the same project."""
_NAME_KEY = "compute.googleapis.com/reservation-name"
_AFFINITIES = {"any": "ANY_RESERVATION", "none": "NO_RESERVATION"}


@dataclass(frozen=True, kw_only=True)
class Provisioning:
    """Where machines come from; `reservation` is any, none, or a reservation's full resource name.

    At most one of `spot`, `flex_start` and a reservation other than none is set.
    """

    spot: bool = False
    flex_start: bool = False
    reservation: str | None = None

    @property
    def name(self) -> str:
        """As `on demand`, `spot`, `flex-start`, `any reservation` or `reservation ZONE/NAME`."""
        if self.spot:
            return SPOT
        if self.flex_start:
            return FLEX_START
        if self.reservation in {None, "none"}:
            return ON_DEMAND
        if self.reservation == "any":
            return "any reservation"
        # Without the project, of which Google may answer with the number.
        found = _RESERVATION.fullmatch(str(self.reservation))
        return f"reservation {found['zone']}/{found['name']}" if found else "a reservation"

    @property
    def needs_preview_api(self) -> bool:
        """Whether only v1beta1 has the fields."""
        return self.flex_start

    def machine_fields(self) -> dict[str, object]:
        """What it adds to Vertex AI's MachineSpec."""
        if self.reservation is None:
            return {}
        affinity: dict[str, object] = {
            "reservationAffinityType": _AFFINITIES.get(self.reservation, "SPECIFIC_RESERVATION")
        }
        if self.reservation not in _AFFINITIES:
            affinity |= {"key": _NAME_KEY, "values": [self.reservation]}
        return {"reservationAffinity": affinity}

    def resource_fields(self, seconds: float) -> dict[str, object]:
        """What it adds to Vertex AI's DedicatedResources; `seconds` are left until the TTL ends."""
        if self.spot:
            return {"spot": True}
        if self.flex_start:
            most = max(1, min(FLEX_START_LIMIT, round(seconds)))
            return {"flexStart": {"maxRuntimeDuration": f"{most}s"}}
        return {}

    def hourly_price(self, hardware: ReplicaHardware, prices: PriceTable) -> float | None:
        """USD per hour of one replica, None if unknown; a bound if `price_is_bound`."""
        own = self._own_price(hardware, prices)
        return hardware.price(prices) if own is None else own

    def price_is_bound(self, hardware: ReplicaHardware, prices: PriceTable) -> bool:
        """Whether the price is the one on demand, which this way of provisioning stays below."""
        cheaper = self.spot or (
            self.flex_start and FLEX_START_MACHINES.get(_series(hardware), True)
        )
        return cheaper and self._own_price(hardware, prices) is None

    def price_note(self, hardware: ReplicaHardware, prices: PriceTable) -> str | None:
        """What to know of the price, for people."""
        if self.reservation not in {None, "none"}:
            return "the reservation itself is paid for at about this rate until it is deleted"
        if not self.price_is_bound(hardware, prices):
            return None
        return f"that is the price on demand: what {self.name} takes off is not known here"

    def _own_price(self, hardware: ReplicaHardware, prices: PriceTable) -> float | None:
        """The price of the table for spot or flex-start, if it has one."""
        table = prices.spot if self.spot else prices.flex_start if self.flex_start else {}
        found = hardware.price(replace(prices, machines=table, accelerators=table))
        return hardware.spot_price() if found is None and self.spot else found

    def machines_note(self) -> str | None:
        """What to know of its machines before one relies on them, for people."""
        if self.spot:
            return (
                "Google may take the machines back at any time, and then tries to give new ones; "
                "the preemptible quota counts"
            )
        if self.flex_start:
            return (
                "a machine may be waited for, which costs nothing; the preemptible quota counts "
                "(Preview)"
            )
        return None


def choose_provisioning(
    spec: DeploymentSpec, hardware: ReplicaHardware, ttl: int, location: Location
) -> Provisioning:
    """How the options say machines are had; `ttl` in seconds. Raises InputError."""
    reservation = _full_reservation(spec.reservation, location)
    reserved = reservation not in {None, "none"}
    chosen = [
        option
        for option, given in (
            ("--flex-start", spec.flex_start),
            ("--spot", spec.spot),
            ("--reservation", reserved),
        )
        if given
    ]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)} exclude each other: each has its own machines.")
    if spec.flex_start and (reason := flex_start_obstacle(spec, hardware, ttl)):
        raise InputError(f"--flex-start cannot be had: {reason}.")
    return Provisioning(
        spot=spec.spot, flex_start=spec.flex_start or False, reservation=reservation
    )


def flex_start_obstacle(spec: DeploymentSpec, hardware: ReplicaHardware, ttl: int) -> str | None:
    """Why flex-start is not available for a deployment, None where it is known to be."""
    if _series(hardware) not in FLEX_START_MACHINES:
        known = ", ".join(name.upper() for name in FLEX_START_MACHINES)
        return f"Google has it for machines of {known}, not for {hardware.text()}"
    if ttl > FLEX_START_LIMIT:
        limit = format_duration(FLEX_START_LIMIT)
        return f"it ends after {limit} at most, and --ttl is {format_duration(ttl)}"
    if spec.scale_to_zero:
        return "with --scale-to-zero its machines would be waited for at every call"
    return None


def provisioning_from_api(
    resources: Mapping[str, object], *, flex_start: bool = False
) -> Provisioning:
    """How the machines of a DeployedModel's dedicatedResources are had.

    `flex_start` is what is known besides: v1 leaves that field of v1beta1 out.
    """
    machine = resources.get("machineSpec")
    affinity = machine.get("reservationAffinity") if isinstance(machine, dict) else None
    reservation = None
    if isinstance(affinity, dict):
        kind, values = affinity.get("reservationAffinityType"), affinity.get("values")
        named = values[0] if isinstance(values, list) and values else "unknown"
        short = {value: key for key, value in _AFFINITIES.items()}
        reservation = short.get(str(kind), str(named))
    return Provisioning(
        spot=resources.get("spot") is True,
        flex_start=flex_start or bool(resources.get("flexStart")),
        reservation=reservation,
    )


def status_notes(deployed: Mapping[str, object]) -> list[str]:
    """What Vertex AI says of a DeployedModel's machines, for people: its message, a lack of them.

    `availableReplicaCount` is left out of JSON where it is 0.
    """
    status, resources = deployed.get("status"), deployed.get("dedicatedResources")
    if not isinstance(status, dict) or not isinstance(resources, dict):
        return []
    notes = [f"Google says: {text}"] if (text := str(status.get("message") or "").strip()) else []
    spot = provisioning_from_api(resources).spot
    if spot and str(status.get("availableReplicaCount", 0)) == "0":
        notes.append(
            "No replica is available: Google may have taken the spot machine back. It tries to "
            "give another one, and nothing is paid for meanwhile."
        )
    return notes


def _full_reservation(named: str | None, location: Location) -> str | None:
    """A reservation's full resource name; any and none stay. Raises InputError."""
    if named is None or named in _AFFINITIES:
        return named
    found = _RESERVATION.fullmatch(named)
    if found is None:
        raise InputError(
            f"--reservation {named} is not of the form ZONE/NAME, as us-central1-a/gpus.",
            hint="any takes whichever fits, else machines on demand; a reservation of another "
            "project is projects/PROJECT/zones/ZONE/reservations/NAME.",
        )
    if found["region"] != location.region:
        raise InputError(
            f"--reservation {named} lies in {found['region']}, not in {location.region}.",
            hint=f"--region {found['region']} goes there.",
        )
    project = found["project"] or location.project
    return f"projects/{project}/zones/{found['zone']}/reservations/{found['name']}"


def _series(hardware: ReplicaHardware) -> str:
    return hardware.machine.split("-")[0]
