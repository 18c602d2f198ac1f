"""The protocol of a source of images, and what it yields: finished images and failures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import TYPE_CHECKING, Protocol

from t2i_cli.errors import T2IError
from t2i_cli.events import OnEvent
from t2i_cli.image_formats import ImageFormat
from t2i_cli.model_spec import ModelSpec
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import GenerateRequest, ResolvedRequest

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """The bytes of an image file."""

    format: ImageFormat
    data: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """One finished image: `image` is RGB, `index` the position of its request in the run.

    `seconds` is the time it took to generate; `round_trip` the seconds that the call to a server
    took which made it. `file` is there where the image came as a file with its records in it.
    """

    index: int
    request: ResolvedRequest
    image: "Image"
    info: GenerationInfo
    seconds: float
    round_trip: float | None = None
    file: EncodedImage | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The request at position `index` got no image, and why."""

    index: int
    request: ResolvedRequest
    error: T2IError


class CancellationToken(Flag):
    """A flag to `run` with that can also ask, by `soon`, to begin nothing more."""

    def __init__(self, soon: Flag) -> None:
        super().__init__()
        self.soon = soon


class Backend(Protocol):
    """A source of images. Errors leave it only as `T2IError`."""

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """What is known of the model that the request names; raises if there is no such model."""
        ...

    def check(self, request: ResolvedRequest) -> None:
        """Raise if this backend cannot honour the request; loads no weight."""
        ...

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """What the image takes here, for --dry-run: device, memory, download."""
        ...

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """The commit that a model's revision stands for now, `None` for a model without."""
        ...

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Make ready for such requests, where that takes time: fetch and load the model."""
        ...

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome for each request, in any order; stops early once `cancel` is set.

        `previews` are how many events.Preview of each image are wanted at most; a backend that
        cannot show any leaves them out. What it raises is the failure of the requests in hand:
        those of a Step or Sent without an outcome, or else the first without one.
        """
        ...

    def close(self) -> None:
        """Give back memory, connections and threads; may be called twice."""
        ...
