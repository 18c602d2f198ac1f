"""sheet.png: a plan's images on one picture; two fields that --vary set make it a grid."""

import os
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_cli.batch import manifest
from t2i_cli.batch.plan import Plan
from t2i_cli.batch.rows import Row
from t2i_cli.errors import T2IError
from t2i_cli.sink import translated

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "sheet.png"
MAX_IMAGES = 1_000
CELL = 192
"""Pixels of the side that an image is made to fit."""
_GAP = 8
_LINE = 14
_CAPTION_LINES = 3
_MAX_COLUMNS = 8


@dataclass(frozen=True)
class Block:
    """A grid of rows with its title; `across` and `down` head its columns and its lines."""

    title: str
    across: Sequence[str]
    down: Sequence[str]
    cells: Sequence[Sequence[Row | None]]
    captions: bool


def write(plan: Plan, scratch: Path) -> Path:
    """Draw the first MAX_IMAGES images of the plan, in `scratch` while unfinished.

    Raises StorageError.
    """
    folder = plan.folder
    files = {
        row_id: folder / known.file
        for row_id, known in manifest.load(folder).rows.items()
        if known.status == "done" and known.file
    }
    drawn = _draw(blocks(plan.rows[:MAX_IMAGES]), files)
    unfinished = scratch / NAME
    try:
        drawn.save(unfinished, "PNG")
        os.replace(unfinished, folder / NAME)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise _failed(error, folder) from error
    return folder / NAME


def blocks(rows: Sequence[Row]) -> list[Block]:
    """The grids of a sheet: one for each prompt and repeat of two axes, else one of all rows."""
    if not rows or len(rows[0].varied) != 2:
        columns = min(_MAX_COLUMNS, max(1, round(len(rows) ** 0.5)))
        lines = [list(rows[at : at + columns]) for at in range(0, len(rows), columns)]
        return [Block("", [], [], lines, True)]
    grids: dict[tuple[int, str, int], dict[tuple[str, str], Row]] = {}
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
        found.append(Block(title, across, down, cells, False))
    return found


def _draw(grids: Sequence[Block], files: dict[str, Path]) -> "Image":
    """The sheet: RGB, black on white."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(11)
    columns = max(max((len(line) for line in grid.cells), default=1) for grid in grids)
    margin = CELL // 2 if any(grid.down for grid in grids) else 0
    width = margin + columns * (CELL + _GAP) + _GAP
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
                pen.text((_GAP, top + CELL // 2), label, fill="black", font=font)
            for column, row in enumerate(line):
                if row is None:
                    continue
                left = _left(margin, column)
                _place(sheet, (left, top), files.get(row.id))
                if grid.captions:
                    caption = _caption(row)
                    pen.text((left, top + CELL + 2), caption, fill="black", font=font, spacing=2)
            top += _row_height(grid)
        top = bottom
    return sheet


def _place(sheet: "Image", corner: tuple[int, int], file: Path | None) -> None:
    """Put an image into its cell, or a cross where there is none."""
    from PIL import Image, ImageDraw

    x, y = corner
    if file is None:
        pen = ImageDraw.Draw(sheet)
        pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline="grey")
        pen.line((x, y, x + CELL - 1, y + CELL - 1), fill="grey")
        return
    try:
        with Image.open(file) as image:
            image.draft("RGB", (CELL, CELL))
            small = image.convert("RGB")
    except OSError as error:
        raise _failed(error, file.parent) from error
    small.thumbnail((CELL, CELL))
    sheet.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))


def _caption(row: Row) -> str:
    text = ", ".join([row.request.prompt, *row.varied, f"seed {row.request.seed}"])
    lines = textwrap.wrap(text, CELL // 6, max_lines=_CAPTION_LINES, placeholder="…")
    return "\n".join(lines)


def _left(margin: int, column: int) -> int:
    return margin + _GAP + column * (CELL + _GAP)


def _row_height(grid: Block) -> int:
    return CELL + _GAP + _LINE * _CAPTION_LINES * grid.captions


def _height(grid: Block) -> int:
    heads = (_LINE + _GAP) * (bool(grid.title) + bool(grid.across))
    return heads + len(grid.cells) * _row_height(grid)


def _failed(error: OSError, folder: Path) -> T2IError:
    return translated(error, "write", folder / NAME)
