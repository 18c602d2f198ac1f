"""sheet.png: a plan's images on one picture; two fields that --vary set make it a grid.

A sheet.png that is not t2i's stays; the sheet is t2i-sheet.png then.
"""

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
from t2i_cli.files.state_files import free_or_own_path
from t2i_cli.output.image_writer import storage_error

if TYPE_CHECKING:
    from PIL.Image import Image

SHEET_NAME = "sheet.png"
SHEET_NAMES = (SHEET_NAME, "t2i-sheet.png")
MAX_IMAGES = 1_000
CELL_SIDE = 192
"""Pixels of the side that an image is made to fit."""
_GAP = 8
_LINE = 14
_CAPTION_LINES = 3
_MAX_COLUMNS = 8
_MARKER = ("Software", "t2i")
"""A text chunk of the PNG file: its images have none of that name."""
_COMPARED = 8
"""Images of the folder that a sheet without the marker is looked through for."""
_ALIKE = 3.0
"""Mean difference in levels of 255 that another version's scaling may make."""


@dataclass(frozen=True)
class SheetGrid:
    """A grid of rows with its title; `across` and `down` head its columns and its lines."""

    title: str
    across: Sequence[str]
    down: Sequence[str]
    cells: Sequence[Sequence[BatchRow | None]]
    captions: bool


def write_sheet(plan: BatchPlan, scratch: Path) -> Path:
    """Draw the first MAX_IMAGES images of the plan, in `scratch` while unfinished.

    Raises StorageError, and InputError where others' pictures have both names.
    """
    from PIL.PngImagePlugin import PngInfo

    folder = plan.folder
    files = {
        row_id: folder / known.file
        for row_id, known in manifest.load_manifests(folder).rows.items()
        if known.status == "done" and known.file
    }
    images = list(files.values())
    target = free_or_own_path(
        (folder / name for name in SHEET_NAMES), lambda path: is_own_sheet(path, images)
    )
    if target is None:
        raise InputError(
            f"Neither {' nor '.join(SHEET_NAMES)} in '{folder}' is t2i's: no sheet without a place."
        )
    drawn = _draw(sheet_grids(plan.rows[:MAX_IMAGES]), files)
    info = PngInfo()
    info.add_text(*_MARKER)
    try:
        with atomic.open_atomic(target, scratch=scratch) as file:
            drawn.save(file, "PNG", pnginfo=info)
    except OSError as error:
        raise _failed(error, folder) from error
    return target


def is_own_sheet(path: Path, images: Sequence[Path]) -> bool:
    """Whether a picture is a sheet that t2i made: by its marker, or by what it shows.

    Versions before the marker left none: theirs has the size of a sheet, and one of the folder's
    images in one of the cells.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as found:
            name, value = _MARKER
            if found.info.get(name) == value:
                return True
            sheet = found.convert("RGB") if _corners(*found.size) else None
        return sheet is not None and any(_shows(sheet, image) for image in images[:_COMPARED])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, T2IError):
        return False


def _corners(width: int, height: int) -> list[tuple[int, int]]:
    """The corners of the cells in a sheet of that size, none if no sheet has it.

    For a grid they are those of the first one, whatever comes below.
    """
    columns, margin = divmod(width - _GAP, CELL_SIDE + _GAP)
    if columns < 1 or margin not in {0, CELL_SIDE // 2}:
        return []
    head = 2 * (_LINE + _GAP) if margin else 0
    row = CELL_SIDE + _GAP + (0 if margin else _LINE * _CAPTION_LINES)
    lines, rest = divmod(height - _GAP - head, row)
    if lines < 1 or (rest and not margin):
        return []
    return [
        (_left(margin, column), _GAP + head + line * row)
        for line in range(lines)
        for column in range(columns)
    ]


def _shows(sheet: "Image", file: Path) -> bool:
    """Whether one of a sheet's cells shows the image; one of a single colour proves nothing."""
    from PIL import ImageChops, ImageStat

    small = _small(file)
    if all(low == high for low, high in small.getextrema()):  # type: ignore[misc]
        return False
    for corner in _corners(*sheet.size):
        x, y = _middle(corner, small)
        cell = sheet.crop((x, y, x + small.width, y + small.height))
        if max(ImageStat.Stat(ImageChops.difference(cell, small)).mean) < _ALIKE:
            return True
    return False


def sheet_grids(rows: Sequence[BatchRow]) -> list[SheetGrid]:
    """The grids of a sheet: one for each prompt and repeat of two axes, else one of all rows."""
    if not rows or len(rows[0].varied) != 2:
        columns = min(_MAX_COLUMNS, max(1, round(len(rows) ** 0.5)))
        lines = [list(rows[at : at + columns]) for at in range(0, len(rows), columns)]
        return [SheetGrid("", [], [], lines, True)]
    grids: dict[tuple[int, str, int], dict[tuple[str, str], BatchRow]] = {}
    for row in rows:
        key = (row.line, row.request.prompt, row.repeat)
        grids.setdefault(key, {})[row.varied[0], row.varied[1]] = row
    found = []
    for (_, prompt, _), grid in grids.items():
        across = list(dict.fromkeys(x for x, _ in grid))
        down = list(dict.fromkeys(y for _, y in grid))
        cells = [[grid.get((x, y)) for x in across] for y in down]
        seeds = {row.request.seed for row in grid.values()}
        title = f"{prompt} (seed {seeds.pop()})" if len(seeds) == 1 else prompt
        found.append(SheetGrid(title, across, down, cells, False))
    return found


def _draw(grids: Sequence[SheetGrid], files: dict[str, Path]) -> "Image":
    """The sheet: RGB, black on white."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(11)
    columns = max(max((len(line) for line in grid.cells), default=1) for grid in grids)
    margin = CELL_SIDE // 2 if any(grid.down for grid in grids) else 0
    width = margin + columns * (CELL_SIDE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(map(_height, grids)) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    top = _GAP
    for grid in grids:
        bottom = top + _height(grid)
        if grid.title:
            title = textwrap.shorten(grid.title, width // 6, placeholder="…")
            pen.text((_GAP, top), title, fill="black", font=font)
            top += _LINE + _GAP
        for column, label in enumerate(grid.across):
            pen.text((_left(margin, column), top), label, fill="black", font=font)
        top += (_LINE + _GAP) * bool(grid.across)
        for number, line in enumerate(grid.cells):
            if grid.down:
                label = "\n".join(textwrap.wrap(grid.down[number], margin // 6))
                pen.text((_GAP, top + CELL_SIDE // 2), label, fill="black", font=font)
            for column, row in enumerate(line):
                if row is None:
                    continue
                left = _left(margin, column)
                _place(sheet, (left, top), files.get(row.id))
                if grid.captions:
                    caption = _caption(row)
                    pen.text(
                        (left, top + CELL_SIDE + 2), caption, fill="black", font=font, spacing=2
                    )
            top += _row_height(grid)
        top = bottom
    return sheet


def _place(sheet: "Image", corner: tuple[int, int], file: Path | None) -> None:
    """Put an image into its cell, or a cross where there is none."""
    from PIL import ImageDraw

    if file is None:
        x, y = corner
        pen = ImageDraw.Draw(sheet)
        pen.rectangle((x, y, x + CELL_SIDE - 1, y + CELL_SIDE - 1), outline="grey")
        pen.line((x, y, x + CELL_SIDE - 1, y + CELL_SIDE - 1), fill="grey")
        return
    small = _small(file)
    sheet.paste(small, _middle(corner, small))


def _small(file: Path) -> "Image":
    """An image as a cell holds it. Raises T2IError where it cannot be read."""
    from PIL import Image

    try:
        if not file.is_file():
            raise OSError("it is no file")
        with Image.open(file) as image:
            image.draft("RGB", (CELL_SIDE, CELL_SIDE))
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise StorageError(
            f"Cannot read '{file}': {error}.", hint="Remove it: the same command makes it again."
        ) from error
    small.thumbnail((CELL_SIDE, CELL_SIDE))
    return small


def _middle(corner: tuple[int, int], small: "Image") -> tuple[int, int]:
    """Where an image stands in its cell."""
    x, y = corner
    return x + (CELL_SIDE - small.width) // 2, y + (CELL_SIDE - small.height) // 2


def _caption(row: BatchRow) -> str:
    text = ", ".join([row.request.prompt, *row.varied, f"seed {row.request.seed}"])
    lines = textwrap.wrap(text, CELL_SIDE // 6, max_lines=_CAPTION_LINES, placeholder="…")
    return "\n".join(lines)


def _left(margin: int, column: int) -> int:
    return margin + _GAP + column * (CELL_SIDE + _GAP)


def _row_height(grid: SheetGrid) -> int:
    return CELL_SIDE + _GAP + _LINE * _CAPTION_LINES * grid.captions


def _height(grid: SheetGrid) -> int:
    heads = (_LINE + _GAP) * (bool(grid.title) + bool(grid.across))
    return heads + len(grid.cells) * _row_height(grid)


def _failed(error: OSError, folder: Path) -> T2IError:
    return storage_error(error, "write", folder / SHEET_NAME)
