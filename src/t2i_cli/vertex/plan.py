"""Plan of a deployment: resources, cost and permissions, shown before anything is created."""

from dataclasses import dataclass, replace

from t2i_cli.durations import format_duration
from t2i_cli.terminal.console import format_bytes
from t2i_cli.vertex import (
    hardware_table,
    permissions,
    provisioning,
    weights_bucket,
)
from t2i_cli.vertex.accelerator_quota import AcceleratorQuota
from t2i_cli.vertex.labels import Labels, format_time
from t2i_cli.vertex.location import UNKNOWN_PROJECT
from t2i_cli.vertex.machine_types import PriceTable, ReplicaHardware
from t2i_cli.vertex.model_memory import ModelMemory
from t2i_cli.vertex.model_source import ModelSource
from t2i_cli.vertex.provisioning import Provisioning
from t2i_cli.vertex.wake_up import WakeUp, estimate_wake_up


@dataclass(frozen=True, kw_only=True)
class DeploymentPlan:
    """A deployment with every option resolved.

    `idle` and `ttl` are in seconds, `hourly` is one replica's price in USD per hour. The command
    that deploys an `ephemeral` one removes it.
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
    ephemeral: bool = False

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

    @property
    def wake_up(self) -> WakeUp | None:
        """What a call costs that finds no replica; None if one is always there."""
        if not self.idle:
            return None
        return estimate_wake_up(self.source, self.labels.serving, self.upload_bytes, self.hourly)

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
            "wake_up": self.wake_up.to_json() if self.wake_up else None,
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
            "wake-up": self.wake_up.text() if self.wake_up else "",
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

    def as_ephemeral(self) -> "DeploymentPlan":
        """The plan of a deployment that the command itself removes."""
        return replace(self, ephemeral=True)

    def question(self) -> str:
        """The confirmation prompt."""
        price = "a price that is not known"
        if (hourly := self._cost(1)) is not None:
            bound = self.provisioning.price_is_bound(self.hardware, self.prices)
            price = f"{'at most' if bound else 'about'} {hourly:.2f} USD per hour"
        return f"Deploy {self.title} for {price}?"

    def enforcement(self) -> str:
        """What enforces the TTL, for people."""
        enforcers = ["this command, while this machine is on"] if self.ephemeral else []
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
