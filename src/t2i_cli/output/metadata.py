"""Writes generation metadata into PNG, JPEG and WebP files, and reads it.

Two records are written: AUTOMATIC1111's text, which other programs read (PNG keyword `parameters`,
EXIF UserComment elsewhere), and t2i's own JSON (PNG keyword `t2i`, XMP property `t2i:record`
elsewhere).
"""

import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from xml.sax.saxutils import escape

from t2i_cli.backend import EncodedImage, GeneratedImage
from t2i_cli.errors import InputError, os_reason
from t2i_cli.files.image_files import ImageFileError
from t2i_cli.files.input_files import open_input
from t2i_cli.image_formats import ImageFormat
from t2i_cli.output import foreign_records, infotext, metadata_insertion
from t2i_cli.output.image_texts import read_image_texts
from t2i_cli.output.image_texts.collected import ImageTexts
from t2i_cli.output.image_texts.exif import RDF, XMP_RECORD
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo

METADATA_SCHEMA = 1
"""Version of t2i's record; raised when older versions could misread a newer record."""

_MAX_NAMES = 8
"""Names of unknown texts that an error shows."""
_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_XMP_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about="" xmlns:t2i="{XMP_RECORD}">'
    "<t2i:record>%s</t2i:record>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
"""XMP packet with its wrapper (XMP specification, part 1, section 7.3)."""


@dataclass(frozen=True, kw_only=True)
class ImageMetadata:
    """The metadata of an image file.

    `request` holds the known fields of ResolvedRequest, by name; `lock` the generation info, from
    t2i's record alone; `parameters` the settings of another program's record, by their names there.
    `width` and `height` are those of the image, in pixels, 0 if it does not say. `notes` are the
    sentences on it that t2i told when it was made, `problems` those on what could not be read.
    """

    source: str
    format: str
    width: int
    height: int
    request: Mapping[str, object]
    lock: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The object that `--json` prints."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


class NoRecordError(InputError):
    """A sound image that does not say how it was made."""


def image_file_bytes(
    generated: GeneratedImage, format: ImageFormat, quality: int | None = None
) -> bytes:
    """Encode a finished image with its metadata; `quality` is from 0 to 100.

    An image that the backend already encoded is kept as it is, unless another format or a quality
    is requested; metadata that its file lacks is inserted.
    """
    encoded = generated.file
    if encoded is not None and encoded.format == format and quality is None:
        if encoded.has_record:
            return encoded.data
        if kept := _with_records(generated, encoded):
            return kept
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
    record = _record_text(request, info, notes)
    buffer = io.BytesIO()
    if format == "png":
        # Level 6: at most 1 % smaller, up to 1.5 times the time. Level 1: 25 to 50 % less time,
        # 8 to 16 % larger. Measured at 1024x1024, from photograph to gradient.
        image.save(buffer, "PNG", pnginfo=_png_info(text, record), compress_level=4)
        return buffer.getvalue()
    exif, xmp = _exif(text), _xmp(record)
    if format == "jpeg":
        # No chroma subsampling: it costs 12 dB at the edges of flat colours.
        image.save(buffer, "JPEG", quality=quality, subsampling=0, exif=exif, xmp=xmp)
    else:
        # Lossy, as JPEG; PNG is lossless. Method 4 is 3 % smaller and takes twice the time.
        image.save(buffer, "WEBP", quality=quality, method=2, exif=exif, xmp=xmp)
    return buffer.getvalue()


def _with_records(generated: GeneratedImage, encoded: EncodedImage) -> bytes | None:
    """The encoded file with both records inserted; None where its bytes have no place for them."""
    info = generated.info
    text = infotext.format_infotext(generated.request, info, generated.size)
    record = _record_text(generated.request, info, generated.notes)
    match encoded.format:
        case "png":
            chunks = [(chunk[0], chunk[1]) for chunk in _png_info(text, record).chunks]
            return metadata_insertion.insert_png_chunks(encoded.data, chunks)
        case "jpeg":
            return metadata_insertion.insert_jpeg_segments(encoded.data, _exif(text), _xmp(record))
    return None


def _record_text(request: ResolvedRequest, info: GenerationInfo, notes: Sequence[str]) -> str:
    """t2i's record as JSON text."""
    record = {"t2i": METADATA_SCHEMA, "request": request.to_json(), "lock": info.to_json()}
    text = json.dumps(record | ({"notes": list(notes)} if notes else {}), ensure_ascii=False)
    # XML allows every character that json.dumps leaves except these two.
    return text.translate({0xFFFE: "\\ufffe", 0xFFFF: "\\uffff"})


def _png_info(text: str, record: str) -> "PngInfo":
    """The texts of a PNG file."""
    from PIL.PngImagePlugin import PngInfo

    png_info = PngInfo()
    # Readers take text for UTF-8 where its Latin-1 happens to be that, so it must not be.
    if text.isascii() or not _is_utf8(text.encode("latin-1", "ignore")):
        png_info.add_text("parameters", text)
    else:
        png_info.add_itxt("parameters", text)
    png_info.add_itxt("t2i", record)
    return png_info


def _xmp(record: str) -> bytes:
    return (_XMP_PACKET % escape(record)).encode()


def read_metadata(path: Path) -> ImageMetadata:
    """Read the metadata of an image file; raises InputError if it is no image or has none."""
    try:
        with open_input(path) as file:
            return read_open_metadata(file, str(path))
    except OSError as error:
        raise InputError(f"Cannot read '{path}': {os_reason(error)}.") from error


def read_open_metadata(file: BinaryIO, name: str) -> ImageMetadata:
    """Read the metadata of a seekable image file. Raises InputError, with its `name`, or OSError.

    No pixel is decoded.
    """
    try:
        found = read_image_texts(file)
    except ImageFileError as error:
        raise InputError(
            f"'{name}' has {error}; t2i does not open it."
            if error.reason == "too large"
            else f"'{name}' is no PNG, JPEG, WebP, AVIF or JPEG XL image."
        ) from error
    own = _own_record(found)
    foreign = foreign_records.find_foreign_record(found)
    if own:
        source, request, lock = "t2i", own.request, own.lock
    elif foreign:
        source, request, lock = foreign.source, foreign.request, {}
    else:
        raise _missing_record(found, name)
    return ImageMetadata(
        source=source,
        format=found.format,
        width=found.width,
        height=found.height,
        request=request,
        lock=lock,
        notes=own.notes if own else (),
        parameters=foreign.parameters if foreign else {},
        problems=tuple(found.problems),
    )


def _missing_record(found: ImageTexts, name: str) -> InputError:
    """Why an image has no record: it is damaged, or what it says is not known, or it says nothing.

    Damage is told first, for a record may be in the damaged part.
    """
    if found.problems:
        problems = "; ".join(found.problems)
        return InputError(f"Nothing could be read from the image '{name}': {problems}.")
    if names := list(dict.fromkeys(name for name, _ in found.texts)):
        shown = ", ".join(names[:_MAX_NAMES]) + (" …" if len(names) > _MAX_NAMES else "")
        return NoRecordError(
            f"'{name}' does not say how it was made in a form that t2i reads.",
            hint=f"It has texts of other kinds: {shown}.",
        )
    return NoRecordError(
        f"'{name}' does not say how it was made.",
        hint="Editors and websites strip such records; those hidden in pixels are not looked for.",
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


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class _OwnRecord(NamedTuple):
    request: Mapping[str, object]
    lock: Mapping[str, object]
    notes: Sequence[str]


def _own_record(found: ImageTexts) -> _OwnRecord | None:
    """Request, generation info and notes of t2i's record; `None`, with a problem if damaged."""
    text = found.find_text("t2i")
    if text is None:
        return None
    try:
        record = foreign_records.parse_record(text)
    except ValueError as error:
        found.add_problem(f"t2i's record is damaged: {error}")
        return None
    values = record if isinstance(record, dict) else {}
    version, request, lock, notes = (values.get(key) for key in ("t2i", "request", "lock", "notes"))
    if type(version) is int and version > METADATA_SCHEMA:
        found.add_problem("t2i's record was written by a newer t2i: pip install -U t2i-cli")
    elif type(version) is int and isinstance(request, dict) and isinstance(lock, dict):
        texts = [str(note) for note in notes] if isinstance(notes, list) else []
        return _OwnRecord(request, lock, texts)
    else:
        found.add_problem("t2i's record is damaged")
    return None
