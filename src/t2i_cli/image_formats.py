"""Image file formats: names, extensions, typical sizes, limits."""

from typing import Literal

ImageFormat = Literal["png", "jpeg", "webp"]

IMAGE_FORMATS: dict[str, ImageFormat] = {
    "png": "png",
    "jpg": "jpeg",
    "jpeg": "jpeg",
    "webp": "webp",
}
"""Values of `--format` and file extensions, with their format."""
EXTENSIONS: dict[ImageFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
BYTES_A_PIXEL: dict[ImageFormat, float] = {"png": 2.0, "jpeg": 0.8, "webp": 0.5}
"""Bytes per pixel of detailed images: 1024x1024 pixels take 2.1 MB as PNG, 0.8 MB as JPEG."""
MAX_WEBP_SIDE = 16_383
"""Maximum WebP width and height in pixels."""
