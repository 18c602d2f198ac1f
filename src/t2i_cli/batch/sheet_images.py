"""Opens a batch's images for its contact sheet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_cli.errors import StorageError

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ("PNG", "JPEG", "WEBP")


@contextmanager
def open_batch_image(file: Path, side: int) -> Iterator["Image"]:
    """Open an image that will be scaled to fit a square of that side. Raises StorageError."""
    from PIL import Image

    try:
        if not os.path.isfile(file):
            raise OSError("it is no file")
        # The manifest names the file: other formats start programs (EPS) or need much memory.
        with Image.open(file, formats=_FORMATS) as image:
            image.draft("RGB", (side, side))
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise StorageError(
            f"Cannot read '{file}': {error}.", hint="Remove it: the same command makes it again."
        ) from error
