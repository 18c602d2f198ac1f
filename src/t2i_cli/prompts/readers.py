"""The three formats, line by line: each yields entries and problems in the file's order."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeVar

from t2i_cli.errors import InputError
from t2i_cli.prompts import alternatives
from t2i_cli.prompts.entries import (
    ROW_FIELDS,
    PromptEntry,
    PromptProblem,
    Value,
    check_value,
    field_kind,
    parse_value,
)

Given = TypeVar("Given")
ReadItem = Iterator[PromptEntry | PromptProblem]

_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_text(lines: Iterable[bytes]) -> ReadItem:
    """A prompt a line; `#` comments, blank lines, and `{a|b}` expanded to all combinations."""
    for number, line in _decoded(lines):
        if isinstance(line, PromptProblem):
            yield line
            continue
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("{") and _is_object(text):
            yield PromptProblem(number, None, "this is JSON; --input-format jsonl reads it.")
            continue
        try:
            prompts = alternatives.expand_alternatives(text)
        except InputError as error:
            yield PromptProblem(number, "prompt", error.message)
            continue
        for prompt in prompts:
            yield PromptEntry(number, {"prompt": prompt.strip()})


def read_jsonl(lines: Iterable[bytes]) -> ReadItem:
    """A JSON object a line, whose keys are fields; blank lines are skipped, null is not set."""
    for number, line in _decoded(lines):
        if isinstance(line, PromptProblem):
            yield line
            continue
        if not line.strip():
            continue
        try:
            row = _object(line)
        except InputError as error:
            yield PromptProblem(number, error.field, error.message)
            continue
        given = ((field, value) for field, value in row.items() if not _unset(field, value))
        yield from _row(number, given, check_value)


def read_csv(lines: Iterable[bytes]) -> ReadItem:
    """A header row of fields, then a row an entry; an empty cell is not set."""
    broken: list[PromptProblem] = []

    def decoded() -> Iterator[str]:
        for _, line in _decoded(lines):
            if isinstance(line, PromptProblem):
                broken.append(line)
                line = "\n"
            yield line

    rows = csv.reader(decoded(), strict=True)
    header: list[str] | None = None
    while True:
        number = rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            yield PromptProblem(number, None, f"this is not CSV: {error}.")
            continue
        if broken:
            yield from broken
            broken.clear()
            continue
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            problems = list(_header_problems(number, header))
            yield from problems
            if problems:
                return
        elif len(cells) != len(header):
            yield PromptProblem(
                number, None, f"there are {len(cells)} cells under a header of {len(header)}."
            )
        else:
            pairs = zip(header, cells, strict=True)
            yield from _row(number, ((f, cell) for f, cell in pairs if cell.strip()), parse_value)


def _row(
    number: int,
    given: Iterable[tuple[str, Given]],
    check: Callable[[str, Given], Value],
) -> ReadItem:
    """The entry that the given fields make, or a problem for each that is wrong."""
    values: dict[str, Value] = {}
    problems: list[PromptProblem] = []
    for field, value in given:
        try:
            values[field] = check(field, value)
        except InputError as error:
            problems.append(PromptProblem(number, field, error.message))
    if not problems and "prompt" not in values:
        problems.append(PromptProblem(number, "prompt", "there is none."))
    if problems:
        yield from problems
    else:
        yield PromptEntry(number, values)


def _unset(field: str, value: object) -> bool:
    return value is None and field in ROW_FIELDS


def _header_problems(number: int, header: list[str]) -> Iterator[PromptProblem]:
    for position, field in enumerate(header):
        if field in header[:position]:
            yield PromptProblem(number, field, "this column is there twice.")
            continue
        try:
            field_kind(field)
        except InputError as error:
            yield PromptProblem(number, field, error.message)
    if "prompt" not in header:
        yield PromptProblem(number, "prompt", "the header row has no such column.")


def _decoded(lines: Iterable[bytes]) -> Iterator[tuple[int, str | PromptProblem]]:
    """Each line with its number, as text; a byte-order mark at the start is left out."""
    for number, raw in enumerate(lines, 1):
        if number == 1:
            if raw[:2] in _BOMS:
                yield 1, PromptProblem(1, None, f"the file is {_BOMS[raw[:2]]}; save it as UTF-8.")
                return
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            yield number, raw.decode()
        except UnicodeDecodeError as error:
            yield number, PromptProblem(number, None, f"byte {error.start + 1} is not UTF-8.")


def _object(line: str) -> dict[str, object]:
    """The object on a line; raises InputError."""
    try:
        row = json.loads(line, object_pairs_hook=_pairs, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise InputError(f"this is not JSON: {error.msg} at column {error.colno}.") from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets as deep.
        raise InputError("this is not JSON that can be read.") from error
    if not isinstance(row, dict):
        raise InputError("this is JSON, and no object with fields.")
    return row


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError("this field is there twice.", field=twice)
    return row


def _no_constant(name: str) -> NoReturn:
    raise InputError(f"{name} is not JSON.")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
