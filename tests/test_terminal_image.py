"""`--show` on real pseudo-terminals: which protocol is spoken where, and what the picture shows."""

import base64
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from PIL import Image

from t2i_cli.errors import InputError
from t2i_cli.terminal import preview

SHOW = (
    "from t2i_cli.terminal import preview\nfrom tests.factories import picture\n"
    "preview.check_terminal()\npreview.show_image(picture())\n"
)
RED, BLUE = (200, 30, 30), (30, 60, 200)
"""The upper and the lower half of the picture."""


def drawn(
    *, code: str = SHOW, rows: int = 24, columns: int = 80, pixels: int = 0, **env: str
) -> bytes:
    """What a process draws on a terminal that answers no question; stdout stays empty."""
    master, slave = pty.openpty()
    size = struct.pack("4H", rows, columns, pixels * columns, 2 * pixels * rows)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        env={"PATH": os.environ["PATH"]} | env,
    ) as process:
        os.close(slave)
        output = b""
        # Reading a terminal that nobody has open any more fails on Linux.
        while chunk := read(master):
            output += chunk
        os.close(master)
        assert process.stdout and process.stdout.read() == b""
        assert process.wait(timeout=30) == 0, output.decode()
    return output


def read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:
        return b""


def shows_the_picture(image: Image.Image) -> bool:
    """Whether the upper half is red and the lower half blue, in the picture's proportions."""
    middle, quarter = image.width // 2, image.height // 4
    colours = [image.convert("RGB").getpixel((middle, y)) for y in (quarter, 3 * quarter)]
    return colours == [RED, BLUE] and abs(image.width / image.height - 64 / 48) < 0.1


@pytest.mark.parametrize("term", ["xterm-kitty", "xterm-ghostty"])
def test_kitty_protocol(term: str) -> None:
    output = drawn(TERM=term)
    start = re.match(rb"\x1b_Ga=T,f=32,s=(\d+),v=(\d+),c=(\d+),r=(\d+),m=1\x1b\\", output)
    assert start
    width, height, columns, rows = map(int, start.groups())
    assert columns <= 80 and rows <= 22
    chunks = re.findall(rb"\x1b_Gm=1;([^\x1b]*)\x1b\\", output)
    payload = b"".join(map(base64.b64decode, chunks))
    assert shows_the_picture(Image.frombytes("RGBA", (width, height), payload))


def test_iterm_protocol() -> None:
    output = drawn(TERM="xterm-256color", TERM_PROGRAM="iTerm.app")
    inline = re.match(rb"\x1b\]1337;File=inline=1;[^:]*:([^\x07]*)\x07", output)
    assert inline
    with Image.open(io.BytesIO(base64.b64decode(inline[1]))) as image:
        assert shows_the_picture(image)


@pytest.mark.parametrize("term", ["foot", "mlterm"])
def test_sixel_protocol(term: str) -> None:
    output = drawn(TERM=term)
    start = re.match(rb'\x1bP0;1;0q"1;1;(\d+);(\d+)', output)
    assert start and output.rstrip().endswith(b"\x1b\\")
    # Registers hold percentages of red, green, blue.
    palette = re.findall(rb"#(\d+);2;(\d+);(\d+);(\d+)", output)
    registers = {int(n): tuple(map(int, colour)) for n, *colour in palette}
    bands = output.partition(b"-")[0], output.rstrip(b"\x1b\\\r\n-").rpartition(b"-")[2]
    for band, colour in zip(bands, (RED, BLUE), strict=True):
        last = int(re.findall(rb"#(\d+)[!?-~]", band)[-1])
        for got, wanted in zip(registers[last], colour, strict=True):
            assert abs(got - wanted * 100 / 255) < 2


def test_half_blocks_in_full_colour() -> None:
    lines = drawn(TERM="xterm-256color").decode().rstrip().split("\n")
    # A cell is taken to be 10 by 20 pixels, so that 22 rows hold 58 columns of 4:3.
    assert len(lines) == 22
    assert "2;200;30;30m" in lines[0] and "2;30;60;200" not in lines[0]
    assert "2;30;60;200" in lines[-1] and "2;200;30;30" not in lines[-1]
    assert set("".join(lines)) & set("▀▄▌▐█ ")
    assert not set("".join(lines)) & set("▖▗▘▝▚▞🬀⣿")


@pytest.mark.parametrize("term", ["tmux-256color", "vt100"])
def test_half_blocks_in_256_colours(term: str) -> None:
    output = drawn(TERM=term)
    assert b"8;5;" in output and b"8;2;" not in output


def test_half_blocks_in_16_colours() -> None:
    output = drawn(TERM="linux")
    assert b"8;5;" not in output and b"8;2;" not in output and b"\x1b[" in output


@pytest.mark.parametrize(
    ("rows", "columns", "lines"), [(10, 200, 8), (60, 40, 15), (0, 0, 22), (1, 1, 1)]
)
def test_picture_fits_the_window(rows: int, columns: int, lines: int) -> None:
    output = drawn(TERM="xterm-256color", rows=rows, columns=columns).decode().rstrip()
    assert len(output.split("\n")) == lines


def test_pixels_are_those_of_the_terminals_own_cells() -> None:
    sizes = [
        re.search(rb"s=(\d+)", drawn(TERM="xterm-kitty", pixels=pixels)) for pixels in (0, 5, 20)
    ]
    widths = [int(size[1]) for size in sizes if size]
    assert widths == [widths[1] * 2, widths[1], widths[1] * 4]


@pytest.mark.parametrize("term", ["xterm-256color", "xterm-kitty", "foot"])
def test_terminal_is_asked_nothing(term: str) -> None:
    """No device attributes, window reports or kitty queries, each of which waits for an answer."""
    assert not re.search(rb"\x1b\[>?[0-9;]*[cnt]|a=q", drawn(TERM=term))


def test_closed_terminal_is_no_failure() -> None:
    code = SHOW.replace(
        "preview.show_image",
        "import os, signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)\npreview.show_image",
    )
    assert drawn(code=code, TERM="xterm-256color") == b""


def test_no_terminal_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="stderr is none"):
        preview.check_terminal()
    assert capfd.readouterr() == ("", "")


def test_dumb_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(InputError, match="dumb"):
        preview.check_terminal()


def test_missing_library_is_told_how_to_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setitem(sys.modules, "chafa", None)
    with pytest.raises(InputError, match="cannot load Chafa") as error:
        preview.check_terminal()
    assert error.value.hint and "apt install chafa" in error.value.hint
