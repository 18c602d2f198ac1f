"""Events of a running backend: shown as progress, or printed as NDJSON."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Downloading:
    """`done` of `total` bytes of a model's files are downloaded."""

    model: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Loading:
    """A model's weights are being loaded onto a device."""

    model: str
    device: str


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model's weights are on their device, `seconds` after `Loading`."""

    model: str
    device: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """Denoising step `step` (from 1) of `steps` is done for the requests at these positions."""

    indices: tuple[int, ...]
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A small RGB preview of the image of the request at `index` after denoising step `step`."""

    index: int
    step: int
    steps: int
    image: "Image"


@dataclass(frozen=True, kw_only=True)
class RequestSent:
    """The requests at these positions were sent to a server that reports no progress."""

    indices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One sentence for people; never a failure.

    `hint` is a further sentence for those who run t2i themselves: commands, options, paths. With
    `indices` it concerns only the requests at these positions, and may quote them.
    """

    message: str
    hint: str | None = None
    indices: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The message and the hint, as a terminal shows them."""
        return f"{self.message} {self.hint}" if self.hint else self.message


@dataclass(frozen=True, kw_only=True)
class Finishing:
    """A run was asked to stop: the requests at these positions are finished, no other is begun."""

    indices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MemoryMeasure:
    """A memory-saving measure that was applied, and the reason."""

    name: str
    reason: str


Event = (
    Downloading
    | Loading
    | Loaded
    | Step
    | Preview
    | RequestSent
    | Notice
    | Finishing
    | MemoryMeasure
)
OnEvent = Callable[[Event], None]


def move_event(event: Event, positions: Sequence[int]) -> Event:
    """The event of a run of some requests, with their `positions` among all of them."""
    if isinstance(event, Preview):
        return replace(event, index=positions[event.index])
    if isinstance(event, Step | RequestSent | Notice | Finishing):
        return replace(event, indices=tuple(positions[index] for index in event.indices))
    return event


EVENT_NAMES: dict[type[Event], str] = {
    Downloading: "downloading",
    Loading: "loading",
    Loaded: "loaded",
    Step: "step",
    RequestSent: "sent",
    Notice: "note",
    MemoryMeasure: "measure",
}
"""Names of the events that a server sends with all their fields."""
