"""Writes and reads generation metadata in PNG, JPEG and WebP files.

Two records: AUTOMATIC1111's text, which other programs read (PNG keyword `parameters`, EXIF
UserComment elsewhere), and t2i's own JSON (PNG keyword `t2i`, XMP property `t2i:record` elsewhere).
"""

import codecs
import io
import json
import struct
import warnings
from collections.abc import Mapping, Sequence
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
"""Version of t2i's record; raised when older versions could misread a newer record."""

_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_NAMESPACE = "urn:t2i-cli:record"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMP_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about="" xmlns:t2i="{_NAMESPACE}">'
    "<t2i:record>%s</t2i:record>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
"""XMP packet with its wrapper (XMP specification, part 1, section 7.3)."""


@dataclass(frozen=True, kw_only=True)
class ImageMetadata:
    """The metadata of an image file.

    `request` holds the known fields of ResolvedRequest, by name; `lock` the generation info, from
    t2i's record alone; `parameters` the settings of AUTOMATIC1111's text, by their names there.
    `width` and `height` are those of the image, in pixels; `notes` the sentences on it that t2i
    told when it was made.
    """

    source: Literal["t2i", "a1111"]
    format: ImageFormat
    width: int
    height: int
    request: Mapping[str, object]
    lock: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)


def image_file_bytes(
    generated: GeneratedImage, format: ImageFormat, quality: int | None = None
) -> bytes:
    """Encode a finished image with its metadata; `quality` is from 0 to 100.

    An image that the backend already encoded is kept as it is, unless another format or a quality
    is requested.
    """
    encoded = generated.file
    if encoded is not None and encoded.format == format and quality is None:
        return encoded.data
    extra = {} if quality is None else {"quality": quality}
    return embed_metadata(
        generated.image, generated.request, generated.info, format, notes=generated.notes, **extra
    )


def embed_metadata(
    image: "Image",
    request: ResolvedRequest,
    info: GenerationInfo,
    format: ImageFormat,
    *,
    notes: Sequence[str] = (),
    quality: int = 95,
) -> bytes:
    """Encode an RGB image with both records; returns the bytes of the file.

    JPEG and WebP are encoded at `quality`, from 0 to 100. No timestamp is written: equal images,
    requests and generation infos give equal bytes.
    """
    text = infotext.format_infotext(request, info, image.size)
    # XML allows every character that json.dumps leaves except these two.
    record = json.dumps(
        {"t2i": METADATA_SCHEMA, "request": request.to_json(), "lock": asdict(info)}
        | ({"notes": list(notes)} if notes else {}),
        ensure_ascii=False,
    ).translate({0xFFFE: "\\ufffe", 0xFFFF: "\\uffff"})
    buffer = io.BytesIO()
    if format == "png":
        from PIL.PngImagePlugin import PngInfo

        png_info = PngInfo()
        png_info.add_text("parameters", text)
        png_info.add_itxt("t2i", record)
        # Level 6: at most 1 % smaller, up to 1.5 times the time. Level 1: 25 to 50 % less time,
        # 8 to 16 % larger. Measured at 1024x1024, from photograph to gradient.
        image.save(buffer, "PNG", pnginfo=png_info, compress_level=4)
        return buffer.getvalue()
    exif = _exif(text)
    xmp = (_XMP_PACKET % escape(record)).encode()
    if format == "jpeg":
        # No chroma subsampling: it costs 12 dB at the edges of flat colours.
        image.save(buffer, "JPEG", quality=quality, subsampling=0, exif=exif, xmp=xmp)
    else:
        # Lossy, as JPEG; PNG is lossless. Method 4 is 3 % smaller and takes twice the time.
        image.save(buffer, "WEBP", quality=quality, method=2, exif=exif, xmp=xmp)
    return buffer.getvalue()


def read_metadata(path: Path) -> ImageMetadata:
    """Read the metadata of an image file; raises InputError if it is no image or has none."""
    with warnings.catch_warnings():
        # Pillow warns of damage that is reported below, or does not affect the metadata.
        warnings.simplefilter("ignore")
        image = _open_image(path)
        text = image.info.get("parameters") or _user_comment(image)
    parsed = infotext.parse_infotext(text) if isinstance(text, str) else None
    record = image.info.get("t2i") or _xmp_record(image.info.get("xmp"))
    if isinstance(record, str):
        request, lock, notes = _parse_record(record, path)
    elif parsed:
        request, lock, notes = parsed.request, {}, []
    else:
        raise InputError(
            f"'{path}' does not say how it was made.",
            hint="t2i reads its own records and AUTOMATIC1111's; editors and websites strip them.",
        )
    return ImageMetadata(
        source="t2i" if isinstance(record, str) else "a1111",
        # Pillow names a JPEG with several pictures "MPO".
        format=image_formats.IMAGE_FORMATS.get((image.format or "").lower(), "jpeg"),
        width=image.width,
        height=image.height,
        request=request,
        lock=lock,
        notes=notes,
        parameters=parsed.parameters if parsed else {},
    )


def _exif(text: str) -> bytes:
    """EXIF with a UserComment, big-endian throughout, as piexif (in AUTOMATIC1111) expects it.

    Built by hand (TIFF 6.0, section 2): Pillow writes the comment with the type BYTE, where
    Exif 2.32 requires UNDEFINED, and piexif does not read BYTE.
    """
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    header = struct.pack(">6s2sHI", b"Exif\0\0", b"MM", 42, 8)
    # A directory has a count, entries of tag, type, count and offset, and the next one's offset.
    main_directory = struct.pack(">HHHIII", 1, _EXIF_IFD, 4, 1, 26, 0)
    exif_directory = struct.pack(">HHHIII", 1, _USER_COMMENT, 7, len(comment), 44, 0)
    return header + main_directory + exif_directory + comment


def _open_image(path: Path) -> "Image":
    """Open an image and decode it completely; raises InputError if it is missing or damaged."""
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
    """EXIF's UserComment as text, decoded as other programs write it too."""
    try:
        value = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        # Treat broken EXIF as absent; Pillow has no specific error for it.
        return None
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return None
    code, raw = value[:8], value[8:]
    if code == b"UNICODE\0":
        return _decode_utf16(raw)
    # Exif 2.32 has codes for ASCII, JIS and undefined (eight zeros); programs use all for UTF-8.
    known = code in (b"ASCII\0\0\0", bytes(8))
    return (raw if known else value).decode(errors="replace").rstrip("\0")


def _decode_utf16(raw: bytes) -> str:
    """Decode UTF-16 of either byte order: piexif writes big-endian, others the file's order."""
    if raw.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF16_LE)):
        return raw.decode("utf-16", errors="replace")
    # The settings are ASCII, whose high bytes are zero.
    big_endian = raw[0::2].count(0) >= raw[1::2].count(0)
    return raw.decode("utf-16-be" if big_endian else "utf-16-le", errors="replace")


def _xmp_record(packet: object) -> str | None:
    """t2i's record in an XMP packet, or `None`."""
    if not isinstance(packet, bytes):
        return None
    text = packet.decode(errors="replace").strip("\0\ufeff")
    if "<!" in text:
        # Declarations are not allowed in a packet, and entities could expand without bound.
        return None
    try:
        root = ElementTree.fromstring(text)  # noqa: S314
    except ElementTree.ParseError:
        return None
    name = f"{{{_NAMESPACE}}}record"
    for description in root.iter(f"{{{_RDF}}}Description"):
        # Programs that rewrite a packet may turn the element into an attribute (RDF allows both).
        value = description.get(name) or description.findtext(name)
        if value:
            return value
    return None


def _parse_record(
    text: str, path: Path
) -> tuple[Mapping[str, object], Mapping[str, object], list[str]]:
    """Parse t2i's JSON to request, generation info and notes; raises InputError."""
    try:
        record = json.loads(text)
        version, request, lock = record["t2i"], record["request"], record["lock"]
        valid = isinstance(version, int) and isinstance(request, dict) and isinstance(lock, dict)
    except (ValueError, LookupError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise InputError(f"t2i's record in '{path}' is damaged.")
    if version > METADATA_SCHEMA:
        raise InputError(
            f"'{path}' was written by a newer t2i.", hint="Upgrade: pip install -U t2i-cli"
        )
    notes = record.get("notes")
    return request, lock, [str(note) for note in notes] if isinstance(notes, list) else []
