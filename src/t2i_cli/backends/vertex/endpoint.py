"""The endpoint to call: which one, where it answers, and what serves there."""

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
from t2i_cli.request_fields import MODEL_DEFAULTS, OPTIONAL, SERVINGS
from t2i_cli.vertex import client, endpoint_store, location, machine_types
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.location import Location

_DEDICATED = ".prediction.vertexai.goog"
"""What the hosts of dedicated endpoints end with."""
_SHOWN = 5
"""Endpoints that an error names."""
CALL_POLICY = 60.0
"""Seconds for one look at an endpoint."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An endpoint and what is known of it; `looked_up` is False where that was not allowed."""

    place: Location
    known: EndpointRecord
    serving: str | None
    looked_up: bool = True

    @property
    def url(self) -> str:
        """Where predictions are asked for."""
        host = self.place.host("aiplatform")
        if self.known.dns and not self.place.api_endpoint:
            host = f"https://{self.known.dns}"
        return f"{host}/v1/{self.known.name}:predict"

    @property
    def dedicated(self) -> bool:
        """Whether the endpoint has a host of its own."""
        return bool(self.known.dns)

    @property
    def limit(self) -> int:
        """Bytes of a request and of an answer."""
        return DEDICATED_LIMIT if self.dedicated else SHARED_LIMIT

    @property
    def number(self) -> str:
        """The last part of its name."""
        return self.known.name.split("/")[-1]

    def price(self, prices: machine_types.PriceTable) -> float | None:
        """USD an hour for all replicas that there may be, `None` where nobody knows."""
        if self.known.machine is None:
            return None
        each = machine_types.hardware_from_api({"machineSpec": self.known.machine}).price(prices)
        return None if each is None else round(each * (self.known.replicas or 1), 2)

    def spec(self, wanted: str | None) -> ModelSpec:
        """What is known of its model; raises ModelError if the user names another one."""
        model = self.known.model
        if wanted and model and not _same(wanted, model):
            raise ModelError(
                f"The endpoint {self.number} has {model}, not {wanted}.",
                hint="-m names it, or leave -m out.",
            )
        name = wanted or model or f"endpoints/{self.number}"
        spec = catalog.find_in_catalog(name) or ModelSpec(name=name, multiple=1)
        left: dict[str, Any] = dict.fromkeys(set(MODEL_DEFAULTS) - TAKES[self.serving])
        return replace(spec, refuses=self._refuses(), **left)

    def _refuses(self) -> tuple[tuple[str, str], ...]:
        why = (
            f"it is served by {self.serving}."
            if self.serving
            else f"nothing says what serves there; --serving {', '.join(SERVINGS)} does."
        )
        return tuple(
            (field, f"The endpoint {self.number} takes no {field.replace('_', ' ')}: {why}")
            for field in OPTIONAL
            if field not in TAKES[self.serving]
        )


def find_endpoint(
    options: VertexOptions, token: TokenProvider, login_project: str | None
) -> Endpoint:
    """The endpoint that the options name, else the settings, else the one deployed last.

    What is not remembered of it is asked for once. Raises T2IError.
    """
    if options.place.serving not in (None, *SERVINGS):
        raise InputError(f"--serving must be {', '.join(SERVINGS)}.", field="serving")
    current = endpoint_store.current_endpoint()
    named = options.place.endpoint or (current and current.name)
    if not named:
        raise InputError(
            "There is no endpoint to call.",
            hint="--endpoint names one; `t2i remote deploy` makes one.",
            field="endpoint",
        )
    elsewhere = "/" in named or options.place.project or options.place.region
    if not elsewhere and (remembered := endpoint_store.find_record(named)):
        named = remembered.name
    where = location.find_location(options.place, endpoint=named, login_project=login_project)
    name = where.endpoint(named)
    entry = endpoint_store.find_record(name) or EndpointRecord(name=name)
    looked_up = True
    given = urlsplit(where.api_endpoint or "").hostname or ""
    if entry.dns is None and given.endswith(_DEDICATED):
        # That host answers predictions and nothing else.
        entry = replace(entry, dns=given)
    if entry.dns is None:
        _authorise(token, options.retry_policy)
        try:
            entry = _look_up(where, token, name, options.retry_policy)
            with suppress(StorageError):
                # A home that cannot be written to costs a look next time, too.
                endpoint_store.remember_endpoint(entry)
        except AccessError:
            # To predict is allowed apart from to look; what is missing may not be needed.
            looked_up = False
    return Endpoint(
        place=where,
        known=entry,
        serving=options.place.serving or entry.serving,
        looked_up=looked_up,
    )


def not_found_error(target: Endpoint, token: TokenProvider) -> T2IError:
    """The error for an endpoint that answers that it does not exist, with those that do."""
    return _missing(target.place, token, target.number)


def _authorise(token: TokenProvider, patience: RetryPolicy) -> None:
    """Have a token at hand: credentials that are refused are not what may look and what may not."""

    def ask(left: float) -> str:
        with retryable():
            return token(left)

    call_with_retry(ask, patience)


def _look_up(
    where: Location, token: TokenProvider, name: str, patience: RetryPolicy
) -> EndpointRecord:
    def ask(left: float) -> dict[str, Any]:
        seconds = min(left, CALL_POLICY)
        with (
            retryable(),
            client.GoogleClient(where, partial(token, left), seconds=seconds) as google,
        ):
            return google.call("GET", "aiplatform", name, tries=1)

    try:
        found = call_with_retry(ask, patience)
    except google_http.NotFoundError as error:
        raise _missing(where, token, name.split("/")[-1]) from error
    return endpoint_store.record_from_api(name, found)


def _missing(where: Location, token: TokenProvider, number: str) -> T2IError:
    there = f"in {where.project}, {where.region}"
    try:
        with client.GoogleClient(where, token) as google:
            found = list(google.list_all("aiplatform", f"{where.parent}/endpoints", "endpoints"))
    except T2IError:
        return RemoteError(
            f"There is no endpoint {number} {there}.", hint="`t2i remote list` shows what there is."
        )
    if any(e["name"].split("/")[-1] == number for e in found):
        return RemoteError(
            f"The endpoint {number} is {there}, but what answered the call does not know it.",
            hint=f"`t2i remote use {number}` looks its host up again; --api-endpoint may lead "
            "elsewhere.",
        )
    with suppress(StorageError):
        endpoint_store.forget_endpoint(where.endpoint(number))
    names = [f"{e['name'].split('/')[-1]} ({e.get('displayName', '')})" for e in found[:_SHOWN]]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    have = f"; there is {', '.join(names)}{more}" if names else ", nor any other"
    return RemoteError(
        f"There is no endpoint {number} {there}{have}.",
        hint="--endpoint names one; `t2i remote deploy` makes one.",
    )


def _same(one: str, other: str) -> bool:
    spec = catalog.find_in_catalog(one)
    names = {one, spec.name, spec.repo or one} if spec else {one}
    if other.endswith("…"):
        # A label has no room for a long name, and ends it with an ellipsis.
        return any(name.startswith(other[:-1]) for name in names)
    return other in names
