"""Builds the bodies of Vertex AI's requests as Google's own types.

The types of google-cloud-aiplatform refuse a field or an enum value that there is not; the REST
client sends their JSON. Importing them takes most of a second, for they cannot be had without their
package's clients: only what creates resources, which takes minutes, imports this. Deploying is by
v1beta1 where a field needs it (scale to zero, for one).
https://cloud.google.com/python/docs/reference/aiplatform/latest
"""

from collections.abc import Mapping
from typing import Any, Literal

from t2i_cli.errors import InputError

ApiVersion = Literal["v1", "v1beta1"]
"""A version of Vertex AI's API: v1beta1 has every field of v1's endpoints, and more."""


def upload_body(model: Mapping[str, object]) -> dict[str, Any]:
    """The body that uploads a Model. Raises InputError for what Google's type does not have."""
    return _build_body("v1", "UploadModelRequest", {"model": model})


def endpoint_body(endpoint: Mapping[str, object]) -> dict[str, Any]:
    """The body that creates or updates an Endpoint. Raises InputError as `upload_body` does."""
    return _build_body("v1", "Endpoint", endpoint)


def deployment_body(version: ApiVersion, deployed: Mapping[str, object]) -> dict[str, Any]:
    """The body that deploys a model, which gets all traffic. Raises InputError as `upload_body`.

    v1 sends the container's output to Cloud Logging unless told not to, v1beta1 only if told to.
    """
    logging = {"enableContainerLogging": True} if version == "v1beta1" else {}
    # "0" is the model that is being deployed.
    body = {"deployedModel": {**deployed, **logging}, "trafficSplit": {"0": 100}}
    return _build_body(version, "DeployModelRequest", body)


def _build_body(version: ApiVersion, kind: str, value: Mapping[str, object]) -> dict[str, Any]:
    """`value` as a message of this type, and that as JSON: without what is the default anyway."""
    from google.protobuf import json_format

    types: Any
    if version == "v1":
        from google.cloud.aiplatform_v1 import types
    else:
        from google.cloud.aiplatform_v1beta1 import types
    message = getattr(types, kind).pb()()
    try:
        json_format.ParseDict(value, message)
    except json_format.ParseError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"Vertex AI's {version} has no such value: {reason}.") from error
    body: dict[str, Any] = json_format.MessageToDict(message)
    return body
