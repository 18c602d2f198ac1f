"""Images as servers send them: base64 of a PNG, JPEG or WebP."""

import base64
import binascii
import io
import re
import warnings
from typing import TYPE_CHECKING

from t2i_cli.errors import RemoteError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_DECODED_PIXELS = 100_000_000
"""Of one image, which takes three bytes a pixel; Pillow's own limit is near."""

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
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Of its own limit Pillow warns before it raises.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
            if image.width * image.height > MAX_DECODED_PIXELS:
                raise RemoteError(
                    f"The server's image has more than {MAX_DECODED_PIXELS:,} pixels."
                )
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        if data.startswith(_BEGINNINGS):
            raise RemoteError(_DAMAGED, hint=_OFTEN) from error
        raise RemoteError(
            "What the server sent is no PNG, JPEG or WebP image.", hint=_OFTEN
        ) from error
    except Image.DecompressionBombError as error:
        raise RemoteError(
            f"The server's image has more than {MAX_DECODED_PIXELS:,} pixels."
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        # So Pillow reports broken and missing parts.
        raise RemoteError(_DAMAGED, hint=_OFTEN) from error
