"""Images from an endpoint of Vertex AI, called by plain REST."""

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
from t2i_cli.net import error_body, google_credentials, image_decoding, response_metadata
from t2i_cli.net.concurrency import InFlightCall, run_concurrently
from t2i_cli.net.http_client import HttpClient, HttpResponse
from t2i_cli.net.retry import RetryableError, call_with_retry, retryable
from t2i_cli.net.throttle import Throttle
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.settings.defaults import CALLS_A_REPLICA
from t2i_cli.vertex import machine_types


class VertexBackend:
    """Images from one endpoint. Errors leave it only as T2IError."""

    def __init__(self, options: VertexOptions) -> None:
        self._options = options
        self._lock = Lock()
        self._opened: _Opened | None = None

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """What is known of the model deployed at the endpoint. Raises T2IError."""
        return self._endpoint().target.spec(request.model)

    def check(self, request: ResolvedRequest) -> None:
        """Every request can be sent that was settled for the endpoint's model."""

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """Which endpoint is called, where, what it is told, and what it costs while it is up."""
        opened = self._endpoint()
        where, prices = opened.target, machine_types.load_prices()
        sent: dict[str, object] = self._body(request, "png")["instances"][0]  # type: ignore[index]
        return {
            "backend": "vertex",
            "endpoint": where.known.name,
            "url": where.url,
            "serving": where.serving,
            "sends": [name for name in sent if name not in {"text", "format"}],
            "concurrency": opened.concurrency,
            "usd_per_hour_at_most": where.price(prices),
            "prices_of": prices.date,
        }

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """None: what is deployed was chosen by the deployment."""
        return None

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Find the endpoint."""
        self._endpoint()

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome a request, with several calls in flight."""
        opened = self._endpoint()
        return run_concurrently(
            requests, self._make, opened.throttle, on_event, cancel, abandon=opened.wire.abort
        )

    def close(self) -> None:
        """Close the connections."""
        if self._opened:
            self._opened.wire.close()

    def _endpoint(self) -> "_Opened":
        """The endpoint, found once."""
        with self._lock:
            self._opened = self._opened or _Opened(self._options)
            return self._opened

    def _body(self, request: ResolvedRequest, format: ImageFormat) -> dict[str, object]:
        where = self._endpoint().target
        # A model that is known was compared with the request's already.
        unknown = where.known.model is None
        return payload.build_prediction_request(request, where.serving, format, name_model=unknown)

    def _make(self, call: InFlightCall) -> GeneratedImage:
        opened = self._endpoint()
        where = opened.target
        format = payload.choose_transfer_format(call.request, self._options.format, where.limit)
        body = self._body(call.request, format)

        def ask(left: float) -> HttpResponse:
            try:
                return opened.ask(body, left, call.request, format)
            except RetryableError as again:
                if again.waking:
                    call.tell(errors.WAKING)
                raise

        answer = call_with_retry(ask, self._options.retry_policy, opened.throttle, call.stop)
        told = answer.json()
        predicted = payload.parse_prediction(told)
        if predicted.more:
            call.tell(
                f"The endpoint answers with {predicted.more + 1} images where one is asked for: "
                f"the first is kept, {predicted.more} not."
            )
        account = response_metadata.parse_response_metadata(predicted.entry)
        account.check_request(call.request)
        account.forward_notices(call)
        image = image_decoding.decode_base64_image(predicted.text)
        request = response_metadata.true_size(call, image.size)
        deployed = told.get("deployedModelId") if isinstance(told, dict) else None
        lock = account.generation_info(
            call.request,
            backend="vertex",
            endpoint=where.known.name,
            deployed_model=str(deployed) if deployed else where.known.deployed_model,
        )
        return GeneratedImage(
            index=call.index,
            request=request,
            image=image,
            info=lock,
            seconds=answer.seconds if account.seconds is None else account.seconds,
            round_trip=answer.seconds,
        )


class _Opened:
    """An endpoint that was found, with what it takes to call it; for several threads."""

    def __init__(self, options: VertexOptions) -> None:
        found, login = google_credentials.find_credentials()
        self._token = google_credentials.TokenProvider(found)
        self.target: Endpoint = endpoint.find_endpoint(options, self._token, login.project)
        replicas = self.target.known.replicas or 1
        self.concurrency = options.concurrency or CALLS_A_REPLICA * replicas
        self.throttle = Throttle(self.concurrency)
        self.wire = HttpClient(self.target.url, self.concurrency)

    def ask(
        self, body: object, left: float, request: ResolvedRequest, format: ImageFormat
    ) -> HttpResponse:
        """One call. Raises T2IError, or RetryableError where it may pass."""
        end = time.monotonic() + left
        with retryable():
            headers = {"Authorization": f"Bearer {self._token(left)}"}
        started = time.monotonic()
        try:
            answer = self.wire.request(
                "POST",
                self.target.url,
                headers=headers,
                json=body,
                timeout=max(0.001, end - started),
            )
        except RetryableError as again:
            took = time.monotonic() - started
            if took >= errors.SHARED_CUT - 1 and not self.target.dedicated:
                raise errors.timeout_error(self.target, took) from again
            raise
        if answer.status == 200:
            return answer
        if answer.status == 404 and error_body.parse_error_body(answer).own is None:
            raise endpoint.not_found_error(self.target, self._token)
        raise errors.error_from_prediction(answer, self.target, request, format)
