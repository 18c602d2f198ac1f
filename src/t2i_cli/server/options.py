"""Options of the server: access control and limits."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from t2i_cli.settings.options import flag

if TYPE_CHECKING:
    from t2i_cli.server.vertex_container import VertexContainer

API_KEY_VARIABLE = "T2I_API_KEY"
MAX_BODY_BYTES = 2**20
"""Longest request body in bytes; ten of the longest prompts and negative prompts fit."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Access control. `allowed_hosts` are accepted Host headers, "*" for any.

    "localhost" and IP addresses are always accepted as Host. `cors_origins` are origins, "*" for
    any. `max_body` is in bytes. `container` is set if Vertex AI runs this server.
    """

    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body: int = MAX_BODY_BYTES
    container: "VertexContainer | None" = None


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Limits of one server: `queue` waiting jobs, `max_batch` images of a batch.

    `timeout` is in seconds from a job's acceptance, None for no limit. `images` is the number of
    images of one job, `pixels` width times height.
    """

    PANEL: ClassVar = "Limits"

    queue: Annotated[int, flag("--queue", min=0, help="Jobs that may wait; more get 429.")] = 16
    max_batch: Annotated[
        int, flag("--max-batch", min=1, help="Waiting images that may share a pass.")
    ] = 4
    timeout: Annotated[
        float | None,
        flag("--request-timeout", min=0.001, help="Seconds for a job, waiting too."),
    ] = 300.0
    images: Annotated[int, flag("--max-images", min=1, help="Images that one job may ask for.")] = (
        10
    )
    pixels: Annotated[
        int, flag("--max-pixels", min=1, help="Width times height of an image, at most.")
    ] = 2048 * 2048
    steps: Annotated[
        int, flag("--max-steps", min=1, help="Denoising steps of an image, at most.")
    ] = 200
