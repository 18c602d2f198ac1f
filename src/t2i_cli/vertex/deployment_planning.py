"""Makes the plan of a deployment out of its options; creates nothing."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from t2i_cli.durations import format_duration
from t2i_cli.errors import InputError
from t2i_cli.image_costs import exact_usd, format_usd
from t2i_cli.settings import store
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.vertex import (
    accelerator_quota,
    deployment_options,
    permissions,
    provisioning,
    weights_bucket,
)
from t2i_cli.vertex.accelerator_quota import AcceleratorQuota
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.deployment_options import CheckedOptions
from t2i_cli.vertex.labels import Labels
from t2i_cli.vertex.location import Location
from t2i_cli.vertex.model_source import ModelSource
from t2i_cli.vertex.plan import DeploymentPlan


def plan_deployment(
    spec: DeploymentSpec, client: GoogleClient, account: str | None
) -> DeploymentPlan:
    """Resolve the options into a plan; creates nothing. Raises T2IError."""
    options = deployment_options.check_options(spec, client.location.region)
    had = provisioning.choose_provisioning(spec, options.hardware, options.ttl, client.location)
    return _plan(
        spec,
        options,
        client.location,
        permissions=permissions.check_permissions(client, _steps(spec, options)),
        quota=accelerator_quota.ask_quota(
            client, options.hardware, spec.min_replicas, spot=had.spot or had.flex_start
        ),
        now=client.server_time(),
        account=account,
    )


def plan_without_account(spec: DeploymentSpec, location: Location, why: str) -> DeploymentPlan:
    """The plan as far as it needs no credentials; `why` says what is unknown. Raises T2IError."""
    options = deployment_options.check_options(spec, location.region)
    hardware = options.hardware
    quota = AcceleratorQuota(
        accelerator=hardware.accelerator,
        region=location.region,
        needed=hardware.count * spec.min_replicas,
        unknown=why,
    )
    unknown = permissions.unknown_permissions(_steps(spec, options), why)
    now = time.time()
    return _plan(spec, options, location, permissions=unknown, quota=quota, now=now, account=None)


def check_regions(spec: DeploymentSpec, places: Sequence[Location]) -> None:
    """Raise the first region's InputError if none can have it, by what needs no account."""
    failures: list[InputError] = []
    for place in places:
        try:
            plan_without_account(spec, place, "")
        except InputError as error:
            failures.append(error)
    if len(failures) == len(places):
        raise failures[0]


def _steps(spec: DeploymentSpec, options: CheckedOptions) -> list[str]:
    """The steps whose permissions are needed."""
    steps = ["predict", "deploy", "remove"]
    steps += ["upload"] if options.source.needs_upload else []
    steps += ["service account"] if spec.service_account or spec.scheduler_account else []
    steps += ["scheduler"] if spec.scheduler_account else []
    return steps


def _plan(
    spec: DeploymentSpec,
    options: CheckedOptions,
    location: Location,
    *,
    permissions: permissions.PermissionCheck,
    quota: AcceleratorQuota,
    now: float,
    account: str | None,
) -> DeploymentPlan:
    """Put the plan together. Raises InputError if it could cost more than the user allows."""
    source, hardware = options.source, options.hardware
    had = provisioning.choose_provisioning(spec, hardware, options.ttl, location)
    expires = round(now) + options.ttl
    bucket = None
    if source.needs_upload:
        default = weights_bucket.default_bucket(location)
        bucket = store.resolve_setting("vertex_bucket", spec.bucket) or default
    plan = DeploymentPlan(
        parent=location.parent,
        labels=Labels(
            name=options.name,
            expires=expires,
            model=source.label_name,
            serving=options.serving,
            by=account or "unknown",
            google_end=expires if had.flex_start else None,
        ),
        source=source,
        upload_bytes=_upload_bytes(source),
        bucket=bucket,
        image=options.image,
        hardware=hardware,
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        idle=options.idle,
        ttl=options.ttl,
        hourly=had.hourly_price(hardware, options.prices),
        prices=options.prices,
        service_account=spec.service_account,
        scheduler_account=spec.scheduler_account,
        permissions=permissions,
        memory=options.memory,
        quota=quota,
        reader="",
        provisioning=had,
    )
    reader = deployment_options.weights_reader(options, plan.artifacts, spec.service_account)
    plan = replace(plan, reader=reader)
    if spec.max_cost is not None:
        check_cost(plan, spec.max_cost)
    return plan


def check_cost(plan: DeploymentPlan, limit: float) -> None:
    """Raise InputError if the cost until the TTL may exceed `limit` USD, or is unknown."""
    if plan.hourly is None:
        raise InputError(
            f"--max-cost cannot be kept: the price of {plan.hardware.text()} is not known.",
            hint="T2I_VERTEX_PRICES names a TOML file with prices.",
        )
    hourly = plan.hourly * plan.max_replicas
    cost = hourly * plan.ttl / 3600
    if cost > limit:
        fits = int(limit / hourly * 3600) // 60 * 60
        most = round(cost, 2)
        if most <= limit:  # it is not told as what the limit allows
            most = math.ceil(cost * 100) / 100
        raise InputError(
            f"Until its TTL of {format_duration(plan.ttl)} this would cost up to {most:.2f} USD "
            f"by the estimate, more than --max-cost {format_usd(exact_usd(limit))}.",
            hint=f"--ttl {format_duration(fits)} would fit."
            if fits
            else "A cheaper --machine-type may fit.",
        )


def _upload_bytes(source: ModelSource) -> int:
    if source.folder:
        return sum(path.stat().st_size for path in source.folder.rglob("*") if path.is_file())
    return (source.spec.download_bytes or 0) if source.fetch else 0
