"""Google Cloud's REST interfaces at one place: a project in a region."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from t2i_cli.net.google_http import GoogleHttp
from t2i_cli.vertex.location import Location

_PATHS = {
    "aiplatform": "/v1/",
    "cloudbuild": "/v1/",
    "cloudresourcemanager": "/v3/",
    "cloudscheduler": "/v1/",
    "iam": "/v1/",
}


class GoogleClient(GoogleHttp):
    """A connection to one place, as one account; errors leave it only as T2IError."""

    def __init__(self, place: Location, token: Callable[[], str], *, seconds: float = 60) -> None:
        # A token must not go through a proxy to this very machine.
        proxies = not (place.api_endpoint or "").startswith("http://")
        super().__init__(token, seconds=seconds, proxies=proxies)
        self.place = place

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
        """The answer's JSON; `path` is a resource's name, or begins with / where it is whole."""
        url = self._url(service, path)
        return self.call_url(method, url, json=json, params=params, tries=tries)

    def list_all(
        self, service: str, path: str, key: str, params: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every entry of a list, whatever the number of pages."""
        return self.list_url(self._url(service, path), key, params)

    def _url(self, service: str, path: str) -> str:
        whole = path if path.startswith("/") else _PATHS[service] + path
        return self.place.host(service) + whole
