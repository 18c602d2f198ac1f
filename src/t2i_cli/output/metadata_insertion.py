"""Inserts metadata into the bytes of a PNG or JPEG file, whose image is not encoded again."""

import struct
import zlib
from collections.abc import Iterable

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_END = len(_PNG_SIGNATURE) + 25
"""Where the first chunk ends, which is IHDR: length, name, 13 bytes and CRC (PNG, section 11.2)."""
_MAX_SEGMENT = 65_533
"""Bytes of a JPEG segment's content (ITU T.81, section B.1.1.4)."""
_XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"


def insert_png_chunks(data: bytes, chunks: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The PNG file with further chunks (name and content) after its header; None if it is none."""
    header = data[:_PNG_HEADER_END]
    if not header.startswith(_PNG_SIGNATURE) or header[12:16] != b"IHDR":
        return None
    added = b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return header + added + data[_PNG_HEADER_END:]


def insert_jpeg_segments(data: bytes, exif: bytes, xmp: bytes) -> bytes | None:
    """The JPEG file with EXIF and XMP; None if it is none, or they do not fit a segment each.

    They stand after the JFIF header, which is the first segment where there is one (JFIF 1.02).
    """
    contents = (exif, _XMP_NAME + xmp)
    if not data.startswith(b"\xff\xd8\xff") or max(map(len, contents)) > _MAX_SEGMENT:
        return None
    start = 2
    if data[2:4] == b"\xff\xe0" and len(data) > 6:
        start += 2 + int.from_bytes(data[4:6])
    added = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content for content in contents
    )
    return data[:start] + added + data[start:]
