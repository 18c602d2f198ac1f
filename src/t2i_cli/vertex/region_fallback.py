"""A deployment that may go to several regions: planned in each, made in the first with machines."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from t2i_cli.errors import AccessError, InputError, QuotaError, T2IError
from t2i_cli.net.google_http import CapacityError
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import flex_start, inventory, weights_bucket
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.deployment_planning import plan_deployment
from t2i_cli.vertex.inventory import Deployment
from t2i_cli.vertex.operations import OperationRunner, ReportProgress
from t2i_cli.vertex.plan import DeploymentPlan

_MULTI_REGIONS = {"us": "us-", "eu": "europe-", "europe": "europe-", "asia": "asia-"}
"""Multi-regions of Cloud Storage and Artifact Registry, and how names of their regions begin."""
_REGION = re.compile(r"[a-z]+-[a-z]+\d+")
_REGISTRY = re.compile(r"(?P<place>[a-z0-9-]+)-docker\.pkg\.dev/.+")

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class RegionPlan:
    """A deployment's plan in one region, and what an earlier run left there under its name."""

    plan: DeploymentPlan
    runner: OperationRunner
    existing: Deployment | None = None

    @property
    def client(self) -> GoogleClient:
        """The client of the region."""
        return self.runner.client

    @property
    def region(self) -> str:
        """The region's name."""
        return self.client.location.region


@dataclass(frozen=True, kw_only=True)
class RegionPlans:
    """Plans of one deployment in the order in which they are tried; one at least.

    `left_out` has a reason for each region that cannot have it.
    """

    plans: Sequence[RegionPlan]
    left_out: Sequence[str] = ()

    @property
    def first(self) -> DeploymentPlan:
        """The plan that is tried first."""
        return self.plans[0].plan

    def as_ephemeral(self) -> "RegionPlans":
        """The plans of a deployment that the command itself removes."""
        plans = [replace(one, plan=one.plan.as_ephemeral()) for one in self.plans]
        return replace(self, plans=plans)

    def text(self) -> str:
        """The first plan for people, and which regions are tried, at which price."""
        lines = [self.first.text()]
        if len(self.plans) > 1:
            prices = [f"{one.region} ({_price(one.plan)})" for one in self.plans]
            lines.append(f"{'regions':<12} {', then '.join(prices)}")
        lines += [f"{'left out':<12} {reason}" for reason in self.left_out]
        return "\n".join(lines)

    def end_text(self) -> str:
        """What changes of the first plan with another end, for people."""
        return "\n".join(
            f"{key:<12} {value}" for key, value in self.first.end_rows().items() if value
        )

    def to_json(self) -> dict[str, object]:
        """The first plan as `--json` prints it, and the regions that are tried."""
        return self.first.to_json() | {
            "regions": [
                {"region": one.region, "usd_per_hour": one.plan.hourly_cost} for one in self.plans
            ],
            "regions_left_out": list(self.left_out),
        }

    def question(self) -> str:
        """The confirmation prompt: for the dearest of the regions."""
        if len(self.plans) == 1:
            return self.first.question()
        costs = [one.plan.hourly_cost for one in self.plans]
        known = [cost for cost in costs if cost is not None]
        price = f"at most {max(known):.2f} USD per hour" if len(known) == len(costs) else ""
        return (
            f"Deploy {self.first.title} in the first of {len(costs)} regions that has machines, "
            f"for {price or 'a price that is not known everywhere'}?"
        )


def plan_regions(
    spec: DeploymentSpec,
    clients: Sequence[GoogleClient],
    account: str | None,
    report: ReportProgress,
    *,
    check_quota: bool = False,
) -> RegionPlans:
    """Plan a deployment in every region that can have it; creates nothing.

    With `check_quota` a region whose quota is too low cannot. Raises the first region's T2IError if
    none can.
    """
    plans: list[RegionPlan] = []
    failures: list[tuple[str, T2IError]] = []
    for client in clients:
        try:
            plan = plan_deployment(spec, client, account)
            if plans:
                plan = _with_end_of(plan, plans[0].plan)
            if check_quota:
                plan.quota.check(client.location.project)
            if len(clients) > 1:
                _check_region(plan, client, plans)
        except (InputError, QuotaError) as error:
            failures.append((client.location.region, error))
            continue
        plans.append(RegionPlan(plan=plan, runner=OperationRunner(client, report)))
    if not plans:
        raise failures[0][1]
    return RegionPlans(
        plans=plans, left_out=[f"{region}: {error.message}" for region, error in failures]
    )


def continue_earlier_run(
    spec: DeploymentSpec, planned: RegionPlans, warn: Callable[[str], None]
) -> RegionPlans:
    """The plans, first where an earlier run left something, with its flex-start kept.

    Calls `warn` with a sentence for each deployment past its TTL.
    """
    plans: list[RegionPlan] = []
    for one in planned.plans:
        # Of several regions one may hold only a model or weights: a second copy would be made.
        several = len(planned.plans) > 1
        made = (
            inventory.list_deployments(one.client, one.plan.bucket)
            if several
            else inventory.list_endpoints(one.client)
        )
        now = one.client.server_time()
        inventory.warn_overdue(made.overdue(now), warn)
        existing = made.deployments.get(one.plan.labels.name)
        plan = flex_start.keep_google_end(spec, one.plan, existing, now)
        plans.append(replace(one, plan=plan, existing=existing))
    return replace(planned, plans=sorted(plans, key=lambda one: one.existing is None))


def deploy_first_available(
    plans: Sequence[RegionPlan],
    deploy: Callable[[RegionPlan], Found],
    remove: Callable[[RegionPlan], None],
    console: Console,
) -> tuple[RegionPlan, Found]:
    """Deploy in the first region that has machines and a quota of them; the region and the result.

    What was made where there are none is removed before the next is tried. Raises T2IError: the
    last region's, another than CapacityError, or that of a removal, after which none is tried.
    """
    for one, following in pairwise(plans):
        try:
            return one, deploy(one)
        except CapacityError as error:
            console.warn(f"{one.region}: {error.message}")
            remove(one)
            console.note(f"{following.region} is tried next.")
    return plans[-1], deploy(plans[-1])


def _with_end_of(plan: DeploymentPlan, first: DeploymentPlan) -> DeploymentPlan:
    """The plan with the first one's deadline: no region gets time that an earlier one took."""
    end = first.labels.expires
    google_end = None if plan.labels.google_end is None else end
    return replace(plan, labels=replace(plan.labels, expires=end, google_end=google_end))


def _check_region(
    plan: DeploymentPlan, client: GoogleClient, earlier: Sequence[RegionPlan]
) -> None:
    """Raise InputError if the plan's image or bucket lies where this region cannot use it."""
    region = client.location.region
    registry = _REGISTRY.fullmatch(plan.image or "")
    if registry and not _covers(registry["place"], region):
        raise InputError(
            f"the image {plan.image} lies in {registry['place']}, and Vertex AI takes it only "
            "from an endpoint's own region.",
            hint="`t2i remote build --region` makes one elsewhere.",
        )
    bucket = _shared_bucket(plan, client)
    if bucket is None:
        return
    place = _bucket_place(client, bucket)
    if place is None and plan.source.needs_upload and earlier:
        place = earlier[0].region  # where it would be made
    if place and not _covers(place, region):
        raise InputError(
            f"gs://{bucket} lies in {place}, and Vertex AI takes weights only from an endpoint's "
            "own region.",
            hint="Without --bucket each region gets one of its own.",
        )


def _shared_bucket(plan: DeploymentPlan, client: GoogleClient) -> str | None:
    """The bucket of the weights where it is the same in every region."""
    if plan.source.needs_upload:
        own = weights_bucket.default_bucket(client.location)
        return None if plan.bucket == own else plan.bucket
    return plan.source.uri.removeprefix("gs://").split("/")[0] if plan.source.uri else None


def _bucket_place(client: GoogleClient, bucket: str) -> str | None:
    """The region or multi-region of a bucket; None if it is unknown, or there is no bucket."""
    try:
        found = weights_bucket.storage(client).bucket(bucket)
    except AccessError:
        return None
    return str((found or {}).get("location") or "").lower() or None


def _covers(place: str, region: str) -> bool:
    """Whether a region or multi-region holds the region; unknown ones may."""
    if place in _MULTI_REGIONS:
        return region.startswith(_MULTI_REGIONS[place])
    return place == region or not _REGION.fullmatch(place)


def _price(plan: DeploymentPlan) -> str:
    cost = plan.hourly_cost
    return "price unknown" if cost is None else f"{cost:.2f} USD per hour"
