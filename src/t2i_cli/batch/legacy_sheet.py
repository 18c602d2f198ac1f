"""Recognises contact sheets by versions of t2i that wrote no marker into them.

Such a sheet has the size of one, and shows one of the folder's images in a cell.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_cli.batch.sheet_images import open_batch_image

if TYPE_CHECKING:
    from PIL.Image import Image

_CELL_SIDE = 192
_GAP = 8
_LINE_HEIGHT = 14
_CAPTION_LINES = 3
_MAX_COMPARED = 8
"""Images of the folder that are searched for."""
_MAX_MEAN_DIFFERENCE = 3.0
"""Mean difference per channel (levels from 0 to 255) allowed for a different scaling."""


def is_legacy_sheet(picture: "Image", images: Sequence[Path]) -> bool:
    """Whether a picture is such a sheet of these images. Raises T2IError, or what Pillow raises."""
    if not _cell_corners(*picture.size):
        return False
    sheet = picture.convert("RGB")
    return any(_contains_image(sheet, image) for image in images[:_MAX_COMPARED])


def _cell_corners(width: int, height: int) -> list[tuple[int, int]]:
    """Upper left corners (x, y) of the cells in a sheet of that size; empty if no sheet has it.

    Sizes and corners are in pixels. For a sheet of several grids, those of the first.
    """
    columns, margin = divmod(width - _GAP, _CELL_SIDE + _GAP)
    if columns < 1 or margin not in {0, _CELL_SIDE // 2}:
        return []
    header_height = 2 * (_LINE_HEIGHT + _GAP) if margin else 0
    row_height = _CELL_SIDE + _GAP + (0 if margin else _LINE_HEIGHT * _CAPTION_LINES)
    lines, remainder = divmod(height - _GAP - header_height, row_height)
    if lines < 1 or (remainder and not margin):
        return []
    return [
        (margin + _GAP + column * (_CELL_SIDE + _GAP), _GAP + header_height + line * row_height)
        for line in range(lines)
        for column in range(columns)
    ]


def _contains_image(sheet: "Image", file: Path) -> bool:
    """Whether a cell of the RGB sheet shows the image; False for an image of a single colour."""
    from PIL import ImageChops, ImageStat

    with open_batch_image(file, _CELL_SIDE) as image:
        thumbnail = image.convert("RGB")
    thumbnail.thumbnail((_CELL_SIDE, _CELL_SIDE))
    if all(low == high for low, high in thumbnail.getextrema()):  # type: ignore[misc]
        return False
    for left, top in _cell_corners(*sheet.size):
        x = left + (_CELL_SIDE - thumbnail.width) // 2
        y = top + (_CELL_SIDE - thumbnail.height) // 2
        cell = sheet.crop((x, y, x + thumbnail.width, y + thumbnail.height))
        if max(ImageStat.Stat(ImageChops.difference(cell, thumbnail)).mean) < _MAX_MEAN_DIFFERENCE:
            return True
    return False
