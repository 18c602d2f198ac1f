"""Draws a picture in the terminal, on stderr, in the best way that the terminal knows.

Chafa's library does it, bound by ctypes through chafa.py. It tells the terminal's abilities from
the environment and asks the terminal nothing, so that nothing can hang or eat typed keys.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from t2i_cli.errors import InputError
from t2i_cli.terminal.console import Console

if TYPE_CHECKING:
    import chafa
    from PIL.Image import Image

MAX_COLUMNS = 80
USUAL_ROWS = 24
USUAL_CELL = (10, 20)
"""Width and height in pixels of a VT340's character, where the terminal does not tell its own."""


def terminal_viewer(
    wanted: bool, lenient: bool, console: Console
) -> "Callable[[Image], None] | None":
    """What draws an RGB image in the terminal, if that was asked for and can be done."""
    if not wanted:
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
    """Raise InputError if no picture can be drawn here."""
    if not sys.stderr.isatty():
        raise InputError("--show draws on a terminal, and stderr is none.")
    if os.environ.get("TERM") == "dumb":
        raise InputError("--show needs a terminal that can draw; TERM says it is dumb.")
    try:
        import chafa  # noqa: F401
    except (ImportError, OSError) as error:
        # The wheels bring Chafa, yet on Linux they use the system's GLib; elsewhere, and from
        # source, the system's Chafa.
        raise InputError(
            f"--show cannot load Chafa: {error}",
            hint="Install chafa with the system's package manager (apt install chafa).",
        ) from error


def show_image(image: "Image") -> None:
    """Draw an RGB image, as wide as the terminal takes (at most 80 columns)."""
    # A terminal that was closed must not turn a finished image into a failure.
    with suppress(OSError):
        picture = _render(image)
        sys.stderr.flush()
        sys.stderr.buffer.write(picture + b"\n")
        sys.stderr.buffer.flush()


def _render(image: "Image") -> bytes:
    """The picture as control sequences and text."""
    import chafa

    terminal = chafa.TermDb().detect()
    config = chafa.CanvasConfig()
    config.pixel_mode = _pixel_mode(terminal)
    if config.pixel_mode == chafa.PixelMode.CHAFA_PIXEL_MODE_SYMBOLS:
        # Pixels have colours of their own, whatever text may have.
        config.canvas_mode = _canvas_mode(terminal)
    config.cell_width, config.cell_height = cell = _cell()
    columns, rows = os.get_terminal_size(sys.stderr.fileno())
    # Terminals in a container may say 0 by 0.
    config.width = min(columns or MAX_COLUMNS, MAX_COLUMNS)
    # One line stays for what was typed and one for what comes next.
    config.height = max(1, (rows or USUAL_ROWS) - 2)
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
    """Pixels where the terminal shows them, by the protocol it does best; else half blocks."""
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


def _cell() -> tuple[int, int]:
    """The width and height of a character, in pixels."""
    try:
        import fcntl
        import struct
        import termios

        size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, bytes(8))
        rows, columns, width, height = struct.unpack("4H", size)
        return width // columns or USUAL_CELL[0], height // rows or USUAL_CELL[1]
    except (ImportError, OSError, ZeroDivisionError):
        return USUAL_CELL
