"""Vertex AI's configuration of a custom container, from the AIP_ environment variables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from t2i_cli.errors import InputError


@dataclass(frozen=True, kw_only=True)
class VertexContainer:
    """Port, routes and model URI that Vertex AI sets for a custom container."""

    port: int
    health_route: str
    predict_route: str
    storage_uri: str | None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self | None:
        """The configuration, None outside Vertex AI. Raises InputError on bad values."""
        if not is_vertex_container(environ):
            return None
        port = environ.get("AIP_HTTP_PORT") or "8080"
        if not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 2**16:
            raise InputError(f"AIP_HTTP_PORT must be a port, not {port!r}.")
        return cls(
            port=int(port),
            health_route=_route(environ, "AIP_HEALTH_ROUTE", "/health"),
            predict_route=_route(environ, "AIP_PREDICT_ROUTE", "/predict"),
            storage_uri=environ.get("AIP_STORAGE_URI") or None,
        )


def is_vertex_container(environ: Mapping[str, str]) -> bool:
    """Whether the environment is that of a container that Vertex AI runs."""
    return bool(environ.get("AIP_HTTP_PORT") or environ.get("AIP_PREDICT_ROUTE"))


def _route(environ: Mapping[str, str], variable: str, default: str) -> str:
    route = environ.get(variable) or default
    if not route.startswith("/") or "{" in route or "}" in route:
        raise InputError(f"{variable} must be a path, not {route!r}.")
    return route
