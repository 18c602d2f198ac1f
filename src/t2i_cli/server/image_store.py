"""Finished images behind unguessable links: in memory, bounded, and gone after a while."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from t2i_cli.image_formats import EXTENSIONS, ImageFormat

LINK_LIFETIME = 3600.0
"""Seconds; OpenAI's own links live as long."""
MAX_STORE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class StoredImage:
    """An image file, and when it goes, in seconds of the store's clock."""

    data: bytes
    format: ImageFormat
    expires: float


class ImageStore:
    """The images that links lead to; the oldest go where all together would pass `max_bytes`."""

    def __init__(
        self,
        *,
        max_bytes: int = MAX_STORE_BYTES,
        lifetime: float = LINK_LIFETIME,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._lifetime = lifetime
        self._clock = clock
        self._kept: OrderedDict[str, StoredImage] = OrderedDict()
        self._bytes = 0

    def put(self, data: bytes, format: ImageFormat) -> str:
        """Keep an image; returns the name that get() knows it by, 256 random bits in it."""
        self._drop_expired()
        while self._kept and self._bytes + len(data) > self._max_bytes:
            self._drop_oldest()
        name = f"{secrets.token_urlsafe(32)}.{EXTENSIONS[format]}"
        self._kept[name] = StoredImage(data, format, self._clock() + self._lifetime)
        self._bytes += len(data)
        return name

    def get(self, name: str) -> tuple[StoredImage, float] | None:
        """The image of that name and the seconds it has left, if it is still here."""
        self._drop_expired()
        if (stored := self._kept.get(name)) is None:
            return None
        return stored, stored.expires - self._clock()

    def _drop_expired(self) -> None:
        while self._kept and next(iter(self._kept.values())).expires <= self._clock():
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, stored = self._kept.popitem(last=False)
        self._bytes -= len(stored.data)
