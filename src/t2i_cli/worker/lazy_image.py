"""An image that a worker sent as a file."""

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from t2i_cli.backend import EncodedImage, GeneratedImage

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class LazyImage(GeneratedImage):
    """An image received as a file with metadata; decoded on first access of `image` (RGB)."""

    image: "Image" = field(init=False, repr=False, compare=False)
    file: EncodedImage
    file_size: tuple[int, int]

    def __getattr__(self, name: str) -> "Image":
        if name != "image":
            raise AttributeError(name)
        from PIL import Image

        image = Image.open(io.BytesIO(self.file.data)).convert("RGB")
        object.__setattr__(self, "image", image)
        return image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.file_size
