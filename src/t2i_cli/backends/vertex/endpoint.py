"""Find the endpoint to call: its resource name, its host, and which server is deployed to it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from t2i_cli.backends.vertex.options import VertexOptions
from t2i_cli.backends.vertex.payload import DEDICATED_LIMIT, SHARED_LIMIT, TAKES
from t2i_cli.errors import AccessError, InputError, ModelError, RemoteError, StorageError, T2IError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.net import google_http
from t2i_cli.net.google_credentials import TokenProvider
from t2i_cli.net.retry import RetryPolicy, call_with_retry, retryable
from t2i_cli.request_fields import MODEL_DEFAULTS, OPTIONAL_FIELDS, SERVINGS
from t2i_cli.settings.schema import is_private_address
from t2i_cli.vertex import client, containers, endpoint_store, labels, location, machine_types
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.location import Location

_DEDICATED_SUFFIX = ".prediction.vertexai.goog"
"""Suffix of the host names of dedicated endpoints."""
_MAX_LISTED = 5
"""Maximum number of endpoints that an error lists."""
LOOKUP_TIMEOUT = 60.0
"""Seconds for one look-up of an endpoint."""


class _PredictionsOnlyError(Exception):
    """The host of --api-endpoint serves predictions, and no look-up, as a private one does."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An endpoint to call; `looked_up` is False if the look-up was not permitted."""

    location: Location
    record: EndpointRecord
    serving: str | None
    looked_up: bool = True

    @property
    def url(self) -> str:
        """The URL of the predict method."""
        host = self.location.host("aiplatform")
        if self.record.dns and not self.location.api_endpoint:
            host = f"https://{self.record.dns}"
        return f"{host}/v1/{self.record.name}:predict"

    @property
    def dedicated(self) -> bool:
        """Whether the endpoint is a dedicated one, with its own host."""
        return bool(self.record.dns)

    @property
    def limit(self) -> int:
        """Maximum bytes of a request and of a response."""
        return DEDICATED_LIMIT if self.dedicated else SHARED_LIMIT

    @property
    def number(self) -> str:
        """The endpoint ID: the last part of its resource name."""
        return self.record.name.split("/")[-1]

    def price(self, prices: machine_types.PriceTable) -> float | None:
        """USD per hour at the maximum number of replicas, or `None` if unknown."""
        if self.record.machine is None:
            return None
        each = machine_types.hardware_from_api({"machineSpec": self.record.machine}).price(prices)
        return None if each is None else round(each * (self.record.replicas or 1), 2)

    def spec(self, wanted: str | None) -> ModelSpec:
        """Describe its model; raises ModelError if `wanted` is a different one."""
        model = self.record.model
        if wanted and model and not _same_model(wanted, model):
            raise ModelError(
                f"The endpoint {self.number} has {model}, not {wanted}.",
                hint="-m names it, or leave -m out.",
            )
        name = wanted or model or f"endpoints/{self.number}"
        spec = catalog.find_in_catalog(name)
        if spec is None and wanted and model and wanted != model:
            spec = catalog.find_spelled(wanted)
        spec = spec or ModelSpec(name=name, multiple=1)
        unsupported: dict[str, Any] = dict.fromkeys(set(MODEL_DEFAULTS) - TAKES[self.serving])
        return replace(spec, refuses=self._refuses(), **unsupported)

    def _refuses(self) -> tuple[tuple[str, str], ...]:
        reason = (
            f"it is served by {self.serving}."
            if self.serving
            else f"nothing says what serves there; --serving {', '.join(SERVINGS)} does."
        )
        return tuple(
            (field, f"The endpoint {self.number} takes no {field.replace('_', ' ')}: {reason}")
            for field in OPTIONAL_FIELDS
            if field not in TAKES[self.serving]
        )


def check_before_login(options: VertexOptions, model: str | None) -> None:
    """Check what is wrong without a look at Google: options, settings, and a known model's name.

    Raises InputError or ModelError.
    """
    known_endpoint(options, location.UNKNOWN_PROJECT).spec(model)


def known_endpoint(options: VertexOptions, login_project: str | None) -> Endpoint:
    """The endpoint of the options as far as this machine knows it. Raises InputError."""
    if options.endpoint.serving is not None:
        containers.check_serving(options.endpoint.serving)
    current = endpoint_store.current_endpoint()
    named = options.endpoint.endpoint or (current and current.name)
    if not named:
        raise InputError(
            "There is no endpoint to call.",
            hint="--endpoint names one; `t2i remote deploy` makes one.",
            field="endpoint",
        )
    elsewhere = "/" in named or options.endpoint.project or options.endpoint.region
    if not elsewhere and (remembered := endpoint_store.find_record(named)):
        named = remembered.name
    endpoint_location = location.find_location(
        options.endpoint, endpoint=named, login_project=login_project
    )
    name = endpoint_location.endpoint(named)
    record = endpoint_store.find_record(name) or EndpointRecord(name=name)
    api_host = urlsplit(endpoint_location.api_endpoint or "").hostname or ""
    if record.dns is None and (
        api_host.endswith(_DEDICATED_SUFFIX) or is_private_address(api_host)
    ):
        # A dedicated host, or one of Private Service Connect, serves predictions, no look-up.
        record = replace(record, dns=api_host)
    return Endpoint(
        location=endpoint_location,
        record=record,
        serving=options.endpoint.serving or record.serving,
    )


def find_endpoint(
    options: VertexOptions, token: TokenProvider, login_project: str | None
) -> Endpoint:
    """Find the endpoint of the options, else of the settings, else the one deployed last.

    Its host is looked up once if no stored record has it. Raises T2IError.
    """
    known = known_endpoint(options, login_project)
    record, looked_up = known.record, True
    if record.dns is None:
        _fetch_token(token, options.retry_policy)
        try:
            record = _look_up(known.location, token, record.name, options.retry_policy)
            with suppress(StorageError):
                # If the record cannot be stored, the next run looks the endpoint up again.
                endpoint_store.remember_endpoint(record)
        except (AccessError, _PredictionsOnlyError):
            # Predicting has its own permission, and the missing facts may not be needed.
            looked_up = False
    return replace(
        known,
        record=record,
        serving=options.endpoint.serving or record.serving,
        looked_up=looked_up,
    )


def not_found_error(target: Endpoint, token: TokenProvider) -> T2IError:
    """The error for a predict call that got status 404; it lists the endpoints that exist."""
    return _not_found_error(target.location, token, target.number)


def undeployed_error(target: Endpoint, token: TokenProvider) -> T2IError | None:
    """The error for an endpoint without a deployed model; None if it has one or cannot be asked."""
    try:
        with client.GoogleClient(target.location, token) as google:
            name = target.location.endpoint(target.number)
            return _undeployed_error(google.call("GET", "aiplatform", name, tries=1))
    except T2IError:
        return None


def _undeployed_error(endpoint: Mapping[str, Any]) -> RemoteError | None:
    """The error if nothing is deployed on an Endpoint resource."""
    if endpoint.get("deployedModels"):
        return None
    found = labels.Labels.parse(endpoint.get("labels", {}))
    if found is None:
        return RemoteError(
            f"No model is deployed on the endpoint {endpoint['name'].split('/')[-1]}.",
            hint="`t2i remote list` shows what there is; `t2i remote deploy` deploys one.",
        )
    paused = "is paused: no model is" if found.paused else "has no model"
    return RemoteError(
        f"The endpoint {found.name} {paused} deployed.",
        hint=f"`t2i remote resume {found.name}` deploys it again as it was.",
    )


def _fetch_token(token: TokenProvider, retry_policy: RetryPolicy) -> None:
    """Fetch a token first: refused credentials are not a missing permission to look up."""

    def get_headers(timeout: float) -> dict[str, str]:
        with retryable():
            return token(timeout)

    call_with_retry(get_headers, retry_policy)


def _look_up(
    location: Location, token: TokenProvider, name: str, retry_policy: RetryPolicy
) -> EndpointRecord:
    def get_endpoint(timeout: float) -> dict[str, Any]:
        seconds = min(timeout, LOOKUP_TIMEOUT)
        with (
            retryable(),
            client.GoogleClient(location, partial(token, timeout), seconds=seconds) as google,
        ):
            return google.call("GET", "aiplatform", name, tries=1)

    try:
        found = call_with_retry(get_endpoint, retry_policy)
    except google_http.NotFoundError as error:
        if location.api_endpoint and not _lists_endpoints(location, token):
            raise _PredictionsOnlyError from error
        raise _not_found_error(location, token, name.split("/")[-1]) from error
    return endpoint_store.record_from_api(name, found)


def _lists_endpoints(location: Location, token: TokenProvider) -> bool:
    """Whether the host knows the list of endpoints; one of predictions only does not."""
    try:
        with client.GoogleClient(location, token) as google:
            next(google.list_all("aiplatform", f"{location.parent}/endpoints", "endpoints"), None)
    except google_http.NotFoundError:
        return False
    except T2IError:
        return True
    return True


def _not_found_error(location: Location, token: TokenProvider, number: str) -> T2IError:
    place = f"in {location.project}, {location.region}"
    try:
        with client.GoogleClient(location, token) as google:
            found = list(google.list_all("aiplatform", f"{location.parent}/endpoints", "endpoints"))
    except T2IError:
        return RemoteError(
            f"There is no endpoint {number} {place}.", hint="`t2i remote list` shows what there is."
        )
    here = next((e for e in found if e["name"].split("/")[-1] == number), None)
    if here is not None and (undeployed := _undeployed_error(here)):
        return undeployed
    if here is not None:
        return RemoteError(
            f"The endpoint {number} is {place}, but what answered the call does not know it.",
            hint=f"`t2i remote use {number}` looks its host up again; --api-endpoint may lead "
            "elsewhere.",
        )
    with suppress(StorageError):
        endpoint_store.forget_endpoint(location.endpoint(number))
    names = [
        f"{e['name'].split('/')[-1]} ({e.get('displayName', '')})" for e in found[:_MAX_LISTED]
    ]
    more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
    existing = f"; there is {', '.join(names)}{more}" if names else ", nor any other"
    return RemoteError(
        f"There is no endpoint {number} {place}{existing}.",
        hint="--endpoint names one; `t2i remote deploy` makes one.",
    )


def _same_model(one: str, other: str) -> bool:
    spec = catalog.find_in_catalog(one) or catalog.find_spelled(one)
    names = {one, spec.name, spec.repo or one} if spec else {one}
    if other.endswith("…"):
        # Labels truncate long names, with an ellipsis at the end.
        return any(name.startswith(other[:-1]) for name in names)
    return other in names
