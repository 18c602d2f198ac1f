"""What a backend tells while it works: progress for people, and NDJSON for scripts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Downloading:
    """`done` of `total` bytes of a model's files are here."""

    model: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Loading:
    """A model's weights are being loaded onto a device."""

    model: str
    device: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """Denoising step `step` (from 1) of `steps` is done for the requests at these positions."""

    indices: tuple[int, ...]
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A small RGB picture of what the request at position `index` looks like after step `step`."""

    index: int
    step: int
    steps: int
    image: "Image"


@dataclass(frozen=True, kw_only=True)
class RequestSent:
    """The requests at these positions went to a server, which tells nothing until they are done."""

    indices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One sentence that a person should read; it never means failure.

    It may quote the requests at `indices`, and is for those who sent them; without any it is for
    all.
    """

    message: str
    indices: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MemoryMeasure:
    """A measure taken against running out of memory, and why."""

    name: str
    reason: str


Event = Downloading | Loading | Step | Preview | RequestSent | Notice | MemoryMeasure
OnEvent = Callable[[Event], None]
