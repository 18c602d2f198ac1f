"""The formats of image files: their names, extensions, usual sizes and limits."""

from typing import Literal

ImageFormat = Literal["png", "jpeg", "webp"]

IMAGE_FORMATS: dict[str, ImageFormat] = {
    "png": "png",
    "jpg": "jpeg",
    "jpeg": "jpeg",
    "webp": "webp",
}
"""What `--format` and a file's extension may say, and the format meant."""
EXTENSIONS: dict[ImageFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
BYTES_A_PIXEL: dict[ImageFormat, float] = {"png": 2.0, "jpeg": 0.8, "webp": 0.5}
"""Of detailed pictures: 1024x1024 make a PNG of 2.1 MB, a JPEG of 0.8 MB."""
MAX_WEBP_SIDE = 16_383
"""Pixels; the format's own limit."""
