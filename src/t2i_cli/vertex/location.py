"""Google Cloud location: project, region, and service hosts."""

import re
from dataclasses import dataclass, replace

from t2i_cli.errors import InputError
from t2i_cli.files.user_paths import expand_option
from t2i_cli.library_environment import is_project_id
from t2i_cli.settings import defaults, store
from t2i_cli.settings.options import LocationOptions
from t2i_cli.settings.schema import is_private_http_url
from t2i_cli.terminal.console import console
from t2i_cli.vertex import endpoint_store

_FULL_NAME = re.compile(r"projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)/endpoints/[^/]+")


@dataclass(frozen=True, kw_only=True)
class Location:
    """A project and region; `api_endpoint` replaces every host of Google's.

    `ca_file` names the certificates to trust in place of the usual ones.
    """

    project: str
    region: str
    api_endpoint: str | None = None
    ca_file: str | None = None

    @property
    def parent(self) -> str:
        """The parent resource name of everything in the location."""
        return f"projects/{self.project}/locations/{self.region}"

    def host(self, service: str) -> str:
        """The base URL of a service, as `aiplatform` or `storage`."""
        if self.api_endpoint:
            return self.api_endpoint.rstrip("/")
        regional = f"{self.region}-" if service == "aiplatform" else ""
        return f"https://{regional}{service}.googleapis.com"

    def endpoint(self, named: str) -> str:
        """An endpoint's full resource name, from that or from its number."""
        return named if "/" in named else f"{self.parent}/endpoints/{named}"


UNKNOWN_PROJECT = "PROJECT"
"""Stands in a plan for the project that only credentials would name."""


def locations_without_account(options: LocationOptions) -> list[Location]:
    """The locations as far as no credentials are needed to know them. Raises InputError."""
    return find_locations(options, login_project=UNKNOWN_PROJECT)


def check_project(project: str) -> None:
    """Raise InputError if no project of Google Cloud can have this id."""
    if not is_project_id(project):
        raise InputError(
            f"{project[:80]!r} is no Google Cloud project: an id has 6 to 30 lower-case letters, "
            "digits and hyphens, begins with a letter, and ends with no hyphen.",
            hint="`gcloud projects list` shows the ids; a project's number will do, too.",
            field="project",
        )


def find_location(
    options: LocationOptions | None = None,
    *,
    endpoint: str | None = None,
    login_project: str | None = None,
) -> Location:
    """The location: of the options, else the settings, the stored endpoint, the credentials.

    A full resource name as `endpoint` sets its own location. Of a setting's several regions it is
    that of the endpoint in use, else the first. Raises InputError.
    """
    options = options or LocationOptions()
    found = _find_all(options, endpoint, login_project)
    if len(found) == 1:
        return found[0]
    current = endpoint_store.current_endpoint()
    names = [endpoint] if options.region else [endpoint, current and current.name]
    for named in filter(None, (_FULL_NAME.fullmatch(name or "") for name in names)):
        for one in found:
            if one.region == named["region"]:
                return one
    if options.region:
        raise InputError(
            f"--region {options.region} names {len(found)} regions, and this takes one.",
            hint="`t2i remote deploy`, `run` and `reap` take several, and `t2i batch --ephemeral`.",
            field="region",
        )
    return found[0]


def find_locations(
    options: LocationOptions | None = None, *, login_project: str | None = None
) -> list[Location]:
    """The locations of a deployment, one for each region to try in turn. Raises InputError."""
    return _find_all(options or LocationOptions(), None, login_project)


def split_regions(options: LocationOptions) -> list[LocationOptions]:
    """The options once for each region that they or the setting name. Raises InputError."""
    regions = store.resolve_setting("vertex_region", options.region)
    if regions is None:
        return [options]
    return [replace(options, region=region) for region in _region_names(regions)]


def _region_names(listed: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in listed.split(",")))


def _find_all(
    options: LocationOptions, endpoint: str | None, login_project: str | None
) -> list[Location]:
    current = endpoint_store.current_endpoint()
    named = _FULL_NAME.fullmatch(endpoint or "")
    made = _FULL_NAME.fullmatch(current.name) if current else None
    project = (
        store.resolve_setting("vertex_project", options.project or (named and named["project"]))
        or (made and made["project"])
        or login_project
    )
    regions = store.resolve_setting(
        "vertex_region", options.region or (named and named["region"])
    ) or (made["region"] if made else defaults.REGION)
    if not project:
        raise InputError(
            "There is no Google Cloud project: the credentials name none.",
            hint="--project, T2I_VERTEX_PROJECT or GOOGLE_CLOUD_PROJECT names it.",
        )
    api_endpoint = store.resolve_setting("vertex_api_endpoint", options.api_endpoint)
    ca_file = store.resolve_setting("vertex_ca_file", options.ca_file)
    if project != UNKNOWN_PROJECT:
        check_project(project)
    # Without an account nothing is sent, and with one the location is found again.
    if login_project != UNKNOWN_PROJECT and api_endpoint and is_private_http_url(api_endpoint):
        console.warn(
            f"The access token goes to {api_endpoint} without encryption: whoever can read along "
            "in that network can use it."
        )
    return [
        Location(
            project=project,
            region=region,
            api_endpoint=api_endpoint,
            ca_file=ca_file and expand_option(ca_file),
        )
        for region in _region_names(regions)
    ]
