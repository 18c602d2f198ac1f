"""Build prediction requests and parse their responses: instances, parameters, predictions."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from t2i_cli import image_formats
from t2i_cli.errors import RemoteError, T2IError, error_from_json
from t2i_cli.image_formats import ImageFormat
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import FIELDS, SERVINGS

SHARED_LIMIT, DEDICATED_LIMIT = 1_500_000, 10_000_000
"""Maximum bytes of a request and of a response (cloud.google.com/vertex-ai/docs/quotas)."""

# None is an unknown handler: it is assumed to accept the prompt only.
TAKES: dict[str | None, frozenset[str]] = {None: frozenset()} | {
    serving: frozenset(name for name, known in FIELDS.items() if serving in known.servings)
    for serving in SERVINGS
}
"""The fields that each kind of server accepts in addition to the prompt."""

TRANSFER_FORMATS = {"t2i", "torchserve"}
"""The kinds of server that respond in the requested image format."""

_IMAGE_KEYS = ("image", "output", "b64_json", "bytesBase64Encoded", "images", "data")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image of a response: its base64, its prediction, and the number of further images."""

    base64: str
    entry: object
    extra: int = 0


def build_prediction_request(
    request: ResolvedRequest, serving: str | None, format: ImageFormat, *, name_model: bool = False
) -> dict[str, object]:
    """The JSON request body: the set fields that the server accepts.

    With `name_model`, the model that the user names is sent to a t2i server, which refuses a model
    that is not its own; a server with weights from a bucket does not know the user's names. As
    handlers differ in where they read, the prompt is sent under both of its names, and the settings
    both in the instance and as parameters.
    """
    accepted = TAKES[serving]
    settings = {
        spec.vertex or name: spec.json_value(value)
        for name, spec in FIELDS.items()
        if name in accepted and (value := getattr(request, name)) is not None
    }
    instance: dict[str, object] = {"prompt": request.prompt, "text": request.prompt} | settings
    if serving in TRANSFER_FORMATS:
        instance["format"] = format
    if name_model and serving == "t2i" and "model" in request.user_set:
        instance["model"] = request.model
    return {"instances": [instance]} | ({"parameters": settings} if settings else {})


def parse_prediction(response: object) -> Prediction:
    """The first image in the response to one instance. Raises T2IError."""
    predictions = response.get("predictions") if isinstance(response, dict) else None
    images = _find_images(predictions, None)
    if (first := next(images, None)) is None:
        raise RemoteError(
            "The endpoint's prediction is no image: neither base64 nor an object that holds it.",
            hint="Is a text-to-image model deployed there?",
        )
    extra = 0
    # An error in place of a further image, which was not requested, does not concern the first.
    with suppress(T2IError):
        for _ in images:
            extra += 1
    return replace(first, extra=extra)


def _find_images(value: object, entry: object) -> Iterator[Prediction]:
    if isinstance(value, str):
        yield Prediction(base64=value, entry=entry)
    elif isinstance(value, list):
        for item in value:
            yield from _find_images(item, entry)
    elif isinstance(value, dict):
        error: Any = value.get("error")
        if isinstance(error, dict) and (own := error_from_json(error)):
            raise own
        # Some handlers return one image under two names: only the first is used.
        named = (list(_find_images(value.get(key), value)) for key in _IMAGE_KEYS)
        yield from next((found for found in named if found), [])


def choose_transfer_format(
    request: ResolvedRequest, wanted: ImageFormat, limit: int
) -> ImageFormat:
    """The transfer format: PNG, which is lossless, if it fits the limit, else `wanted`."""
    return "png" if wanted == "png" or _base64_bytes(request, "png") < limit else wanted


def smaller_format(request: ResolvedRequest, than: ImageFormat, limit: int) -> ImageFormat | None:
    """A format smaller than `than` in which an image fits the limit (bytes), or `None`."""
    formats = list(image_formats.BYTES_A_PIXEL)
    smaller = formats[formats.index(than) + 1 :]
    return next((format for format in smaller if _base64_bytes(request, format) < limit), None)


def _base64_bytes(request: ResolvedRequest, format: ImageFormat) -> float:
    """The approximate base64 bytes of a detailed image."""
    pixels = (request.width or 1024) * (request.height or 1024)
    return pixels * image_formats.BYTES_A_PIXEL[format] * 4 / 3
