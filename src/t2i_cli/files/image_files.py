"""Opening image files that come from outside: which formats, and how many pixels at most."""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
"""Of one image, which takes three bytes a pixel; Pillow's own limit is near."""

_FORMATS = ("PNG", "JPEG", "WEBP")


class ImageFileError(Exception):
    """Why a file is no image to work with; whoever opened it tells that in a sentence."""

    def __init__(self, reason: Literal["too large", "no image", "damaged"], detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def open_image(source: Path | bytes, *, rgb: bool = False) -> "Image":
    """The image in a file or in a file's bytes, read to its end; converted with `rgb`.

    Raises ImageFileError, and OSError where the file cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # Pillow warns of its own limit before it raises, and of damage that does not matter.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=_FORMATS) as image:
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
        # So Pillow reports broken and missing parts.
        raise ImageFileError("damaged", str(error)) from error


def _too_large() -> ImageFileError:
    return ImageFileError("too large", f"more than {MAX_PIXELS:,} pixels")
