"""Backends as the command line chooses them, from the names of its options."""

from dataclasses import fields
from typing import Any

from t2i_cli.backend import Backend
from t2i_cli.backends.factory import create_backend
from t2i_cli.settings.options import (
    BackendOptions,
    CallOptions,
    ClusterOptions,
    DeviceOptions,
    EndpointOptions,
    HttpServerOptions,
    InferenceProviderOptions,
)


def chosen(backend: str | None = None, **options: Any) -> Backend:  # noqa: ANN401 - any option
    """The backend of that name, with options in whichever group has them."""
    groups: dict[str, Any] = {
        "http": HttpServerOptions,
        "hf": InferenceProviderOptions,
        "endpoint": EndpointOptions,
        "calls": CallOptions,
        "device": DeviceOptions,
        "cluster": ClusterOptions,
    }
    for name, group in groups.items():
        own = {one.name for one in fields(group)} & options.keys()
        groups[name] = group(**{field: options.pop(field) for field in own})
    return create_backend(BackendOptions(backend=backend, **groups), **options)
