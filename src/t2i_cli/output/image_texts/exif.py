"""Texts in EXIF and XMP, in the encodings that programs really write.

EXIF is read here, not by Pillow, which keeps a copy of the value of every entry: entries may share
one value, so that 4 MiB would become gigabytes.
"""

import codecs
import re
import struct
from contextlib import suppress
from xml.etree import ElementTree

from t2i_cli.output.image_texts.collected import MAX_TEXT_BYTES, ImageTexts

XMP_RECORD = "urn:t2i-cli:record"
"""XML namespace of t2i's record."""
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_EXIF_IFD = 0x8769
_TAGS = {
    0x9286: "UserComment",
    0x9C9C: "XPComment",
    0x010E: "ImageDescription",
    0x9C9B: "XPTitle",
    0x9C9F: "XPSubject",
    0x9C9E: "XPKeywords",
    # ComfyUI writes "prompt:{…}" and "workflow:{…}" to the next two.
    0x010F: "Make",
    0x0110: "Model",
    0x0131: "Software",
}
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 129: 1}
"""Bytes of a value by its type (TIFF 6.0, section 2; Exif 3.0 for UTF-8), of types with text."""
_CODES = (b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8))
"""Codes of UserComment besides UNICODE; programs write UTF-8 under all of them."""
_XMP_NAMES = {
    f"{{{XMP_RECORD}}}record": "t2i",
    "{http://ns.adobe.com/exif/1.0/}UserComment": "UserComment",
    "{http://purl.org/dc/elements/1.1/}description": "description",
    "{http://ns.adobe.com/tiff/1.0/}ImageDescription": "ImageDescription",
}
_DECLARATION = re.compile("<!(DOCTYPE|ENTITY)")


def add_exif_texts(found: ImageTexts, data: bytes) -> None:
    """Add the texts of an EXIF block, from its main directory and its Exif directory."""
    if len(data) > MAX_TEXT_BYTES:
        found.add_too_large("EXIF")
        return
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        found.add_problem("its EXIF is damaged")
        return
    main = _entries(found, data, order, data[4:8])
    if pointer := main.pop(_EXIF_IFD, None):
        for tag, value in _entries(found, data, order, pointer).items():
            _add_tag(found, tag, value, order)
    for tag, value in main.items():
        _add_tag(found, tag, value, order)


def _entries(found: ImageTexts, data: bytes, order: str, pointer: bytes) -> dict[int, bytes]:
    """The entries of a directory that may hold text, as bytes; damage becomes a problem."""
    entries: dict[int, bytes] = {}
    try:
        (start,) = struct.unpack(order + "I", pointer)
        (count,) = struct.unpack_from(order + "H", data, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(order + "HHI", data, at)
            if (tag not in _TAGS and tag != _EXIF_IFD) or tag in entries or kind not in _TYPE_SIZES:
                continue
            size = number * _TYPE_SIZES[kind]
            offset = at + 8 if size <= 4 else struct.unpack_from(order + "I", data, at + 8)[0]
            if offset + size > len(data):
                found.add_problem("its EXIF is damaged")
            else:
                entries[tag] = data[offset : offset + size]
    except struct.error:
        found.add_problem("its EXIF is damaged")
    return entries


def _add_tag(found: ImageTexts, tag: int, value: bytes, order: str) -> None:
    name = _TAGS.get(tag)
    if name is None:
        return
    text = decode_comment(value, order) if name == "UserComment" else _decode(value, order)
    label, colon, rest = text.partition(":")
    if colon and label.lower() in {"prompt", "workflow"} and rest.lstrip().startswith("{"):
        name, text = label.lower(), rest
    found.add_text(name, text)


def decode_comment(value: bytes, order: str = ">") -> str:
    """EXIF's UserComment: a code of eight bytes, which some programs leave out, and the text.

    `order` is the file's byte order, as in struct.
    """
    if value[:8].upper() == b"UNICODE\0":
        return _decode(value[8:], order, unicode=True)
    return _decode(value[8:] if value[:8] in _CODES else value, order)


def _decode(raw: bytes, order: str, *, unicode: bool = False) -> str:
    """Decode UTF-16 of either byte order, UTF-8 or, but for `unicode`, Latin-1."""
    if raw.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF16_LE)):
        return raw.decode("utf-16", errors="replace").rstrip("\0")
    text = raw.rstrip(b"\0")
    # UTF-16 has a zero byte in each ASCII character, and is hardly ever valid UTF-8 otherwise.
    if text.count(0) * 8 < len(text):
        with suppress(UnicodeDecodeError):
            return text.decode("utf-8-sig")
        if not unicode and not text.count(0):
            return text.decode("latin-1")
    high, low = raw[0::2].count(0), raw[1::2].count(0)
    big_endian = order == ">" if high == low else high > low
    return raw.decode("utf-16-be" if big_endian else "utf-16-le", errors="replace").rstrip("\0")


def decode_bytes(data: bytes) -> str:
    """Decode UTF-8, or Latin-1 where the bytes are no UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def add_xmp_texts(found: ImageTexts, packet: bytes) -> None:
    """Add t2i's record, the comments and the descriptions in an XMP packet."""
    if len(packet) > MAX_TEXT_BYTES:
        found.add_too_large("XMP")
        return
    text = packet.decode(errors="replace").strip("\0\ufeff")
    if _DECLARATION.search(text):
        # They are not allowed in a packet, and entities could expand without bound.
        found.add_problem("its XMP has declarations and is not read")
        return
    try:
        root = ElementTree.fromstring(text)  # noqa: S314
    except (ElementTree.ParseError, ValueError):
        found.add_problem("its XMP is damaged")
        return
    for description in root.iter(f"{{{RDF}}}Description"):
        for name, key in _XMP_NAMES.items():
            # Programs that rewrite a packet may turn the element into an attribute, or put it into
            # a list of languages (RDF allows all).
            element = description.find(name)
            if value := description.get(name):
                found.add_text(key, value)
            elif element is not None:
                found.add_text(key, "".join(element.itertext()).strip())
