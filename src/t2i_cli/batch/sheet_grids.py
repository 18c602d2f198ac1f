"""Arranges a contact sheet's rows: a grid of the fields that --vary set, or else lines in order.

Two varied fields make a grid for each prompt; one makes a grid with a line for each prompt.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from t2i_cli.batch.rows import BatchRow
from t2i_cli.request_fields import FIELDS

SHEET_COLUMNS = 8
"""Columns of a sheet without axes."""


@dataclass(frozen=True)
class SheetGrid:
    """A grid of cells with its title; `across` labels its columns, `down` its lines.

    `captions` has the prompt and the fields that vary of each row, by id; empty if labels tell all.
    """

    title: str
    across: Sequence[str]
    down: Sequence[str]
    cells: Sequence[Sequence[BatchRow | None]]
    captions: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def sheet_grids(rows: Sequence[BatchRow]) -> list[SheetGrid]:
    """The grids of a sheet."""
    axes = len(rows[0].varied) if rows else 0
    if axes == 1:
        return [_prompt_grid(rows)]
    if axes == 2:
        return [_axes_grid(cells) for cells in _by_prompt(rows).values()]
    columns = min(SHEET_COLUMNS, max(1, round(len(rows) ** 0.5)))
    lines = [list(rows[at : at + columns]) for at in range(0, len(rows), columns)]
    return [SheetGrid("", [], [], lines, _captions(rows))]


def distinct_texts(texts: Sequence[str]) -> list[str]:
    """The texts without the words that all of them begin with, of which an ellipsis is left."""
    if len(set(texts)) < 2:
        return list(texts)
    start = os.path.commonprefix(texts).rpartition(" ")[0]
    return [f"…{text[len(start) :]}" for text in texts] if len(start) > 1 else list(texts)


def _by_prompt(rows: Iterable[BatchRow]) -> dict[tuple[object, ...], list[BatchRow]]:
    """The rows that differ only in what --vary set."""
    found: dict[tuple[object, ...], list[BatchRow]] = {}
    for row in rows:
        # A varied prompt is an axis.
        prompt = None if any(t.startswith("prompt ") for t in row.varied) else row.request.prompt
        found.setdefault((row.line, prompt, row.repeat), []).append(row)
    return found


def _prompt_grid(rows: Sequence[BatchRow]) -> SheetGrid:
    """A line for each prompt and repeat, a column for each value of the varied field."""
    lines = _by_prompt(rows)
    across = list(dict.fromkeys(row.varied[0] for row in rows))
    cells = []
    for line in lines.values():
        by_label = {row.varied[0]: row for row in line}
        cells.append([by_label.get(label) for label in across])
    return SheetGrid("", across, [_line_label(line) for line in lines.values()], cells)


def _axes_grid(rows: Sequence[BatchRow]) -> SheetGrid:
    """The grid of one prompt and repeat, with the two varied fields as its axes."""
    across = list(dict.fromkeys(row.varied[0] for row in rows))
    down = list(dict.fromkeys(row.varied[1] for row in rows))
    by_labels = {row.varied: row for row in rows}
    cells = [[by_labels.get((x, y)) for x in across] for y in down]
    return SheetGrid(_line_label(rows), across, down, cells)


def _line_label(rows: Sequence[BatchRow]) -> str:
    """The prompt that the rows share, and their seed if that is one, too."""
    prompts = {row.request.prompt for row in rows}
    seeds = {row.request.seed for row in rows}
    prompt = prompts.pop() if len(prompts) == 1 else ""
    return f"{prompt} (seed {seeds.pop()})".lstrip() if len(seeds) == 1 else prompt


def _captions(rows: Sequence[BatchRow]) -> dict[str, tuple[str, str]]:
    """For each row its prompt, and those of its other fields that are not the same in all rows."""
    records = [row.request.to_json() for row in rows]
    names = [name for name in FIELDS if name != "prompt"]
    differing = [n for n in names if len({str(record.get(n)) for record in records}) > 1]
    shown = differing or ["seed"]
    values: dict[str, list[str]] = {}
    for name in shown:
        texts = ["" if r.get(name) is None else str(r[name]) for r in records]
        prose = FIELDS[name].prose
        values[name] = distinct_texts(texts) if prose and max(map(len, texts)) > 20 else texts
    captions = {}
    for number, row in enumerate(rows):
        parts = [f"{name} {values[name][number]}" for name in shown if values[name][number]]
        captions[row.id] = (row.request.prompt, ", ".join(parts))
    return captions
