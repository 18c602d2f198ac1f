"""Decodes images in server responses: base64 of a PNG, JPEG or WebP file, or a data URL."""

import base64
import binascii
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from t2i_cli.errors import RemoteError
from t2i_cli.files.image_files import ImageFileError, open_image

if TYPE_CHECKING:
    from PIL.Image import Image

_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")
_DAMAGED = "The server's image is cut off or damaged."
_DATA_URL = re.compile(r"\s*data:([^,]{0,200}),", re.IGNORECASE)
"""The beginning of a data URL, with its media type and parameters (RFC 2397)."""
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
"""The two letters in which base64 for URLs differs (RFC 4648, section 5)."""
_RETRY_HINT = "Try again; if it stays so, look into the server's log."


def is_data_url(text: str) -> bool:
    """Whether the text is a data URL."""
    return bool(_DATA_URL.match(text))


def decode_base64_image(text: str) -> "Image":
    """The RGB image in a base64 string or a data URL. Raises RemoteError."""
    return decode_image(decode_base64(text))


def decode_base64(text: str) -> bytes:
    """The bytes in a base64 string or a data URL. Raises RemoteError."""
    prefix = _DATA_URL.match(text)
    data = text[prefix.end() if prefix else 0 :].encode(errors="replace")
    if prefix:
        data = unquote_to_bytes(data)
        if not prefix[1].strip().lower().endswith(";base64"):
            return data
    try:
        return base64.b64decode(b"".join(data.split()).translate(_URL_SAFE), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RemoteError(
            "The server's image is cut off or no base64.", hint=_RETRY_HINT
        ) from error


def decode_image(data: bytes) -> "Image":
    """The RGB image in the bytes of an image file. Raises RemoteError."""
    try:
        return open_image(data, rgb=True)
    except ImageFileError as error:
        if error.reason == "too large":
            raise RemoteError(f"The server's image has {error}.") from error
        if error.reason == "damaged" or data.startswith(_SIGNATURES):
            raise RemoteError(_DAMAGED, hint=_RETRY_HINT) from error
        raise RemoteError(
            "What the server sent is no PNG, JPEG or WebP image.", hint=_RETRY_HINT
        ) from error
