"""State and costs of deployed models: machines, replicas that run now and at most, prices."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2i_cli.errors import T2IError
from t2i_cli.terminal.console import escape_controls
from t2i_cli.vertex import machine_types, operations, provisioning
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.inventory import created_at
from t2i_cli.vertex.machine_types import PriceTable
from t2i_cli.vertex.stored_deployment import stored_deployment


@dataclass(frozen=True, kw_only=True)
class ReplicaCosts:
    """One DeployedModel's replicas, and estimated prices in USD, None where unknown.

    `replicas` and `hourly` are of now, `so_far` and `so_far_at_most` of the time since its creation
    with the fewest and the most replicas that it can have had.
    """

    machine: str
    provisioning: str | None = None
    replicas: int
    max_replicas: int
    hourly: float | None
    hourly_at_most: float | None
    so_far: float | None
    so_far_at_most: float | None


UNKNOWN_COSTS = ReplicaCosts(
    machine="unknown",
    replicas=0,
    max_replicas=0,
    hourly=None,
    hourly_at_most=None,
    so_far=None,
    so_far_at_most=None,
)
"""Of what cannot be looked up."""
NOTHING_DEPLOYED = "nothing deployed"
"""State of an endpoint without a deployed model, which costs nothing."""
_STATES = ("deployed", "deploying", "not known", NOTHING_DEPLOYED)
"""States of endpoints; a deployment with several has the first of theirs."""


def replica_costs(
    deployed: Mapping[str, Any], now: float, prices: PriceTable, *, flex_start: bool = False
) -> ReplicaCosts:
    """The costs of a DeployedModel of Vertex AI; `now` in unix seconds.

    `flex_start` is what is known besides: v1 leaves that field of v1beta1 out.

    Without dedicated resources Vertex AI chooses the machines, and their price is unknown.
    """
    hours = max(0.0, now - created_at(deployed)) / 3600 if "createTime" in deployed else None
    dedicated = deployed.get("dedicatedResources")
    had = None
    if dedicated is None:
        automatic = deployed.get("automaticResources")
        pool = deployed.get("sharedResources")
        fewest, most = _replica_range(automatic if isinstance(automatic, dict) else {})
        named = f"shared resources {pool.split('/')[-1]}" if isinstance(pool, str) else None
        machine, each = named or "automatic resources", None
    else:
        hardware = machine_types.hardware_from_api(dedicated)
        fewest, most = _replica_range(dedicated)
        had = provisioning.provisioning_from_api(dedicated, flex_start=flex_start)
        machine, each = hardware.text(), had.hourly_price(hardware, prices)
    running = _running_replicas(deployed.get("status"), fewest, most)

    def cost(replicas: int, of_hours: float | None) -> float | None:
        return None if each is None or of_hours is None else each * replicas * of_hours

    return ReplicaCosts(
        machine=escape_controls(machine),
        provisioning=None if had is None else had.name,
        replicas=running,
        max_replicas=most,
        hourly=cost(running, 1),
        hourly_at_most=cost(most, 1),
        so_far=cost(fewest, hours),
        so_far_at_most=cost(most, hours),
    )


def state_and_costs(
    endpoints: Sequence[Mapping[str, Any]],
    client: GoogleClient,
    prices: PriceTable,
    *,
    flex_start: bool = False,
) -> tuple[str, list[ReplicaCosts]]:
    """A deployment's state in a word or two, and what is deployed or being deployed."""
    found = [_endpoint_costs(one, client, prices, flex_start=flex_start) for one in endpoints]
    states = {state for state, _ in found}
    state = next((one for one in _STATES if one in states), "leftovers")
    return state, [cost for _, costs in found for cost in costs]


def _endpoint_costs(
    endpoint: Mapping[str, Any], client: GoogleClient, prices: PriceTable, *, flex_start: bool
) -> tuple[str, list[ReplicaCosts]]:
    """The state of one endpoint, and what is deployed or being deployed on it."""
    now = client.server_time()
    if deployed := endpoint.get("deployedModels", []):
        return "deployed", [
            replica_costs(one, now, prices, flex_start=flex_start) for one in deployed
        ]
    try:
        operation = operations.pending_deployment(client, endpoint["name"])
    except T2IError:
        # Whether it is being deployed, and paid for, cannot be told.
        return "not known", [UNKNOWN_COSTS]
    if operation is None:
        return NOTHING_DEPLOYED, []
    stored = stored_deployment(endpoint)
    if stored is None:
        return "deploying", [UNKNOWN_COSTS]
    began = operations.started_at(operation)
    model = dict(stored.deployed_model) | ({"createTime": began} if began else {})
    return "deploying", [replica_costs(model, now, prices)]


def total_usd(values: Iterable[float | None]) -> float | None:
    """The sum rounded to cents, None if a value is unknown."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return round(sum(known), 2) if len(known) == len(listed) else None


def _replica_range(resources: Mapping[str, Any]) -> tuple[int, int]:
    """Fewest and most replicas; a fewest of 0, which the API leaves out, scales to zero."""
    fewest = int(resources.get("minReplicaCount") or 0)
    return fewest, int(resources.get("maxReplicaCount") or max(fewest, 1))


def _running_replicas(status: object, fewest: int, most: int) -> int:
    """The replicas that run now, by DeployedModel.Status.

    The API leaves out a count of 0, so that only a status with a time tells it. Without one, a
    model that scales to zero counts as running: rather too much than too little.
    """
    told = status if isinstance(status, dict) else {}
    available = told.get("availableReplicaCount", 0 if "lastUpdateTime" in told else None)
    return min(max(fewest, 1 if available is None else int(available)), most)
