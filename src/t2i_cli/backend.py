"""The Backend protocol, and its outcomes: generated images and failures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from t2i_cli.errors import T2IError
from t2i_cli.events import OnEvent
from t2i_cli.image_formats import ImageFormat
from t2i_cli.image_price import ImagePrice
from t2i_cli.model_spec import ModelSpec
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import GenerateRequest, ResolvedRequest

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """An encoded image file; without `has_record` it does not say how the image was made."""

    format: ImageFormat
    data: bytes = field(repr=False)
    has_record: bool = True


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """One generated image: `image` is 8-bit RGB, `index` its request's position in the run.

    `seconds` is the generation time; `round_trip` the duration of the server request in seconds,
    for images from a server. `file` is the image file, if the server's own is to be kept.
    `notes` are sentences on this image, as of words of its prompt that the model does not read.
    `memory` is in MiB, for images of this machine: the plan's `weights_mib` and, where known,
    `working_mib`; and `peak_mib`, what a GPU held at most.
    """

    index: int
    request: ResolvedRequest
    image: "Image"
    info: GenerationInfo
    seconds: float
    round_trip: float | None = None
    file: EncodedImage | None = None
    notes: tuple[str, ...] = ()
    memory: Mapping[str, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The request at position `index` failed with `error`."""

    index: int
    request: ResolvedRequest
    error: T2IError


class CancellationToken(Flag):
    """Cancellation flag for `run`; with `soon` set, finish running requests but start no others."""

    def __init__(self, soon: Flag) -> None:
        super().__init__()
        self.soon = soon


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """A worker by its number, which the one that replaces it keeps, and sums since the start.

    `node` is its machine, where that is known; `losses` counts how often the worker with that
    number was lost; `seconds` are those of making images. One that is "gone" has no successor.
    """

    number: int
    state: Literal["starting", "ready", "busy", "gone"]
    node: str | None = None
    images: int = 0
    failures: int = 0
    losses: int = 0
    seconds: float = 0.0


@runtime_checkable
class MultiWorkerBackend(Protocol):
    """A backend whose images are made by workers."""

    def worker_reports(self) -> Sequence[WorkerReport]:
        """The status of each worker, by number; callable from any thread."""
        ...


class Backend(Protocol):
    """Generates images. Raises only `T2IError`."""

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """The spec of the requested model; raises ModelError if it does not exist."""
        ...

    def check(self, request: ResolvedRequest) -> None:
        """Raise if this backend cannot honour the request; loads no weights."""
        ...

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """Resource estimates for --dry-run: device, memory, download."""
        ...

    def image_price(self, request: ResolvedRequest) -> ImagePrice | None:
        """The price of such an image, `None` where images are not billed one by one."""
        ...

    def parallelism(self) -> int:
        """How many calls of `run`, from several threads, make images at once."""
        ...

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """The commit that a model's revision resolves to, `None` for a model without revisions."""
        ...

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Prepare for such requests: download and load the model."""
        ...

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome per request, in any order; stops early once `cancel` is set.

        `previews` is the maximum of events.Preview per request; a backend without previews ignores
        it. An exception is the failure of the requests in progress: those of a Step or RequestSent
        event without an outcome, else the first request without one.
        """
        ...

    def close(self) -> None:
        """Release memory, connections and threads; may be called twice."""
        ...
