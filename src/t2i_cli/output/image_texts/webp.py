"""Texts in WebP files (WebP container specification, RFC 9649)."""

import struct
from typing import BinaryIO

from t2i_cli.output.image_texts import exif
from t2i_cli.output.image_texts.collected import MAX_TEXT_BYTES, ImageTexts

_MAX_CHUNKS = 1_000_000


def read_webp_texts(file: BinaryIO, size: int) -> ImageTexts:
    """Collect the texts of a WebP file of `size` bytes."""
    found = ImageTexts(format="webp")
    end = int.from_bytes(file.read(8)[4:], "little") + 8
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > min(end, size):
            break
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        if at + 8 + length > size:
            break
        body = file.read(min(length, MAX_TEXT_BYTES + 1) if kind in {b"EXIF", b"XMP "} else 10)
        if kind == b"EXIF":
            exif.add_exif_texts(found, body)
        elif kind == b"XMP ":
            exif.add_xmp_texts(found, body)
        elif not found.width:
            found.width, found.height = _picture_size(kind, body)
        at += 8 + length + length % 2
    if end > size:
        found.add_problem("it is cut off")
    elif at < end - 1:
        found.add_problem(f"it is damaged at byte {at:,}")
    return found


def _picture_size(kind: bytes, body: bytes) -> tuple[int, int]:
    """Width and height in pixels from the first bytes of a picture's chunk, else zeros."""
    if kind == b"VP8X" and len(body) >= 10:
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8 " and len(body) >= 10:
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(body) >= 5:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return 0, 0
