"""Estimates what a call costs that finds no replica: a new one starts, and loads all anew."""

import math
from dataclasses import dataclass

from t2i_cli.terminal.console import format_bytes
from t2i_cli.vertex.model_source import ModelSource

START_SECONDS = 300
"""Seconds, assumed, until a machine is there, has its container image and has started it."""
DOWNLOAD_RATE = 100 * 10**6
"""Bytes per second, assumed, at which a replica downloads weights."""


@dataclass(frozen=True, kw_only=True)
class WakeUp:
    """One start of a replica. `size` is the weights' that it downloads, in bytes; None: not known.

    Vertex AI keeps nothing of a replica's disk, so each one downloads them; `hourly` is its price
    in USD per hour, which counts from the machine's start.
    """

    size: int | None
    hourly: float | None

    @property
    def seconds(self) -> int:
        """How long it takes; without what is not known."""
        return START_SECONDS + round((self.size or 0) / DOWNLOAD_RATE)

    @property
    def usd(self) -> float | None:
        """What it costs; None if that is not known."""
        if self.hourly is None or self.size is None:
            return None
        return round(self.hourly * self.seconds / 3600, 2)

    def to_json(self) -> dict[str, object]:
        """As a plan's JSON has it."""
        return {"seconds": self.seconds, "download_bytes": self.size, "usd": self.usd}

    def text(self) -> str:
        """What a plan for people says that it takes and costs."""
        minutes = math.ceil(self.seconds / 60)
        if self.size == 0:
            return f"about {minutes} minutes{self._price()}"
        if self.size is None:
            return (
                f"more than {minutes} minutes: it downloads the weights anew, "
                "whose size is not known"
            )
        share = "most of it" if self.size / DOWNLOAD_RATE > START_SECONDS else "part of it"
        return (
            f"about {minutes} minutes, {share} downloading "
            f"{format_bytes(self.size)} anew{self._price()}"
        )

    def _price(self) -> str:
        if self.usd is None:
            return ""
        return f"; {self.usd:.2f} USD by the estimate" if self.usd else ""


def estimate_wake_up(
    source: ModelSource, serving: str, upload_bytes: int, hourly: float | None
) -> WakeUp:
    """The wake-up of a deployment with these weights, of which `upload_bytes` go to a bucket."""
    spec = source.spec
    if source.needs_upload:
        size = upload_bytes or spec.download_bytes
    elif source.uri:
        size = None
    elif serving == "t2i" and spec.folder:
        size = 0  # it is part of the image
    else:
        size = spec.download_bytes
    return WakeUp(size=size, hourly=hourly)
