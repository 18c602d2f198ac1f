"""Builds the body of a generateContent request.

Source: `_GenerateContentConfig_to_vertex` and `_ImageConfig_to_vertex` of google-genai 2.34.
"""

from collections.abc import Mapping

from t2i_cli.backends.gemini.image_models import DEFAULT_IMAGE_SIZE, ImageModel
from t2i_cli.errors import InputError
from t2i_cli.image_formats import ImageFormat
from t2i_cli.known_names import name_choices
from t2i_cli.request import ResolvedRequest

RATIO, IMAGE_SIZE, PEOPLE = "aspect_ratio", "image_size", "person_generation"
EXTRAS = {RATIO: "aspectRatio", IMAGE_SIZE: "imageSize", PEOPLE: "personGeneration"}
"""The extras that are taken, and their names in `imageConfig`."""
PEOPLE_VALUES = ("ALLOW_ALL", "ALLOW_ADULT", "ALLOW_NONE")
"""Values of `personGeneration` (`ImageConfig.PersonGeneration`)."""

MIME_TYPES: Mapping[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg"}
"""The formats that Google makes; another one is made here, from a PNG."""


def build_content_request(
    request: ResolvedRequest, model: ImageModel, format: ImageFormat
) -> dict[str, object]:
    """The JSON body for one image. Raises InputError for a size or an extra that is not taken."""
    config: dict[str, object] = dict(image_config(request, model))
    config["imageOutputOptions"] = {"mimeType": MIME_TYPES.get(format, MIME_TYPES["png"])}
    return {
        "contents": [{"role": "user", "parts": [{"text": request.prompt}]}],
        # With words allowed, a refusal says why.
        "generationConfig": {"responseModalities": ["TEXT", "IMAGE"], "imageConfig": config},
    }


def image_config(request: ResolvedRequest, model: ImageModel) -> dict[str, str]:
    """What is asked of the image, by the names in `imageConfig`. Raises InputError."""
    extras = {name: _checked(name, value, model) for name, value in request.extras or ()}
    if request.width is None and request.height is None:
        return {EXTRAS[name]: value for name, value in extras.items()}
    if request.width is None or request.height is None:
        raise InputError(
            f"{model.name} takes width and height together.", hint="--size 1024x1024", field="size"
        )
    if given := next((name for name in (RATIO, IMAGE_SIZE) if name in extras), None):
        raise InputError(
            f"The size is given twice: by --set {given}, and in pixels.",
            hint="Leave one of them out.",
            field="extras",
        )
    ratio, image_size = model.sizes()[request.width, request.height]
    config = {EXTRAS[RATIO]: ratio}
    if image_size in model.image_sizes:
        config[EXTRAS[IMAGE_SIZE]] = image_size
    return config | {EXTRAS[name]: value for name, value in extras.items()}


def billed_image_size(request: ResolvedRequest, model: ImageModel) -> str:
    """The `imageSize` that decides the price."""
    return image_config(request, model).get(EXTRAS[IMAGE_SIZE], DEFAULT_IMAGE_SIZE)


def _checked(name: str, value: object, model: ImageModel) -> str:
    """An extra's value as text. Raises InputError for one that the model does not take."""
    known: Mapping[str, tuple[str, ...]] = {
        RATIO: tuple(model.ratios),
        IMAGE_SIZE: model.image_sizes,
        PEOPLE: PEOPLE_VALUES,
    }
    # A model that is not in the table may take other values.
    taken = [one for one in EXTRAS if known[one] or not model.known]
    if name not in taken:
        raise InputError(
            f"{model.name} takes no {name}; {name_choices(name, taken)}", field="extras"
        )
    text = str(value)
    is_plain = isinstance(value, str) or type(value) is int
    if is_plain and (text in known[name] or not known[name]):
        return text
    listed = f"; it takes {', '.join(known[name])}" if known[name] else ""
    raise InputError(f"{model.name} takes no {name} {text[:80]!r}{listed}.", field="extras")
