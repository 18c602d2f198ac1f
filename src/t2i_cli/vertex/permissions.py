"""IAM permissions that each step needs, and which of them the credentials have.

https://cloud.google.com/iam/docs/permissions-reference
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from t2i_cli.errors import InputError, T2IError
from t2i_cli.net import google_credentials
from t2i_cli.net.google_credentials import CredentialInfo
from t2i_cli.vertex import location
from t2i_cli.vertex.client import GoogleClient

_DEPLOY = tuple(
    f"aiplatform.{permission}"
    for permission in (
        "models.upload",
        "models.get",
        "models.list",
        "endpoints.create",
        "endpoints.get",
        "endpoints.list",
        "endpoints.update",
        "endpoints.deploy",
        "operations.list",
    )
)
STEPS: Mapping[str, tuple[str, ...]] = {
    "predict": ("aiplatform.endpoints.predict",),
    "deploy": _DEPLOY,
    "upload": (
        "resourcemanager.projects.get",
        "storage.buckets.get",
        "storage.buckets.create",
        "storage.objects.list",
        "storage.objects.get",
        "storage.objects.create",
        "storage.objects.delete",
        "storage.buckets.delete",
    ),
    # An operation is read with the `get` of its resource, and cancelled with the permission that
    # it was started with: a deployment under way with endpoints.deploy
    # (https://cloud.google.com/vertex-ai/docs/general/iam-permissions).
    "remove": (
        "aiplatform.endpoints.list",
        "aiplatform.endpoints.get",
        "aiplatform.endpoints.deploy",
        "aiplatform.endpoints.undeploy",
        "aiplatform.endpoints.delete",
        "aiplatform.models.get",
        "aiplatform.models.list",
        "aiplatform.models.delete",
        "aiplatform.operations.list",
    ),
    "service account": ("iam.serviceAccounts.actAs",),
    "scheduler": (
        "cloudscheduler.jobs.create",
        "cloudscheduler.jobs.list",
        "cloudscheduler.jobs.update",
        "cloudscheduler.jobs.delete",
    ),
}
"""Steps of `t2i remote` and the permissions each needs."""
_RESOURCE_LEVEL = ("storage.", "iam.serviceAccounts.")
"""Prefixes of permissions that may be granted on a bucket or account instead of the project."""


@dataclass(frozen=True, kw_only=True)
class PermissionCheck:
    """Result of a permission test: number requested, those missing, or why it is unknown."""

    requested: int
    missing: tuple[str, ...] = ()
    unknown: str | None = None

    @property
    def blocking(self) -> tuple[str, ...]:
        """Missing permissions that can only be granted on the project."""
        return tuple(name for name in self.missing if not name.startswith(_RESOURCE_LEVEL))

    def text(self) -> str:
        """One line for people."""
        if self.unknown:
            return f"{self.requested} needed; whether they are there cannot be told: {self.unknown}"
        if not self.missing:
            return f"{self.requested} needed, all there"
        return f"{self.requested} needed, missing: {', '.join(self.missing)}"


def check_permissions(
    client: GoogleClient, steps: Iterable[str], *, tries: int | None = None
) -> PermissionCheck:
    """Test which permissions of these steps the credentials have on the project."""
    requested = _names(steps)
    try:
        answer = client.call(
            "POST",
            "cloudresourcemanager",
            f"projects/{client.location.project}:testIamPermissions",
            json={"permissions": requested},
            tries=tries,
        )
    except T2IError as error:
        return PermissionCheck(requested=len(requested), unknown=error.message)
    granted = set(answer.get("permissions", []))
    return PermissionCheck(
        requested=len(requested), missing=tuple(name for name in requested if name not in granted)
    )


def unknown_permissions(steps: Iterable[str], why: str) -> PermissionCheck:
    """The check of these steps where nothing could be asked."""
    return PermissionCheck(requested=len(_names(steps)), unknown=why)


def _names(steps: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for step in steps for name in STEPS[step]))


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Missing permissions by step, or why they are unknown."""

    missing: Mapping[str, tuple[str, ...]]
    unknown: str | None = None

    def text(self) -> str:
        """One line for people."""
        if self.unknown:
            return f"cannot be told: {self.unknown}"
        able = ", ".join(step for step in STEPS if step not in self.missing) or "nothing"
        lacking = "; ".join(f"{step}: {', '.join(names)}" for step, names in self.missing.items())
        return f"{able}{'. Missing for ' if lacking else ''}{lacking}"


def check_capabilities(
    impersonate: str | None = None, seconds: float = 10
) -> tuple[CredentialInfo, Capabilities | None]:
    """Find the credentials, request a token, and test their permissions.

    The project is that of the settings, else of the credentials; capabilities are None without one.
    `seconds` is the timeout of each call. Raises AccessError, RemoteError or TimedOutError.
    """
    found, login = google_credentials.verify_credentials(impersonate, seconds)
    try:
        where = location.find_location(login_project=login.project)
    except InputError:
        if login.project:
            raise
        return login, None
    login = replace(login, project=where.project)
    token = google_credentials.TokenProvider(found, seconds)
    with GoogleClient(where, token, seconds=seconds) as client:
        check = check_permissions(client, STEPS, tries=1)
    missing = {
        step: lacking
        for step, names in STEPS.items()
        if (lacking := tuple(name for name in names if name in check.missing))
    }
    return login, Capabilities(missing=missing, unknown=check.unknown)
