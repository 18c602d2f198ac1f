"""State and cost of endpoints, for `t2i remote list`, `status` and `cost`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from t2i_cli.durations import format_duration
from t2i_cli.terminal.console import escape_controls
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.inventory import Deployment, Inventory, created_at
from t2i_cli.vertex.labels import format_time
from t2i_cli.vertex.machine_types import PriceTable
from t2i_cli.vertex.replica_costs import NOTHING_DEPLOYED, state_and_costs, total_usd
from t2i_cli.vertex.request_counts import count_requests


@dataclass(frozen=True, kw_only=True)
class EndpointStatus:
    """One deployment, or one endpoint that t2i did not create.

    Age is in seconds, prices are estimates in USD, `None` where unknown: `usd_per_hour` for the
    replicas that run now, `usd_so_far` at least; `expires` is in unix seconds.
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
    expires: int | None
    overdue: bool
    usd_so_far_at_most: float | None
    region: str
    made_by_t2i: bool
    provisioning: str | None = None

    @property
    def title(self) -> str:
        """The name for people, with the number by which what t2i did not create is removed."""
        if self.made_by_t2i or self.endpoint is None:
            return self.name
        number = self.endpoint.split("/")[-1]
        return f"{self.name if self.name == number else f'{self.name} ({number})'}, not t2i's"

    @property
    def hourly_text(self) -> str:
        """USD per hour for people: now, and at most."""
        return format_money(self.usd_per_hour, self.usd_per_hour_at_most)

    @property
    def cost_text(self) -> str:
        """USD until now for people."""
        return format_spent(self.usd_so_far, self.usd_so_far_at_most)

    def to_json(self) -> dict[str, object]:
        """The status as `--json` prints it."""
        return asdict(self) | {
            "expires": None if self.expires is None else format_time(self.expires)
        }


def endpoint_status(found: Deployment, client: GoogleClient, prices: PriceTable) -> EndpointStatus:
    """The status of a deployment; queries its state and its number of requests."""
    return EndpointStatus(
        name=found.name,
        model=found.labels.model,
        serving=found.labels.serving,
        by=found.labels.by,
        expires=found.expires,
        overdue=found.expires < client.server_time(),
        made_by_t2i=True,
        **_measured(
            found.endpoints,
            client,
            prices,
            paused=found.labels.paused,
            flex_start=found.labels.google_end is not None,
        ),
    )


def other_status(
    endpoint: Mapping[str, Any], client: GoogleClient, prices: PriceTable
) -> EndpointStatus:
    """The status of an endpoint that t2i did not create."""
    models = [
        one.get("displayName") or one.get("model", "").split("/")[-1]
        for one in endpoint.get("deployedModels", [])
    ]
    return EndpointStatus(
        name=escape_controls(endpoint.get("displayName") or endpoint["name"].split("/")[-1]),
        model=escape_controls(", ".join(models)),
        serving="",
        by="",
        expires=None,
        overdue=False,
        made_by_t2i=False,
        **_measured([endpoint], client, prices, paused=False),
    )


def all_statuses(
    found: Inventory, client: GoogleClient, prices: PriceTable
) -> list[EndpointStatus]:
    """The status of every deployment and of every other endpoint in an inventory."""
    ours = [endpoint_status(one, client, prices) for one in found.deployments.values()]
    return ours + [other_status(one, client, prices) for one in found.others]


def _measured(
    endpoints: Sequence[Mapping[str, Any]],
    client: GoogleClient,
    prices: PriceTable,
    *,
    paused: bool,
    flex_start: bool = False,
) -> dict[str, Any]:
    """The fields of an EndpointStatus that Google tells of one deployment's endpoints."""
    now = client.server_time()
    state, costs = state_and_costs(endpoints, client, prices, flex_start=flex_start)
    first = endpoints[0] if endpoints else None
    return {
        "endpoint": first["name"] if first else None,
        "region": client.location.region,
        "state": "paused" if paused and state == NOTHING_DEPLOYED else state,
        "machine": costs[0].machine if costs else None,
        "provisioning": costs[0].provisioning if costs else None,
        "age": now - created_at(first) if first else None,
        "replicas": sum(one.replicas for one in costs),
        "max_replicas": sum(one.max_replicas for one in costs),
        "requests": count_requests(client, first["name"], created_at(first)) if first else None,
        "usd_per_hour": total_usd(one.hourly for one in costs),
        "usd_per_hour_at_most": total_usd(one.hourly_at_most for one in costs),
        "usd_so_far": total_usd(one.so_far for one in costs),
        "usd_so_far_at_most": total_usd(one.so_far_at_most for one in costs),
    }


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """Estimated cost in USD of endpoints, whoever created them; `None` where a price is unknown.

    `regions_not_asked` are those in which there may be more.
    """

    endpoints: Sequence[EndpointStatus]
    prices: PriceTable
    project: str
    regions_not_asked: Sequence[str] = ()

    def with_regions(self, more: Sequence[EndpointStatus], not_asked: Sequence[str]) -> Self:
        """The report with the endpoints of other regions."""
        return replace(self, endpoints=[*self.endpoints, *more], regions_not_asked=not_asked)

    def to_json(self) -> dict[str, object]:
        """The report as `--json` prints it."""
        hourly, most, so_far, so_far_most = _sums(self.endpoints)
        return {
            "usd_per_hour": hourly,
            "usd_per_hour_at_most": most,
            "usd_per_day": None if hourly is None else round(hourly * 24, 2),
            "usd_so_far": so_far,
            "usd_so_far_at_most": so_far_most,
            "prices_of": self.prices.date,
            "regions_not_asked": list(self.regions_not_asked),
            "endpoints": [one.to_json() for one in self.endpoints],
        }

    def text(self) -> list[str]:
        """The report as lines for people."""
        return [
            *map(_endpoint_text, self.endpoints),
            self._total_text(),
            f"These are estimates of what is deployed now (table: {self.prices.date}); the bill is "
            f"at https://console.cloud.google.com/billing?project={self.project}",
        ]

    def _total_text(self) -> str:
        known = [one for one in self.endpoints if one.usd_per_hour is not None]
        hourly, most, so_far, so_far_most = _sums(known)
        daily = [None if value is None else value * 24 for value in (hourly, most)]
        total = (
            f"{format_money(hourly, most)} USD per hour, {format_money(*daily)} per day, "
            f"{format_spent(so_far, so_far_most)} so far"
        )
        unknown = [one.title for one in self.endpoints if one not in known]
        if not unknown:
            return f"all: {total}"
        if not known:
            return f"all: an unknown price for {', '.join(unknown)}"
        return f"all: {total}; and an unknown price for {', '.join(unknown)}"


def cost_report(found: Inventory, client: GoogleClient, prices: PriceTable) -> CostReport:
    """The cost report of every endpoint in an inventory."""
    endpoints = all_statuses(found, client, prices)
    return CostReport(endpoints=endpoints, prices=prices, project=client.location.project)


def _endpoint_text(one: EndpointStatus) -> str:
    if one.usd_per_hour is None:
        hourly = f"the price of {one.machine or 'its machines'} is unknown"
    else:
        hourly = f"{format_money(one.usd_per_hour)} USD per hour"
        if one.usd_per_hour != one.usd_per_hour_at_most:
            hourly += f" now, {format_money(one.usd_per_hour_at_most)} at most"
    state = "" if one.state == "deployed" else f"{one.state}, "
    return f"{one.title}: {state}{hourly}, {one.cost_text} so far"


def _sums(endpoints: Sequence[EndpointStatus]) -> tuple[float | None, ...]:
    return (
        total_usd(one.usd_per_hour for one in endpoints),
        total_usd(one.usd_per_hour_at_most for one in endpoints),
        total_usd(one.usd_so_far for one in endpoints),
        total_usd(one.usd_so_far_at_most for one in endpoints),
    )


def status_table(
    endpoints: Iterable[EndpointStatus], *, regions: bool = False
) -> list[Sequence[str]]:
    """Table cells for people, the header row first; with a column of regions if `regions`."""
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
    if regions:
        return [("REGION", *head), *((one.region, *_cells(one)) for one in endpoints)]
    return [head, *(_cells(one) for one in endpoints)]


def status_facts(status: EndpointStatus, more: Mapping[str, object]) -> list[str]:
    """One line per fact about a deployment, for people; `more` has further facts."""
    record = status.to_json() | {
        "age": None if status.age is None else format_duration(status.age),
        "requests": "?" if status.requests is None else status.requests,
        "usd_per_hour": status.hourly_text,
        "usd_so_far": status.cost_text,
    }
    for name in ("usd_per_hour_at_most", "usd_so_far_at_most", "region", "made_by_t2i"):
        del record[name]
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


def format_spent(least: float | None, most: float | None) -> str:
    """USD spent, between `least` and `most`, for people."""
    if least is None or least == most:
        return format_money(least)
    return f"at least {least:.2f}" if least else f"at most {format_money(most)}"


def _cells(one: EndpointStatus) -> tuple[str, ...]:
    same = one.replicas == one.max_replicas
    return (
        one.title,
        one.state,
        "" if one.age is None else format_duration(one.age // 60 * 60),
        str(one.replicas) if same else f"{one.replicas}-{one.max_replicas}",
        "?" if one.requests is None else str(one.requests),
        one.hourly_text,
        one.cost_text,
        "" if one.expires is None else format_time(one.expires) + (" PAST" if one.overdue else ""),
        one.model,
    )


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
