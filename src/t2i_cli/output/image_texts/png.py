"""Texts in PNG files (PNG specification, third edition, sections 5 and 11.3.3)."""

import struct
import zlib
from typing import BinaryIO

from t2i_cli.output.image_texts import exif
from t2i_cli.output.image_texts.collected import MAX_TEXT_BYTES, ImageTexts

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIECE = 2**20
_MAX_CHUNKS = 1_000_000
_MAX_KEYWORD = 80
"""Bytes of a keyword, with its end."""
_TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}
_KEPT = _TEXT_CHUNKS | {b"IHDR", b"eXIf"}


def read_png_texts(file: BinaryIO) -> ImageTexts:
    """Collect the texts of a PNG file, also after its pixels."""
    found = ImageTexts(format="png")
    file.seek(len(SIGNATURE))
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        if kind and not kind.isalpha():
            found.add_problem(f"it is damaged at byte {file.tell() - 4:,}")
            return found
        chunk = _read_chunk(file, kind, length) if kind else None
        if chunk is None:
            found.add_problem("it is cut off")
            return found
        body, sound = chunk
        if kind == b"IEND":
            return found
        if kind == b"IHDR" and length >= 8:
            found.width, found.height = struct.unpack(">II", body[:8])
        _add_chunk(found, kind, body, length, sound=sound)
    found.add_problem(f"it has more than {_MAX_CHUNKS:,} chunks")
    return found


def _read_chunk(file: BinaryIO, kind: bytes, length: int) -> tuple[bytes, bool] | None:
    """A chunk's data, of which no more than the bound, and whether its checksum is right.

    `None` if the file ends within it.
    """
    body, checksum, left = bytearray(), zlib.crc32(kind), length
    most = MAX_TEXT_BYTES + _MAX_KEYWORD if kind in _KEPT else 0
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            return None
        checksum = zlib.crc32(piece, checksum)
        body += piece[: max(0, most - len(body))]
        left -= len(piece)
    stored = file.read(4)
    return (bytes(body), stored == checksum.to_bytes(4, "big")) if len(stored) == 4 else None


def _add_chunk(found: ImageTexts, kind: bytes, body: bytes, length: int, *, sound: bool) -> None:
    """Add what a chunk says; one with a wrong checksum is left out, for its words may be wrong."""
    if kind not in _TEXT_CHUNKS:
        if not sound:
            found.add_problem(f"its chunk {kind.decode()} is damaged: the checksum is wrong")
        elif kind == b"eXIf":
            exif.add_exif_texts(found, body)
        return
    keyword, _, rest = body.partition(b"\0")
    name = f"text {keyword[:_MAX_KEYWORD].decode('latin-1')!r}"
    if not sound:
        found.add_problem(f"its {name} is damaged: the checksum is wrong")
    elif length > MAX_TEXT_BYTES + _MAX_KEYWORD:
        found.add_too_large(name)
    elif (data := _text(found, kind, rest, name)) is not None:
        _add_keyword(found, keyword[:_MAX_KEYWORD].decode("latin-1"), data)


def _text(found: ImageTexts, kind: bytes, rest: bytes, name: str) -> bytes | None:
    """A chunk's text, decompressed; `None`, with a problem, if it is damaged or too large."""
    packed = kind == b"zTXt"
    if packed:
        rest = rest[1:]  # the method
    elif kind == b"iTXt":
        packed = rest[:1] == b"\1"
        # Flag and method, then language and translated keyword.
        rest = rest[2:].split(b"\0", 2)[-1]
    if packed:
        inflater = zlib.decompressobj()
        try:
            rest = inflater.decompress(rest, MAX_TEXT_BYTES + 1)
        except zlib.error:
            found.add_problem(f"its {name} is damaged: it cannot be decompressed")
            return None
        if not inflater.eof and len(rest) <= MAX_TEXT_BYTES:
            found.add_problem(f"its {name} is damaged: it is cut off")
            return None
    if len(rest) > MAX_TEXT_BYTES:
        found.add_too_large(name)
        return None
    return rest


def _add_keyword(found: ImageTexts, keyword: str, data: bytes) -> None:
    """Add a text, or the EXIF or XMP that it holds."""
    if keyword == "XML:com.adobe.xmp":
        exif.add_xmp_texts(found, data)
    elif keyword.startswith("Raw profile type "):
        # ImageMagick's form: a name, a length and hexadecimal digits, each on lines of its own.
        try:
            profile = bytes.fromhex(data.split(None, 2)[2].decode("ascii"))
        except (ValueError, IndexError):
            found.add_problem(f"its text {keyword!r} is damaged")
            return
        if keyword.endswith((" exif", " APP1")):
            exif.add_exif_texts(found, profile)
        elif keyword.endswith(" xmp"):
            exif.add_xmp_texts(found, profile)
    else:
        # The standard has Latin-1 in two of the three kinds; many programs write UTF-8 there.
        found.add_text(keyword, exif.decode_bytes(data))
