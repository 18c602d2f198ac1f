"""What an endpoint is sent and answers: instances, parameters, predictions."""

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
"""Bytes of a request and of an answer (cloud.google.com/vertex-ai/docs/quotas)."""

# A handler that nobody described (None): the article's takes the prompt and nothing else.
TAKES: dict[str | None, frozenset[str]] = {None: frozenset()} | {
    serving: frozenset(name for name, known in FIELDS.items() if serving in known.servings)
    for serving in SERVINGS
}
"""What each kind of serving honours beside the prompt."""

TRANSFER_FORMATS = {"t2i", "torchserve"}
"""The servings that answer in the format that is asked for."""

_IMAGE_KEYS = ("image", "output", "b64_json", "bytesBase64Encoded", "images", "data")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image of an answer: its base64, the prediction it came in, how many came beside it."""

    text: str
    entry: object
    more: int = 0


def build_prediction_request(
    request: ResolvedRequest, serving: str | None, format: ImageFormat, *, name_model: bool = False
) -> dict[str, object]:
    """The JSON to post: only what the request sets and the serving takes.

    With `name_model` a t2i server is told the model that the user names, and refuses another one
    than its own; one that took its weights from a bucket knows them by no name of the user's.
    The prompt goes by the two names that it has, the settings to both places where they are read.
    """
    taken = TAKES[serving]
    settings = {
        known.vertex or name: known.written(value)
        for name, known in FIELDS.items()
        if name in taken and (value := getattr(request, name)) is not None
    }
    instance: dict[str, object] = {"prompt": request.prompt, "text": request.prompt} | settings
    if serving in TRANSFER_FORMATS:
        instance["format"] = format
    if name_model and serving == "t2i" and "model" in request.user_set:
        instance["model"] = request.model
    return {"instances": [instance]} | ({"parameters": settings} if settings else {})


def parse_prediction(answer: object) -> Prediction:
    """The image in an answer to one instance; the first where there are more. Raises T2IError."""
    predictions = answer.get("predictions") if isinstance(answer, dict) else None
    images = _found(predictions, None)
    if (first := next(images, None)) is None:
        raise RemoteError(
            "The endpoint's prediction is no image: neither base64 nor an object that holds it.",
            hint="Is a text-to-image model deployed there?",
        )
    more = 0
    # An error in place of an image that was not asked for is none of the first one's.
    with suppress(T2IError):
        for _ in images:
            more += 1
    return replace(first, more=more)


def _found(value: object, entry: object) -> Iterator[Prediction]:
    if isinstance(value, str):
        yield Prediction(text=value, entry=entry)
    elif isinstance(value, list):
        for item in value:
            yield from _found(item, entry)
    elif isinstance(value, dict):
        error: Any = value.get("error")
        if isinstance(error, dict) and (own := error_from_json(error)):
            raise own
        # Some handlers give one image under two names.
        named = (list(_found(value.get(key), value)) for key in _IMAGE_KEYS)
        yield from next((found for found in named if found), [])


def choose_transfer_format(
    request: ResolvedRequest, wanted: ImageFormat, limit: int
) -> ImageFormat:
    """The format for the way: PNG, which loses nothing, where it passes, else that of the files."""
    return "png" if wanted == "png" or _bytes(request, "png") < limit else wanted


def smaller_format(request: ResolvedRequest, than: ImageFormat, limit: int) -> ImageFormat | None:
    """The format in which an image passes that did not in `than`, if there is one."""
    formats = list(image_formats.BYTES_A_PIXEL)
    smaller = formats[formats.index(than) + 1 :]
    return next((format for format in smaller if _bytes(request, format) < limit), None)


def _bytes(request: ResolvedRequest, format: ImageFormat) -> float:
    """Bytes of a detailed picture in base64, about."""
    pixels = (request.width or 1024) * (request.height or 1024)
    return pixels * image_formats.BYTES_A_PIXEL[format] * 4 / 3
