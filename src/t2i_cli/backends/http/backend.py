"""Images from any server of OpenAI's images API: t2i's own, SGLang, vLLM-Omni, LocalAI, OpenAI."""

from collections.abc import Iterator, Sequence
from threading import Event as Flag
from threading import Lock
from typing import TYPE_CHECKING, Any

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.http import dialects
from t2i_cli.backends.http.discovery import ServerInfo
from t2i_cli.backends.http.errors import error_from_response
from t2i_cli.backends.http.options import HttpOptions
from t2i_cli.errors import RemoteError
from t2i_cli.events import OnEvent
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

_LOOKING = RetryPolicy(retries=1, timeout=30.0, from_options=True)
"""For asking what a server has, which must not take long to fail."""
_NO_LIST = {404, 405, 501}


class HttpBackend:
    """Images from the server at a URL. Errors leave it only as T2IError."""

    def __init__(self, options: HttpOptions) -> None:
        self._options = options
        self._patience = options.retry_policy
        self._concurrency = options.concurrency or CONCURRENCY
        self._wire = HttpClient(options.url, self._concurrency)
        self._throttle = Throttle(self._concurrency)
        self._lock = Lock()
        self._found: ServerInfo | None = None
        self._specs: dict[str, tuple[str, ModelSpec]] = {}

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """What is known of the model that the request names; asks the server. Raises T2IError."""
        server = self._server()
        name = server.model_name(request.model)
        spec = server.model_spec(name)
        self._specs[spec.repo or spec.name] = (name, spec)
        return spec

    def check(self, request: ResolvedRequest) -> None:
        """Raise if the request cannot be put to the server."""
        self._body(request)

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """Which server is asked, in which dialect, and what it is told."""
        server = self._server()
        return {
            "backend": "http",
            "url": server.url,
            "dialect": server.dialect.name,
            "sends": [name for name in self._body(request) if name != "response_format"],
            "concurrency": self._concurrency,
        }

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """None: the server chose the commit."""
        return None

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Make sure that the server answers."""
        self._server()

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome a request, with several calls in flight."""
        return run_concurrently(
            requests, self._make, self._throttle, on_event, cancel, abandon=self._wire.abort
        )

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def _server(self) -> ServerInfo:
        """The server, asked once."""
        with self._lock:
            self._found = self._found or self._look()
            return self._found

    def _look(self) -> ServerInfo:
        url = self._options.url
        answer = self._get(f"{url}/models")
        entries = _entries(answer)
        owners = [entry.get("owned_by") for entry in entries or []]
        chosen = self._options.dialect
        dialect = DIALECTS[chosen] if chosen else dialects.detect_dialect(owners)
        return ServerInfo(
            url=url,
            dialect=dialect,
            models=None if entries is None else [str(entry["id"]) for entry in entries],
            facts=self._facts() if dialect.name == "t2i" else {},
        )

    def _facts(self) -> dict[str, Any]:
        """What a t2i server tells of its model; nothing where something stands before it."""
        answer = self._get(f"{self._options.url.removesuffix('/v1')}/t2i/v1/model")
        facts = answer.json() if answer.status == 200 else {}
        return facts if isinstance(facts, dict) else {}

    def _get(self, url: str) -> HttpResponse:
        def ask(left: float) -> HttpResponse:
            answer = self._wire.request("GET", url, headers=self._headers(), timeout=left)
            if answer.status == 200 or answer.status in _NO_LIST:
                return answer
            raise error_from_response(answer, self._options.url, self._options.key)

        return call_with_retry(ask, _LOOKING, self._throttle, Flag())

    def _headers(self) -> dict[str, str]:
        key = self._options.key
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _body(self, request: ResolvedRequest) -> dict[str, object]:
        server = self._server()
        name, spec = self._specs.get(request.model, (request.model, None))
        guidance = spec.guidance_argument if spec else None
        return dialects.build_image_request(request, name, server.dialect, guidance)

    def _make(self, call: InFlightCall) -> GeneratedImage:
        body = self._body(call.request)

        def ask(left: float) -> HttpResponse:
            answer = self._wire.request(
                "POST",
                f"{self._options.url}/images/generations",
                headers=self._headers(),
                json=body,
                timeout=left,
            )
            if answer.status != 200:
                raise error_from_response(answer, self._options.url, self._options.key)
            return answer

        answer = call_with_retry(ask, self._patience, self._throttle, call.stop)
        entry, more = _first(answer.json())
        if more:
            call.tell(
                f"The server answers with {more + 1} images where one is asked for: the first is "
                f"kept, {more} not."
            )
        account = response_metadata.parse_response_metadata(entry)
        account.check_request(call.request)
        account.forward_notices(call)
        image = self._image(entry)
        request = response_metadata.true_size(call, image.size)
        lock = account.generation_info(call.request, backend="http", endpoint=self._options.url)
        return GeneratedImage(
            index=call.index,
            request=request,
            image=image,
            info=lock,
            seconds=answer.seconds if account.seconds is None else account.seconds,
            round_trip=answer.seconds,
        )

    def _image(self, entry: dict[str, Any]) -> "Image":
        if isinstance(entry.get("b64_json"), str):
            return image_decoding.decode_base64_image(entry["b64_json"])
        link = entry.get("url")
        if not isinstance(link, str) or not link.startswith(("http://", "https://")):
            raise RemoteError("The server's answer holds no image.", hint="Is it an images API?")
        # The link carries its own permission: the key stays here.
        try:
            answer = self._wire.request("GET", link, timeout=self._patience.timeout)
        except RetryableError as again:
            raise again.error from again
        if answer.status != 200:
            raise RemoteError(f"The server's link to the image fails with {answer.status}.")
        return image_decoding.decode_image(answer.body)


def _entries(answer: HttpResponse) -> list[dict[str, Any]] | None:
    """The models that a server lists; None where it has no list."""
    if answer.status != 200:
        return None
    listed = answer.json()
    data = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(data, list):
        return None
    return [entry for entry in data if isinstance(entry, dict) and "id" in entry]


def _first(answer: object) -> tuple[dict[str, Any], int]:
    """The one image that was asked for, and how many came beside it."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not data or not isinstance(data[0], dict):
        raise RemoteError("The server's answer holds no image.", hint="Is it an images API?")
    return data[0], len(data) - 1
