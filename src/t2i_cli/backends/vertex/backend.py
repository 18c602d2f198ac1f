"""The vertex backend: predictions of a Vertex AI endpoint, over REST."""

import time
from collections.abc import Iterator, Sequence
from threading import Event as Flag
from threading import Lock

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.vertex import endpoint, errors, payload
from t2i_cli.backends.vertex.endpoint import Endpoint
from t2i_cli.backends.vertex.options import VertexOptions
from t2i_cli.events import OnEvent
from t2i_cli.image_formats import ImageFormat
from t2i_cli.model_spec import ModelSpec
from t2i_cli.net import (
    error_body,
    google_credentials,
    google_http,
    image_decoding,
    response_metadata,
)
from t2i_cli.net.client_pool import ClientPool
from t2i_cli.net.concurrency import InFlightCall
from t2i_cli.net.http_client import HttpClient, HttpResponse
from t2i_cli.net.retry import RetryableError, call_with_retry, retryable
from t2i_cli.net.throttle import Throttle
from t2i_cli.net.unreachable import ACCOUNT_OR_NETWORK_ERRORS, unknown_facts
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.vertex import location, machine_types


class VertexBackend:
    """A backend that calls one endpoint. Raises only T2IError."""

    def __init__(self, options: VertexOptions) -> None:
        self._options = options
        self._lock = Lock()
        self._connection: _Connection | None = None
        self._known: tuple[Endpoint, str | None] | None = None

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """Describe the model deployed to the endpoint. Raises T2IError."""
        if self._connection is None:
            endpoint.check_before_login(self._options, request.model)
        return self._planned_target()[0].spec(request.model)

    def check(self, request: ResolvedRequest) -> None:
        """Do nothing: a request resolved for the endpoint's model can be sent."""

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """The endpoint, its URL, the fields that would be sent, and its price in USD per hour."""
        target, unknown = self._planned_target()
        prices = machine_types.load_prices()
        instance: dict[str, object] = self._request_body(request, "png")["instances"][0]  # type: ignore[index]
        return unknown_facts("what is deployed there now", unknown) | {
            "backend": "vertex",
            "endpoint": target.record.name,
            "url": target.url,
            "serving": target.serving,
            "sends": [name for name in instance if name not in {"text", "format"}],
            "concurrency": self._options.calls_at_a_time(target.record.replicas),
            "usd_per_hour_at_most": target.price(prices),
            "prices_of": prices.date,
        }

    def image_price(self, request: ResolvedRequest) -> None:
        """Return `None`: an endpoint is billed by the hour."""

    def parallelism(self) -> int:
        """As many as calls may be in flight, of all runs together."""
        if self._connection:
            return self._connection.concurrency
        return self._options.calls_at_a_time(None)

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """Return `None`: the deployment determines the commit."""
        return None

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Look the endpoint up. Raises T2IError."""
        self._connect()

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome per request, with several calls in flight."""
        connection = self._connect()
        return connection.clients.run_calls(
            requests, self._generate, connection.throttle, on_event, cancel
        )

    def close(self) -> None:
        """Close the connections."""
        if self._connection:
            self._connection.clients.close()

    def _connect(self) -> "_Connection":
        """The connection to the endpoint, which is looked up once."""
        with self._lock:
            self._connection = self._connection or _Connection(self._options)
            return self._connection

    def _planned_target(self) -> tuple[Endpoint, str | None]:
        """The endpoint, and why it could not be looked up, where only a plan is wanted."""
        try:
            return self._known or (self._connect().target, None)
        except ACCOUNT_OR_NETWORK_ERRORS as error:
            if not self._options.plan_only:
                raise
            known = endpoint.known_endpoint(self._options, location.UNKNOWN_PROJECT)
            self._known = known, error.message
            return self._known

    def _request_body(self, request: ResolvedRequest, format: ImageFormat) -> dict[str, object]:
        target, _ = self._planned_target()
        # A known model has already been compared with the request's.
        unknown = target.record.model is None
        return payload.build_prediction_request(request, target.serving, format, name_model=unknown)

    def _generate(self, call: InFlightCall, client: HttpClient) -> GeneratedImage:
        connection = self._connect()
        target = connection.target
        format = payload.choose_transfer_format(call.request, self._options.format, target.limit)
        body = self._request_body(call.request, format)

        def predict(left: float) -> HttpResponse:
            try:
                return connection.predict(client, body, left, call.request, format)
            except RetryableError as retryable_error:
                if retryable_error.cold_start:
                    call.note(errors.WAKING)
                raise

        response = call_with_retry(
            predict, self._options.retry_policy, connection.throttle, call.stop
        )
        body_json = response.json()
        prediction = payload.parse_prediction(body_json)
        response_metadata.note_further_images(call, "The endpoint", prediction.extra)
        metadata = response_metadata.parse_response_metadata(prediction.entry)
        metadata.check_request(call.request)
        metadata.forward_notices(call)
        image = image_decoding.decode_base64_image(prediction.base64)
        request = response_metadata.with_actual_size(call, image.size)
        deployed = body_json.get("deployedModelId") if isinstance(body_json, dict) else None
        info = metadata.generation_info(
            call.request,
            backend="vertex",
            endpoint=target.record.name,
            deployed_model=str(deployed) if deployed else target.record.deployed_model,
        )
        return GeneratedImage(
            index=call.index,
            request=request,
            image=image,
            info=info,
            seconds=response.seconds if metadata.seconds is None else metadata.seconds,
            round_trip=response.seconds,
        )


class _Connection:
    """An endpoint with its credentials, HTTP client and throttle; thread-safe."""

    def __init__(self, options: VertexOptions) -> None:
        endpoint.check_before_login(options, None)
        credentials, login = google_credentials.find_credentials()
        self._token = google_credentials.TokenProvider(credentials)
        self.target: Endpoint = endpoint.find_endpoint(options, self._token, login.project)
        self.concurrency = options.calls_at_a_time(self.target.record.replicas)
        self.throttle = Throttle(self.concurrency)
        url = self.target.url
        self.clients = ClientPool(
            lambda: HttpClient(
                url,
                self.concurrency,
                # No proxy for http://, which is on this machine or in a network of one's own.
                proxies=False if url.lower().startswith("http://") else None,
                ca_file=self.target.location.ca_file,
            )
        )

    def predict(
        self,
        client: HttpClient,
        body: object,
        left: float,
        request: ResolvedRequest,
        format: ImageFormat,
    ) -> HttpResponse:
        """Make one call, within `left` seconds. Raises T2IError, or RetryableError if temporary."""
        deadline = time.monotonic() + left
        with retryable():
            headers = self._token(left)
        started = time.monotonic()
        try:
            response = client.request(
                "POST",
                self.target.url,
                headers=headers,
                json=body,
                timeout=max(0.001, deadline - started),
            )
        except RetryableError as error:
            elapsed = time.monotonic() - started
            if elapsed >= errors.SHARED_TIMEOUT - 1 and not self.target.dedicated:
                raise errors.timeout_error(self.target, elapsed) from error
            raise
        if response.status == 200:
            return response
        if response.status == 401 and self._token.discard():
            raise RetryableError(google_http.RefusedTokenError(), pause=0.0)
        if response.status == 404 and error_body.parse_error_body(response).t2i_error is None:
            raise endpoint.not_found_error(self.target, self._token)
        if response.status == 400 and errors.says_undeployed(response):
            if undeployed := endpoint.undeployed_error(self.target, self._token):
                raise undeployed
        raise errors.error_from_prediction(response, self.target, request, format)
