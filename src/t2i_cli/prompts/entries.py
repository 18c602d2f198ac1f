"""Entries of prompts files: the fields that they may set, and how values are parsed."""

import math
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from t2i_cli.errors import InputError
from t2i_cli.known_names import name_choices
from t2i_cli.request_field import whole_number
from t2i_cli.request_fields import FIELDS, FieldValue

Value = FieldValue
RawValue = TypeVar("RawValue")

MAX_FIELDS = 100
"""Largest number of fields, or columns, that are looked at one by one; there are far fewer."""
_MAX_SHOWN = 40
"""Characters of a value or a name of others that messages repeat."""

ROW_FIELDS: dict[str, type] = {name: field.kind for name, field in FIELDS.items()} | {
    "count": int,
    "name": str,
}
"""Fields of an entry and their types: those of a request, the image count and the file name."""


@dataclass(frozen=True, slots=True)
class PromptEntry:
    """An entry of a prompts file: its line (from 1), and the fields that it sets."""

    line: int
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class PromptProblem:
    """An error in a prompts file; `field` is `None` if it concerns the whole line."""

    line: int
    field: str | None
    message: str


def field_kind(field: str) -> type:
    """The type of a field; raises InputError for an unknown field."""
    kind = ROW_FIELDS.get(field)
    if kind is None:
        choices = name_choices(field, ROW_FIELDS, "there are")
        raise InputError(f"unknown field; {choices}", field=field)
    return kind


def read_entry(
    line: int,
    raw_values: Iterable[tuple[str, RawValue]],
    check: Callable[[str, RawValue], Value | None],
) -> Iterator[PromptEntry | PromptProblem]:
    """Yield the entry with these fields, or else a problem for each invalid field."""
    values: dict[str, Value] = {}
    problems: list[PromptProblem] = []
    pairs = list(raw_values)
    if len(pairs) > MAX_FIELDS:
        yield PromptProblem(line, None, f"there are {len(pairs):,} fields; it cannot be a row.")
        return
    for field, raw in pairs:
        try:
            value = check(field, raw)
        except InputError as error:
            problems.append(PromptProblem(line, short_name(field), error.message))
        else:
            if value is not None:
                values[field] = value
    if not problems and "prompt" not in values:
        problems.append(PromptProblem(line, "prompt", "there is none."))
    if problems:
        yield from problems
    else:
        yield PromptEntry(line, values)


def check_value(field: str, value: object) -> Value | None:
    """Check a value and convert it to the field's type; raises InputError if it is invalid.

    `None` is a value that stands for not set, as a seed of -1.
    """
    kind = field_kind(field)
    if field in FIELDS and (parse := FIELDS[field].parse):
        return cast(Value, parse(value))
    if kind is int:
        value = whole_number(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError as error:
            raise InputError(f"{_shorten(value)} is too large.", field=field) from error
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"must be {_KIND_NAMES[kind]}, not {_shorten(value)}.", field=field)
    if field in FIELDS and FIELDS[field].is_unset(value):
        return None
    return cast(Value, value)


def parse_value(field: str, text: str) -> Value | None:
    """Parse a field's value from text, as in CSV and --vary; raises InputError."""
    kind = ROW_FIELDS.get(field, str)
    value: object = text if kind is str else text.strip()
    # Spreadsheets write whole numbers with decimals, too.
    if kind is int and re.fullmatch(r"[+-]?[0-9]{1,20}(\.0*)?", str(value)):
        value = int(str(value).partition(".")[0])
    elif kind is float and re.fullmatch(
        r"[+-]?[0-9.]{1,20}(e[+-]?[0-9]{1,3})?", str(value).lower()
    ):
        value = _float_or_text(text)
    return check_value(field, value)


_KIND_NAMES = {str: "text", int: "a whole number", float: "a number"}


def _float_or_text(text: str) -> object:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _shorten(value: object) -> str:
    # A list or object may be too deep for repr().
    text = reprlib.repr(value) if isinstance(value, list | dict) else repr(value)
    return short_name(text)


def short_name(name: str) -> str:
    """The beginning of a name or value that messages repeat; control characters are escaped."""
    shown = name[:_MAX_SHOWN]
    if not shown.isprintable():
        shown = shown.encode("unicode_escape").decode()
    return shown if len(name) <= _MAX_SHOWN else f"{shown}…"
