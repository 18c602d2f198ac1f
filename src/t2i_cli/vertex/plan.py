"""Plan of a deployment: resources, cost and permissions, shown before anything is created."""

import time
from dataclasses import dataclass, replace

from t2i_cli.durations import format_duration
from t2i_cli.errors import InputError
from t2i_cli.settings import store
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.terminal.console import format_bytes
from t2i_cli.vertex import (
    accelerator_quota,
    deployment_options,
    hardware_table,
    permissions,
    provisioning,
    weights_bucket,
)
from t2i_cli.vertex.accelerator_quota import AcceleratorQuota
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.deployment_options import CheckedOptions
from t2i_cli.vertex.labels import Labels, format_time
from t2i_cli.vertex.location import UNKNOWN_PROJECT, Location
from t2i_cli.vertex.machine_types import PriceTable, ReplicaHardware
from t2i_cli.vertex.model_memory import ModelMemory
from t2i_cli.vertex.model_source import ModelSource
from t2i_cli.vertex.provisioning import Provisioning


@dataclass(frozen=True, kw_only=True)
class DeploymentPlan:
    """A deployment with every option resolved.

    `idle` and `ttl` are in seconds, `hourly` is one replica's price in USD per hour.
    """

    parent: str
    labels: Labels
    source: ModelSource
    upload_bytes: int
    bucket: str | None
    image: str | None
    hardware: ReplicaHardware
    min_replicas: int
    max_replicas: int
    idle: int | None
    ttl: int
    hourly: float | None
    prices: PriceTable
    service_account: str | None
    scheduler_account: str | None
    permissions: permissions.PermissionCheck
    memory: ModelMemory | None
    quota: AcceleratorQuota
    reader: str
    provisioning: Provisioning = Provisioning()

    @property
    def title(self) -> str:
        """The display name of the created resources."""
        return f"t2i-{self.labels.name}"

    @property
    def artifacts(self) -> str | None:
        """The gs:// address that the container loads its weights from, if any."""
        if self.source.needs_upload:
            return f"gs://{self.bucket}/{weights_bucket.weights_prefix(self.labels.name)}".rstrip(
                "/"
            )
        return self.source.uri

    @property
    def hourly_cost(self) -> float | None:
        """USD per hour with the maximum number of replicas; None if the price is unknown."""
        return self._cost(1)

    def to_json(self) -> dict[str, object]:
        """The plan as `--json` prints it."""
        hours = self.ttl / 3600
        return {
            "name": self.labels.name,
            "parent": self.parent,
            "model": self.labels.model,
            "serving": self.labels.serving,
            "image": self.image,
            "artifacts": self.artifacts,
            "upload_bytes": self.upload_bytes,
            "machine_type": self.hardware.machine,
            "accelerator": self.hardware.accelerator,
            "accelerator_count": self.hardware.count,
            "provisioning": self.provisioning.name,
            "min_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "scale_to_zero_seconds": self.idle,
            "ttl_seconds": self.ttl,
            "expires": format_time(self.labels.expires),
            "enforced_by": self._enforcer(),
            "estimate": {
                "usd_per_hour": self._cost(1),
                "usd_per_day": self._cost(24),
                "usd_until_ttl": self._cost(hours),
                "prices_of": self.prices.date,
                "at_most": self.provisioning.price_is_bound(self.hardware, self.prices),
            },
            "weights_read_by": self.reader,
            "memory": {
                "needed_bytes": self.memory.peak if self.memory else None,
                "weights_bytes": self.memory.weights if self.memory else None,
                "accelerator_bytes": self._accelerator_memory(),
            },
            "quota": {"limit": self.quota.limit, "needed": self.quota.needed},
            "quota_unknown": self.quota.unknown,
            "permissions_missing": list(self.permissions.missing),
            "permissions_unknown": self.permissions.unknown,
        }

    def text(self) -> str:
        """The plan for people."""
        one = self.min_replicas == self.max_replicas
        count = str(self.max_replicas) if one else f"{self.min_replicas} to {self.max_replicas}"
        plural = "" if self.max_replicas == 1 else "s"
        rows = {
            "project": self._project(),
            "weights": self._weights(),
            "read by": self.reader,
            "model": f"{self.title}: {self.labels.model}, served by {self.labels.serving}",
            "image": self.image or "",
            "endpoint": f"{self.title}, dedicated",
            "machines": f"{count} replica{plural} of {self.hardware.text()}",
            "": f"none after {format_duration(self.idle)} without a call (Preview)"
            if self.idle
            else "",
            "memory": self._memory(),
            "quota": self.quota.text(),
            **self.end_rows(),
            "permissions": self.permissions.text(),
        }
        return "\n".join(f"{key:<12} {value}" for key, value in rows.items() if value)

    def end_rows(self) -> dict[str, str]:
        """The rows for people on how machines are had, what they cost, and what ends them."""
        return {
            "provisioning": self._machines(),
            "price": self._price(),
            "TTL": f"{format_duration(self.ttl)}, until {format_time(self.labels.expires)}",
            "enforced by": self.enforcement(),
        }

    def question(self) -> str:
        """The confirmation prompt."""
        price = "a price that is not known"
        if (hourly := self._cost(1)) is not None:
            bound = self.provisioning.price_is_bound(self.hardware, self.prices)
            price = f"{'at most' if bound else 'about'} {hourly:.2f} USD per hour"
        return f"Deploy {self.title} for {price}?"

    def enforcement(self) -> str:
        """What enforces the TTL, for people."""
        enforcers = []
        if self.provisioning.flex_start:
            enforcers.append("Google, by flex-start, which undeploys it")
        if self.scheduler_account:
            enforcers.append(
                f"a Cloud Scheduler job, which undeploys it as {self.scheduler_account}"
            )
        if enforcers:
            return f"{', and '.join(enforcers)}; `t2i remote reap` removes the rest"
        return (
            "nothing but `t2i remote reap`, which you run or have cron run "
            "(--scheduler-account makes a Cloud Scheduler job)"
        )

    def _project(self) -> str:
        _, project, _, region = self.parent.split("/")
        return f"{'not known' if project == UNKNOWN_PROJECT else project}, {region}"

    def _enforcer(self) -> str | None:
        """What enforces the TTL, for scripts."""
        if self.provisioning.flex_start:
            return provisioning.FLEX_START
        return "scheduler" if self.scheduler_account else None

    def _machines(self) -> str:
        """How the machines are had, "" where nothing is to be said of it."""
        if self.provisioning.name == provisioning.ON_DEMAND:
            return ""
        note = self.provisioning.machines_note()
        return f"{self.provisioning.name}{f'; {note}' if note else ''}"

    def _weights(self) -> str:
        if self.source.needs_upload:
            size = f", {format_bytes(self.upload_bytes)} from here" if self.upload_bytes else ""
            return f"{self.artifacts}{size}"
        return self.source.uri or ""

    def _accelerator_memory(self) -> int | None:
        """Bytes that a model may take of one accelerator; `None` without one."""
        return hardware_table.accelerator_memory(self.hardware.accelerator or "")

    def _memory(self) -> str:
        there = self._accelerator_memory()
        if there is None:
            return ""
        has = f"{format_bytes(there)} of one {self.hardware.accelerator}"
        need = self.memory.text() if self.memory else f"unknown for {self.labels.model}"
        return f"{need}; there are {has}"

    def _price(self) -> str:
        if self.hourly is None:
            return (
                f"unknown: the table ({self.prices.date}) has no {self.hardware.text()}; "
                "T2I_VERTEX_PRICES names a file that may"
            )
        hours = self.ttl / 3600
        note = self.provisioning.price_note(self.hardware, self.prices)
        bound = self.provisioning.price_is_bound(self.hardware, self.prices)
        varies = self.idle or self.min_replicas < self.max_replicas or bound
        return (
            f"{'up to ' if varies else ''}{self._cost(1):.2f} USD per hour, "
            f"{self._cost(24):.2f} per day, {self._cost(hours):.2f} until the TTL; an estimate "
            f"(table: {self.prices.date}){f'; {note}' if note else ''}"
        )

    def _cost(self, hours: float) -> float | None:
        """USD for `hours` with the maximum number of replicas; None if the price is unknown."""
        return None if self.hourly is None else round(self.hourly * self.max_replicas * hours, 2)


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
        raise InputError(
            f"Until its TTL of {format_duration(plan.ttl)} this would cost up to {cost:.2f} USD "
            f"by the estimate, more than --max-cost {limit:.2f}.",
            hint=f"--ttl {format_duration(fits)} would fit."
            if fits
            else "A cheaper --machine-type may fit.",
        )


def _upload_bytes(source: ModelSource) -> int:
    if source.folder:
        return sum(path.stat().st_size for path in source.folder.rglob("*") if path.is_file())
    return (source.spec.download_bytes or 0) if source.fetch else 0
