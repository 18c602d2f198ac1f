"""Writes sheet.png: a contact sheet of a plan's images; a grid if --vary set two fields.

If a sheet.png exists that t2i did not write, the sheet is written to t2i-sheet.png instead.
"""

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_cli.batch import manifest
from t2i_cli.batch.plan import BatchPlan
from t2i_cli.batch.rows import BatchRow
from t2i_cli.errors import InputError, StorageError, T2IError
from t2i_cli.files import atomic
from t2i_cli.files.inside_folder import stat_inside
from t2i_cli.files.state_files import free_or_own_path
from t2i_cli.output.image_writer import storage_error

if TYPE_CHECKING:
    from PIL.Image import Image

SHEET_NAME = "sheet.png"
SHEET_NAMES = (SHEET_NAME, "t2i-sheet.png")
MAX_IMAGES = 1_000
CELL_SIDE = 192
"""Side of a cell in pixels; images are scaled down to fit."""
_GAP = 8
_LINE_HEIGHT = 14
_CAPTION_LINES = 3
_MAX_COLUMNS = 8
_MARKER = ("Software", "t2i")
"""A text chunk of the sheet's PNG file; t2i's images have no chunk of that name."""
_FORMATS = ("PNG", "JPEG", "WEBP")
_MAX_COMPARED = 8
"""Images of the folder that are searched for in a sheet without the marker."""
_MAX_MEAN_DIFFERENCE = 3.0
"""Mean difference per channel (levels from 0 to 255) allowed for a different scaling."""


@dataclass(frozen=True)
class SheetGrid:
    """A grid of cells with its title; `across` labels its columns, `down` its lines."""

    title: str
    across: Sequence[str]
    down: Sequence[str]
    cells: Sequence[Sequence[BatchRow | None]]
    captions: bool


def write_sheet(plan: BatchPlan, scratch: Path) -> Path:
    """Write a sheet of the first MAX_IMAGES images of the plan; returns its path.

    `scratch` is the folder for the unfinished file. Raises StorageError, and InputError if both
    names are taken by files that t2i did not write.
    """
    from PIL.PngImagePlugin import PngInfo

    folder = plan.folder
    files = _picture_files(folder)
    target = sheet_path(folder)
    sheet = _draw_sheet(sheet_grids(plan.rows[:MAX_IMAGES]), files)
    info = PngInfo()
    info.add_text(*_MARKER)
    try:
        with atomic.open_atomic(target, scratch=scratch) as file:
            sheet.save(file, "PNG", pnginfo=info)
    except OSError as error:
        raise storage_error(error, "write", folder / SHEET_NAME) from error
    return target


def sheet_path(folder: Path) -> Path:
    """The path for the sheet. Raises InputError if both names are taken."""
    images = list(_picture_files(folder).values())
    target = free_or_own_path(
        (folder / name for name in SHEET_NAMES), lambda path: is_own_sheet(path, images)
    )
    if target is None:
        raise InputError(
            f"Neither {' nor '.join(SHEET_NAMES)} in '{folder}' is t2i's: no sheet without a place."
        )
    return target


def _picture_files(folder: Path) -> dict[str, Path]:
    """The pictures that the manifests list, by row id; those of links are left out."""
    return {
        row_id: folder / entry.file
        for row_id, entry in manifest.load_manifests(folder).rows.items()
        if entry.status == "done" and entry.file and _is_inside(folder, entry.file)
    }


def _is_inside(folder: Path, file: str) -> bool:
    try:
        stat_inside(folder, file)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def is_own_sheet(path: Path, images: Sequence[Path]) -> bool:
    """Whether t2i wrote the file: by its marker, or by its content.

    Sheets by versions of t2i without the marker have the size of a sheet, and one of the folder's
    images in a cell.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as opened:
            name, value = _MARKER
            if opened.info.get(name) == value:
                return True
            sheet = opened.convert("RGB") if _cell_corners(*opened.size) else None
        return sheet is not None and any(
            _contains_image(sheet, image) for image in images[:_MAX_COMPARED]
        )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, T2IError):
        return False


def _cell_corners(width: int, height: int) -> list[tuple[int, int]]:
    """Upper left corners (x, y) of the cells in a sheet of that size; empty if no sheet has it.

    Sizes and corners are in pixels. For a sheet of several grids, those of the first.
    """
    columns, margin = divmod(width - _GAP, CELL_SIDE + _GAP)
    if columns < 1 or margin not in {0, CELL_SIDE // 2}:
        return []
    header_height = 2 * (_LINE_HEIGHT + _GAP) if margin else 0
    row_height = CELL_SIDE + _GAP + (0 if margin else _LINE_HEIGHT * _CAPTION_LINES)
    lines, remainder = divmod(height - _GAP - header_height, row_height)
    if lines < 1 or (remainder and not margin):
        return []
    return [
        (_cell_left(margin, column), _GAP + header_height + line * row_height)
        for line in range(lines)
        for column in range(columns)
    ]


def _contains_image(sheet: "Image", file: Path) -> bool:
    """Whether a cell of the RGB sheet shows the image; False for an image of a single colour."""
    from PIL import ImageChops, ImageStat

    thumbnail = _thumbnail(file)
    if all(low == high for low, high in thumbnail.getextrema()):  # type: ignore[misc]
        return False
    for corner in _cell_corners(*sheet.size):
        x, y = _centred_corner(corner, thumbnail)
        cell = sheet.crop((x, y, x + thumbnail.width, y + thumbnail.height))
        if max(ImageStat.Stat(ImageChops.difference(cell, thumbnail)).mean) < _MAX_MEAN_DIFFERENCE:
            return True
    return False


def sheet_grids(rows: Sequence[BatchRow]) -> list[SheetGrid]:
    """The grids of a sheet: with two varied fields one per prompt and repeat, else one in all."""
    if not rows or len(rows[0].varied) != 2:
        columns = min(_MAX_COLUMNS, max(1, round(len(rows) ** 0.5)))
        lines = [list(rows[at : at + columns]) for at in range(0, len(rows), columns)]
        return [SheetGrid("", [], [], lines, True)]
    cells_by_grid: dict[tuple[int, str, int], dict[tuple[str, str], BatchRow]] = {}
    for row in rows:
        key = (row.line, row.request.prompt, row.repeat)
        cells_by_grid.setdefault(key, {})[row.varied[0], row.varied[1]] = row
    grids = []
    for (_, prompt, _), cells_by_label in cells_by_grid.items():
        across = list(dict.fromkeys(x for x, _ in cells_by_label))
        down = list(dict.fromkeys(y for _, y in cells_by_label))
        grid_cells = [[cells_by_label.get((x, y)) for x in across] for y in down]
        seeds = {row.request.seed for row in cells_by_label.values()}
        title = f"{prompt} (seed {seeds.pop()})" if len(seeds) == 1 else prompt
        grids.append(SheetGrid(title, across, down, grid_cells, False))
    return grids


def _draw_sheet(grids: Sequence[SheetGrid], files: dict[str, Path]) -> "Image":
    """Draw the sheet as an RGB image with black text on white."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(11)
    columns = max(max((len(line) for line in grid.cells), default=1) for grid in grids)
    margin = CELL_SIDE // 2 if any(grid.down for grid in grids) else 0
    width = margin + columns * (CELL_SIDE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(map(_grid_height, grids)) + _GAP), "white")
    drawing = ImageDraw.Draw(sheet)
    top = _GAP
    for grid in grids:
        bottom = top + _grid_height(grid)
        if grid.title:
            title = textwrap.shorten(grid.title, width // 6, placeholder="…")
            drawing.text((_GAP, top), title, fill="black", font=font)
            top += _LINE_HEIGHT + _GAP
        for column, label in enumerate(grid.across):
            drawing.text((_cell_left(margin, column), top), label, fill="black", font=font)
        top += (_LINE_HEIGHT + _GAP) * bool(grid.across)
        for number, line in enumerate(grid.cells):
            if grid.down:
                label = "\n".join(textwrap.wrap(grid.down[number], margin // 6))
                drawing.text((_GAP, top + CELL_SIDE // 2), label, fill="black", font=font)
            for column, row in enumerate(line):
                if row is None:
                    continue
                left = _cell_left(margin, column)
                _paste_image(sheet, (left, top), files.get(row.id))
                if grid.captions:
                    caption = _caption(row)
                    drawing.text(
                        (left, top + CELL_SIDE + 2), caption, fill="black", font=font, spacing=2
                    )
            top += _row_height(grid)
        top = bottom
    return sheet


def _paste_image(sheet: "Image", corner: tuple[int, int], file: Path | None) -> None:
    """Paste an image into its cell, or draw a crossed-out box if there is none."""
    from PIL import ImageDraw

    if file is None:
        x, y = corner
        drawing = ImageDraw.Draw(sheet)
        drawing.rectangle((x, y, x + CELL_SIDE - 1, y + CELL_SIDE - 1), outline="grey")
        drawing.line((x, y, x + CELL_SIDE - 1, y + CELL_SIDE - 1), fill="grey")
        return
    thumbnail = _thumbnail(file)
    sheet.paste(thumbnail, _centred_corner(corner, thumbnail))


def _thumbnail(file: Path) -> "Image":
    """Read an image and scale it down to a cell, as RGB. Raises StorageError."""
    from PIL import Image

    try:
        if not os.path.isfile(file):
            raise OSError("it is no file")
        # The manifest names the file: other formats start programs (EPS) or need much memory.
        with Image.open(file, formats=_FORMATS) as image:
            image.draft("RGB", (CELL_SIDE, CELL_SIDE))
            thumbnail = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise StorageError(
            f"Cannot read '{file}': {error}.", hint="Remove it: the same command makes it again."
        ) from error
    thumbnail.thumbnail((CELL_SIDE, CELL_SIDE))
    return thumbnail


def _centred_corner(corner: tuple[int, int], thumbnail: "Image") -> tuple[int, int]:
    """Upper left corner (x, y) of an image centred in its cell."""
    x, y = corner
    return x + (CELL_SIDE - thumbnail.width) // 2, y + (CELL_SIDE - thumbnail.height) // 2


def _caption(row: BatchRow) -> str:
    text = ", ".join([row.request.prompt, *row.varied, f"seed {row.request.seed}"])
    lines = textwrap.wrap(text, CELL_SIDE // 6, max_lines=_CAPTION_LINES, placeholder="…")
    return "\n".join(lines)


def _cell_left(margin: int, column: int) -> int:
    return margin + _GAP + column * (CELL_SIDE + _GAP)


def _row_height(grid: SheetGrid) -> int:
    return CELL_SIDE + _GAP + _LINE_HEIGHT * _CAPTION_LINES * grid.captions


def _grid_height(grid: SheetGrid) -> int:
    header_height = (_LINE_HEIGHT + _GAP) * (bool(grid.title) + bool(grid.across))
    return header_height + len(grid.cells) * _row_height(grid)
