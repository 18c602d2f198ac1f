"""The gemini backend: Google's image models by generateContent on Vertex AI, over REST."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Event as Flag
from threading import Lock

from t2i_cli import __version__
from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.gemini import answers, errors, received_image, request_body
from t2i_cli.backends.gemini.image_models import (
    ImageModel,
    find_image_model,
    price_class,
)
from t2i_cli.backends.gemini.options import GeminiOptions, api_url, model_url
from t2i_cli.events import OnEvent
from t2i_cli.image_price import ImagePrice
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models.image_prices import find_image_price
from t2i_cli.net import google_credentials, google_http
from t2i_cli.net.billed_calls import with_billed_size
from t2i_cli.net.client_pool import ClientPool
from t2i_cli.net.concurrency import InFlightCall
from t2i_cli.net.http_client import HttpClient, HttpResponse
from t2i_cli.net.response_metadata import note_further_images
from t2i_cli.net.retry import RetryableError, call_with_retry, retryable
from t2i_cli.net.throttle import Throttle
from t2i_cli.net.unreachable import ACCOUNT_OR_NETWORK_ERRORS, unknown_facts
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.settings.defaults import CONCURRENCY, GEMINI_MODEL, GEMINI_REGION
from t2i_cli.vertex.location import UNKNOWN_PROJECT, Location, find_location

NAME = "gemini"
"""The backend's name, also in the table of prices."""


class GeminiBackend:
    """A backend that calls Google's image models. Raises only T2IError."""

    def __init__(self, options: GeminiOptions) -> None:
        self._options = options
        self._concurrency = options.concurrency or CONCURRENCY
        self._throttle = Throttle(self._concurrency)
        self._lock = Lock()
        self._connection: _Connection | None = None

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """Describe the request's model, else that of the settings, else the default one."""
        name = request.model or self._options.model or GEMINI_MODEL
        return find_image_model(name).spec()

    def check(self, request: ResolvedRequest) -> None:
        """Raise InputError if the model does not take the request's size or extras."""
        self._request_body(request)

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """The model, its URL, and what would be asked of the image."""
        model = find_image_model(request.model)
        location, unknown = self._planned_location()
        what = "the project, and " * (location.project == UNKNOWN_PROJECT)
        return unknown_facts(f"{what}whether it may be called", unknown) | {
            "backend": NAME,
            "url": model_url(location, model.name),
            "sends": {"prompt": request.prompt} | request_body.image_config(request, model),
            "concurrency": self._concurrency,
        }

    def image_price(self, request: ResolvedRequest) -> ImagePrice:
        """The price of such an image, by the dated table or the user's."""
        model = find_image_model(request.model)
        image_size = request_body.billed_image_size(request, model)
        return find_image_price(NAME, model.name, size_class=price_class(image_size))

    def parallelism(self) -> int:
        """As many as calls may be in flight, of all runs together."""
        return self._concurrency

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """Return `None`: Google's models have no revisions to choose."""
        return None

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Check the project and the credentials. Raises T2IError."""
        self._connect().check_credentials()

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome per request, with several calls in flight."""
        clients = self._connect().clients
        return clients.run_calls(requests, self._generate, self._throttle, on_event, cancel)

    def close(self) -> None:
        """Close the connections."""
        if self._connection:
            self._connection.clients.close()

    def _connect(self) -> "_Connection":
        with self._lock:
            self._connection = self._connection or _Connection(self._options, self._concurrency)
            return self._connection

    def _planned_location(self) -> tuple[Location, str | None]:
        """The location, and why there is no account, where only a plan is wanted."""
        try:
            return self._connect().location, None
        except ACCOUNT_OR_NETWORK_ERRORS as error:
            if not self._options.plan_only:
                raise
            return _find_model_location(self._options, UNKNOWN_PROJECT), error.message

    def _request_body(self, request: ResolvedRequest) -> dict[str, object]:
        model = find_image_model(request.model)
        return request_body.build_content_request(request, model, self._options.format)

    def _generate(self, call: InFlightCall, client: HttpClient) -> GeneratedImage:
        connection = self._connect()
        model, body = find_image_model(call.request.model), self._request_body(call.request)

        def post(left: float) -> HttpResponse:
            return connection.post(client, model, body, left)

        response = call_with_retry(post, self._options.retry_policy, self._throttle, call.stop)
        answer = answers.parse_image_answer(response.json())
        note_further_images(call, "Google", answer.extra)
        image, file = received_image.decode_received_image(answer.base64)
        return GeneratedImage(
            index=call.index,
            request=with_billed_size(call, image.size, "Google"),
            image=image,
            info=GenerationInfo(
                backend=NAME,
                model=call.request.model,
                endpoint=model_url(connection.location, model.name),
                # None of Google's image models honours one.
                seed_confirmed=False,
                model_version=answer.model_version,
                response_id=answer.response_id,
                tokens=dict(answer.tokens) if answer.tokens else None,
                libraries={"t2i": __version__},
            ),
            seconds=response.seconds,
            round_trip=response.seconds,
            file=file,
        )


def _find_model_location(options: GeminiOptions, login_project: str | None) -> Location:
    """The project and the location of the models. Raises InputError."""
    found = find_location(replace(options.place, region=None), login_project=login_project)
    return replace(found, region=options.place.region or GEMINI_REGION)


class _Connection:
    """The location, with its credentials and HTTP client; thread-safe."""

    def __init__(self, options: GeminiOptions, concurrency: int) -> None:
        credentials, login = google_credentials.find_credentials()
        self._authorization = google_credentials.TokenProvider(credentials)
        self._policy = options.retry_policy
        self.location = _find_model_location(options, login.project)
        self.clients = ClientPool(
            lambda: HttpClient(
                api_url(self.location),
                concurrency,
                translate=errors.error_from_failed_call,
                ca_file=self.location.ca_file,
            )
        )

    def check_credentials(self) -> None:
        """Get a token, so that refused credentials end a run before its first image."""
        call_with_retry(self._headers, self._policy)

    def post(
        self, client: HttpClient, model: ImageModel, body: object, left: float
    ) -> HttpResponse:
        """Make one call, within `left` seconds. Raises T2IError, or RetryableError if temporary."""
        deadline = time.monotonic() + left
        headers = self._headers(left)
        response = client.request(
            "POST",
            model_url(self.location, model.name),
            headers=headers,
            json=body,
            timeout=max(0.001, deadline - time.monotonic()),
        )
        if response.status == 401 and self._authorization.discard():
            raise RetryableError(google_http.RefusedTokenError(), pause=0.0)
        if response.status != 200:
            raise errors.error_from_answer(response, model.name, self.location)
        return response

    def _headers(self, left: float) -> dict[str, str]:
        with retryable():
            return self._authorization(left)
