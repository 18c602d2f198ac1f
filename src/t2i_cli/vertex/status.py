"""State and cost of endpoints, for `t2i remote list`, `status` and `cost`."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from t2i_cli.durations import format_duration
from t2i_cli.errors import T2IError
from t2i_cli.vertex import machine_types, operations, provisioning
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.inventory import Deployment, Inventory, created_at
from t2i_cli.vertex.labels import format_time
from t2i_cli.vertex.machine_types import PriceTable


@dataclass(frozen=True, kw_only=True)
class EndpointStatus:
    """One deployment: age in seconds, estimated prices in USD, `None` where unknown.

    Prices are for the minimum of replicas, except `usd_per_hour_at_most`; `expires` is in unix
    seconds.
    """

    name: str
    endpoint: str | None
    state: str
    model: str
    serving: str
    by: str
    machine: str | None
    age: float | None
    replicas: int
    max_replicas: int
    requests: int | None
    usd_per_hour: float | None
    usd_per_hour_at_most: float | None
    usd_so_far: float | None
    expires: int
    overdue: bool
    provisioning: str | None = None

    @property
    def hourly_text(self) -> str:
        """USD per hour for people."""
        return format_money(self.usd_per_hour, self.usd_per_hour_at_most)

    @property
    def cost_text(self) -> str:
        """USD until now for people; a lower bound if the number of replicas may have varied."""
        grows = self.usd_per_hour != self.usd_per_hour_at_most
        return f"{'at least ' if grows else ''}{format_money(self.usd_so_far)}"

    def to_json(self) -> dict[str, object]:
        """The status as `--json` prints it."""
        return asdict(self) | {"expires": format_time(self.expires)}


def endpoint_status(found: Deployment, client: GoogleClient, prices: PriceTable) -> EndpointStatus:
    """The status of a deployment; queries its state and its number of requests."""
    now = client.server_time()
    endpoint = found.endpoints[0] if found.endpoints else None
    deployed = found.deployed()
    machines = [
        machine_types.hardware_from_api(one.get("dedicatedResources", {})) for one in deployed
    ]
    counts = [_replicas(one.get("dedicatedResources", {})) for one in deployed]
    had = [
        provisioning.provisioning_from_api(
            one.get("dedicatedResources", {}), flex_start=found.labels.google_end is not None
        )
        for one in deployed
    ]
    each = [one.hourly_price(machine, prices) for one, machine in zip(had, machines, strict=True)]
    fewest, most = [low for low, _ in counts], [high for _, high in counts]
    hours = [max(0.0, now - created_at(one)) / 3600 for one in deployed]
    spent = [low * hour for low, hour in zip(fewest, hours, strict=True)]
    return EndpointStatus(
        name=found.name,
        endpoint=endpoint["name"] if endpoint else None,
        state=_state(found, client),
        model=found.labels.model,
        serving=found.labels.serving,
        by=found.labels.by,
        machine=machines[0].text() if machines else None,
        age=now - created_at(endpoint) if endpoint else None,
        replicas=sum(fewest),
        max_replicas=sum(most),
        requests=count_requests(client, endpoint["name"], created_at(endpoint))
        if endpoint
        else None,
        usd_per_hour=_total(each, fewest),
        usd_per_hour_at_most=_total(each, most),
        usd_so_far=_total(each, spent),
        expires=found.expires,
        overdue=found.expires < now,
        provisioning=had[0].name if had else None,
    )


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """Estimated cost of all deployments in a location, in USD."""

    endpoints: list[EndpointStatus]
    prices: PriceTable
    project: str

    def to_json(self) -> dict[str, object]:
        """The report as `--json` prints it."""
        hourly, most, so_far = self._sums()
        return {
            "usd_per_hour": hourly,
            "usd_per_hour_at_most": most,
            "usd_per_day": None if hourly is None else round(hourly * 24, 2),
            "usd_so_far": so_far,
            "prices_of": self.prices.date,
            "endpoints": [one.to_json() for one in self.endpoints],
        }

    def text(self) -> list[str]:
        """The report as lines for people."""
        hourly, most, so_far = self._sums()
        daily = [None if value is None else value * 24 for value in (hourly, most)]
        least = "at least " if hourly != most else ""
        return [
            *(
                f"{one.name}: {'' if one.state == 'deployed' else f'{one.state}, '}"
                f"{one.hourly_text} USD per hour, {one.cost_text} so far"
                for one in self.endpoints
            ),
            f"all: {format_money(hourly, most)} USD per hour, {format_money(*daily)} per day, "
            f"{least}{format_money(so_far)} so far",
            f"These are estimates of what is deployed now (table: {self.prices.date}); the bill is "
            f"at https://console.cloud.google.com/billing?project={self.project}",
        ]

    def _sums(self) -> tuple[float | None, float | None, float | None]:
        hourly = [one.usd_per_hour for one in self.endpoints]
        most = [one.usd_per_hour_at_most for one in self.endpoints]
        so_far = [one.usd_so_far for one in self.endpoints]
        return _sum(hourly), _sum(most), _sum(so_far)


def cost_report(found: Inventory, client: GoogleClient, prices: PriceTable) -> CostReport:
    """The cost report of the deployments in an inventory."""
    endpoints = [endpoint_status(one, client, prices) for one in found.deployments.values()]
    return CostReport(endpoints=endpoints, prices=prices, project=client.location.project)


def count_requests(client: GoogleClient, endpoint: str, start: float) -> int | None:
    """Responses of an endpoint since `start` (unix seconds) by Cloud Monitoring, minutes late.

    None if Cloud Monitoring cannot be queried.
    """
    span = max(60, round(client.server_time() - start))
    query = {
        "filter": 'metric.type="aiplatform.googleapis.com/prediction/online/response_count" AND '
        f'resource.labels.endpoint_id="{endpoint.split("/")[-1]}"',
        "interval.startTime": _format_timestamp(client.server_time() - span),
        "interval.endTime": _format_timestamp(client.server_time()),
        "aggregation.alignmentPeriod": f"{span}s",
        "aggregation.perSeriesAligner": "ALIGN_SUM",
        "aggregation.crossSeriesReducer": "REDUCE_SUM",
    }
    path = f"/v3/projects/{client.location.project}/timeSeries"
    try:
        series = list(client.list_all("monitoring", path, "timeSeries", query))
    except T2IError:
        # Without monitoring.timeSeries.list the other columns are still known.
        return None
    points = (point for one in series for point in one.get("points", []))
    return sum(_point_count(point) for point in points)


def _point_count(point: Mapping[str, Any]) -> int:
    """The value of one point of a time series."""
    value = point["value"]
    return int(value.get("int64Value", 0)) if isinstance(value, dict) else 0


def status_table(endpoints: Iterable[EndpointStatus]) -> list[Sequence[str]]:
    """Table cells for people, the header row first."""
    head = (
        "NAME",
        "STATE",
        "AGE",
        "REPLICAS",
        "REQUESTS",
        "USD/H",
        "USD SO FAR",
        "TTL ENDS",
        "MODEL",
    )
    return [head, *(_cells(one) for one in endpoints)]


def status_facts(status: EndpointStatus, more: Mapping[str, object]) -> list[str]:
    """One line per fact about a deployment, for people; `more` has further facts."""
    record = status.to_json() | {
        "age": None if status.age is None else format_duration(status.age),
        "requests": "?" if status.requests is None else status.requests,
        "usd_per_hour": status.hourly_text,
        "usd_so_far": status.cost_text,
    }
    del record["usd_per_hour_at_most"]
    return [
        f"{key.replace('_', ' ').replace('usd', 'USD')}: {_format_value(each)}"
        for key, value in (record | dict(more)).items()
        for each in (value if isinstance(value, list) else [value])
    ]


def format_money(least: float | None, most: float | None = None) -> str:
    """USD with cents, as a range if `most` differs, `?` if unknown."""
    if least is None:
        return "?"
    return f"{least:.2f}" if most in {None, least} else f"{least:.2f}-{most:.2f}"


def _cells(one: EndpointStatus) -> tuple[str, ...]:
    same = one.replicas == one.max_replicas
    return (
        one.name,
        one.state,
        "" if one.age is None else format_duration(one.age // 60 * 60),
        str(one.replicas) if same else f"{one.replicas}-{one.max_replicas}",
        "?" if one.requests is None else str(one.requests),
        one.hourly_text,
        one.cost_text,
        format_time(one.expires) + (" PAST" if one.overdue else ""),
        one.model,
    )


def _state(found: Deployment, client: GoogleClient) -> str:
    """The deployment's state as one word or two; may query running operations."""
    if found.deployed():
        return "deployed"
    if any(operations.pending_operation(client, endpoint["name"]) for endpoint in found.endpoints):
        return "deploying"
    return "nothing deployed" if found.endpoints else "leftovers"


def _total(prices: Sequence[float | None], times: Sequence[float]) -> float | None:
    """The sum of the products of prices and times; None if a price is unknown."""
    both = zip(prices, times, strict=True)
    return _sum([None if price is None else price * count for price, count in both])


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _sum(values: Sequence[float | None]) -> float | None:
    """The sum rounded to cents, None if a value is unknown."""
    known = [value for value in values if value is not None]
    return round(sum(known), 2) if len(known) == len(values) else None


def _replicas(resources: dict[str, object]) -> tuple[int, int]:
    """Minimum and maximum of billed replicas; one that scales to zero counts as running."""
    low = int(str(resources.get("minReplicaCount") or 1))
    return low, int(str(resources.get("maxReplicaCount") or low))


def _format_timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
