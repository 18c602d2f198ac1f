"""Texts in AVIF and JPEG XL files, which consist of boxes.

ISO/IEC 14496-12, sections 4.2 and 8.11 (boxes and items), 23008-12 (image items, Exif), 18181-1
and -2 (JPEG XL).
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from t2i_cli.output.image_texts import exif
from t2i_cli.output.image_texts.collected import MAX_TEXT_BYTES, ImageTexts

CODESTREAM = b"\xff\x0a"
"""The first bytes of JPEG XL without boxes."""
_MAX_BOXES = 100_000
_MAX_META = 2**24
"""Bytes of the box that describes the items."""
_RATIOS = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""JPEG XL's ratios of width to height (18181-1, table of the size header)."""

Box = tuple[bytes, int, int]
"""A box's type, and the offsets of its content's beginning and end."""


def read_jxl_texts(file: BinaryIO, size: int) -> ImageTexts:
    """Collect the texts of a JPEG XL file of `size` bytes; without boxes it has none."""
    found = ImageTexts(format="jxl")
    if file.read(2) == CODESTREAM:
        file.seek(0)
        found.width, found.height = _jxl_size(file.read(16))
        return found
    for kind, start, end in _boxes(file, 0, size, found):
        file.seek(start)
        body = file.read(min(end - start, MAX_TEXT_BYTES + 1) if kind in {b"Exif", b"xml "} else 20)
        if kind == b"Exif":
            exif.add_exif_texts(found, _exif_payload(body))
        elif kind == b"xml ":
            exif.add_xmp_texts(found, body)
        elif kind == b"brob" and body[:4] in {b"Exif", b"xml "}:
            found.add_problem("its metadata is compressed by Brotli and is not read")
        elif kind in {b"jxlc", b"jxlp"} and not found.width:
            found.width, found.height = _jxl_size(body[4:] if kind == b"jxlp" else body)
    return found


def read_avif_texts(file: BinaryIO, size: int) -> ImageTexts:
    """Collect the texts of an AVIF file of `size` bytes: its items of EXIF and XMP."""
    found = ImageTexts(format="avif")
    for kind, start, end in _boxes(file, 0, size, found):
        if kind != b"meta":
            continue
        if end - start > _MAX_META:
            found.add_too_large("list of items")
            continue
        file.seek(start)
        try:
            _add_items(found, file, file.read(end - start), start, size)
        except (struct.error, IndexError, ValueError):
            found.add_problem("its list of items is damaged")
    return found


def _boxes(file: BinaryIO, start: int, end: int, found: ImageTexts) -> Iterator[Box]:
    """The boxes between two offsets, until one is damaged."""
    at = start
    for _ in range(_MAX_BOXES):
        if at == end:
            return
        file.seek(at)
        head = file.read(min(16, end - at))
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head[:8])
        header = 8
        if length == 1 and len(head) == 16:
            length, header = int.from_bytes(head[8:], "big"), 16
        stop = end if length == 0 else at + length
        if stop > end or stop < at + header:
            break
        yield kind, at + header, stop
        at = stop
    found.add_problem("it is cut off or damaged")


def _add_items(found: ImageTexts, file: BinaryIO, meta: bytes, start: int, size: int) -> None:
    """Add the items that a `meta` box at the offset `start` describes."""
    from io import BytesIO

    inside = {
        kind: (first, meta[first:last])
        for kind, first, last in _boxes(BytesIO(meta), 4, len(meta), found)
    }
    sizes = meta.find(b"ispe")  # width and height of the first image, behind version and flags
    if sizes >= 0:
        found.width, found.height = struct.unpack_from(">II", meta, sizes + 8)
    items = _text_items(inside.get(b"iinf", (0, b""))[1])
    base = start + inside.get(b"idat", (0, b""))[0]
    for item, pieces in _locations(inside.get(b"iloc", (0, b""))[1]):
        if item not in items:
            continue
        data = bytearray()
        for method, offset, length in pieces:
            at = offset + (base if method == 1 else 0)
            if method > 1 or at + length > size:
                raise ValueError("an item is elsewhere")
            file.seek(at)
            data += file.read(min(length, MAX_TEXT_BYTES + 1 - len(data)))
        if items[item] == b"Exif":
            exif.add_exif_texts(found, _exif_payload(bytes(data)))
        else:
            exif.add_xmp_texts(found, bytes(data))


def _text_items(iinf: bytes) -> dict[int, bytes]:
    """The numbers of the items that are EXIF (`Exif`) or XMP (`mime`)."""
    at = 8 if iinf[:1] > b"\0" else 6
    found = {}
    while at + 12 <= len(iinf):
        length, kind, version = struct.unpack_from(">I4sB", iinf, at)
        if length < 12:
            raise ValueError("an entry without length")
        if kind == b"infe" and version >= 2:
            number, _, item = struct.unpack_from(">IH4s" if version > 2 else ">HH4s", iinf, at + 12)
            xmp = item == b"mime" and b"application/rdf+xml" in iinf[at : at + length]
            if item == b"Exif" or xmp:
                found[number] = item
        at += length
    return found


def _locations(iloc: bytes) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """Each item's number, and its pieces: method (0: in the file, 1: in `idat`), offset, length."""
    if not iloc:
        return
    version = iloc[0]
    offset_size, length_size = iloc[4] >> 4, iloc[4] & 15
    base_size, index_size = iloc[5] >> 4, iloc[5] & 15 if version else 0
    at = 6

    def number(bytes_: int) -> int:
        nonlocal at
        at += bytes_
        if at > len(iloc):
            raise ValueError("cut off")
        return int.from_bytes(iloc[at - bytes_ : at], "big")

    wide = 4 if version > 1 else 2
    for _ in range(number(wide)):
        item = number(wide)
        method = number(2) & 15 if version else 0
        number(2)  # where the data is: this file
        base = number(base_size)
        pieces = []
        for _ in range(number(2)):
            number(index_size)
            pieces.append((method, base + number(offset_size), number(length_size)))
        yield item, pieces


def _exif_payload(body: bytes) -> bytes:
    """EXIF behind the offset of its header, which some programs leave out."""
    if body[:4] in {b"II*\0", b"MM\0*", b"Exif"}:
        return body
    return body[4 + int.from_bytes(body[:4], "big") :]


def _jxl_size(head: bytes) -> tuple[int, int]:
    """Width and height in pixels from the first bytes of a codestream; zeros if it is none."""
    if not head.startswith(CODESTREAM):
        return 0, 0
    bits, at = int.from_bytes(head[2:], "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (at - count) & ((1 << count) - 1)

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    if not ratio:
        return side(), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height
