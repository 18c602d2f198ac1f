"""The http backend: OpenAI's images API, as of t2i, SGLang, vLLM-Omni, LocalAI and OpenAI."""

import time
from collections.abc import Iterator, Mapping, Sequence
from threading import Event as Flag
from threading import Lock, Timer
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.http import dialects, discovery
from t2i_cli.backends.http.discovery import ServerInfo
from t2i_cli.backends.http.errors import error_from_response, is_not_found
from t2i_cli.backends.http.options import HttpOptions, is_same_origin, other_base_urls
from t2i_cli.errors import RemoteError
from t2i_cli.events import OnEvent
from t2i_cli.files.state_files import is_text
from t2i_cli.model_spec import ModelSpec
from t2i_cli.net import error_body, image_decoding, response_metadata
from t2i_cli.net.client_pool import ClientPool
from t2i_cli.net.concurrency import InFlightCall
from t2i_cli.net.http_client import HttpClient, HttpResponse
from t2i_cli.net.retry import RetryableError, call_with_retry
from t2i_cli.net.throttle import Throttle
from t2i_cli.net.unreachable import ACCOUNT_OR_NETWORK_ERRORS, unknown_facts
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.request_fields import DIALECTS
from t2i_cli.settings.defaults import CONCURRENCY

if TYPE_CHECKING:
    from PIL.Image import Image

SILENT_SECONDS = 5.0
"""Seconds without an answer to the first look at a server, after which the user is told."""


class HttpBackend:
    """A backend that calls the server at a URL. Raises only T2IError."""

    def __init__(self, options: HttpOptions) -> None:
        self._options = options
        self._retry_policy = options.retry_policy
        self._concurrency = options.concurrency or CONCURRENCY
        self._clients = ClientPool(lambda: HttpClient(options.url, self._concurrency))
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
        unasked = server.unasked
        unknown = None if unasked is None else unasked.message
        return unknown_facts("what the server has", unknown) | {
            "backend": "http",
            "url": server.url,
            "dialect": self._options.dialect if unasked else server.dialect.name,
            "sends": [name for name in self._request_body(request) if name != "response_format"],
            "concurrency": self._concurrency,
        }

    def image_price(self, request: ResolvedRequest) -> None:
        """Return `None`: what a server bills is not known."""

    def parallelism(self) -> int:
        """As many as calls may be in flight, of all runs together."""
        return self._concurrency

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
        return self._clients.run_calls(requests, self._generate, self._throttle, on_event, cancel)

    def close(self) -> None:
        """Close the connections."""
        self._clients.close()

    def _server(self) -> ServerInfo:
        """What is known of the server, which is asked once."""
        with self._lock:
            self._server_info = self._server_info or self._find_server()
            return self._server_info

    def _find_server(self) -> ServerInfo:
        try:
            return self._probe()
        except ACCOUNT_OR_NETWORK_ERRORS as error:
            if not self._options.plan_only:
                raise
            return discovery.unasked_server(self._options.url, self._options.dialect, error)

    def _probe(self) -> ServerInfo:
        """Look at the server, within the time and the retries that hold for an image."""
        policy = self._retry_policy
        waited_for = f"It is waited for, up to {policy.timeout:,.6g} s."
        times = "once" if policy.retries == 1 else f"up to {policy.retries} times"
        tried_again = f"It is tried again, {times}."
        told: set[str] = set()

        def tell(failure: RetryableError) -> None:
            silence.cancel()
            message = failure.error.message
            if message not in told:
                told.add(message)
                self._options.on_note(
                    f"{message} {waited_for if failure.cold_start else tried_again}"
                )

        silence = Timer(
            SILENT_SECONDS,
            self._options.on_note,
            (f"{self._options.url} has not answered yet. {waited_for}",),
        )
        silence.daemon = True
        silence.start()
        try:
            return call_with_retry(self._look, policy, self._throttle, None, on_wait=tell)
        finally:
            silence.cancel()

    def _look(self, seconds: float) -> ServerInfo:
        """Ask the server for its models and its own description, within `seconds`."""
        deadline = time.monotonic() + seconds
        url, entries = self._find_models(deadline)
        owners = [entry.get("owned_by") for entry in entries or []]
        dialect_name = self._options.dialect
        dialect = DIALECTS[dialect_name] if dialect_name else dialects.detect_dialect(owners)
        if url != self._options.url:
            self._options.on_note(f"The images API is at {url}, which is used; --url names it.")
        return ServerInfo(
            url=url,
            dialect=dialect,
            models=None if entries is None else [entry["id"] for entry in entries],
            facts=self._model_facts(url, deadline) if dialect.name == "t2i" else {},
        )

    def _find_models(self, deadline: float) -> tuple[str, list[dict[str, Any]] | None]:
        """The API's base URL, and the entries of its model list; `None` if it has none.

        It is the given URL, or one beside it that answers with a list where that one does not.
        """
        given = self._options.url
        missing: RemoteError | None = None
        try:
            if (entries := self._list_models(given, deadline)) is not None:
                return given, entries
        except RemoteError as error:
            missing = error
        for url in other_base_urls(given):
            try:
                if (entries := self._list_models(url, deadline)) is not None:
                    return url, entries
            except RemoteError:
                continue
        if missing:
            raise missing
        return given, None

    def _list_models(self, url: str, deadline: float) -> list[dict[str, Any]] | None:
        response = self._get(f"{url}/models", deadline)
        return None if response is None else _model_entries(response.json())

    def _model_facts(self, url: str, deadline: float) -> dict[str, Any]:
        """A t2i server's description of its model; empty if a proxy does not pass the path on."""
        response = self._get(f"{url.removesuffix('/v1')}/t2i/v1/model", deadline)
        facts = response.json() if response else {}
        return discovery.check_facts(facts) if isinstance(facts, dict) else {}

    def _get(self, url: str, deadline: float) -> HttpResponse | None:
        """The server's response; `None` if it has no such path."""
        with self._clients.borrow() as client:
            response = client.request(
                "GET",
                url,
                headers=self._headers(),
                timeout=max(0.001, deadline - time.monotonic()),
            )
        if response.status == 200 and not error_body.holds_error(response.json()):
            return response
        if is_not_found(response):
            return None
        raise error_from_response(response, self._options.url, self._options.key, first_look=True)

    def _headers(self) -> dict[str, str]:
        key = self._options.key
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _request_body(self, request: ResolvedRequest) -> dict[str, object]:
        server = self._server()
        name, spec = self._specs.get(request.model, (request.model, None))
        guidance = spec.guidance_argument if spec else None
        return dialects.build_image_request(request, name, server.dialect, guidance)

    def _generate(self, call: InFlightCall, client: HttpClient) -> GeneratedImage:
        body, url = self._request_body(call.request), self._server().url

        def post(timeout: float) -> tuple[HttpResponse, object]:
            response = client.request(
                "POST",
                f"{url}/images/generations",
                headers=self._headers(),
                json=body,
                timeout=timeout,
            )
            answer = response.json() if response.status == 200 else None
            if response.status != 200 or error_body.holds_error(answer):
                raise error_from_response(response, url, self._options.key)
            return response, answer

        def tell(failure: RetryableError) -> None:
            if failure.cold_start:
                call.note(f"{failure.error.message} It is waited for.")

        response, answer = call_with_retry(
            post, self._retry_policy, self._throttle, call.stop, on_wait=tell
        )
        image_entry, extra = _first_image(answer)
        response_metadata.note_further_images(call, "The server", extra)
        metadata = response_metadata.parse_response_metadata(image_entry)
        metadata.check_request(call.request)
        metadata.forward_notices(call)
        image = self._decode_image(image_entry, url, call.stop, client)
        request = response_metadata.with_actual_size(call, image.size)
        info = metadata.generation_info(call.request, backend="http", endpoint=url)
        return GeneratedImage(
            index=call.index,
            request=request,
            image=image,
            info=info,
            seconds=response.seconds if metadata.seconds is None else metadata.seconds,
            round_trip=response.seconds,
        )

    def _decode_image(
        self, entry: dict[str, Any], url: str, stop: Flag, client: HttpClient
    ) -> "Image":
        encoded, link = entry.get("b64_json"), entry.get("url")
        if isinstance(encoded, str) and encoded:
            return image_decoding.decode_base64_image(encoded)
        if not isinstance(link, str) or not link.strip():
            raise _no_image_error()
        if image_decoding.is_data_url(link):
            return image_decoding.decode_base64_image(link)
        try:
            link = urljoin(f"{url}/images/generations", link.strip())
        except ValueError:
            link = ""
        if not link.lower().startswith(("http://", "https://")):
            raise RemoteError(
                f"The link to the image in the answer of {url} is no address.",
                hint="Look into the server's log.",
            )
        response = self._fetch(link, {}, stop, client)
        if response.status in {401, 403} and is_same_origin(url, link):
            # The server itself gets its key; the key goes to no other host.
            response = self._fetch(link, self._headers(), stop, client)
        if response.status != 200:
            raise RemoteError(f"The server's link to the image fails with {response.status}.")
        return image_decoding.decode_image(response.body)

    def _fetch(
        self, link: str, headers: Mapping[str, str], stop: Flag, client: HttpClient
    ) -> HttpResponse:
        """The response of an image's link. A link itself grants access: `headers` may be empty."""

        def get(timeout: float) -> HttpResponse:
            return client.request("GET", link, headers=headers, timeout=timeout)

        return call_with_retry(get, self._retry_policy, None, stop)


def _model_entries(body: object) -> list[dict[str, Any]] | None:
    """The entries of a server's model list, or `None` if it has no list."""
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list):
        return None
    return [entry for entry in data if isinstance(entry, dict) and is_text(entry.get("id"))]


def _first_image(body: object) -> tuple[dict[str, Any], int]:
    """The first image of a response, and the number of further ones. Raises RemoteError."""
    data = body.get("data") if isinstance(body, dict) else None
    if data == []:
        raise RemoteError(
            "The server's answer holds no image: its list of images is empty.",
            hint="A filter may have withheld it; look into the server's log.",
        )
    if not isinstance(data, list) or not isinstance(data[0], dict):
        raise _no_image_error()
    return data[0], len(data) - 1


def _no_image_error() -> RemoteError:
    return RemoteError("The server's answer holds no image.", hint="Is it an images API?")
