"""What a user may choose about an endpoint."""

from dataclasses import dataclass

from t2i_cli.image_formats import ImageFormat
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.settings.options import EndpointOptions


@dataclass(frozen=True, kw_only=True)
class VertexOptions:
    """Which endpoint, by a number or a full resource name, and how it is called.

    What `place` leaves open is found out: from the settings, what is remembered, the credentials,
    the endpoint. `format` is that of the files: where a PNG could not pass, the images come in it.
    `retry_policy` is for one image, or what is needed first.
    """

    retry_policy: RetryPolicy
    place: EndpointOptions = EndpointOptions()
    format: ImageFormat = "png"
    concurrency: int | None = None
