"""The project's quota for an accelerator in a region, asked for before anything is uploaded.

https://cloud.google.com/docs/quotas/reference/rest/v1/projects.locations.services.quotaInfos;
the identifiers are those that the Google Cloud SDK asks for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from t2i_cli.errors import QuotaError, T2IError
from t2i_cli.vertex import hardware_table
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.machine_types import ReplicaHardware

_SERVICE = "aiplatform.googleapis.com"
_NOT_SPOT = "t2i does not know the name of the preemptible quota"


@dataclass(frozen=True, kw_only=True)
class AcceleratorQuota:
    """How many of an accelerator a project may have in a region; or why that is unknown.

    `needed` are those of the smallest number of replicas; a negative limit is none.
    """

    accelerator: str | None
    region: str
    needed: int = 0
    limit: int | None = None
    unknown: str | None = None

    @property
    def lacking(self) -> bool:
        """Whether the limit is known to be too low."""
        return self.limit is not None and 0 <= self.limit < self.needed

    def text(self) -> str:
        """One line for people, empty without an accelerator."""
        if self.accelerator is None:
            return ""
        if self.limit is None:
            return f"unknown: {self.unknown}"
        most = "no limit of" if self.limit < 0 else f"{self.limit}"
        return f"{most} {self.accelerator} in {self.region}, {self.needed} needed"

    def check(self, project: str) -> None:
        """Raise QuotaError if the limit is known to be too low."""
        if not self.lacking:
            return
        regions = _other_regions(str(self.accelerator), self.region)
        other = f" Other --region: {regions}." if regions else ""
        raise QuotaError(
            f"The quota of {project} for {self.accelerator} in {self.region} is {self.limit}, and "
            f"{self.needed} are needed.",
            hint=f"Ask for more at https://console.cloud.google.com/iam-admin/quotas?project="
            f"{project}, or name another --accelerator.{other}",
        )


def ask_quota(
    client: GoogleClient, hardware: ReplicaHardware, replicas: int, *, spot: bool = False
) -> AcceleratorQuota:
    """The quota for so many replicas; what hinders the question is told in it."""
    asked = AcceleratorQuota(
        accelerator=hardware.accelerator,
        region=client.location.region,
        needed=hardware.count * replicas,
    )
    if hardware.accelerator is None:
        return asked
    facts = hardware_table.hardware_table().accelerators.get(hardware.accelerator)
    if facts is None or facts.quota_id is None or spot:
        return _unknown(asked, _NOT_SPOT if spot else "t2i does not know the quota's name")
    parent = f"projects/{client.location.project}/locations/global/services/{_SERVICE}"
    try:
        found = client.call("GET", "cloudquotas", f"{parent}/quotaInfos/{facts.quota_id}", tries=1)
    except T2IError as error:
        return _unknown(asked, error.message)
    limit = _limit(found.get("dimensionsInfos"), asked.region)
    if limit is None:
        return _unknown(asked, "Google's answer does not tell it for this region")
    return AcceleratorQuota(
        accelerator=asked.accelerator, region=asked.region, needed=asked.needed, limit=limit
    )


def _unknown(asked: AcceleratorQuota, why: str) -> AcceleratorQuota:
    return AcceleratorQuota(
        accelerator=asked.accelerator, region=asked.region, needed=asked.needed, unknown=why
    )


def _limit(rows: object, region: str) -> int | None:
    """The limit in force in a region, of QuotaInfo.dimensionsInfos; `None` if there is none.

    A value of zero may be left out; what has dimensions beside the region is not counted.
    """
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, Mapping) or region not in _list(row.get("applicableLocations")):
            continue
        dimensions, details = row.get("dimensions"), row.get("details")
        if isinstance(dimensions, Mapping) and dimensions.keys() - {"region"}:
            continue
        value = details.get("value", "0") if isinstance(details, Mapping) else "0"
        # An int64 is text in protobuf's JSON.
        if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 20:
            return int(value)
    return None


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _other_regions(accelerator: str, region: str) -> str:
    """Names of other regions that have the accelerator, a few of them."""
    found: set[str] = set()
    for machine in hardware_table.machines_with(accelerator):
        found |= hardware_table.regions_of(machine, accelerator) or frozenset()
    return hardware_table.name_list(sorted(found - {region}), 5)
