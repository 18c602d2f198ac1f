"""Draws a contact sheet's grids: pictures in cells of their own aspect, labels and captions."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_cli.batch.rows import BatchRow
from t2i_cli.batch.sheet_grids import SheetGrid, distinct_texts
from t2i_cli.batch.sheet_images import open_batch_image

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

CELL_SIDE = 192
"""Side of a square picture in pixels; pictures are scaled up or down."""
_MIN_SIDE = 64
_MAX_HEIGHT = 32_000
"""Height in pixels beyond which pictures become smaller: viewers give up at about 65,000."""
_MIN_COLUMN = 112
"""Narrowest column with text over or under its pictures."""
_GAP = 8
_LINE_HEIGHT = 14
_PROMPT_LINES = 2
_LABEL_LINES = 3

Size = tuple[int, int]


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels: widths of columns, heights of lines and of what stands over or under them.

    `labels` and `captions` are wrapped texts; `sizes` are those of the pictures, by row id.
    """

    columns: Sequence[int]
    lines: Sequence[int]
    title: str
    across: Sequence[str]
    down: Sequence[str]
    captions: Mapping[str, str]
    caption_heights: Sequence[int]
    sizes: Mapping[str, Size]

    @property
    def header(self) -> int:
        """The height of title and labels."""
        return _text_height(self.title) + max(map(_text_height, self.across), default=0)

    @property
    def height(self) -> int:
        """The height of the grid, with the gap below it."""
        cells = sum(self.lines) + sum(self.caption_heights) + _GAP * len(self.lines)
        return self.header + cells + _GAP


def draw_sheet(grids: Sequence[SheetGrid], files: Mapping[str, Path]) -> "Image":
    """Draw the sheet as an RGB image with black text on white; `files` by row id."""
    from PIL import Image, ImageDraw

    lines = sum(len(grid.cells) for grid in grids)
    side = min(CELL_SIDE, max(_MIN_SIDE, _MAX_HEIGHT // max(1, lines)))
    # A prompt needs more room than a value.
    down = [label for grid in grids for label in grid.down]
    margin = 0 if not down else CELL_SIDE if max(map(len, down)) > 30 else CELL_SIDE // 2
    layouts = [_lay_out(grid, files, side, margin) for grid in grids]
    left = _GAP + (margin + _GAP) * bool(margin)
    width = max(left + sum(layout.columns) + _GAP * len(layout.columns) for layout in layouts)
    sheet = Image.new("RGB", (width, _GAP + sum(layout.height for layout in layouts)), "white")
    drawing = ImageDraw.Draw(sheet)
    top = _GAP
    for grid, layout in zip(grids, layouts, strict=True):
        _draw_grid(sheet, drawing, grid, layout, files, (left, top))
        top += layout.height
    return sheet


def _lay_out(grid: SheetGrid, files: Mapping[str, Path], side: int, margin: int) -> _Layout:
    """Fit columns and lines to their pictures, and texts to the columns."""
    sizes = _picture_sizes(grid, files, side)
    columns = [_MIN_COLUMN if grid.captions else 0] * max(map(len, grid.cells))
    for number, label in enumerate(grid.across):
        columns[number] = round(min(_MIN_COLUMN, _text_width(label) + 1))
    for line in grid.cells:
        for number, row in enumerate(line):
            if row:
                columns[number] = max(columns[number], sizes[row.id][0])
    lines = [max((sizes[row.id][1] for row in line if row), default=0) for line in grid.cells]
    captions = _wrapped_captions(grid, columns)
    across = _fitting(grid.across, min(columns))
    return _Layout(
        columns=columns,
        lines=lines,
        title=_wrap(grid.title, margin + sum(columns), _PROMPT_LINES),
        across=[
            _wrap(label, width, _LABEL_LINES) for label, width in zip(across, columns, strict=False)
        ],
        down=[
            _wrap(label, margin, max(_LABEL_LINES, height // _LINE_HEIGHT))
            for label, height in zip(grid.down, lines, strict=False)
        ],
        captions=captions,
        caption_heights=[
            max((_text_height(captions.get(row.id, "")) for row in line if row), default=0)
            for line in grid.cells
        ],
        sizes=sizes,
    )


def _wrapped_captions(grid: SheetGrid, columns: Sequence[int]) -> dict[str, str]:
    """The captions by row id: the prompt may be cut, what varies has lines of its own."""
    prompts = _fitting([prompt for prompt, _ in grid.captions.values()], min(columns))
    column_of = {row.id: n for line in grid.cells for n, row in enumerate(line) if row}
    captions = {}
    for (row_id, (_, fields)), prompt in zip(grid.captions.items(), prompts, strict=True):
        width = columns[column_of[row_id]]
        texts = (_wrap(prompt, width, _PROMPT_LINES), _wrap(fields, width, _LABEL_LINES))
        captions[row_id] = "\n".join(filter(None, texts))
    return captions


def _draw_grid(
    sheet: "Image",
    drawing: "ImageDraw",
    grid: SheetGrid,
    layout: _Layout,
    files: Mapping[str, Path],
    corner: Size,
) -> None:
    left, top = corner
    starts = [left + sum(layout.columns[:n]) + _GAP * n for n in range(len(layout.columns))]
    if layout.title:
        _write(drawing, (_GAP, top), layout.title)
    below = top + layout.header
    for label, start, width in zip(layout.across, starts, layout.columns, strict=False):
        # Over the middle of its column, on the last line above it.
        at = (start + width // 2, below - _GAP)
        drawing.multiline_text(at, label, "black", _font(), "md", spacing=2, align="center")
    for number, line in enumerate(grid.cells):
        height = layout.lines[number]
        if layout.down:
            middle = (left - _GAP, below + height // 2)
            drawing.multiline_text(
                middle, layout.down[number], "black", _font(), "rm", spacing=2, align="right"
            )
        for row, start, width in zip(line, starts, layout.columns, strict=False):
            if row is None:
                continue
            w, h = layout.sizes[row.id]
            _paste(
                sheet,
                drawing,
                files.get(row.id),
                (start + (width - w) // 2, below + height - h, w, h),
            )
            if row.id in layout.captions:
                _write(drawing, (start, below + height + 2), layout.captions[row.id])
        below += height + layout.caption_heights[number] + _GAP


def _paste(
    sheet: "Image", drawing: "ImageDraw", file: Path | None, box: tuple[int, int, int, int]
) -> None:
    """Paste a picture into its box (x, y, width, height), or cross the box out if there is none."""
    from PIL import Image

    x, y, width, height = box
    if file is None:
        drawing.rectangle((x, y, x + width - 1, y + height - 1), outline="grey")
        drawing.line((x, y, x + width - 1, y + height - 1), fill="grey")
        return
    with open_batch_image(file, max(width, height)) as image:
        scaled = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    sheet.paste(scaled, (x, y))


def _picture_sizes(grid: SheetGrid, files: Mapping[str, Path], side: int) -> dict[str, Size]:
    """The sizes at which pictures are drawn, by row id: so that they fill their cells.

    They have one height if the pictures of each column are of one aspect, else one width.
    """
    aspects: dict[str, float] = {}
    by_column: dict[int, set[float]] = {}
    for line in grid.cells:
        for number, row in enumerate(line):
            if row:
                aspects[row.id] = _aspect(row, files.get(row.id))
                by_column.setdefault(number, set()).add(round(aspects[row.id], 2))
    if all(len(found) == 1 for found in by_column.values()):
        height = side / max(1, *aspects.values())
        return {row_id: _whole(height * aspect, height) for row_id, aspect in aspects.items()}
    heights = {row_id: min(side / aspect, 2.0 * side) for row_id, aspect in aspects.items()}
    return {row_id: _whole(height * aspects[row_id], height) for row_id, height in heights.items()}


def _aspect(row: BatchRow, file: Path | None) -> float:
    """Width by height of a row's picture, or of the one that was asked for."""
    width, height = row.request.width or 1, row.request.height or 1
    if file is not None:
        with open_batch_image(file, CELL_SIDE) as image:
            width, height = image.size
    return width / height


def _whole(width: float, height: float) -> Size:
    return max(1, round(width)), max(1, round(height))


def _write(drawing: "ImageDraw", corner: Size, text: str) -> None:
    drawing.multiline_text(corner, text, "black", _font(), spacing=2)


@functools.cache
def _font() -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(11)


def _text_height(text: str) -> int:
    """The height of a wrapped text with a gap, 0 for none."""
    return _LINE_HEIGHT * (text.count("\n") + 1) + _GAP if text else 0


def _fitting(texts: Sequence[str], width: int) -> list[str]:
    """The texts; if one does not fit, without the words that all of them begin with."""
    cut = any(_wrap(text, width, _PROMPT_LINES).endswith("…") for text in texts)
    return distinct_texts(texts) if cut else list(texts)


def _wrap(text: str, width: int, lines: int) -> str:
    """Wrap a text to a width in pixels; what does not fit in so many lines becomes an ellipsis."""
    wrapped: list[str] = [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".lstrip()
        if _text_width(longer) <= width:
            wrapped[-1] = longer
            continue
        if wrapped[-1]:
            wrapped.append("")
        # A word that is longer than a line is broken.
        for letter in word:
            if wrapped[-1] and _text_width(wrapped[-1] + letter) > width:
                wrapped.append("")
            wrapped[-1] += letter
            if len(wrapped) > lines:
                break
        if len(wrapped) > lines:
            break
    if len(wrapped) > lines:
        last = wrapped[lines - 1]
        while last and _text_width(f"{last}…") > width:
            last = last[:-1]
        wrapped = [*wrapped[: lines - 1], f"{last}…"]
    return "\n".join(wrapped)


def _text_width(text: str) -> float:
    return _font().getlength(text)
