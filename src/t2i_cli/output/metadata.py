"""What made an image, written into it and read back, in PNG, JPEG and WebP.

Two records: AUTOMATIC1111's text, which every viewer reads (PNG keyword `parameters`, EXIF
UserComment elsewhere), and t2i's own JSON (PNG keyword `t2i`, XMP property `t2i:record` elsewhere).
"""

import codecs
import io
import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from t2i_cli import image_formats
from t2i_cli.backend import GeneratedImage
from t2i_cli.errors import InputError
from t2i_cli.files.image_files import ImageFileError, open_image
from t2i_cli.image_formats import ImageFormat
from t2i_cli.output import infotext
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest

if TYPE_CHECKING:
    from PIL.Image import Image

METADATA_SCHEMA = 1
"""The version of t2i's record; it changes when an older t2i could misread a newer record."""

_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_NAMESPACE = "urn:t2i-cli:record"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about="" xmlns:t2i="{_NAMESPACE}">'
    "<t2i:record>%s</t2i:record>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
"""XMP specification, part 1, section 7.3: the wrapper by which any reader finds a packet."""


@dataclass(frozen=True, kw_only=True)
class ImageMetadata:
    """What an image says of itself.

    `request` has the names of ResolvedRequest's fields, as far as known; `lock` is t2i's own, and
    `parameters` holds the settings in AUTOMATIC1111's text, by their names there. `width` and
    `height` are the image's own, in pixels.
    """

    source: Literal["t2i", "a1111"]
    format: ImageFormat
    width: int
    height: int
    request: Mapping[str, object]
    lock: Mapping[str, object] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)


def image_file_bytes(
    generated: GeneratedImage, format: ImageFormat, quality: int | None = None
) -> bytes:
    """A finished image as the bytes of a file with its records.

    One that came as such a file stays what it was, unless another format or quality is asked for.
    """
    came = generated.file
    if came is not None and came.format == format and quality is None:
        return came.data
    extra = {} if quality is None else {"quality": quality}
    return embed_metadata(generated.image, generated.request, generated.info, format, **extra)


def embed_metadata(
    image: "Image",
    request: ResolvedRequest,
    lock: GenerationInfo,
    format: ImageFormat,
    *,
    quality: int = 95,
) -> bytes:
    """The RGB image as the bytes of a file that carries both records.

    JPEG and WebP are encoded at `quality`, from 0 to 100. No clock value goes in: the same image,
    request and lock give the same bytes.
    """
    text = infotext.format_infotext(request, lock, image.size)
    # Escaped by hand: every character but these two may stand in XML.
    record = json.dumps(
        {"t2i": METADATA_SCHEMA, "request": request.to_json(), "lock": asdict(lock)},
        ensure_ascii=False,
    ).translate({0xFFFE: "\\ufffe", 0xFFFF: "\\uffff"})
    buffer = io.BytesIO()
    if format == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("parameters", text)
        info.add_itxt("t2i", record)
        # Level 6 is at most 1 % smaller and takes up to 1.5 times as long; 1 is quicker by a
        # quarter to a half, and 8 to 16 % larger (1024x1024, photograph to gradient).
        image.save(buffer, "PNG", pnginfo=info, compress_level=4)
        return buffer.getvalue()
    exif = _exif(text)
    xmp = (_PACKET % escape(record)).encode()
    if format == "jpeg":
        # Full colour resolution: half of it costs 12 dB at the edges of flat colours.
        image.save(buffer, "JPEG", quality=quality, subsampling=0, exif=exif, xmp=xmp)
    else:
        # Lossy, as for JPEG: PNG is there for exact pixels. Method 4 gains 3 % for twice the time.
        image.save(buffer, "WEBP", quality=quality, method=2, exif=exif, xmp=xmp)
    return buffer.getvalue()


def read_metadata(path: Path) -> ImageMetadata:
    """The records in an image file; raises InputError if it is no image or holds none."""
    with warnings.catch_warnings():
        # Pillow warns of damage that is either reported here or does not matter.
        warnings.simplefilter("ignore")
        image = _open(path)
        text = image.info.get("parameters") or _user_comment(image)
    parsed = infotext.parse_infotext(text) if isinstance(text, str) else None
    own = image.info.get("t2i") or _from_xmp(image.info.get("xmp"))
    if isinstance(own, str):
        request, lock = _own_record(own, path)
    elif parsed:
        request, lock = parsed.request, {}
    else:
        raise InputError(
            f"'{path}' does not say how it was made.",
            hint="t2i reads its own records and AUTOMATIC1111's; editors and websites strip them.",
        )
    return ImageMetadata(
        source="t2i" if isinstance(own, str) else "a1111",
        # A JPEG of several pictures is "MPO" to Pillow.
        format=image_formats.IMAGE_FORMATS.get((image.format or "").lower(), "jpeg"),
        width=image.width,
        height=image.height,
        request=request,
        lock=lock,
        parameters=parsed.parameters if parsed else {},
    )


def _exif(text: str) -> bytes:
    """EXIF with a UserComment, big-endian throughout, as piexif (in AUTOMATIC1111) expects it.

    Laid out by hand (TIFF 6.0, section 2): Pillow would give the comment the type BYTE, where
    Exif 2.32 asks for UNDEFINED, and piexif would not read it.
    """
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    header = struct.pack(">6s2sHI", b"Exif\0\0", b"MM", 42, 8)
    # A directory has a count, entries of tag, type, count and offset, and the next one's offset.
    first = struct.pack(">HHHIII", 1, _EXIF_IFD, 4, 1, 26, 0)
    exif = struct.pack(">HHHIII", 1, _USER_COMMENT, 7, len(comment), 44, 0)
    return header + first + exif + comment


def _open(path: Path) -> "Image":
    """The image, read to its end; raises InputError for whatever is no sound image."""
    try:
        return open_image(path)
    except ImageFileError as error:
        raise InputError(
            {
                "too large": f"'{path}' has {error}; t2i does not open it.",
                "no image": f"'{path}' is no PNG, JPEG or WebP image.",
                "damaged": f"The image '{path}' is damaged: {error}.",
            }[error.reason]
        ) from error
    except OSError as error:
        raise InputError(f"Cannot read '{path}': {error.strerror}.") from error


def _user_comment(image: "Image") -> str | None:
    """EXIF's UserComment as text, whoever wrote it."""
    try:
        value = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        # Broken EXIF, for which Pillow has no error of its own, is no EXIF.
        return None
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return None
    code, raw = value[:8], value[8:]
    if code == b"UNICODE\0":
        return _utf16(raw)
    # Exif 2.32 names ASCII, JIS and an undefined code (eight zeros); programs write UTF-8 by all.
    known = code in (b"ASCII\0\0\0", bytes(8))
    return (raw if known else value).decode(errors="replace").rstrip("\0")


def _utf16(raw: bytes) -> str:
    """UTF-16 of either byte order: piexif writes big-endian only, others that of the file."""
    if raw.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF16_LE)):
        return raw.decode("utf-16", errors="replace")
    # The settings are ASCII, whose upper bytes are zeros.
    big_endian = raw[0::2].count(0) >= raw[1::2].count(0)
    return raw.decode("utf-16-be" if big_endian else "utf-16-le", errors="replace")


def _from_xmp(packet: object) -> str | None:
    """t2i's record in an XMP packet, if one is there."""
    if not isinstance(packet, bytes):
        return None
    text = packet.decode(errors="replace").strip("\0\ufeff")
    if "<!" in text:
        # A packet holds no declarations, and entities could grow without bound.
        return None
    try:
        root = ElementTree.fromstring(text)  # noqa: S314
    except ElementTree.ParseError:
        return None
    name = f"{{{_NAMESPACE}}}record"
    for description in root.iter(f"{{{_RDF}}}Description"):
        # Programs that rewrite a packet may turn the element into an attribute.
        value = description.get(name) or description.findtext(name)
        if value:
            return value
    return None


def _own_record(text: str, path: Path) -> tuple[Mapping[str, object], Mapping[str, object]]:
    """The request and the lock in t2i's JSON."""
    try:
        record = json.loads(text)
        version, request, lock = record["t2i"], record["request"], record["lock"]
        sound = isinstance(version, int) and isinstance(request, dict) and isinstance(lock, dict)
    except (ValueError, LookupError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise InputError(f"t2i's record in '{path}' is damaged.")
    if version > METADATA_SCHEMA:
        raise InputError(
            f"'{path}' was written by a newer t2i.", hint="Upgrade: pip install -U t2i-cli"
        )
    return request, lock
