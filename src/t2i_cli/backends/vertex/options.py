"""Options of the vertex backend."""

from dataclasses import dataclass

from t2i_cli.image_formats import ImageFormat
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.settings.defaults import CALLS_A_REPLICA
from t2i_cli.settings.options import EndpointOptions


@dataclass(frozen=True, kw_only=True)
class VertexOptions:
    """Which endpoint is called, by its ID or full resource name, and how.

    What `endpoint` leaves unset comes from the settings, stored records, the credentials, or the
    endpoint itself. `format` is the image files' format, used for the transfer if a PNG would be
    too large. `retry_policy` applies to each image, and to the look-up of the endpoint.
    `concurrency` is the maximum number of calls in flight. With `plan_only` no image is made, and
    an endpoint that cannot be looked up is planned for as far as this machine knows it.
    """

    retry_policy: RetryPolicy
    endpoint: EndpointOptions = EndpointOptions()
    format: ImageFormat = "png"
    concurrency: int | None = None
    plan_only: bool = False

    def calls_at_a_time(self, replicas: int | None) -> int:
        """How many calls may be in flight to an endpoint with so many replicas."""
        return self.concurrency or CALLS_A_REPLICA * (replicas or 1)
