"""Where and how the texts of images stand: EXIF, XMP, PNG chunks, encodings, line ends, damage."""

import io
import json
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from t2i_cli.cli.commands.inspect import inspect
from t2i_cli.errors import InputError
from t2i_cli.output import infotext, metadata
from t2i_cli.output.image_texts import read_image_texts
from tests.conftest import T2I
from tests.factories import LOCK, picture, request
from tests.test_a1111 import FROM_A1111
from tests.test_inspect_programs import png
from tests.test_metadata import chunk

JAPANESE = FROM_A1111.replace("masterpiece", "テスト 船 maison à Paris")
BYTE, ASCII, UNDEFINED = 1, 2, 7
USER_COMMENT, XP_COMMENT, IMAGE_DESCRIPTION = 0x9286, 0x9C9C, 0x010E


def exif(tag: int, kind: int, value: bytes, *, main: bool, order: str) -> bytes:
    """EXIF with one entry, in its main directory or its Exif directory (TIFF 6.0, section 2)."""
    at = 26 if main else 44
    entry = struct.pack(order + "HHHIII", 1, tag, kind, len(value), at, 0)
    pointer = b"" if main else struct.pack(order + "HHHIII", 1, 0x8769, 4, 1, 26, 0)
    mark = b"II" if order == "<" else b"MM"
    return b"Exif\0\0" + mark + struct.pack(order + "HI", 42, 8) + pointer + entry + value


COMMENTS = {
    "little": b"UNICODE\0" + JAPANESE.encode("utf-16-le"),
    "big": b"UNICODE\0" + JAPANESE.encode("utf-16-be"),
    "marked": b"UNICODE\0" + JAPANESE.encode("utf-16"),
    "UTF-8 under UNICODE": b"UNICODE\0" + JAPANESE.encode(),
    "ASCII": b"ASCII\0\0\0" + JAPANESE.encode(),
    "undefined": bytes(8) + JAPANESE.encode() + b"\0",
    "bare": JAPANESE.encode(),
    "bare, marked": JAPANESE.encode("utf-8-sig"),
    "bare, little": JAPANESE.encode("utf-16-le") + b"\0\0",
    "bare, big": JAPANESE.encode("utf-16-be"),
}


def prompt_of(path: Path) -> object:
    record = metadata.read_metadata(path)
    parsed = infotext.parse_infotext(JAPANESE)
    assert parsed and (record.source, record.problems) == ("a1111", ())
    assert record.parameters == parsed.parameters
    # Its weights are read as the program means them.
    assert record.request == parsed.request | {"prompt_syntax": "a1111"}
    return record.request["prompt"]


@pytest.mark.parametrize("comment", COMMENTS.values(), ids=COMMENTS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("main", [True, False])
def test_a_user_comment_is_read(comment: bytes, order: str, main: bool, tmp_path: Path) -> None:
    for kind in (BYTE, ASCII, UNDEFINED):
        block = exif(USER_COMMENT, kind, comment, main=main, order=order)
        for format in ("jpeg", "webp", "png"):
            picture().save(tmp_path / f"a.{format}", exif=block)
            assert "テスト 船 maison à Paris" in str(prompt_of(tmp_path / f"a.{format}"))


@pytest.mark.parametrize(
    ("tag", "kind", "encoding"),
    [(XP_COMMENT, BYTE, "utf-16-le"), (IMAGE_DESCRIPTION, ASCII, "utf-8")],
)
@pytest.mark.parametrize("order", "<>")
def test_other_entries_are_read(
    tag: int, kind: int, encoding: str, order: str, tmp_path: Path
) -> None:
    block = exif(tag, kind, JAPANESE.encode(encoding) + bytes(2), main=True, order=order)
    picture().save(tmp_path / "a.jpg", exif=block)
    prompt_of(tmp_path / "a.jpg")


def test_a_jpeg_s_comment_is_read(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", comment=JAPANESE.encode())
    prompt_of(tmp_path / "a.jpg")


def test_imagemagick_s_profiles_are_read(tmp_path: Path) -> None:
    """Its form of EXIF in PNG, after a conversion from JPEG."""
    block = exif(USER_COMMENT, UNDEFINED, COMMENTS["big"], main=False, order=">")
    lines = "\n".join(block.hex()[at : at + 72] for at in range(0, 2 * len(block), 72))
    png(tmp_path / "a.png", {"Raw profile type exif": f"\nexif\n    {len(block)}\n{lines}\n"})
    prompt_of(tmp_path / "a.png")


def with_chunks(*chunks: bytes, end: bytes = b"") -> bytes:
    """A PNG with more chunks after its header, and some before its end."""
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + b"".join(chunks) + data[33:-12] + end + data[-12:]


def text_chunk(keyword: str, text: bytes) -> bytes:
    return chunk(b"tEXt", keyword.encode() + b"\0" + text)


def test_utf8_and_latin1_in_a_text_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(with_chunks(text_chunk("parameters", JAPANESE.encode())))
    prompt_of(path)
    latin = FROM_A1111.replace("masterpiece", "maison à Paris")
    path.write_bytes(with_chunks(text_chunk("parameters", latin.encode("latin-1"))))
    assert str(metadata.read_metadata(path).request["prompt"]).startswith("maison à Paris")


def test_what_t2i_writes_is_never_taken_for_another_encoding(tmp_path: Path) -> None:
    """Its Latin-1 bytes are valid UTF-8: of other words."""
    for prompt in ("Ã©", "é", "日本"):
        data = metadata.embed_metadata(picture(), request(prompt=prompt), LOCK, "png")
        texts = read_image_texts(io.BytesIO(data))
        assert (texts.find_text("parameters") or "").startswith(prompt)


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_are_one_character(end: str, tmp_path: Path) -> None:
    text = FROM_A1111.replace("\n", end) + end
    record = metadata.read_metadata(png(tmp_path / "a.png", {"parameters": text}))
    parsed = infotext.parse_infotext(FROM_A1111)
    assert parsed and record.request == parsed.request | {"prompt_syntax": "a1111"}
    assert "\r" not in json.dumps(record.parameters)


LARGE = json.dumps({"nodes": ["x" * 1000] * 2_000}).encode()
TOO_LARGE = b"x" * (2**22 + 1)


@pytest.mark.parametrize(
    "large",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LARGE)),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LARGE)),
    ],
)
def test_a_large_text_beside_a_good_one_is_no_damage(large: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(
        with_chunks(text_chunk("parameters", JAPANESE.encode()), end=large)
    )
    prompt_of(tmp_path / "a.png")


DAMAGED = {
    "its text 'workflow' has more than 4 MiB and is not read": [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(TOO_LARGE)),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(TOO_LARGE)),
        text_chunk("workflow", TOO_LARGE),
    ],
    "its text 'workflow' is damaged: the checksum is wrong": [
        text_chunk("workflow", b"{}")[:-1] + b"x"
    ],
    "its text 'workflow' is damaged: it cannot be decompressed": [
        chunk(b"zTXt", b"workflow\0\0hello")
    ],
    "its text 'workflow' is damaged: it is cut off": [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LARGE)[:-9])
    ],
    "its chunk gAMA is damaged: the checksum is wrong": [chunk(b"gAMA", bytes(4))[:-1] + b"x"],
    "its EXIF is damaged": [chunk(b"eXIf", b"MM\0*\0\0\0\x08\0"), chunk(b"eXIf", b"hello")],
    "its EXIF has more than 4 MiB and is not read": [chunk(b"eXIf", b"MM" + TOO_LARGE)],
    "its XMP is damaged": [chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x>")],
}
CASES = [(problem, part) for problem, parts in DAMAGED.items() for part in parts]


@pytest.mark.parametrize(("problem", "part"), CASES)
@pytest.mark.parametrize("at_end", [False, True])
def test_damage_is_said_and_the_rest_is_read(
    problem: str, part: bytes, at_end: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    parts = [part] * (not at_end) + [text_chunk("parameters", FROM_A1111.encode())]
    path.write_bytes(with_chunks(*parts, end=part * at_end))
    record = metadata.read_metadata(path)
    assert (record.request["seed"], record.problems) == (965400086, (problem,))
    path.write_bytes(with_chunks(part))
    with pytest.raises(InputError, match=problem):
        metadata.read_metadata(path)


def test_a_file_cut_off_after_its_record_is_said(t2i: T2I, tmp_path: Path) -> None:
    whole = with_chunks(text_chunk("parameters", FROM_A1111.encode()))
    (tmp_path / "a.png").write_bytes(whole[:-20])
    done = t2i("inspect", "a.png", "--json")
    assert (done.returncode, done.stderr) == (0, "warning: 'a.png': it is cut off.\n")
    assert json.loads(done.stdout)["problems"] == ["it is cut off"]


def test_standard_input_folders_and_several_files(t2i_env: dict[str, str], tmp_path: Path) -> None:
    for name in ("out/b/2.png", "out/1.png", "out/.hidden/3.png", "single.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        png(tmp_path / name, {"parameters": FROM_A1111})
    (tmp_path / "out/notes.txt").write_text("no image")
    picture().save(tmp_path / "out/sheet.png")
    done = subprocess.run(
        [sys.executable, "-m", "t2i_cli", "inspect", "--json", "out", "-"],
        env=t2i_env,
        input=(tmp_path / "single.png").read_bytes(),
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == b"'out/sheet.png' does not say how it was made.\n"
    assert [record["path"] for record in records] == ["out/1.png", "out/b/2.png", "-"]
    assert {record["request"]["seed"] for record in records} == {965400086}


def test_a_folder_without_records_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="There is no image in the folder"):
        inspect([str(tmp_path)])
    picture().save(tmp_path / "a.png")
    with pytest.raises(InputError, match="None of 1 images says how it was made"):
        inspect([str(tmp_path)])
    (tmp_path / "b.jpg").write_bytes(b"hello")
    with pytest.raises(InputError, match="1 of 2 images could not be read"):
        inspect([str(tmp_path)])
    assert "a.png' does not say how it was made." in capsys.readouterr().err


FLAT = [
    (
        "a barn, (red:1.2) Negative prompt: rain, fog Steps: 20, Sampler: Euler a, Seed: 5",
        "a barn, (red:1.2)",
        "rain, fog",
    ),
    ("a barn Steps: 20, Sampler: Euler a, Seed: 5", "a barn", None),
    (
        "style: oil, Steps: 3, slow Steps: 20, Sampler: Euler a, Seed: 5",
        "style: oil, Steps: 3,",
        None,
    ),
    ("a barn\nNegative prompt: rain Steps: 20, Sampler: Euler a, Seed: 5", "a barn", "rain"),
]


@pytest.mark.parametrize(("text", "prompt", "negative"), FLAT)
def test_a_text_whose_line_breaks_were_lost(text: str, prompt: str, negative: str | None) -> None:
    parsed = infotext.parse_infotext(text)
    assert parsed
    assert str(parsed.request["prompt"]).startswith(prompt)
    assert parsed.request["negative_prompt"] == negative
    assert parsed.parameters == {"Steps": "20", "Sampler": "Euler a", "Seed": "5"}


VALUES = {
    "Hashes": '{"model": "3d1b3c42ec", "lora:boats": "77cc"}',
    "Civitai resources": '[{"type":"lora","modelName":"Some, XL","v": [1, {"a]": "}\\""}]}]',
    "Styles": "first, second (b), third",
    "Edit": "[cat:dog:0.5] in a, house",
    "Open": "{a, b",
    "Date": "2025-02-03T10:11:12.1Z",
}


def test_values_are_whole_and_no_setting_is_invented() -> None:
    settings = {"Steps": "20", "Seed": "5", **VALUES, "Version": "v1"}
    line = ", ".join(f"{key}: {value}" for key, value in settings.items())
    for text in (f"a\n{line}", f"a {line}", f'a\n{line}, Hires prompt: "x: Steps: 3, Seed: 1"'):
        parsed = infotext.parse_infotext(text)
        assert parsed
        parsed.parameters.pop("Hires prompt", None)
        assert parsed.parameters == settings


@pytest.mark.parametrize(
    ("cls", "label"),
    [
        ("PNDMScheduler", "PLMS"),
        ("EulerAncestralDiscreteScheduler", "Euler a"),
        ("FlowMatchEulerDiscreteScheduler", "Euler"),
        ("KDPM2AncestralDiscreteScheduler", "DPM2 a"),
        ("SomeOtherScheduler", None),
        (None, None),
    ],
)
def test_the_text_names_samplers_as_automatic1111_does(
    cls: str | None, label: str | None, tmp_path: Path
) -> None:
    info, asked = replace(LOCK, scheduler=cls), request(scheduler=None)
    path = tmp_path / "a.png"
    path.write_bytes(metadata.embed_metadata(picture(), asked, info, "png"))
    record = metadata.read_metadata(path)
    assert record.parameters.get("Sampler") == label
    assert (record.lock["scheduler"], record.request["scheduler"]) == (cls, None)
