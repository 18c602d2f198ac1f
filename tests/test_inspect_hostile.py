"""Images made to harm whoever inspects them: each is read or refused, at once and in a sentence."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_cli.errors import InputError
from t2i_cli.output import metadata
from tests.conftest import T2I
from tests.factories import picture
from tests.test_a1111 import FROM_A1111
from tests.test_inspect_places import exif, text_chunk, with_chunks
from tests.test_inspect_programs import comfyui_graph, jpeg_xl, jxl_box, png
from tests.test_metadata import FORMATS, chunk

DEEP = '{"a":' * 900 + "1" + "}" * 900


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_lone_surrogates_are_escaped(option: tuple[str, ...], t2i: T2I, tmp_path: Path) -> None:
    record = '{"t2i": 1, "request": {"prompt": "a\\ud800b"}, "lock": {"x": "\\udfff"}}'
    png(tmp_path / "a.png", {"t2i": record, "prompt": '{"1": {"class_type": "\\udc00"}}'})
    done = t2i("inspect", "a.png", *option)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a\\ud800b" in done.stdout


@pytest.mark.parametrize("name", ["t2i", "prompt", "parameters", "invokeai_metadata"])
def test_deep_json_is_refused(name: str, t2i: T2I, tmp_path: Path) -> None:
    texts: dict[str, object] = {name: f'{{"t2i": 1, "request": {DEEP}, "lock": {{}}}}'}
    png(tmp_path / "a.png", texts)
    done = t2i("inspect", "a.png", "--json")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "nested too deeply" in json.loads(done.stderr)["error"]["message"]


def wide_png(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    text = text_chunk("parameters", FROM_A1111.encode())
    return b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(99_999_999, 1), (2**31 - 1, 2**31 - 1)])
def test_no_pixels_are_needed(width: int, height: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(wide_png(width, height))
    record = metadata.read_metadata(tmp_path / "a.png")
    assert (record.width, record.height, record.request["seed"]) == (width, height, 965400086)


def test_a_large_jpeg_needs_no_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    comment = b"UNICODE\0" + FROM_A1111.encode("utf-16-be")
    picture().save(path, exif=exif(0x9286, 7, comment, main=False, order=">"))
    data = path.read_bytes()
    frame = data.index(b"\xff\xc0")
    path.write_bytes(data[: frame + 5] + b"\xff\xff" * 2 + data[frame + 9 :])
    record = metadata.read_metadata(path)
    assert (record.width, record.height, record.request["seed"]) == (65_535, 65_535, 965400086)


def long_texts() -> dict[str, bytes]:
    """60 MB of text in each place, and texts that invite quadratic work within the bound."""
    mb = 10**6
    places = {
        "text": with_chunks(text_chunk("parameters", b"a, " * (20 * mb))),
        "packed": with_chunks(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * (60 * mb)))),
        "many": with_chunks(text_chunk("parameters", b"a: b, " * 600_000) * 16),
        "segments": b"\xff\xd8\xff" + (b"\xe1\xff\xffExif\0\0" + bytes(65_527) + b"\xff") * 900,
        "empty chunks": with_chunks(chunk(b"abCd", b"") * 200_000),
    }
    hostile = ["Steps: 1, " * 400_000, "ab: {, " * 500_000, "Steps: 1, ab: {" + ", a: [{" * 500_000]
    hostile += ["Negative prompt: " * 240_000, " Steps: 1," * 400_000, 'a: "\\", ' * 400_000]
    return places | {
        text[:20]: with_chunks(text_chunk("parameters", text.encode())) for text in hostile
    }


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_much_text_takes_no_long_time(tmp_path: Path) -> None:
    # The system ends the process (getrlimit(2)); a minute is many times what all take together.
    paths = []
    for number, data in enumerate(long_texts().values()):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(data)
    code = (
        "import resource, sys, pathlib; resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "from t2i_cli.errors import InputError\n"
        "from t2i_cli.output import metadata\n"
        "for path in sys.argv[1:]:\n"
        "    try: metadata.read_metadata(pathlib.Path(path))\n"
        "    except InputError as error: print(error)\n"
        # Not getrusage's figure, which begins with that of the process that started this one.
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(status.partition('VmHWM:')[2].split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=True
    )
    *refused, memory = done.stdout.splitlines()
    assert len([line for line in refused if "has more than 4 MiB and is not read" in line]) == 3
    assert int(memory) < 600_000  # KiB


def test_entries_that_share_a_value_take_its_memory_once(tmp_path: Path) -> None:
    """Thousands of entries of 4 MB each, which are the same bytes."""
    size = 4_000_000
    entry = b"".join(struct.pack(">HHII", tag, 7, size, 0) for tag in range(2, 34_000))
    block = b"MM\0*\0\0\0\x08" + struct.pack(">H", 33_998) + entry
    (tmp_path / "a.png").write_bytes(with_chunks(chunk(b"eXIf", block + bytes(size - len(block)))))
    with pytest.raises(InputError, match="does not say how it was made"):
        metadata.read_metadata(tmp_path / "a.png")


def test_a_chain_of_nodes_without_end_is_read(tmp_path: Path) -> None:
    graph = comfyui_graph()
    for number in range(100, 20_100):
        graph[str(number)] = {
            "class_type": "Chain",
            "inputs": {"conditioning": [str(number + 1), 0], "other": [str(number), 0]},
        }
    graph["3"]["inputs"] |= {"positive": ["100", 0], "model": ["100", 0], "seed": ["3", 0]}
    graph["20099"]["inputs"] = {"conditioning": ["100", 0]}
    record = metadata.read_metadata(png(tmp_path / "a.png", {"prompt": graph}))
    assert (record.source, record.request["steps"]) == ("comfyui", 20)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_pipes_devices_and_sockets_are_refused_at_once(t2i: T2I, tmp_path: Path) -> None:
    import socket

    folder = tmp_path / "in"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.png"))
        done = t2i("inspect", "in", timeout=30)
    assert done.returncode == 2
    assert done.stderr.count("it is no regular file") == 3
    assert "3 of 3 images could not be read" in done.stderr


BLOCK = exif(0x9286, 7, b"UNICODE\0" + FROM_A1111.encode("utf-16-le"), main=False, order="<")


def samples() -> list[bytes]:
    """An image of each format with EXIF."""
    found = []
    for format in (*FORMATS, "avif"):
        buffer = io.BytesIO()
        picture(8, 8).save(buffer, format, exif=BLOCK)
        found.append(buffer.getvalue())
    return [*found, jpeg_xl(jxl_box(b"Exif", bytes(4) + BLOCK[6:]))]


SAMPLES = samples()


@settings(max_examples=2_000)
@given(data=st.data())
def test_only_an_input_error_leaves(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=4))
    try:
        record = metadata.read_open_metadata(io.BytesIO(content), "its name")
    except InputError as error:
        assert "its name" in error.message
    else:
        json.dumps(record.to_json(), allow_nan=False)
