"""How the server is reached and guarded, and how much it takes."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from t2i_cli.settings.options import flag

if TYPE_CHECKING:
    from t2i_cli.server.vertex_container import VertexContainer

API_KEY_VARIABLE = "T2I_API_KEY"
MAX_BODY_BYTES = 2**20
"""Bytes of a request's body; ten of the longest prompts and negative prompts fit."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What the operator chose about access; `allowed_hosts` may hold "*" for any.

    "localhost" and IP addresses are always good as Host. `container` is what Vertex said, if it
    runs this server.
    """

    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body: int = MAX_BODY_BYTES
    container: "VertexContainer | None" = None


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What one server takes: jobs that may wait, images of one pass, seconds from acceptance.

    `timeout` `None` sets none. `images` are those of one job; `pixels` are width times height.
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
