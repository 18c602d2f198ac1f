"""Colours of what a terminal shows; none in files and pipes, nor where NO_COLOR is set."""

import os
import sys
from typing import TextIO

_CODES = {"red": "1;31", "yellow": "33", "green": "32", "cyan": "36"}
"""Select Graphic Rendition parameters of ECMA-48."""


def painted(text: str, colour: str, stream: TextIO) -> str:
    """The text in a colour, if the stream is a terminal that shows colours (no-color.org)."""
    if not text or not _shows_colours(stream):
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


def _shows_colours(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return False
    # Windows' old console shows the codes themselves.
    return sys.platform != "win32" or "WT_SESSION" in os.environ
