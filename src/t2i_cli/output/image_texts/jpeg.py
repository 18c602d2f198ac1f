"""Texts in JPEG files (ITU-T T.81, annex B; Exif 2.32, section 4.7; XMP, part 3)."""

import struct
from typing import BinaryIO

from t2i_cli.output.image_texts import exif
from t2i_cli.output.image_texts.collected import MAX_TEXT_BYTES, ImageTexts

_PIECE = 2**20
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXIF = b"Exif\0\0"
_APP1, _COMMENT, _START_OF_SCAN = 0xE1, 0xFE, 0xDA
_START_OF_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_jpeg_texts(file: BinaryIO) -> ImageTexts:
    """Collect the texts of a JPEG file, which stand before its pixels."""
    found = ImageTexts(format="jpeg")
    block = bytearray()
    file.seek(2)
    while segment := _next_segment(file):
        marker, body = segment
        if marker == _START_OF_SCAN:
            if not _has_end(file):
                found.add_problem("it is cut off")
            break
        if marker == _APP1 and body.startswith(_EXIF):
            # Several segments continue one EXIF.
            if len(block) <= MAX_TEXT_BYTES:
                block += body.removeprefix(_EXIF)
        elif marker == _APP1 and body.startswith(_XMP):
            exif.add_xmp_texts(found, body.removeprefix(_XMP))
        elif marker == _COMMENT:
            found.add_text("comment", exif.decode_bytes(body).rstrip("\0"))
        elif marker in _START_OF_FRAME and len(body) >= 5:
            found.height, found.width = struct.unpack(">HH", body[1:5])
    else:
        found.add_problem("it is cut off or damaged before its pixels")
    if block:
        exif.add_exif_texts(found, bytes(block))
    return found


def _next_segment(file: BinaryIO) -> tuple[int, bytes] | None:
    """The next marker and its data; `None` where the file is cut off or damaged."""
    code = file.read(2)
    while code == b"\xff\xff":  # fill bytes
        code = b"\xff" + file.read(1)
    length = file.read(2)
    if len(code) < 2 or code[0] != 0xFF or code[1] in {0, 0xD9} or len(length) < 2:
        return None
    size = int.from_bytes(length, "big") - 2
    body = file.read(max(size, 0))
    return (code[1], body) if size >= 0 and len(body) == size else None


def _has_end(file: BinaryIO) -> bool:
    """Whether an end of image follows; among pixels, a zero byte follows each byte 255."""
    last = b""
    while piece := file.read(_PIECE):
        if b"\xff\xd9" in last + piece:
            return True
        last = piece[-1:]
    return False
