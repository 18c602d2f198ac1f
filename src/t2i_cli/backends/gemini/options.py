"""Options of the gemini backend, and the address of a model."""

from dataclasses import dataclass

from t2i_cli.image_formats import ImageFormat
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.settings.defaults import GEMINI_REGION
from t2i_cli.settings.options import LocationOptions
from t2i_cli.vertex.location import Location

_MULTI_REGIONS = {"us", "eu"}


@dataclass(frozen=True, kw_only=True)
class GeminiOptions:
    """Where Google's image models are called, and how.

    What `place` leaves unset comes from the settings and the credentials, but for its region, which
    is that of the models. `model` is for requests that name none. `format` is the image files'
    format, in which images are asked for if Google has it. `retry_policy` applies to each image,
    `concurrency` is the maximum number of calls in flight. With `plan_only` no image is made, and
    credentials are done without.
    """

    retry_policy: RetryPolicy
    place: LocationOptions = LocationOptions(region=GEMINI_REGION)
    model: str | None = None
    format: ImageFormat = "png"
    concurrency: int | None = None
    plan_only: bool = False


def api_url(location: Location) -> str:
    """The base URL of Vertex AI in a location, as google-genai builds it (`_api_client.py`)."""
    if location.api_endpoint or location.region == GEMINI_REGION:
        return (location.api_endpoint or "https://aiplatform.googleapis.com").rstrip("/")
    if location.region in _MULTI_REGIONS:
        return f"https://aiplatform.{location.region}.rep.googleapis.com"
    return location.host("aiplatform")


def model_url(location: Location, model: str) -> str:
    """The URL of the method that makes an image."""
    return (
        f"{api_url(location)}/v1/{location.parent}/publishers/google/models/{model}:generateContent"
    )
