"""Options of the command line for all rows: defaults, seeds, counts, and fields to vary."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from t2i_cli.errors import InputError
from t2i_cli.prompts.entries import Value, parse_value
from t2i_cli.prompts.styles import StyleFile
from t2i_cli.prompts.wildcards import WildcardFolder

MAX_ROWS = 1_000_000
"""Largest number of images in a batch: all rows are kept in memory."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Options for all rows; `defaults` are request fields for rows that do not set them."""

    defaults: Mapping[str, Value] = field(default_factory=dict)
    vary: Sequence[tuple[str, Sequence[Value]]] = ()
    seed: int | None = None
    seeds: Sequence[int] = ()
    count: int = 1
    lenient: bool = False
    wildcards: WildcardFolder | None = None
    styles: StyleFile | None = None


def parse_vary(texts: Sequence[str]) -> list[tuple[str, Sequence[Value]]]:
    """Parse texts as `steps=10,20` to fields and values, in CSV syntax. Raises InputError."""
    varied: list[tuple[str, Sequence[Value]]] = []
    for text in texts:
        name, equals, listed = text.partition("=")
        name = name.strip()
        if not equals or not listed.strip():
            raise InputError(f"--vary {text} is not of the form field=value,value.", field="vary")
        if name in {"count", "name"} or name in dict(varied):
            raise InputError(f"--vary cannot vary {name}{' twice' * (name in dict(varied))}.")
        try:
            cells = next(csv.reader([listed], skipinitialspace=True, strict=True))
            values = [_parse_varied(name, cell) for cell in cells]
        except csv.Error as error:
            raise InputError(f"--vary {text}: {error}.", field="vary") from error
        except InputError as error:
            raise InputError(f"--vary {name}: {error.message}", field="vary") from error
        if len(set(values)) < len(values):
            raise InputError(f"--vary {text} has a value twice.", field="vary")
        varied.append((name, values))
    return varied


def _parse_varied(name: str, text: str) -> Value:
    """Parse one of a varied field's values. Raises InputError for one that stands for not set."""
    value = parse_value(name, text)
    if value is None:
        raise InputError(f"{text.strip()} stands for no {name}, which cannot be varied.")
    return value


def parse_max_failures(text: str | None, jobs: int) -> int | None:
    """Parse --max-failures: a number, or a percentage of the images to make.

    Raises InputError.
    """
    if text is None:
        return None
    number = text.removesuffix("%")
    if not number.isdecimal() or len(number) > 9 or (number == text and int(number) < 1):
        raise InputError(f"--max-failures {text} is neither a number nor per cent, as 10 or 5%.")
    if number == text:
        return int(number)
    if int(number) > 100:
        raise InputError(f"--max-failures {text} is more than all.")
    return max(1, jobs * int(number) // 100)
