"""Plan of a deployment: resources, cost and permissions, shown before anything is created."""

import re
from dataclasses import dataclass

from t2i_cli.durations import format_duration, parse_duration
from t2i_cli.errors import InputError
from t2i_cli.settings import store
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.terminal.console import format_bytes
from t2i_cli.vertex import containers, machine_types, permissions, weights_bucket
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.labels import Labels, format_time
from t2i_cli.vertex.machine_types import PriceTable, ReplicaHardware
from t2i_cli.vertex.model_source import ModelSource

_IDLE_RANGE = range(300, 28801)
"""Seconds of idle time before scaling to zero that Vertex AI allows."""
_ACCOUNT = re.compile(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com")


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
            "min_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "scale_to_zero_seconds": self.idle,
            "ttl_seconds": self.ttl,
            "expires": format_time(self.labels.expires),
            "enforced_by": "scheduler" if self.scheduler_account else None,
            "estimate": {
                "usd_per_hour": self._cost(1),
                "usd_per_day": self._cost(24),
                "usd_until_ttl": self._cost(hours),
                "prices_of": self.prices.date,
            },
            "permissions_missing": list(self.permissions.missing),
            "permissions_unknown": self.permissions.unknown,
        }

    def text(self) -> str:
        """The plan for people."""
        one = self.min_replicas == self.max_replicas
        count = str(self.max_replicas) if one else f"{self.min_replicas} to {self.max_replicas}"
        plural = "" if self.max_replicas == 1 else "s"
        rows = {
            "project": self.parent.replace("projects/", "").replace("/locations/", ", "),
            "weights": self._weights(),
            "model": f"{self.title}: {self.labels.model}, served by {self.labels.serving}",
            "image": self.image or "",
            "endpoint": f"{self.title}, dedicated",
            "machines": f"{count} replica{plural} of {self.hardware.text()}",
            "": f"none after {format_duration(self.idle)} without a call (Preview)"
            if self.idle
            else "",
            "price": self._price(),
            "TTL": f"{format_duration(self.ttl)}, until {format_time(self.labels.expires)}",
            "enforced by": self.enforcement(),
            "permissions": self.permissions.text(),
        }
        return "\n".join(f"{key:<12} {value}" for key, value in rows.items() if value)

    def question(self) -> str:
        """The confirmation prompt."""
        price = "a price that is not known"
        if (hourly := self._cost(1)) is not None:
            price = f"about {hourly:.2f} USD per hour"
        return f"Deploy {self.title} for {price}?"

    def enforcement(self) -> str:
        """What enforces the TTL, for people."""
        if self.scheduler_account:
            return (
                f"a Cloud Scheduler job, which undeploys it as {self.scheduler_account}; "
                "`t2i remote reap` removes the rest"
            )
        return (
            "nothing but `t2i remote reap`, which you run or have cron run "
            "(--scheduler-account makes a Cloud Scheduler job)"
        )

    def _weights(self) -> str:
        if self.source.needs_upload:
            size = f", {format_bytes(self.upload_bytes)} from here" if self.upload_bytes else ""
            return f"{self.artifacts}{size}"
        return self.source.uri or ""

    def _price(self) -> str:
        if self.hourly is None:
            return (
                f"unknown: the table ({self.prices.date}) has no {self.hardware.text()}; "
                "T2I_VERTEX_PRICES names a file that may"
            )
        hours = self.ttl / 3600
        most = "up to " if self.idle or self.min_replicas < self.max_replicas else ""
        return (
            f"{most}{self._cost(1):.2f} USD per hour, {self._cost(24):.2f} per day, "
            f"{self._cost(hours):.2f} until the TTL; an estimate (table: {self.prices.date})"
        )

    def _cost(self, hours: float) -> float | None:
        """USD for `hours` with the maximum number of replicas; None if the price is unknown."""
        return None if self.hourly is None else round(self.hourly * self.max_replicas * hours, 2)


def plan_deployment(
    spec: DeploymentSpec, client: GoogleClient, account: str | None
) -> DeploymentPlan:
    """Resolve the options into a plan; creates nothing. Raises T2IError."""
    serving, image = containers.choose_container(spec.serving, spec.image)
    source = containers.find_source(spec.model, serving)
    ttl = _duration("--ttl", spec.ttl)
    idle = _duration("--scale-to-zero", spec.scale_to_zero) if spec.scale_to_zero else None
    if idle is not None and idle not in _IDLE_RANGE:
        raise InputError("--scale-to-zero must be from 5m to 8h, which Vertex AI takes.")
    if idle is not None and spec.min_replicas != 1:
        raise InputError("--scale-to-zero leaves no replica running; leave --min-replicas out.")
    if not 1 <= spec.min_replicas <= spec.max_replicas:
        raise InputError("--min-replicas must be at least 1, and no more than --max-replicas.")
    for account_option in (spec.service_account, spec.scheduler_account):
        if account_option and not is_service_account(account_option):
            raise InputError(
                f"{account_option} is no service account: they end in .gserviceaccount.com."
            )
    hardware = machine_types.choose_hardware(spec.machine_type, spec.accelerator, source.spec)
    prices = machine_types.load_prices()
    bucket = None
    if source.needs_upload:
        default = weights_bucket.default_bucket(client.location)
        bucket = store.resolve_setting("vertex_bucket", spec.bucket) or default
    steps = ["predict", "deploy", "remove"]
    steps += ["upload"] if source.needs_upload else []
    steps += ["service account"] if spec.service_account or spec.scheduler_account else []
    steps += ["scheduler"] if spec.scheduler_account else []
    permission_check = permissions.check_permissions(client, steps)
    labels = Labels(
        name=_name(spec.name, source),
        expires=round(client.server_time()) + ttl,
        model=source.label_name,
        serving=serving,
        by=account or "unknown",
    )
    plan = DeploymentPlan(
        parent=client.location.parent,
        labels=labels,
        source=source,
        upload_bytes=_upload_bytes(source),
        bucket=bucket,
        image=image if serving == "t2i" else None,
        hardware=hardware,
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        idle=idle,
        ttl=ttl,
        hourly=hardware.price(prices),
        prices=prices,
        service_account=spec.service_account,
        scheduler_account=spec.scheduler_account,
        permissions=permission_check,
    )
    if spec.max_cost is not None and not spec.max_cost >= 0:
        raise InputError("--max-cost must be USD, as 5 or 2.50.")
    if spec.max_cost is not None:
        _check_cost(plan, spec.max_cost)
    return plan


def is_service_account(account: str) -> bool:
    """Whether the address is that of a service account, not of a person."""
    return _ACCOUNT.fullmatch(account) is not None


def _check_cost(plan: DeploymentPlan, limit: float) -> None:
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


def _duration(option: str, text: str) -> int:
    """An option's duration in seconds; raises InputError."""
    seconds = parse_duration(text)
    if not seconds:
        raise InputError(f"{option} {text} is no duration; write it as 90m or 2h.")
    return seconds


def _name(name: str | None, source: ModelSource) -> str:
    """The deployment's name, by default derived from the model's. Raises InputError."""
    if name is None:
        short = source.spec.name.split("/")[-1].lower()
        name = re.sub("[^a-z0-9]+", "-", short).strip("-")[:40].rstrip("-") or "model"
    if not re.fullmatch("[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise InputError(
            f"--name {name} must be 1 to 40 lowercase letters, digits and inner hyphens."
        )
    return name


def _upload_bytes(source: ModelSource) -> int:
    if source.folder:
        return sum(path.stat().st_size for path in source.folder.rglob("*") if path.is_file())
    return (source.spec.download_bytes or 0) if source.fetch else 0
