"""The hf backend: images of Hugging Face's Inference Providers, billed one by one."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Event as Flag
from threading import Lock
from typing import TYPE_CHECKING, Any

from t2i_cli import __version__
from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.hf.errors import (
    BILLED_HINT,
    PERMISSION_HINT,
    CallContext,
    translate_failed_call,
    unreadable_answer,
)
from t2i_cli.backends.hf.options import AUTO, HfOptions
from t2i_cli.backends.hf.providers import (
    ARGUMENTS,
    ServedModel,
    check_provider,
    find_served_model,
)
from t2i_cli.backends.hf.transport import ProviderCall, router_url
from t2i_cli.errors import AccessError, InputError, ModelError, RemoteError, T2IError, error_reason
from t2i_cli.events import OnEvent
from t2i_cli.hub.client import hub_api, sent_by
from t2i_cli.hub.errors import hub_error
from t2i_cli.image_price import ImagePrice
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog, weight_sources
from t2i_cli.models.image_prices import find_image_price
from t2i_cli.net.billed_calls import telling_it_is_billed, with_billed_size
from t2i_cli.net.client_pool import ClientPool
from t2i_cli.net.concurrency import InFlightCall
from t2i_cli.net.http_client import HttpClient
from t2i_cli.net.image_decoding import decode_image
from t2i_cli.net.response_metadata import ResponseMetadata
from t2i_cli.net.retry import CallCancelledError, RetryableError, call_with_retry
from t2i_cli.net.throttle import Throttle
from t2i_cli.net.unreachable import ACCOUNT_OR_NETWORK_ERRORS, unknown_facts
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.request_extras import extras_to_json
from t2i_cli.request_fields import MODEL_DEFAULTS
from t2i_cli.settings.defaults import CONCURRENCY

if TYPE_CHECKING:
    import httpx2
    from PIL.Image import Image

_NO_EXTRAS = {
    **dict.fromkeys(("prompt", "inputs"), "the prompt is an argument"),
    **{argument: f"--{field.replace('_', '-')} does" for field, argument in ARGUMENTS.items()},
    **dict.fromkeys(("model", "version"), "-m does"),
    **dict.fromkeys(
        ("n", "num_images", "num_outputs", "batch_size"), "each request is for one image"
    ),
    **dict.fromkeys(
        ("response_format", "sync_mode", "enable_base64_output"),
        "huggingface_hub reads the image in one form only",
    ),
}
"""Names that `--set` cannot give, and why."""


class HfBackend:
    """A backend that has providers on the Hub make images. Raises only T2IError."""

    def __init__(self, options: HfOptions) -> None:
        check_provider(options.provider)
        self._options = options
        self._concurrency = options.concurrency or CONCURRENCY
        self._throttle = Throttle(self._concurrency)
        self._clients = ClientPool(
            lambda: HttpClient(
                str(router_url()), self._concurrency, translate=translate_failed_call
            )
        )
        self._lock = Lock()
        self._served_models: dict[str, ServedModel] = {}

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """Describe the model at its provider, from the Hub and the catalogue. Raises T2IError."""
        spec = _known_spec(request.model)
        served = self._served_model(spec)
        # The provider has defaults of its own, which nobody tells.
        unset: dict[str, Any] = dict.fromkeys(MODEL_DEFAULTS)
        return replace(spec, revision=None, pipeline=None, refuses=served.refusals(), **unset)

    def check(self, request: ResolvedRequest) -> None:
        """Raise InputError if the request cannot be sent to the provider."""
        if (request.width is None) != (request.height is None):
            raise InputError(
                "A provider takes width and height together.", hint="--size 512x768", field="size"
            )
        for name, _ in request.extras or ():
            if reason := _NO_EXTRAS.get(name):
                raise InputError(f"--set cannot give {name}: {reason}.", field="extras")

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """The provider, its name of the model, the fields that would be sent, and who pays."""
        served = self._served_model(_known_spec(request.model))
        return unknown_facts("which providers serve it", served.unknown) | {
            "backend": "hf",
            "url": str(router_url() if served.provider == AUTO else _provider_url(served)),
            "provider": served.provider,
            "provider_model": served.model_id,
            "billed_to": self._options.payer,
            "sends": ["prompt", *_arguments(request, served)],
            "concurrency": self._concurrency,
        }

    def image_price(self, request: ResolvedRequest) -> ImagePrice:
        """The price of an image by the user's table: the Hub and the providers do not tell it."""
        served = self._served_model(_known_spec(request.model))
        provider = None if served.provider == AUTO else served.provider
        found = find_image_price("hf", served.repo, provider=provider)
        if found.usd is not None:
            return found
        biller = provider or "the provider"
        return ImagePrice(usd=None, source=f"billed by {biller} through Hugging Face")

    def parallelism(self) -> int:
        """As many as calls may be in flight, of all runs together."""
        return self._concurrency

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """Return `None`: the provider determines the commit."""
        return None

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Check that there is a token, and that the provider serves the model. Raises T2IError."""
        self._served_model(_known_spec(request.model))
        _router_token()

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

    def _served_model(self, spec: ModelSpec) -> ServedModel:
        """The model at its provider; the Hub is asked once for each model."""
        repo = spec.repo or spec.name
        with self._lock:
            if repo not in self._served_models:
                self._served_models[repo] = self._find_served_model(spec)
            return self._served_models[repo]

    def _find_served_model(self, spec: ModelSpec) -> ServedModel:
        try:
            return find_served_model(spec, self._options.provider)
        except ACCOUNT_OR_NETWORK_ERRORS as error:
            if not self._options.plan_only:
                raise
            repo, provider = spec.repo or spec.name, self._options.provider
            return ServedModel(repo=repo, provider=provider, model_id=None, unknown=error.message)

    def _generate(self, call: InFlightCall, client: HttpClient) -> GeneratedImage:
        request = call.request
        served = self._served_model(_known_spec(request.model))
        context = CallContext(served=served, payer=self._options.payer, token=_router_token())
        unknown = self.image_price(request).usd is None
        call.note(
            f"{served.provider} makes the images, and Hugging Face bills {context.payer} for "
            f"them{'; the price is not told beforehand' if unknown else ''}."
        )
        if served.warning:
            call.note(served.warning)
        started = time.monotonic()

        def attempt(seconds: float) -> tuple[bytes, float]:
            began = time.monotonic()
            provider_call = ProviderCall(
                client=client,
                context=context,
                retry_policy=self._options.retry_policy,
                deadline=began + seconds,
                stop=call.stop,
            )
            data = self._text_to_image(request, provider_call, seconds)
            return data, time.monotonic() - began

        def tell(failure: RetryableError) -> None:
            if failure.cold_start:
                call.note(f"{failure.error.message} It is waited for.")

        data, seconds = call_with_retry(
            attempt, self._options.retry_policy, self._throttle, call.stop, on_wait=tell
        )
        with telling_it_is_billed():
            image = decode_image(data)
        info = ResponseMetadata().generation_info(
            request,
            backend="hf",
            endpoint=str(_provider_url(served)),
            deployed_model=served.model_id,
            libraries=_libraries(),
        )
        return GeneratedImage(
            index=call.index,
            request=with_billed_size(call, image.size, served.provider),
            image=image,
            info=info,
            seconds=seconds,
            round_trip=time.monotonic() - started,
        )

    def _text_to_image(self, request: ResolvedRequest, call: ProviderCall, seconds: float) -> bytes:
        """The bytes of the image file that the provider sends. Raises T2IError, RetryableError."""
        from huggingface_hub import InferenceClient
        from huggingface_hub.errors import HfHubHTTPError
        from PIL import UnidentifiedImageError

        served, context = call.context.served, call.context
        client = InferenceClient(
            provider=served.provider,  # type: ignore[arg-type]
            token=context.token,
            bill_to=self._options.bill_to,
            timeout=seconds,
        )
        try:
            with sent_by(call.send):
                image = client.text_to_image(
                    request.prompt, model=served.repo, **_arguments(request, served)
                )
        except (T2IError, RetryableError, CallCancelledError, MemoryError):
            raise
        except HfHubHTTPError as error:
            raise hub_error(error, served.repo) from error
        except UnidentifiedImageError as error:
            raise RemoteError(
                f"What {served.provider} sent is no image.", hint=BILLED_HINT
            ) from error
        except Exception as error:
            # The library trusts what the Hub and providers answer, and raises what that leads to.
            if not call.submitted:
                raise ModelError(
                    f"{served.provider} makes no images with {served.repo}: {error_reason(error)}"
                ) from error
            raise unreadable_answer(error, context) from error
        return _file_bytes(image)


def _provider_url(served: ServedModel) -> "httpx2.URL":
    """The address under which the router hands calls on to the provider."""
    return router_url().join(served.provider)


def _known_spec(model: str | None) -> ModelSpec:
    """The catalogue's entry of the model, or one for its repository. Raises T2IError."""
    if model is None:
        raise InputError(
            "The hf backend does not know which model to use.",
            hint="-m names a model on the Hub, as -m flux-schnell.",
            field="model",
        )
    spec = catalog.find_in_catalog(model) or catalog.find_spelled(model)
    if spec and spec.repo is None:
        raise ModelError(
            f"{spec.name} is inside t2i: no provider serves it.", hint="-m names another model."
        )
    if spec is None and weight_sources.names_file(model):
        raise InputError(
            f"{model} is a single file; providers make images with whole models.",
            hint="-m names one as owner/name; `--backend local` takes a single file.",
            field="model",
        )
    if spec is None and not catalog.is_repository(model):
        raise catalog.unknown_model(model, "owner/name on the Hub does as well")
    return spec or ModelSpec(name=model, repo=model, multiple=1)


def _arguments(request: ResolvedRequest, served: ServedModel) -> dict[str, Any]:
    """The arguments of `text_to_image`: the set fields that the provider honours."""
    arguments = {
        argument: value
        for field, argument in ARGUMENTS.items()
        if field in served.honoured and (value := getattr(request, field)) is not None
    }
    if request.extras:
        arguments["extra_body"] = extras_to_json(request.extras)
    return arguments


def _router_token() -> str:
    """The Hub's token. Raises AccessError without one that the router takes."""
    token = hub_api().token
    if not isinstance(token, str):
        raise AccessError("There is no token for Hugging Face.", hint=PERMISSION_HINT)
    if not token.startswith("hf_"):
        # The library would send it to the provider itself, as a key of that provider.
        raise AccessError("The Hub's token is none: those begin with hf_.", hint=PERMISSION_HINT)
    return token


def _libraries() -> Mapping[str, str]:
    import huggingface_hub

    return {"t2i": __version__, "huggingface_hub": huggingface_hub.__version__}


def _file_bytes(image: "Image") -> bytes:
    """The bytes of the file that the library opened, which it does not decode itself.

    t2i's own decoder has limits.
    """
    from PIL.ImageFile import ImageFile

    if not isinstance(image, ImageFile) or image.fp is None:
        raise RemoteError("huggingface_hub gives no image that was opened from a file.")
    image.fp.seek(0)
    return image.fp.read()
