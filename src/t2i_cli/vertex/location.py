"""Google Cloud location: project, region, and service hosts."""

import re
from dataclasses import dataclass

from t2i_cli.errors import InputError
from t2i_cli.settings import defaults, store
from t2i_cli.settings.options import LocationOptions
from t2i_cli.vertex import endpoint_store

_FULL_NAME = re.compile(r"projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)/endpoints/[^/]+")


@dataclass(frozen=True, kw_only=True)
class Location:
    """A project and region; `api_endpoint` replaces every host of Google's."""

    project: str
    region: str
    api_endpoint: str | None = None

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


def location_without_account(options: LocationOptions) -> Location:
    """The location as far as no credentials are needed to know it. Raises InputError."""
    return find_location(options, login_project=UNKNOWN_PROJECT)


def find_location(
    options: LocationOptions | None = None,
    *,
    endpoint: str | None = None,
    login_project: str | None = None,
) -> Location:
    """The location: of the options, else the settings, the stored endpoint, the credentials.

    A full resource name as `endpoint` sets its own location. Raises InputError.
    """
    options = options or LocationOptions()
    current = endpoint_store.current_endpoint()
    named = _FULL_NAME.fullmatch(endpoint or "")
    made = _FULL_NAME.fullmatch(current.name) if current else None
    project = (
        store.resolve_setting("vertex_project", options.project or (named and named["project"]))
        or (made and made["project"])
        or login_project
    )
    region = store.resolve_setting(
        "vertex_region", options.region or (named and named["region"])
    ) or (made["region"] if made else defaults.REGION)
    if not project:
        raise InputError(
            "There is no Google Cloud project: the credentials name none.",
            hint="--project, T2I_VERTEX_PROJECT or GOOGLE_CLOUD_PROJECT names it.",
        )
    api_endpoint = store.resolve_setting("vertex_api_endpoint", options.api_endpoint)
    return Location(project=project, region=region, api_endpoint=api_endpoint)
