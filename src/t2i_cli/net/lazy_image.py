"""An image that another process sent as a file."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from t2i_cli.backend import EncodedImage, GeneratedImage

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class LazyImage(GeneratedImage):
    """An image received as a file with metadata; decoded on first access of `image` (RGB).

    Raises RemoteError then, if the file is damaged. `pixels` is a lossless file of the image, where
    `file` is of a lossy format.
    """

    image: "Image" = field(init=False, repr=False, compare=False)
    file: EncodedImage
    file_size: tuple[int, int]
    pixels: EncodedImage | None = None

    def __getattr__(self, name: str) -> "Image":
        if name != "image":
            raise AttributeError(name)
        from t2i_cli.net.image_decoding import decode_image

        image = decode_image((self.pixels or self.file).data)
        object.__setattr__(self, "image", image)
        return image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.file_size
