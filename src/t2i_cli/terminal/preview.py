"""Draws an image in the terminal, on stderr, by the best method that the terminal supports.

It uses the Chafa library through chafa.py (ctypes). The terminal's capabilities are detected from
environment variables; the terminal is not queried, as that could hang or consume typed keys.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from t2i_cli.errors import InputError, error_reason
from t2i_cli.terminal.console import Console

if TYPE_CHECKING:
    import chafa
    from PIL.Image import Image

MAX_COLUMNS = 80
DEFAULT_ROWS = 24
DEFAULT_CELL_SIZE = (10, 20)
"""Width and height of a character cell in pixels (VT340), if the terminal does not report it."""


def terminal_viewer(
    enabled: bool, lenient: bool, console: Console
) -> "Callable[[Image], None] | None":
    """Return a function that draws an RGB image, or `None` if not enabled.

    If the terminal cannot draw, raises InputError, or with `lenient` warns and returns `None`.
    """
    if not enabled:
        return None
    try:
        check_terminal()
    except InputError as error:
        if not lenient:
            raise
        console.warn(error.message)
        return None
    return show_image


def check_terminal() -> None:
    """Raise InputError if no image can be drawn on this terminal."""
    if not sys.stderr.isatty():
        raise InputError("--show draws on a terminal, and stderr is none.")
    if os.environ.get("TERM") == "dumb":
        raise InputError("--show needs a terminal that can draw; TERM says it is dumb.")
    try:
        import chafa  # noqa: F401
    except (ImportError, OSError) as error:
        # chafa.py's wheels contain Chafa, but on Linux need the system's GLib; other installations
        # need the system's Chafa.
        raise InputError(
            f"--show cannot load Chafa: {error_reason(error)}.",
            hint="Install chafa with the system's package manager (apt install chafa).",
        ) from error


def show_image(image: "Image") -> None:
    """Draw an RGB image at the width of the terminal, at most 80 columns."""
    # A closed terminal must not turn a finished image into a failure.
    with suppress(OSError):
        picture = _render(image)
        sys.stderr.flush()
        sys.stderr.buffer.write(picture + b"\n")
        sys.stderr.buffer.flush()


def _render(image: "Image") -> bytes:
    """Render an RGB image to control sequences and text."""
    import chafa

    terminal = chafa.TermDb().detect()
    config = chafa.CanvasConfig()
    config.pixel_mode = _pixel_mode(terminal)
    if config.pixel_mode == chafa.PixelMode.CHAFA_PIXEL_MODE_SYMBOLS:
        # Only symbols need a colour mode: pixel protocols send RGB.
        config.canvas_mode = _canvas_mode(terminal)
    config.cell_width, config.cell_height = cell = _cell_size()
    columns, rows = os.get_terminal_size(sys.stderr.fileno())
    # Terminals in a container may report a size of 0 by 0.
    config.width = min(columns or MAX_COLUMNS, MAX_COLUMNS)
    # Leave one line for the command and one for the next prompt.
    config.height = max(1, (rows or DEFAULT_ROWS) - 2)
    config.calc_canvas_geometry(image.width, image.height, cell[0] / cell[1], zoom=True)
    symbols = chafa.SymbolMap()
    for tag in ("SPACE", "SOLID", "HALF"):
        symbols.add_by_tags(chafa.SymbolTags[f"CHAFA_SYMBOL_TAG_{tag}"])
    config.set_symbol_map(symbols)
    canvas = chafa.Canvas(config)
    canvas.draw_all_pixels(
        chafa.PixelType.CHAFA_PIXEL_RGB8,
        bytearray(image.tobytes()),
        image.width,
        image.height,
        image.width * 3,
    )
    picture: bytes = canvas.print(terminal, fallback=True)
    return picture


def _pixel_mode(terminal: "chafa.TermInfo") -> "chafa.PixelMode":
    """The best pixel protocol that the terminal supports, else symbols (half blocks)."""
    from chafa import PixelMode, TermSeq

    if terminal.have_seq(TermSeq.CHAFA_TERM_SEQ_BEGIN_KITTY_IMMEDIATE_IMAGE_V1):
        return PixelMode.CHAFA_PIXEL_MODE_KITTY
    if terminal.have_seq(TermSeq.CHAFA_TERM_SEQ_BEGIN_ITERM2_IMAGE):
        return PixelMode.CHAFA_PIXEL_MODE_ITERM2
    if terminal.have_seq(TermSeq.CHAFA_TERM_SEQ_BEGIN_SIXELS):
        return PixelMode.CHAFA_PIXEL_MODE_SIXELS
    return PixelMode.CHAFA_PIXEL_MODE_SYMBOLS


def _canvas_mode(terminal: "chafa.TermInfo") -> "chafa.CanvasMode":
    from chafa import CanvasMode, TermSeq

    if terminal.have_seq(TermSeq.CHAFA_TERM_SEQ_SET_COLOR_FGBG_DIRECT):
        return CanvasMode.CHAFA_CANVAS_MODE_TRUECOLOR
    if terminal.have_seq(TermSeq.CHAFA_TERM_SEQ_SET_COLOR_FGBG_256):
        return CanvasMode.CHAFA_CANVAS_MODE_INDEXED_240
    return CanvasMode.CHAFA_CANVAS_MODE_INDEXED_16


def _cell_size() -> tuple[int, int]:
    """Width and height of a character cell in pixels."""
    try:
        import fcntl
        import struct
        import termios

        size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, bytes(8))
        rows, columns, width, height = struct.unpack("4H", size)
        return width // columns or DEFAULT_CELL_SIZE[0], height // rows or DEFAULT_CELL_SIZE[1]
    except (ImportError, OSError, ZeroDivisionError):
        return DEFAULT_CELL_SIZE
