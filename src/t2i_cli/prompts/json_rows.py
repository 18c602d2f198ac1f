"""Parses rows of JSON: one object, or an array of them with the line of each."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import NoReturn

from t2i_cli.errors import InputError

_ARRAY_START = re.compile(r'\[\s*([{"]|$)')
_SPACE = re.compile(r"[ \t\n]*")


class JsonSyntaxError(InputError):
    """A text is not JSON; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def parse_object(line: str) -> dict[str, object]:
    """Parse a line as a JSON object; raises InputError."""
    start = _skip_space(line, 0)
    row, end = _RowDecoder().decode_row(line, start)
    if (end := _skip_space(line, end)) < len(line):
        raise JsonSyntaxError(f"this is not JSON: Extra data at column {end + 1}.", 1)
    if isinstance(row, InputError):
        raise row
    return row


def parse_array(text: str) -> Iterator[tuple[int, dict[str, object] | InputError]]:
    """Parse an array of objects, or objects one after the other; each with its line from 1.

    Raises JsonSyntaxError.
    """
    decoder = _RowDecoder()
    line, counted = 1, 0
    position = _skip_space(text, 0)
    array = text.startswith("[", position)
    if array:
        position = _skip_space(text, position + 1)
        array = not text.startswith("]", position)
        position += not array
    while position < len(text) or array:
        line += text.count("\n", counted, position)
        counted = position
        row, position = decoder.decode_row(text, position)
        yield line, row
        position = _skip_space(text, position)
        if array and text.startswith(",", position):
            position = _skip_space(text, position + 1)
        elif array and text.startswith("]", position):
            position = _skip_space(text, position + 1)
            array = False
        elif array:
            raise _syntax_error(json.JSONDecodeError("Expecting ',' or ']'", text, position))


def is_json_object(line: str) -> bool:
    """Whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def is_array_start(line: str) -> bool:
    """Whether a line begins a JSON array of rows."""
    return _ARRAY_START.match(line) is not None


class _RowDecoder:
    """Decodes values one by one, which must be objects without a field twice."""

    def __init__(self) -> None:
        self._duplicates: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=_refuse_constant
        )

    def decode_row(self, text: str, start: int) -> tuple[dict[str, object] | InputError, int]:
        """Decode the row at `start`: an object, or what is wrong with it, and where it ends.

        Raises InputError if the text is not JSON.
        """
        self._duplicates.clear()
        try:
            row, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise _syntax_error(error) from error
        except InputError as error:
            raise JsonSyntaxError(error.message, text.count("\n", 0, start) + 1) from error
        except (ValueError, RecursionError) as error:
            # An integer of thousands of digits, or too deep nesting.
            message = "this is not JSON that can be read."
            raise JsonSyntaxError(message, text.count("\n", 0, start) + 1) from error
        if self._duplicates:
            return InputError("this field is there twice.", field=self._duplicates[0]), end
        if not isinstance(row, dict):
            return InputError("this is JSON, and no object with fields."), end
        return row, end

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        row = dict(pairs)
        if len(row) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            self._duplicates.append(next(name for name, number in counts.items() if number > 1))
        return row


def _skip_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _syntax_error(error: json.JSONDecodeError) -> JsonSyntaxError:
    return JsonSyntaxError(f"this is not JSON: {error.msg} at column {error.colno}.", error.lineno)


def _refuse_constant(name: str) -> NoReturn:
    raise InputError(f"{name} is not JSON.")
