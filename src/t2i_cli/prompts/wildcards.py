"""Wildcards: `__name__` in a prompt is a value of the file name.txt, chosen by the image's seed."""

import difflib
import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from t2i_cli.errors import InputError, os_reason
from t2i_cli.prompts.decoding import decode_lines
from t2i_cli.prompts.entries import PromptProblem, short_name
from t2i_cli.prompts.readers import read_prompt_line
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.request_field import MAX_PROMPT
from t2i_cli.request_fields import FIELDS
from t2i_cli.terminal.console import console

WILDCARD = re.compile(r"__(?![_\s])((?:(?!__)[\w./*\- ])+)(?<! )__")
"""A wildcard; its name may have folders: `__colours/warm__`."""
_MAX_DEPTH = 20
"""Wildcards inside one another."""
MAX_CHOICES = 1_000
"""Values that one text may take from its wildcards and theirs."""
MAX_FILE_BYTES = 16 * 2**20
_MAX_FILES = 10_000
_MAX_LISTED = 10
_FIELDS = tuple(name for name, field in FIELDS.items() if field.prose)


class WildcardFolder:
    """The wildcards of a folder; a file is read when its name is met for the first time."""

    def __init__(self, folder: Path) -> None:
        """List the folder's files. Raises InputError if it is no folder, or far too large."""
        self._folder = folder
        self._files = dict(itertools.islice(_text_files(folder), _MAX_FILES + 1))
        if len(self._files) > _MAX_FILES:
            raise InputError(
                f"'{folder}' has more than {_MAX_FILES:,} files; --wildcards takes the folder of "
                "the wildcards alone.",
                field="wildcards",
            )
        self._values: dict[str, list[str]] = {}
        self._checked: dict[str, int] = {}

    def check_request(self, request: GenerateRequest | ResolvedRequest) -> None:
        """Raise InputError for a wildcard without a file, or one that contains itself."""
        for field in _FIELDS:
            try:
                self._nesting(str(getattr(request, field) or ""), ())
            except InputError as error:
                raise InputError(error.message, hint=error.hint, field=field) from error

    def fill_request(self, request: ResolvedRequest) -> ResolvedRequest:
        """The request with a value for each wildcard, which its seed decides. Raises InputError."""
        self.check_request(request)
        filled = {
            field: self._fill(field, text, request.seed)
            for field in _FIELDS
            if (text := getattr(request, field)) and WILDCARD.search(text)
        }
        for field, text in filled.items():
            FIELDS[field].check(text)
        return replace(request, **filled) if filled else request  # type: ignore[arg-type]

    def _fill(self, field: str, text: str, seed: int) -> str:
        """Replace the wildcards, from left to right, and then those of each value.

        The choice number n of a field, from 0, is the first 8 bytes of the SHA-256 hash of
        "seed field n" as a number, modulo the number of values: the same on every machine.
        """
        numbers = itertools.count()

        def choose(match: re.Match[str]) -> str:
            number = next(numbers)
            if number >= MAX_CHOICES:
                raise InputError(
                    f"The wildcards take more than {MAX_CHOICES:,} values.", field=field
                )
            values = self._read(match[1])
            digest = hashlib.sha256(f"{seed} {field} {number}".encode()).digest()
            chosen = values[int.from_bytes(digest[:8], "big") % len(values)]
            return WILDCARD.sub(choose, chosen)

        return WILDCARD.sub(choose, text)

    def _nesting(self, text: str, outer: tuple[str, ...]) -> int:
        """How many wildcards a text has inside one another. Raises InputError.

        `outer` are the names of the wildcards whose value it is.
        """
        return max((self._depth(name, outer) for name in _names(text)), default=0)

    def _depth(self, name: str, outer: tuple[str, ...]) -> int:
        if name in outer:
            circle = " → ".join(f"__{one}__" for one in (*outer[outer.index(name) :], name))
            raise InputError(f"Wildcards contain each other: {circle}.")
        if name not in self._checked:
            if len(outer) >= _MAX_DEPTH:
                raise InputError(f"Wildcards are nested more than {_MAX_DEPTH} deep: __{name}__.")
            names = dict.fromkeys(n for value in self._read(name) for n in _names(value))
            inside = (*outer, name)
            self._checked[name] = 1 + max((self._depth(n, inside) for n in names), default=0)
        if len(outer) + self._checked[name] > _MAX_DEPTH:
            raise InputError(f"Wildcards are nested more than {_MAX_DEPTH} deep: __{name}__.")
        return self._checked[name]

    def _read(self, name: str) -> list[str]:
        """The values of a wildcard. Raises InputError."""
        if name not in self._values:
            path = self._files.get(name)
            if path is None:
                raise InputError(self._missing(name))
            self._values[name] = _read_values(path)
        return self._values[name]

    def _missing(self, name: str) -> str:
        near = difflib.get_close_matches(name[:100], self._files, n=3)
        listed = near or sorted(self._files)[:_MAX_LISTED]
        shown = ", ".join(f"__{one}__" for one in listed)
        more = ", …" if not near and len(self._files) > len(listed) else ""
        meant = f"did you mean {shown}?" if near else f"there are {shown}{more}."
        if not listed:
            meant = "the folder has no .txt file."
        return f"There is no {short_name(name)}.txt in '{self._folder}' for a wildcard; {meant}"


def _names(text: str) -> Iterator[str]:
    return (match[1] for match in WILDCARD.finditer(text))


def _text_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The .txt files of a folder and the folders in it, by wildcard name. Raises InputError."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"Cannot read the wildcards in '{folder}': {os_reason(error)}.", field="wildcards"
        ) from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders.sort()
        for file in sorted(files):
            path = Path(parent, file)
            if path.suffix.lower() == ".txt":
                yield path.relative_to(folder).with_suffix("").as_posix(), path


def _read_values(path: Path) -> list[str]:
    """One value a line, as the prompts of a text file: `#` comments, `{a|b}` are two values.

    Raises InputError.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(
                f"The wildcard file '{path}' is no file of at most {MAX_FILE_BYTES:,} bytes."
            )
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read the wildcard file '{path}': {os_reason(error)}.") from error
    values: list[str] = []
    for number, line in decode_lines([data]):
        try:
            if isinstance(line, PromptProblem):
                raise InputError(line.message)
            found = read_prompt_line(line)
            if any(len(value) > MAX_PROMPT for value in found):
                raise InputError(f"this value has more than {MAX_PROMPT:,} characters.")
        except InputError as error:
            message = f"The wildcard file '{path}' is wrong in line {number}: {error.message}"
            raise InputError(message) from error
        values += found
    if not values:
        raise InputError(f"The wildcard file '{path}' has no value.")
    console.trace(f"{len(values):,} values read from {path}")
    return values
