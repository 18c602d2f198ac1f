"""Open untrusted image files: allowed formats and a limit on the number of pixels."""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from t2i_cli.files.input_files import open_input

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
"""Pixels of one image, at 3 bytes each in RGB; close to Pillow's own default limit."""

_FORMATS = ("PNG", "JPEG", "WEBP")


class ImageFileError(Exception):
    """A file is not a usable image; callers turn `reason` into a message for the user."""

    def __init__(self, reason: Literal["too large", "no image", "damaged"], detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def open_image(source: Path | bytes, *, rgb: bool = False) -> "Image":
    """Open and decode the image at a path or in a file's bytes; `rgb` converts it to RGB.

    Raises ImageFileError if it is not a usable image, OSError if the file cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # Pillow warns before its own pixel limit raises, and about damage that does not matter.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _opened(source) as file, Image.open(file, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _too_large()
                image.load()
                return image.convert("RGB") if rgb else image
    except UnidentifiedImageError as error:
        raise ImageFileError("no image", str(error)) from error
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except OSError as error:
        if error.strerror:
            raise
        raise ImageFileError("damaged", str(error)) from error
    except (SyntaxError, ValueError) as error:
        # Pillow raises these for broken or missing chunks.
        raise ImageFileError("damaged", str(error)) from error


def _opened(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open_input(source)


def _too_large() -> ImageFileError:
    return ImageFileError("too large", f"more than {MAX_PIXELS:,} pixels")
