"""How the server is reached and guarded, and how much it takes."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2i_cli.server.api.vertex import VertexContainer

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

    queue: int = 16
    max_batch: int = 4
    timeout: float | None = 300.0
    images: int = 10
    pixels: int = 2048 * 2048
    steps: int = 200
