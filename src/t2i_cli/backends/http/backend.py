"""The http backend: OpenAI's images API, as of t2i, SGLang, vLLM-Omni, LocalAI and OpenAI."""

from collections.abc import Iterator, Sequence
from threading import Event as Flag
from threading import Lock
from typing import TYPE_CHECKING, Any

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.http import dialects, discovery
from t2i_cli.backends.http.discovery import ServerInfo
from t2i_cli.backends.http.errors import error_from_response
from t2i_cli.backends.http.options import HttpOptions
from t2i_cli.errors import RemoteError
from t2i_cli.events import OnEvent
from t2i_cli.files.state_files import is_text
from t2i_cli.model_spec import ModelSpec
from t2i_cli.net import image_decoding, response_metadata
from t2i_cli.net.concurrency import InFlightCall, run_concurrently
from t2i_cli.net.http_client import HttpClient, HttpResponse
from t2i_cli.net.retry import RetryableError, RetryPolicy, call_with_retry
from t2i_cli.net.throttle import Throttle
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.request_fields import DIALECTS
from t2i_cli.settings.defaults import CONCURRENCY

if TYPE_CHECKING:
    from PIL.Image import Image

_PROBE_POLICY = RetryPolicy(retries=1, timeout=30.0, from_options=True)
"""Retries of requests for a server's models, which must fail quickly."""
_NOT_FOUND_STATUSES = {404, 405, 501}
"""Statuses of a server that has no such path."""


class HttpBackend:
    """A backend that calls the server at a URL. Raises only T2IError."""

    def __init__(self, options: HttpOptions) -> None:
        self._options = options
        self._retry_policy = options.retry_policy
        self._concurrency = options.concurrency or CONCURRENCY
        self._client = HttpClient(options.url, self._concurrency)
        self._throttle = Throttle(self._concurrency)
        self._lock = Lock()
        self._server_info: ServerInfo | None = None
        self._specs: dict[str, tuple[str, ModelSpec]] = {}

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """Describe the request's model, from the server and the catalogue. Raises T2IError."""
        server = self._server()
        name = server.model_name(request.model)
        spec = server.model_spec(name)
        self._specs[spec.repo or spec.name] = (name, spec)
        return spec

    def check(self, request: ResolvedRequest) -> None:
        """Raise T2IError if the request cannot be sent to the server."""
        self._request_body(request)

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """The server, its dialect, and the names of the fields that would be sent."""
        server = self._server()
        return {
            "backend": "http",
            "url": server.url,
            "dialect": server.dialect.name,
            "sends": [name for name in self._request_body(request) if name != "response_format"],
            "concurrency": self._concurrency,
        }

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """Return `None`: the server determines the commit."""
        return None

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Check that the server responds. Raises T2IError."""
        self._server()

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome per request, with several calls in flight."""
        return run_concurrently(
            requests, self._generate, self._throttle, on_event, cancel, abort=self._client.abort
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _server(self) -> ServerInfo:
        """What is known of the server, which is asked once."""
        with self._lock:
            self._server_info = self._server_info or self._probe()
            return self._server_info

    def _probe(self) -> ServerInfo:
        url = self._options.url
        response = self._get(f"{url}/models")
        entries = _model_entries(response)
        owners = [entry.get("owned_by") for entry in entries or []]
        dialect_name = self._options.dialect
        dialect = DIALECTS[dialect_name] if dialect_name else dialects.detect_dialect(owners)
        return ServerInfo(
            url=url,
            dialect=dialect,
            models=None if entries is None else [entry["id"] for entry in entries],
            facts=self._model_facts() if dialect.name == "t2i" else {},
        )

    def _model_facts(self) -> dict[str, Any]:
        """A t2i server's description of its model; empty if a proxy does not pass the path on."""
        response = self._get(f"{self._options.url.removesuffix('/v1')}/t2i/v1/model")
        facts = response.json() if response.status == 200 else {}
        return discovery.check_facts(facts) if isinstance(facts, dict) else {}

    def _get(self, url: str) -> HttpResponse:
        def get(timeout: float) -> HttpResponse:
            response = self._client.request("GET", url, headers=self._headers(), timeout=timeout)
            if response.status == 200 or response.status in _NOT_FOUND_STATUSES:
                return response
            raise error_from_response(response, self._options.url, self._options.key)

        return call_with_retry(get, _PROBE_POLICY, self._throttle, Flag())

    def _headers(self) -> dict[str, str]:
        key = self._options.key
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _request_body(self, request: ResolvedRequest) -> dict[str, object]:
        server = self._server()
        name, spec = self._specs.get(request.model, (request.model, None))
        guidance = spec.guidance_argument if spec else None
        return dialects.build_image_request(request, name, server.dialect, guidance)

    def _generate(self, call: InFlightCall) -> GeneratedImage:
        body = self._request_body(call.request)

        def post(timeout: float) -> HttpResponse:
            response = self._client.request(
                "POST",
                f"{self._options.url}/images/generations",
                headers=self._headers(),
                json=body,
                timeout=timeout,
            )
            if response.status != 200:
                raise error_from_response(response, self._options.url, self._options.key)
            return response

        response = call_with_retry(post, self._retry_policy, self._throttle, call.stop)
        image_entry, extra = _first_image(response.json())
        if extra:
            call.note(
                f"The server answers with {extra + 1} images where one is asked for: the first is "
                f"kept, {extra} not."
            )
        metadata = response_metadata.parse_response_metadata(image_entry)
        metadata.check_request(call.request)
        metadata.forward_notices(call)
        image = self._decode_image(image_entry)
        request = response_metadata.with_actual_size(call, image.size)
        info = metadata.generation_info(call.request, backend="http", endpoint=self._options.url)
        return GeneratedImage(
            index=call.index,
            request=request,
            image=image,
            info=info,
            seconds=response.seconds if metadata.seconds is None else metadata.seconds,
            round_trip=response.seconds,
        )

    def _decode_image(self, entry: dict[str, Any]) -> "Image":
        if isinstance(entry.get("b64_json"), str):
            return image_decoding.decode_base64_image(entry["b64_json"])
        link = entry.get("url")
        if not isinstance(link, str) or not link.startswith(("http://", "https://")):
            raise RemoteError("The server's answer holds no image.", hint="Is it an images API?")
        # The link itself grants access: the API key is not sent to its host.
        try:
            response = self._client.request("GET", link, timeout=self._retry_policy.timeout)
        except RetryableError as again:
            raise again.error from again
        if response.status != 200:
            raise RemoteError(f"The server's link to the image fails with {response.status}.")
        return image_decoding.decode_image(response.body)


def _model_entries(response: HttpResponse) -> list[dict[str, Any]] | None:
    """The entries of a server's model list, or `None` if it has no list."""
    if response.status != 200:
        return None
    body = response.json()
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list):
        return None
    return [entry for entry in data if isinstance(entry, dict) and is_text(entry.get("id"))]


def _first_image(body: object) -> tuple[dict[str, Any], int]:
    """The first image of a response, and the number of further ones. Raises RemoteError."""
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list) or not data or not isinstance(data[0], dict):
        raise RemoteError("The server's answer holds no image.", hint="Is it an images API?")
    return data[0], len(data) - 1
