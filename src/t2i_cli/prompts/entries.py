"""Rows of prompts files: the fields that they may set, and how their values are read."""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from t2i_cli.errors import InputError
from t2i_cli.request_fields import FIELDS, FieldValue

Value = FieldValue


ROW_FIELDS: dict[str, type] = {name: field.kind for name, field in FIELDS.items()} | {
    "count": int,
    "name": str,
}
"""What a row may set: the fields of a request, how many images, and their file's name."""


@dataclass(frozen=True, slots=True)
class PromptEntry:
    """A row of a prompts file: its line (from 1), and the fields that it sets."""

    line: int
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class PromptProblem:
    """What is wrong with a row, and where; `field` is `None` where the whole line is at fault."""

    line: int
    field: str | None
    message: str


def field_kind(field: str) -> type:
    """The type of a field's values; raises InputError for an unknown field."""
    kind = ROW_FIELDS.get(field)
    if kind is None:
        near = difflib.get_close_matches(field, ROW_FIELDS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(ROW_FIELDS)}."
        raise InputError(f"unknown field; {meant}", field=field)
    return kind


def check_value(field: str, value: object) -> Value:
    """A value of the field's type; raises InputError saying what it should be."""
    kind = field_kind(field)
    if field in FIELDS and (parse := FIELDS[field].parse):
        return cast(Value, parse(value))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise InputError(f"{_shown(value)} is too large.", field=field) from error
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"must be {_KIND[kind]}, not {_shown(value)}.", field=field)
    return cast(Value, value)


def parse_value(field: str, text: str) -> Value:
    """A field's value as CSV and --vary write it; raises InputError."""
    kind = ROW_FIELDS.get(field, str)
    value: object = text if kind is str else text.strip()
    if kind is int and re.fullmatch(r"[+-]?[0-9]{1,20}", str(value)):
        value = int(text)
    elif kind is float and re.fullmatch(
        r"[+-]?[0-9.]{1,20}(e[+-]?[0-9]{1,3})?", str(value).lower()
    ):
        value = _float(text)
    return check_value(field, value)


_KIND = {str: "text", int: "a whole number", float: "a number"}


def _float(text: str) -> object:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
