"""Client of Google Cloud's REST APIs for one project and region."""

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from typing import Any, Self

from t2i_cli.net.google_http import GoogleHttp
from t2i_cli.vertex.location import Location

_PATHS = {
    "aiplatform": "/v1/",
    "cloudbuild": "/v1/",
    "cloudquotas": "/v1/",
    "cloudresourcemanager": "/v3/",
    "cloudscheduler": "/v1/",
    "iam": "/v1/",
}


class GoogleClient(GoogleHttp):
    """HTTP client for one location and one account. Raises only T2IError."""

    def __init__(
        self,
        location: Location,
        authorize: Callable[[], Mapping[str, str]],
        *,
        seconds: float = 60,
    ) -> None:
        # Do not send the token through a proxy to this machine or within a private network.
        proxies = not (location.api_endpoint or "").lower().startswith("http://")
        super().__init__(authorize, seconds=seconds, proxies=proxies, ca_file=location.ca_file)
        self.location = location

    def in_region(self, region: str) -> Self:
        """A client of another region that shares the credentials and connections of this one."""
        other = copy(self)
        other.location = replace(self.location, region=region)
        return other

    def call(
        self,
        method: str,
        service: str,
        path: str,
        *,
        json: object = None,
        params: Mapping[str, str] | None = None,
        tries: int | None = None,
    ) -> dict[str, Any]:
        """The response's JSON; `path` is a resource name, or with a leading / the full path."""
        url = self._url(service, path)
        return self.call_url(method, url, json=json, params=params, tries=tries)

    def list_all(
        self, service: str, path: str, key: str, params: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every entry of a list method; follows its pages."""
        return self.list_url(self._url(service, path), key, params)

    def _url(self, service: str, path: str) -> str:
        whole = path if path.startswith("/") else _PATHS[service] + path
        return self.location.host(service) + whole
