"""Decodes an image that Google sent, and keeps its file where that can be."""

import io
from typing import TYPE_CHECKING

from t2i_cli.backend import EncodedImage
from t2i_cli.image_formats import ImageFormat
from t2i_cli.net import image_decoding
from t2i_cli.net.billed_calls import telling_it_is_billed

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS: dict[str | None, ImageFormat] = {"PNG": "png", "JPEG": "jpeg"}
_RECORDS = frozenset({"exif", "parameters", "t2i", "xmp"})
"""Texts of a file beside which t2i's own would not be found."""


def decode_received_image(base64: str) -> "tuple[Image, EncodedImage | None]":
    """The RGB image, and its file if t2i's records can be inserted into it. Raises RemoteError."""
    with telling_it_is_billed():
        data = image_decoding.decode_base64(base64)
        image = image_decoding.decode_image(data)
    return image, _kept_file(data)


def _kept_file(data: bytes) -> EncodedImage | None:
    """The file of an RGB image without records of its own."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        format = _FORMATS.get(image.format)
        if format is None or image.mode != "RGB" or _RECORDS & image.info.keys():
            return None
    return EncodedImage(format=format, data=data, has_record=False)
