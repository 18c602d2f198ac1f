"""Readers of the three prompts formats; each yields entries and problems in file order."""

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

RawValue = TypeVar("RawValue")
ReadItem = Iterator[PromptEntry | PromptProblem]

_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_text(lines: Iterable[bytes]) -> ReadItem:
    """Read one prompt per line: skip blank lines and `#` comments, expand `{a|b}` alternatives."""
    for number, line in _decode_lines(lines):
        if isinstance(line, PromptProblem):
            yield line
            continue
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("{") and _is_json_object(text):
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
    """Read one JSON object per line, with fields as keys; skip blank lines; null leaves unset."""
    for number, line in _decode_lines(lines):
        if isinstance(line, PromptProblem):
            yield line
            continue
        if not line.strip():
            continue
        try:
            row = _parse_object(line)
        except InputError as error:
            yield PromptProblem(number, error.field, error.message)
            continue
        raw_values = ((field, value) for field, value in row.items() if not _is_unset(field, value))
        yield from _parse_entry(number, raw_values, check_value)


def read_csv(lines: Iterable[bytes]) -> ReadItem:
    """Read a header row of fields, then one entry per row; an empty cell leaves its field unset."""
    undecodable: list[PromptProblem] = []

    def decoded_lines() -> Iterator[str]:
        for _, line in _decode_lines(lines):
            if isinstance(line, PromptProblem):
                undecodable.append(line)
                line = "\n"
            yield line

    rows = csv.reader(decoded_lines(), strict=True)
    header: list[str] | None = None
    while True:
        number = rows.line_num + 1
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
            yield from _parse_entry(
                number, ((f, cell) for f, cell in pairs if cell.strip()), parse_value
            )


def _parse_entry(
    number: int,
    raw_values: Iterable[tuple[str, RawValue]],
    check: Callable[[str, RawValue], Value],
) -> ReadItem:
    """Yield the entry with these fields, or else a problem for each invalid field."""
    values: dict[str, Value] = {}
    problems: list[PromptProblem] = []
    for field, value in raw_values:
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


def _is_unset(field: str, value: object) -> bool:
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


def _decode_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, str | PromptProblem]]:
    """Decode each line from UTF-8, with its number from 1; strip a byte-order mark."""
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


def _parse_object(line: str) -> dict[str, object]:
    """Parse a line as a JSON object; raises InputError."""
    try:
        row = json.loads(line, object_pairs_hook=_unique_fields, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InputError(f"this is not JSON: {error.msg} at column {error.colno}.") from error
    except (ValueError, RecursionError) as error:
        # An integer of thousands of digits, or too deep nesting.
        raise InputError("this is not JSON that can be read.") from error
    if not isinstance(row, dict):
        raise InputError("this is JSON, and no object with fields.")
    return row


def _unique_fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError("this field is there twice.", field=twice)
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise InputError(f"{name} is not JSON.")


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
