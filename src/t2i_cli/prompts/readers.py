"""Readers of the prompts formats; each yields entries and problems in file order."""

import csv
import io
import re
from collections.abc import Iterable, Iterator

from t2i_cli.errors import InputError
from t2i_cli.prompts import alternatives, json_rows, option_lines
from t2i_cli.prompts.decoding import decode_lines
from t2i_cli.prompts.entries import (
    MAX_FIELDS,
    ROW_FIELDS,
    PromptEntry,
    PromptProblem,
    Value,
    check_value,
    field_kind,
    parse_value,
    read_entry,
    short_name,
)

ReadItem = Iterator[PromptEntry | PromptProblem]

_SEPARATORS = ",;\t"
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w\s"]|\t)"?[,;\t]*')
"""Excel's first line `sep=;`, which names the separator of a CSV file."""
_DECIMAL_COMMA = re.compile(r"\s*[+-]?[0-9]+,[0-9]+\s*")


def read_text(lines: Iterable[bytes]) -> ReadItem:
    """Read one prompt per line, or its options as `--prompt "…" --steps 5`.

    Blank lines and `#` comments are skipped, `{a|b}` alternatives expanded.
    """
    for number, line in decode_lines(lines):
        if isinstance(line, PromptProblem):
            yield line
            continue
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("{") and json_rows.is_json_object(text):
            yield PromptProblem(number, None, "this is JSON; --input-format jsonl reads it.")
        elif option_lines.is_option_line(text):
            for item in option_lines.read_option_line(number, text):
                yield from [item] if isinstance(item, PromptProblem) else _expand_prompts(item)
        else:
            yield from _expand_prompts(PromptEntry(number, {"prompt": text}))


def read_jsonl(lines: Iterable[bytes]) -> ReadItem:
    """Read one JSON object per line, with fields as keys; skip blank lines; null leaves unset."""
    first = True
    for number, line in decode_lines(lines):
        if isinstance(line, PromptProblem):
            yield line
            continue
        if not (text := line.strip()):
            continue
        if first and json_rows.is_array_start(text):
            yield PromptProblem(number, None, "this is a JSON array; --input-format json reads it.")
            return
        first = False
        try:
            row = json_rows.parse_object(line)
        except InputError as error:
            yield PromptProblem(number, error.field and short_name(error.field), error.message)
        else:
            yield from _read_object(number, row)


def read_json_array(lines: Iterable[bytes]) -> ReadItem:
    """Read a JSON array of objects, with fields as keys; an entry's line is that where it begins.

    Objects outside an array, one after the other, are read as well.
    """
    text: list[str] = []
    for _, line in decode_lines(lines):
        if isinstance(line, PromptProblem):
            yield line
            return
        text.append(line)
    try:
        rows = list(json_rows.parse_array("".join(text)))
    except json_rows.JsonSyntaxError as error:
        # Where the other rows begin is not known: none of them is made.
        yield PromptProblem(error.line, None, error.message)
        return
    for number, row in rows:
        if isinstance(row, InputError):
            yield PromptProblem(number, row.field and short_name(row.field), row.message)
        else:
            yield from _read_object(number, row)


def read_csv(lines: Iterable[bytes]) -> ReadItem:
    """Read a header row of fields, then one entry per row; a blank cell leaves its field unset.

    The separator is a comma, a semicolon or a tab: the one that a line `sep=;` names, or else the
    one that gives the header a column `prompt`. Columns without a name must be blank, as those
    that Excel writes behind a table.
    """
    yield from _read_table(lines, None)


def read_tsv(lines: Iterable[bytes]) -> ReadItem:
    """Read a table as read_csv() does, whose separator is a tab."""
    yield from _read_table(lines, "\t")


def read_prompt_line(line: str) -> list[str]:
    """The prompts of a line, none of a blank one or a comment. Raises InputError."""
    text = line.strip()
    if not text or text.startswith("#"):
        return []
    return [prompt.strip() for prompt in alternatives.expand_alternatives(text)]


def _expand_prompts(entry: PromptEntry) -> ReadItem:
    """Yield an entry for each combination of the alternatives in its prompt."""
    try:
        prompts = alternatives.expand_alternatives(str(entry.values["prompt"]))
    except InputError as error:
        yield PromptProblem(entry.line, "prompt", error.message)
        return
    for prompt in prompts:
        yield PromptEntry(entry.line, {**entry.values, "prompt": prompt.strip()})


def _read_object(number: int, row: dict[str, object]) -> ReadItem:
    pairs = ((field, v) for field, v in row.items() if not (v is None and field in ROW_FIELDS))
    return read_entry(number, pairs, check_value)


def _read_table(lines: Iterable[bytes], separator: str | None) -> ReadItem:
    undecodable: list[PromptProblem] = []
    decoded = decode_lines(lines)

    def decoded_lines() -> Iterator[str]:
        for _, line in decoded:
            if isinstance(line, PromptProblem):
                undecodable.append(line)
                line = "\n"
            yield line

    table_lines = decoded_lines()
    skipped, first = _skip_blank_lines(table_lines)
    if found := _SEPARATOR_LINE.fullmatch(first.strip(" \n")):
        separator = found[1]
        more, first = _skip_blank_lines(table_lines)
        skipped += 1 + more
    separator = separator or _detect_separator(first)
    rows = csv.reader(_chain(first, table_lines), strict=True, delimiter=separator)
    header: list[str] | None = None
    while True:
        number = skipped + rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            yield PromptProblem(number, None, f"this is not CSV: {error}.")
            continue
        if undecodable:
            yield from undecodable
            undecodable.clear()
            continue
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _without_blank_end([cell.strip() for cell in cells])
            problems = list(_header_problems(number, header))
            yield from problems
            if problems:
                return
        else:
            yield from _read_cells(number, header, cells, separator)


def _skip_blank_lines(lines: Iterator[str]) -> tuple[int, str]:
    """The number of blank lines, and the first line that is not; empty if there is none."""
    skipped = 0
    for line in lines:
        if line.strip(" \n"):
            return skipped, line
        skipped += 1
    return skipped, ""


def _chain(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _detect_separator(header: str) -> str:
    """The separator that gives the header row a column `prompt`; a comma if none does."""
    for separator in _SEPARATORS:
        try:
            cells = next(csv.reader(io.StringIO(header), delimiter=separator), [])
        except csv.Error:
            continue  # with no separator at all, its cell may be too large
        if "prompt" in {cell.strip() for cell in cells}:
            return separator
    return ","


def _without_blank_end(cells: list[str]) -> list[str]:
    used = max((n for n, cell in enumerate(cells, 1) if cell.strip()), default=0)
    return cells[:used]


def _read_cells(number: int, header: list[str], cells: list[str], separator: str) -> ReadItem:
    """Yield the entry of a row of cells, or its problems."""
    filled = _without_blank_end(cells)
    if len(filled) > len(header) or len(cells) < len(header):
        there = max(len(filled), min(len(cells), len(header)))
        yield PromptProblem(
            number, None, f"there are {there} cells under a header of {len(header)}."
        )
        return
    unnamed = [n for n, cell in enumerate(filled) if cell.strip() and not header[n]]
    if unnamed:
        yield PromptProblem(number, None, f"column {unnamed[0] + 1} has a value, and no name.")
        return

    def parse_cell(field: str, text: str) -> Value | None:
        # A table with other separators comes from where the comma is the decimal point.
        if separator != "," and ROW_FIELDS[field] is float and _DECIMAL_COMMA.fullmatch(text):
            text = text.replace(",", ".")
        return parse_value(field, text)

    pairs = zip(header, filled, strict=False)
    yield from read_entry(number, ((f, cell) for f, cell in pairs if cell.strip()), parse_cell)


def _header_problems(number: int, header: list[str]) -> Iterator[PromptProblem]:
    if len(header) > MAX_FIELDS:
        yield PromptProblem(number, None, f"there are {len(header):,} columns in the header row.")
        return
    for position, field in enumerate(header):
        if not field:
            continue
        if field in header[:position]:
            yield PromptProblem(number, short_name(field), "this column is there twice.")
            continue
        try:
            field_kind(field)
        except InputError as error:
            yield PromptProblem(number, short_name(field), error.message)
    if "prompt" not in header:
        yield PromptProblem(number, "prompt", "the header row has no such column.")
