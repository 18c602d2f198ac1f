"""The records inside image files, read back by t2i, by piexif and from the raw bytes."""

import io
import json
import math
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import piexif
import piexif.helper
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2i_cli.errors import InputError
from t2i_cli.image_formats import ImageFormat
from t2i_cli.output import infotext, metadata
from t2i_cli.request_field import MAX_PROMPT
from tests.factories import LOCK, picture, request
from tests.test_a1111 import FROM_A1111

FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp")
TEXTS = {
    "plain": "a red house",
    "unicode": "maison à Paris, 日本の家, हिन्दी",
    "right to left": "بيت أحمر שלום",
    "newlines": "first\nsecond\r\n\tthird\n",
    "quotes": "\"double\" 'single' \\ <tag> & ]]> {json: 1}",
    "settings": "Steps: 1, Sampler: Euler, Seed: 5, Size: 1x1",
    "negative": "a\nNegative prompt: not really",
    "not characters": "a\ufffeb\uffffc",
    "emoji": "🏳️‍🌈 🎨",
    "longest": "🎨" * MAX_PROMPT,
    "longest in XML": "&" * MAX_PROMPT,
}


def written(tmp_path: Path, format: ImageFormat, **changes: object) -> Path:
    path = tmp_path / f"image.{format}"
    path.write_bytes(metadata.embed_metadata(picture(), request(**changes), LOCK, format))
    return path


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB images, in dB."""
    pairs = zip(one.tobytes(), other.convert("RGB").tobytes(), strict=True)
    squares = [(a - b) ** 2 for a, b in pairs]
    error = sum(squares) / len(squares)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_both_records_come_back(tmp_path: Path, format: ImageFormat, text: str) -> None:
    asked = request(prompt=text, negative_prompt=text)
    record = metadata.read_metadata(written(tmp_path, format, prompt=text, negative_prompt=text))
    assert record.source == "t2i"
    assert (record.format, record.width, record.height) == (format, 64, 48)
    assert record.request == asked.to_json()
    assert record.lock["revision"] == LOCK.revision
    assert record.lock["measures"] == ["vae_tiling"]
    assert record.lock["libraries"] == {"diffusers": "0.42.1", "torch": "2.13.0"}
    assert record.parameters["Seed"] == "42"


@pytest.mark.parametrize(("format", "least"), [("png", float("inf")), ("jpeg", 40), ("webp", 30)])
def test_the_picture_is_kept(tmp_path: Path, format: ImageFormat, least: float) -> None:
    with Image.open(written(tmp_path, format)) as image:
        assert psnr(picture(), image) >= least


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_request_gives_the_same_bytes(format: ImageFormat) -> None:
    first = metadata.embed_metadata(picture(), request(), LOCK, format)
    assert first == metadata.embed_metadata(picture(), request(), LOCK, format)
    assert first != metadata.embed_metadata(picture(), request(seed=43), LOCK, format)


def png_texts(data: bytes) -> dict[str, str]:
    """The text chunks of a PNG file (PNG specification, 11.3.4), checksums verified."""
    texts, at = {}, 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert zlib.crc32(kind + body) == checksum
        key, _, value = body.partition(b"\0")
        if kind == b"tEXt":
            texts[key.decode()] = value.decode("latin-1")
        elif kind == b"iTXt":
            # Compression flag and method, language, translated keyword.
            assert value[:2] == b"\0\0"
            texts[key.decode()] = value[2:].split(b"\0", 2)[2].decode()
        at += 12 + length
    return texts


@pytest.mark.parametrize("prompt", ["a red house", "日本の家"])
def test_png_holds_text_chunks_that_any_reader_finds(tmp_path: Path, prompt: str) -> None:
    texts = png_texts(written(tmp_path, "png", prompt=prompt).read_bytes())
    assert texts["parameters"] == infotext.format_infotext(request(prompt=prompt), LOCK, (64, 48))
    record = json.loads(texts["t2i"])
    assert record["t2i"] == 1
    assert record["request"]["prompt"] == prompt
    assert record["lock"]["device"] == "cuda:0"


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["a red house", "日本の家 🎨"])
def test_piexif_reads_the_user_comment_as_automatic1111_does(
    tmp_path: Path, format: ImageFormat, prompt: str
) -> None:
    exif = piexif.load(str(written(tmp_path, format, prompt=prompt)))
    comment = piexif.helper.UserComment.load(exif["Exif"][piexif.ExifIFD.UserComment])
    assert comment == infotext.format_infotext(request(prompt=prompt), LOCK, (64, 48))


def xmp_packet(data: bytes, format: ImageFormat) -> bytes:
    """The XMP packet, found by walking a JPEG's segments or a WebP's chunks."""
    at = 2 if format == "jpeg" else 12
    while at < len(data):
        if format == "jpeg":
            marker, length = struct.unpack(">HH", data[at : at + 4])
            body, name = data[at + 4 : at + 2 + length], b"http://ns.adobe.com/xap/1.0/\0"
            if marker == 0xFFE1 and body.startswith(name):
                return body.removeprefix(name)
            at += 2 + length
        else:
            kind, length = struct.unpack("<4sI", data[at : at + 8])
            if kind == b"XMP ":
                return data[at + 8 : at + 8 + length]
            at += 8 + length + length % 2
    raise AssertionError("no XMP packet")


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_xmp_packet_is_well_formed_and_holds_the_record(
    tmp_path: Path, format: ImageFormat
) -> None:
    packet = xmp_packet(written(tmp_path, format, prompt="<&>").read_bytes(), format)
    assert packet.startswith(b"<?xpacket begin=") and packet.endswith(b"?>")
    (element,) = ElementTree.fromstring(packet).iter("{urn:t2i-cli:record}record")  # noqa: S314
    assert element.text and json.loads(element.text)["request"]["prompt"] == "<&>"


def test_an_xmp_attribute_is_read_too(tmp_path: Path) -> None:
    """Programs that rewrite a packet may choose RDF's short form."""
    record = '{"t2i": 1, "request": {"prompt": "a"}, "lock": {}}'.replace('"', "&quot;")
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:other="urn:t2i-cli:record" other:record="{record}"/></rdf:RDF></x:xmpmeta>'
    )
    picture().save(tmp_path / "a.jpg", xmp=packet.encode())
    assert metadata.read_metadata(tmp_path / "a.jpg").request == {"prompt": "a"}


def test_reads_a_png_of_automatic1111(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", FROM_A1111)
    picture().save(tmp_path / "a.png", pnginfo=info)
    record = metadata.read_metadata(tmp_path / "a.png")
    assert record.source == "a1111"
    assert record.request["seed"] == 965400086
    assert record.parameters["VAE"] == "a, b: c.pt"
    assert record.lock == {}


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_reads_a_jpeg_and_webp_of_automatic1111(tmp_path: Path, suffix: str) -> None:
    """Made by the calls in AUTOMATIC1111's `save_image_with_geninfo`."""
    path = tmp_path / f"a.{suffix}"
    picture().save(path)
    comment = piexif.helper.UserComment.dump(FROM_A1111 + " 日本", encoding="unicode")
    piexif.insert(piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}}), str(path))
    record = metadata.read_metadata(path)
    assert record.source == "a1111"
    assert record.request["width"] == 512
    assert record.parameters["Version"] == "v1.10.1 日本"


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + FROM_A1111.encode("utf-16-le"),
        b"UNICODE\0" + FROM_A1111.encode("utf-16-be"),
        b"UNICODE\0" + FROM_A1111.encode("utf-16"),
        b"ASCII\0\0\0" + FROM_A1111.encode(),
        bytes(8) + FROM_A1111.encode() + b"\0",
        FROM_A1111.encode(),
        FROM_A1111,
    ],
    ids=["little", "big", "marked", "ascii", "undefined", "bare bytes", "text"],
)
@pytest.mark.parametrize("endian", "<>")
def test_reads_a_user_comment_in_any_dress(
    tmp_path: Path, comment: bytes | str, endian: str
) -> None:
    exif = Image.Exif()
    exif.endian = endian
    exif[0x8769] = {0x9286: comment}
    picture().save(tmp_path / "a.jpg", exif=exif)
    parsed = infotext.parse_infotext(FROM_A1111)
    read_as = {"prompt_syntax": "a1111"}  # for it has weights
    assert parsed
    assert metadata.read_metadata(tmp_path / "a.jpg").request == parsed.request | read_as


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_without_records_is_refused(tmp_path: Path, format: ImageFormat) -> None:
    exif = Image.Exif()
    exif[0x8769] = {0x9286: b"ASCII\0\0\0a holiday"}
    picture().save(tmp_path / "a", format, exif=exif)
    with pytest.raises(InputError, match="does not say how it was made"):
        metadata.read_metadata(tmp_path / "a")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("no JSON", "damaged"),
        ("[]", "damaged"),
        ('{"t2i": 1}', "damaged"),
        ('{"t2i": 1, "request": [], "lock": {}}', "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"t2i": 2, "request": {}, "lock": {}}', "newer t2i"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, record: str, message: str) -> None:
    info = PngInfo()
    info.add_text("t2i", record)
    picture().save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(InputError, match=message):
        metadata.read_metadata(tmp_path / "a.png")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(side: int) -> bytes:
    """A PNG that claims to be `side` pixels wide and high, in a few hundred bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no PNG, JPEG, WebP, AVIF or JPEG XL image"),
        (b"hello", "is no PNG, JPEG, WebP, AVIF or JPEG XL image"),
        (b"GIF89a" + bytes(100), "is no PNG, JPEG, WebP, AVIF or JPEG XL image"),
        (bomb(100_000), "does not say how it was made"),
    ],
)
def test_what_is_no_sound_image_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        metadata.read_metadata(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        metadata.read_metadata(tmp_path / "missing.png")
    with pytest.raises(InputError, match="it is a folder"):
        metadata.read_metadata(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_image_says_so(tmp_path: Path, format: ImageFormat) -> None:
    path = written(tmp_path, format)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 20, 37):
        path.write_bytes(whole[:length])
        try:
            problems = metadata.read_metadata(path).problems
        except InputError as error:
            assert "cut off" in error.message or "is no PNG" in error.message
        else:
            assert any("cut off" in problem for problem in problems)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_image_gives_a_record_or_an_input_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    format = data.draw(st.sampled_from(FORMATS))
    content = bytearray(metadata.embed_metadata(picture(8, 8), request(), LOCK, format))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content)
    try:
        assert metadata.read_metadata(path).source in ("t2i", "a1111")
    except InputError as error:
        assert str(path) in error.message


def test_an_entity_bomb_is_not_expanded(tmp_path: Path) -> None:
    packet = (
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:t2i="urn:t2i-cli:record"><t2i:record>&b;</t2i:record>'
        "</rdf:Description></rdf:RDF>"
    )
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG", xmp=packet.encode())
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="has declarations and is not read"):
        metadata.read_metadata(tmp_path / "a.jpg")
