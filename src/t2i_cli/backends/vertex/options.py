"""What a user may choose about an endpoint."""

from dataclasses import dataclass

from t2i_cli.net.defaults import RETRIES, TIMEOUT
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.output.filenames import ImageFormat


@dataclass(frozen=True, kw_only=True)
class VertexOptions:
    """`None` is found out: from the settings, what is remembered, the credentials, the endpoint.

    `endpoint` is a number or a full resource name. `format` is that of the files: where a PNG
    could not pass, the images come in it. `timeout` are the seconds for one image, its `retries`
    included.
    """

    endpoint: str | None = None
    project: str | None = None
    region: str | None = None
    api_endpoint: str | None = None
    serving: str | None = None
    format: ImageFormat = "png"
    retries: int = RETRIES
    timeout: float = TIMEOUT
    concurrency: int | None = None

    @property
    def retry_policy(self) -> RetryPolicy:
        """How long and how often one image, or what is needed first, is tried."""
        return RetryPolicy(retries=self.retries, timeout=self.timeout)
