"""Where images come from: one protocol, and one module or package for each backend."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import TYPE_CHECKING, Protocol

from t2i_cli.catalog import ModelSpec
from t2i_cli.errors import T2IError
from t2i_cli.events import OnEvent
from t2i_cli.request import GenerateRequest, ResolvedRequest

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class RunLock:
    """What, beside the request, made an image what it is; it is written into the image."""

    backend: str
    model: str
    revision: str | None = None
    pipeline: str | None = None
    scheduler: str | None = None
    device: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    measures: tuple[str, ...] = ()
    libraries: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """One finished image: `image` is RGB, `index` the position of its request in the run."""

    index: int
    request: ResolvedRequest
    image: "Image"
    lock: RunLock
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The request at position `index` got no image, and why."""

    index: int
    request: ResolvedRequest
    error: T2IError


class Backend(Protocol):
    """A source of images. Errors leave it only as `T2IError`."""

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """What is known of the model that the request names; raises if there is no such model."""
        ...

    def check(self, request: ResolvedRequest) -> None:
        """Raise if this backend cannot honour the request; loads no weight."""
        ...

    def needs(self, request: ResolvedRequest) -> dict[str, object]:
        """What the image takes here, for --dry-run: device, memory, download, price."""
        ...

    def commit(self, model: str, revision: str | None) -> str | None:
        """The commit that a model's revision stands for now, `None` for a model without."""
        ...

    def run(
        self, requests: Sequence[ResolvedRequest], on_event: OnEvent, cancel: Flag
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome for each request, in any order; stops early once `cancel` is set."""
        ...

    def close(self) -> None:
        """Give back memory, connections and threads; may be called twice."""
        ...
