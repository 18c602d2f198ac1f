"""Refuses what Google refuses: every request is parsed into Google's own types, then checked.

The types are those of google-cloud-aiplatform, v1 or v1beta1 by the version in the path. Which
fields are required or output only stands in their docstrings, and is read from there. What their
docstrings say in words (ranges, forms of ids, labels) is checked by hand.
"""

# ruff: noqa: ANN401 - messages of protobuf, and bodies of any JSON

import importlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from google.protobuf import json_format

from tests.fakes.google import Refused
from tests.fakes.google_machines import machine_fault

METHODS: Mapping[str, tuple[str, str]] = {
    "upload_model": ("UploadModelRequest", "*"),
    "list_models": ("ListModelsRequest", ""),
    "get_model": ("GetModelRequest", ""),
    "delete_model": ("DeleteModelRequest", ""),
    "create_endpoint": ("CreateEndpointRequest", "endpoint"),
    "list_endpoints": ("ListEndpointsRequest", ""),
    "get_endpoint": ("GetEndpointRequest", ""),
    "patch_endpoint": ("UpdateEndpointRequest", "endpoint"),
    "delete_endpoint": ("DeleteEndpointRequest", ""),
    "deploy": ("DeployModelRequest", "*"),
    "undeploy": ("UndeployModelRequest", "*"),
    "predict": ("PredictRequest", "*"),
}
"""The fake's methods: the request's type, and which of its fields the body is ("*": all)."""
OPERATIONS: Mapping[str, frozenset[str]] = {
    "list_operations": frozenset({"filter", "pageSize", "pageToken", "returnPartialSuccess"}),
    "get_operation": frozenset(),
    "cancel_operation": frozenset(),
    "list_locations": frozenset({"filter", "pageSize", "pageToken"}),
}
"""google.longrunning.Operations and google.cloud.location: the keys of the query; no bodies."""
SYSTEM_KEYS = frozenset(
    {"$alt", "alt", "fields", "$fields", "key", "prettyPrint", "$prettyPrint", "quotaUser"}
)
"""Query parameters that every method takes: https://cloud.google.com/apis/docs/system-parameters"""
SECOND, MINUTE, HOUR = 1, 60, 3600

_NO_FIELD = re.compile(r'has no field named "(?P<name>[^"]*)"')
_BAD_ENUM = re.compile(r"Invalid enum value (?P<value>.+?) for enum type (?P<type>[\w.]+)")
_RESOURCE = r"projects/[^/]+/locations/[^/]+/{}/[^/@]+"
_LABEL_KEY, _LABEL = re.compile(r"[^\W\dA-Z_][\w-]{0,62}"), re.compile(r"[\w-]{0,63}")
_IMAGE = re.compile(r"(([a-z0-9-]+-docker\.pkg\.dev/[^/]+/[^/]+|([a-z]+\.)?gcr\.io)/.+)")


def invalid(message: str) -> Refused:
    """400 of a wrong argument."""
    return Refused(400, "INVALID_ARGUMENT", message)


def parsed_request(
    method: str,
    version: str,
    fields: Mapping[str, Any],
    query: Mapping[str, str],
    body: Any,
    *,
    whole: bool = False,
) -> Any:
    """The request as Google's type; `fields` are the path's. Raises Refused for what is wrong.

    `whole` ignores output-only fields, as Google does: its own client updates with whole resources.
    """
    keys = {name: value for name, value in query.items() if name not in SYSTEM_KEYS}
    if method in OPERATIONS:
        if unknown := sorted(keys.keys() - OPERATIONS[method]) or sorted(body):
            raise unknown_name(unknown[0])
        return None
    kind, place = METHODS[method]
    if place == "*":
        value = body | _checked_query(keys, frozenset())
    elif place:
        value = keys | {place: body}
    elif body:
        raise unknown_name(next(iter(body)))
    else:
        value = keys
    request = _parse(value, _type(version, kind))
    _fill_path(request, fields)
    for message, path in _messages(request):
        # An update sends the fields of its mask only, and the name is the path's.
        update = kind == "UpdateEndpointRequest" and path == "endpoint"
        _check_fields(version, message, path, update=update, whole=whole)
        _check_rules(message, path, str(fields.get("region")))
    return request


def json_of_message(message: Any) -> Any:
    """The message as Google's REST APIs show it: camelCase, enums by name, no defaults."""
    return json_format.MessageToDict(message)


def shown_in_version(version: str, kind: str, value: Any) -> Any:
    """A resource as one version of the interface can show it: the other's fields are left out."""
    message = _type(version, kind).pb()()
    json_format.ParseDict(value, message, ignore_unknown_fields=True)
    return json_of_message(message)


def check_keys(value: Any, allowed: Mapping[str, Any], path: str = "") -> None:
    """Refuse a body with keys that the tree of `allowed` ones lacks; a None allows anything."""
    if not isinstance(value, dict):
        raise invalid(f"Invalid value at '{path}': an object is expected.")
    for key, inner in value.items():
        if key not in allowed:
            raise unknown_name(key, path)
        below = allowed[key]
        for item in inner if isinstance(inner, list) else [inner]:
            if isinstance(below, Mapping):
                check_keys(item, below, f"{path}.{key}".strip("."))
            elif isinstance(below, type) and not isinstance(item, below):
                raise invalid(f"Invalid value at '{path}.{key}': {item!r}.")


def check_query(query: Mapping[str, str], allowed: frozenset[str]) -> None:
    """Refuse a query with other keys than these and the system's."""
    _checked_query({k: v for k, v in query.items() if k not in SYSTEM_KEYS}, allowed)


def unknown_name(name: str, path: str = "") -> Refused:
    """400 for a field that there is not, in Google's words."""
    at = f" at '{path}'" if path else ""
    return invalid(f'Invalid JSON payload received. Unknown name "{name}"{at}: Cannot find field.')


def check_traffic(split: Mapping[str, int], known: set[str]) -> None:
    """Refuse shares of the traffic that do not make 100, or of models that are not there."""
    if split and (sum(split.values()) != 100 or min(split.values()) < 0):
        raise invalid("Traffic split percentages must add up to 100.")
    for number in split:
        if number not in known:
            raise invalid(f"DeployedModel {number} of the traffic split is not deployed.")


def _checked_query(keys: Mapping[str, str], allowed: frozenset[str]) -> dict[str, Any]:
    for name in keys:
        if name not in allowed:
            raise invalid(
                f'Invalid JSON payload received. Unknown name "{name}": Cannot bind query '
                "parameter. Field could not be found in request message."
            )
    return dict(keys)


def _type(version: str, name: str) -> Any:
    return getattr(importlib.import_module(f"google.cloud.aiplatform_{version}.types"), name)


def _parse(value: Any, kind: Any) -> Any:
    message = kind.pb()()
    try:
        json_format.ParseDict(value, message)
    except json_format.ParseError as error:
        text = str(error)
        path = re.sub(r"^\w+Request\.?", "", (re.findall(r' at "?([\w.\[\]]+)', text) or [""])[-1])
        if found := _NO_FIELD.search(text):
            raise unknown_name(found["name"], path.strip(".")) from error
        if found := _BAD_ENUM.search(text):
            where = f"Invalid value at '{path.strip('.')}' (type.googleapis.com/{found['type']})"
            raise invalid(f'{where}, "{found["value"]}"') from error
        raise invalid(f"Invalid value: {text.splitlines()[0]}") from error
    return message


def _fill_path(request: Any, fields: Mapping[str, Any]) -> None:
    """Set the request's fields that REST has in the path."""
    parent = f"projects/{fields.get('project')}/locations/{fields.get('region')}"
    name = f"{parent}/{fields.get('kind')}/{fields.get('id')}"
    names = {field.name for field in request.DESCRIPTOR.fields}
    if request.DESCRIPTOR.name == "UpdateEndpointRequest":
        if request.endpoint.name not in {"", name}:
            raise invalid("The Endpoint's name is not the path's.")
        request.endpoint.name = name
    for field in names & {"parent", "name"}:
        setattr(request, field, parent if field == "parent" else name)
    if request.DESCRIPTOR.name in {"DeployModelRequest", "UndeployModelRequest", "PredictRequest"}:
        request.endpoint = name


def _messages(message: Any, path: str = "") -> Iterator[tuple[Any, str]]:
    """The message and every one inside it, Google's general types aside."""
    yield message, path
    for field, value in message.ListFields():
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry or "aiplatform" not in inner.full_name:
            continue
        below = f"{path}.{field.name}".strip(".")
        for item in value if hasattr(value, "append") else [value]:
            yield from _messages(item, below)


@cache
def _marked(version: str, full_name: str) -> tuple[frozenset[str], frozenset[str]]:
    """The required and the output-only fields of a type, by its docstring."""
    kind: Any = importlib.import_module(f"google.cloud.aiplatform_{version}.types")
    for part in full_name.removeprefix(f"google.cloud.aiplatform.{version}.").split("."):
        kind = getattr(kind, part)
    found = re.findall(r"^ +(\w+) \([^\n]*\):\n +(Required|Output only)\.", kind.__doc__, re.M)
    return tuple(  # type: ignore[return-value]
        frozenset(name for name, mark in found if mark == wanted)
        for wanted in ("Required", "Output only")
    )


def _check_fields(version: str, message: Any, path: str, *, update: bool, whole: bool) -> None:
    """Refuse what is missing, and what only Google sets: a client that sends it is mistaken."""
    required, output = _marked(version, message.DESCRIPTOR.full_name)
    present = {field.name for field, _ in message.ListFields()}
    if update:
        required, output = frozenset(), output - {"name"}
    if message.DESCRIPTOR.name == "DedicatedResources" and "scale_to_zero_spec" in present:
        required -= {"min_replica_count"}
    if missing := sorted(required - present):
        raise invalid(f"The field {f'{path}.{missing[0]}'.strip('.')} is required.")
    wrong = sorted(output & present)
    if wrong and not whole:
        raise invalid(f"The field {f'{path}.{wrong[0]}'.strip('.')} is output only.")


def _check_rules(message: Any, path: str, region: str) -> None:
    """What the docstrings of the types say in words."""
    name = message.DESCRIPTOR.name
    if name in {"Model", "Endpoint", "DeployedModel"}:
        if len(message.display_name) > 128:
            raise invalid(f"{path}.display_name is longer than 128 characters.")
        _check_labels(getattr(message, "labels", {}))
    check = _RULES.get(name)
    if check:
        check(message, region)


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > 64:
        raise invalid("There are more than 64 labels.")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL.fullmatch(value) or value != value.lower():
            raise invalid(f"Label {key}={value} is not of lower-case letters, digits, _ and -.")


def _form(pattern: str, value: str, what: str) -> None:
    if value and not re.fullmatch(pattern, value):
        raise invalid(f"{what} {value} is not of the form {pattern}.")


def _duration(message: Any, field: str, low: int, high: int) -> None:
    if message.HasField(field):
        seconds = getattr(message, field).ToMicroseconds() / 1e6
        if not low <= seconds <= high:
            raise invalid(f"{field} must be from {low}s to {high}s, not {seconds:g}s.")


def _upload_model(message: Any, _region: str) -> None:
    _form("[a-z_][a-z0-9_-]{0,62}", message.model_id, "model_id")
    _form(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com", message.service_account, "service_account")


def _create_endpoint(message: Any, _region: str) -> None:
    form = "[a-z]([a-z0-9-]{0,61}[a-z0-9])?|[1-9][0-9]{0,8}"
    _form(form, message.endpoint_id, "endpoint_id")
    check_traffic(message.endpoint.traffic_split, set())


def _update_endpoint(message: Any, _region: str) -> None:
    fields = {field.name for field in message.endpoint.DESCRIPTOR.fields}
    _, output = _marked("v1", "google.cloud.aiplatform.v1.Endpoint")
    for path in message.update_mask.paths:
        if path.split(".")[0] not in fields or path in output:
            raise invalid(f"The update mask's {path} cannot be updated.")


def _container(message: Any, _region: str) -> None:
    if not _IMAGE.fullmatch(message.image_uri):
        raise invalid(f"{message.image_uri} is in neither Artifact nor Container Registry.")
    for route in (message.predict_route, message.health_route):
        _form("/.*", route, "The route")
    _duration(message, "deployment_timeout", SECOND, 2 * HOUR)


def _port(message: Any, _region: str) -> None:
    if not 1 <= message.container_port <= 65535:
        raise invalid(f"{message.container_port} is no port.")


def _variable(message: Any, _region: str) -> None:
    _form("[A-Za-z_][A-Za-z0-9_]*", message.name, "The name of an environment variable")


def _model(message: Any, _region: str) -> None:
    _form(r"gs://[a-z0-9][a-z0-9._-]+(/.*)?", message.artifact_uri, "artifact_uri")


def _deployed_model(message: Any, _region: str) -> None:
    _form("[0-9]{1,10}", message.id, "The id of a DeployedModel")
    if not message.model:
        raise invalid("deployed_model.model is required.")
    _form(_RESOURCE.format("models") + "(@[A-Za-z0-9-]+)?", message.model, "model")
    _form(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com", message.service_account, "service_account")
    if message.WhichOneof("prediction_resources") is None:
        raise invalid("prediction_resources is required.")
    names = {field.name for field in message.DESCRIPTOR.fields}
    if "enable_container_logging" in names and (
        message.enable_container_logging and message.disable_container_logging
    ):
        raise invalid("Container logging is both enabled and disabled.")


def _deploy(message: Any, _region: str) -> None:
    split = message.traffic_split
    if split and (sum(split.values()) != 100 or min(split.values()) < 0):
        raise invalid("Traffic split percentages must add up to 100.")


def _resources(message: Any, region: str) -> None:
    least, most = message.min_replica_count, message.max_replica_count
    idle = message.DESCRIPTOR.fields_by_name.get("scale_to_zero_spec") is not None and (
        message.HasField("scale_to_zero_spec")
    )
    if least < (0 if idle else 1):
        raise invalid("min_replica_count must be greater than or equal to 1.")
    if idle and least:
        raise invalid("min_replica_count must be 0 where scale_to_zero_spec is set.")
    if most and most < max(least, 1):
        raise invalid("max_replica_count must not be less than min_replica_count.")
    if message.required_replica_count > max(least, most):
        raise invalid("required_replica_count is greater than max_replica_count.")
    initial = getattr(message, "initial_replica_count", 0)
    if initial and (least or initial > max(most, 1)):
        raise invalid("initial_replica_count is for scale to zero, up to max_replica_count.")
    machine = message.machine_spec
    number = machine.accelerator_type
    kind = machine.DESCRIPTOR.fields_by_name["accelerator_type"].enum_type
    accelerator = kind.values_by_number[number].name if number else ""
    fault = machine_fault(machine.machine_type, accelerator, machine.accelerator_count, region)
    if fault:
        raise invalid(fault)


def _scale_to_zero(message: Any, _region: str) -> None:
    _duration(message, "min_scaleup_period", 5 * MINUTE, 8 * HOUR)
    _duration(message, "idle_scaledown_period", 5 * MINUTE, 8 * HOUR)


def _flex_start(message: Any, _region: str) -> None:
    _duration(message, "max_runtime_duration", SECOND, 7 * 24 * HOUR)


def _connection(message: Any, _region: str) -> None:
    _duration(message, "inference_timeout", SECOND, HOUR)


def _reservation(message: Any, _region: str) -> None:
    kind = message.DESCRIPTOR.fields_by_name["reservation_affinity_type"].enum_type
    specific = kind.values_by_name["SPECIFIC_RESERVATION"].number
    if (message.reservation_affinity_type == specific) != bool(message.key and message.values):
        raise invalid("A specific reservation, and no other, has a key and values.")
    if specific == message.reservation_affinity_type:
        for value in message.values:
            _form("projects/[^/]+/zones/[^/]+/reservations/[^/]+", value, "The reservation")


_RULES = {
    "UploadModelRequest": _upload_model,
    "CreateEndpointRequest": _create_endpoint,
    "UpdateEndpointRequest": _update_endpoint,
    "DeployModelRequest": _deploy,
    "Model": _model,
    "ModelContainerSpec": _container,
    "Port": _port,
    "EnvVar": _variable,
    "DeployedModel": _deployed_model,
    "DedicatedResources": _resources,
    "ScaleToZeroSpec": _scale_to_zero,
    "FlexStart": _flex_start,
    "ClientConnectionConfig": _connection,
    "ReservationAffinity": _reservation,
}
