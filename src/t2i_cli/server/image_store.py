"""In-memory store of image files for URL responses: size limit, expiry, unguessable names."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from t2i_cli.image_formats import EXTENSIONS, ImageFormat

LINK_LIFETIME = 3600.0
"""Seconds until a stored image expires, as with OpenAI's URLs."""
MAX_STORE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class StoredImage:
    """An image file and its expiry, in seconds of the store's clock."""

    data: bytes
    format: ImageFormat
    expires: float


class ImageStore:
    """Image files by name; the oldest are dropped when the total would exceed `max_bytes`."""

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
        self._images: OrderedDict[str, StoredImage] = OrderedDict()
        self._bytes = 0

    def put(self, data: bytes, format: ImageFormat) -> str:
        """Store an image file; return its name for get(), which has 256 random bits."""
        self._drop_expired()
        while self._images and self._bytes + len(data) > self._max_bytes:
            self._drop_oldest()
        name = f"{secrets.token_urlsafe(32)}.{EXTENSIONS[format]}"
        self._images[name] = StoredImage(data, format, self._clock() + self._lifetime)
        self._bytes += len(data)
        return name

    def get(self, name: str) -> tuple[StoredImage, float] | None:
        """The image with this name and the seconds until it expires, None if it is gone."""
        self._drop_expired()
        if (stored := self._images.get(name)) is None:
            return None
        return stored, stored.expires - self._clock()

    def _drop_expired(self) -> None:
        while self._images and next(iter(self._images.values())).expires <= self._clock():
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, stored = self._images.popitem(last=False)
        self._bytes -= len(stored.data)
