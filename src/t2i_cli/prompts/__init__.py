"""Prompts files: text, JSONL and CSV become entries, and whatever is wrong is named by its line."""

import difflib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast, get_args

from t2i_cli.errors import InputError, os_reason
from t2i_cli.request_fields import FIELDS, FieldValue

InputFormat = Literal["txt", "jsonl", "csv"]
Value = FieldValue

ROW_FIELDS: dict[str, type] = {name: field.kind for name, field in FIELDS.items()} | {
    "count": int,
    "name": str,
}
"""What a row may set: the fields of a request, how many images, and their file's name."""

MAX_SHOWN = 20
"""Problems printed; the others are counted."""


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


@dataclass(frozen=True)
class PromptsFile:
    """A prompts file as read: `name` is how messages call it."""

    name: str
    entries: Sequence[PromptEntry]
    problems: Sequence[PromptProblem]


class PromptsError(InputError):
    """Rows of a prompts file are wrong, all of them named at once.

    `skipped` says that good rows would have been made, had there been any.
    """

    def __init__(
        self, name: str, problems: Sequence[PromptProblem], *, skipped: bool = False
    ) -> None:
        lines = sorted({problem.line for problem in problems})
        shown = sorted(problems, key=lambda problem: problem.line)[:MAX_SHOWN]
        text = [f"{name} is wrong in {len(lines):,} line{'s' * (len(lines) > 1)}:"]
        text += [f"  {locate_problem(name, problem)}" for problem in shown]
        if len(problems) > len(shown):
            text.append(f"  and {len(problems) - len(shown):,} more problems")
        super().__init__(
            "\n".join(text),
            hint="Nothing was made. Correct the file"
            + ("." if skipped else ", or --skip-invalid goes on with the others."),
        )
        self._listed = [{"file": name, **asdict(problem)} for problem in shown]
        self._total = len(problems)

    def to_json(self) -> dict[str, object]:
        """The error as `--json` prints it, with the first problems and their number."""
        return super().to_json() | {"problems": self._listed, "problems_total": self._total}


def locate_problem(name: str, problem: PromptProblem) -> str:
    """A problem with its file, line and field, for people."""
    field = f"{problem.field}: " if problem.field else ""
    return f"{name}:{problem.line}: {field}{problem.message}"


def prompts_format(source: str, wanted: str | None) -> InputFormat:
    """The format of a prompts file: as wanted, as its extension says, or text on stdin."""
    if wanted is not None and wanted not in get_args(InputFormat):
        raise InputError(f"The input format {wanted!r} is unknown; use one of: txt, jsonl, csv.")
    ending = "txt" if source == "-" else Path(source).suffix[1:].lower()
    for known in get_args(InputFormat):
        if (wanted or ending) == known:
            return known  # type: ignore[no-any-return]
    raise InputError(
        f"What {source!r} holds is not clear from its name.",
        hint="--input-format says it: txt, jsonl or csv.",
    )


def read_prompts(source: str, format: InputFormat) -> PromptsFile:
    """Every row of a prompts file (`-`: standard input), and all that is wrong with them.

    Raises InputError if the file cannot be read at all.
    """
    if source == "-":
        return _parse("standard input", sys.stdin.buffer, format)
    try:
        with open(source, "rb") as file:
            return _parse(source, file, format)
    except OSError as error:
        raise InputError(f"Cannot read {source!r}: {os_reason(error)}.") from error


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


def _parse(name: str, file: BinaryIO, format: InputFormat) -> PromptsFile:
    from t2i_cli.prompts import readers

    reader = {"txt": readers.read_text, "jsonl": readers.read_jsonl, "csv": readers.read_csv}[
        format
    ]
    entries: list[PromptEntry] = []
    problems: list[PromptProblem] = []
    for found in reader(file):
        if isinstance(found, PromptEntry):
            entries.append(found)
        else:
            problems.append(found)
    if not entries and not problems:
        raise InputError(f"There is no prompt in {name}.")
    return PromptsFile(name=name, entries=entries, problems=problems)
