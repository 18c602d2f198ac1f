"""What a backend tells while it works: progress for people, and NDJSON for scripts."""

from collections.abc import Callable
from dataclasses import dataclass


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
class Note:
    """One sentence that a person should read; it never means failure."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure taken against running out of memory, and why."""

    name: str
    reason: str


Event = Downloading | Loading | Step | Note | Measure
OnEvent = Callable[[Event], None]
