"""The least permissions that each step needs, and which of them the credentials have.

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
    "remove": (
        "aiplatform.endpoints.list",
        "aiplatform.endpoints.get",
        "aiplatform.endpoints.undeploy",
        "aiplatform.endpoints.delete",
        "aiplatform.models.list",
        "aiplatform.models.delete",
    ),
    "service account": ("iam.serviceAccounts.actAs",),
    "scheduler": (
        "cloudscheduler.jobs.create",
        "cloudscheduler.jobs.list",
        "cloudscheduler.jobs.update",
        "cloudscheduler.jobs.delete",
    ),
}
"""What `t2i remote` does, and the permissions for it."""
_ELSEWHERE = ("storage.", "iam.serviceAccounts.")
"""These may be granted on the bucket or the account itself, where the project knows nothing."""


@dataclass(frozen=True, kw_only=True)
class PermissionCheck:
    """The permissions that were asked for: how many, which are missing, or why nobody knows."""

    asked: int
    missing: tuple[str, ...] = ()
    unknown: str | None = None

    @property
    def blocking(self) -> tuple[str, ...]:
        """Those missing that can be granted on the project only."""
        return tuple(name for name in self.missing if not name.startswith(_ELSEWHERE))

    def text(self) -> str:
        """One line for people."""
        if self.unknown:
            return f"{self.asked} needed; whether they are there cannot be told: {self.unknown}"
        if not self.missing:
            return f"{self.asked} needed, all there"
        return f"{self.asked} needed, missing: {', '.join(self.missing)}"


def check_permissions(
    rest: GoogleClient, steps: Iterable[str], *, tries: int | None = None
) -> PermissionCheck:
    """Ask which permissions of these steps the credentials have on the project."""
    asked = list(dict.fromkeys(name for step in steps for name in STEPS[step]))
    try:
        answer = rest.call(
            "POST",
            "cloudresourcemanager",
            f"projects/{rest.place.project}:testIamPermissions",
            json={"permissions": asked},
            tries=tries,
        )
    except T2IError as error:
        return PermissionCheck(asked=len(asked), unknown=error.message)
    there = set(answer.get("permissions", []))
    return PermissionCheck(
        asked=len(asked), missing=tuple(name for name in asked if name not in there)
    )


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What an account may do: the steps that miss permissions, or why nobody knows."""

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
    """Find the credentials, have a token issued, and ask what they may do.

    The project is the one that t2i would use: of the settings, else of the credentials.

    Waits `seconds` for each call. Raises AccessError, RemoteError or TimedOutError.
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
    with GoogleClient(where, token, seconds=seconds) as rest:
        tested = check_permissions(rest, STEPS, tries=1)
    missing = {
        step: lacking
        for step, names in STEPS.items()
        if (lacking := tuple(name for name in names if name in tested.missing))
    }
    return login, Capabilities(missing=missing, unknown=tested.unknown)
