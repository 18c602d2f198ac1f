"""Collects the texts inside image files, within bounds; no pixel is decoded.

Pillow refuses a whole file for one damaged or large part, refuses large pictures, and keeps every
entry of an EXIF in memory; so the containers are walked here.
"""

from typing import BinaryIO

from t2i_cli.files.image_files import ImageFileError
from t2i_cli.output.image_texts import boxes, jpeg, png, webp
from t2i_cli.output.image_texts.collected import ImageTexts

MAX_IMAGE_BYTES = 2**30


def read_image_texts(file: BinaryIO) -> ImageTexts:
    """The texts of a seekable image file, open at its beginning.

    Raises ImageFileError if it is no image of a known format, OSError if reading fails.
    """
    head = file.read(32)
    size = file.seek(0, 2)
    file.seek(0)
    if size > MAX_IMAGE_BYTES:
        raise ImageFileError("too large", f"more than {MAX_IMAGE_BYTES // 2**30} GiB")
    if head.startswith(png.SIGNATURE):
        return png.read_png_texts(file)
    if head.startswith(b"\xff\xd8\xff"):
        return jpeg.read_jpeg_texts(file)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return webp.read_webp_texts(file, size)
    if head.startswith(boxes.CODESTREAM) or head[4:8] == b"JXL ":
        return boxes.read_jxl_texts(file, size)
    if head[4:8] == b"ftyp" and head[8:12] in {b"avif", b"avis", b"mif1", b"msf1"}:
        return boxes.read_avif_texts(file, size)
    raise ImageFileError("no image", "no known signature")
