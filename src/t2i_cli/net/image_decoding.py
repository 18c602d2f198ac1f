"""Images as servers send them: base64 of a PNG, JPEG or WebP."""

import base64
import binascii
import re
from typing import TYPE_CHECKING

from t2i_cli.errors import RemoteError
from t2i_cli.files.image_files import ImageFileError, open_image

if TYPE_CHECKING:
    from PIL.Image import Image

_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")
_DAMAGED = "The server's image is cut off or damaged."
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
_OFTEN = "Try again; if it stays so, look into the server's log."


def decode_base64_image(text: str) -> "Image":
    """The RGB image in base64, with or without `data:` before it. Raises RemoteError."""
    start = _DATA_URL.match(text)
    try:
        data = base64.b64decode("".join(text[start.end() if start else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RemoteError("The server's image is cut off or no base64.", hint=_OFTEN) from error
    return decode_image(data)


def decode_image(data: bytes) -> "Image":
    """The RGB image in a file's bytes. Raises RemoteError."""
    try:
        return open_image(data, rgb=True)
    except ImageFileError as error:
        if error.reason == "too large":
            raise RemoteError(f"The server's image has {error}.") from error
        if error.reason == "damaged" or data.startswith(_BEGINNINGS):
            raise RemoteError(_DAMAGED, hint=_OFTEN) from error
        raise RemoteError(
            "What the server sent is no PNG, JPEG or WebP image.", hint=_OFTEN
        ) from error
