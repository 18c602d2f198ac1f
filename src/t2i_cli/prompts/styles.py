"""Styles of a CSV file as AUTOMATIC1111 has it, `styles.csv`: parts that are added to prompts."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from t2i_cli.errors import InputError, os_reason
from t2i_cli.files.input_files import read_input
from t2i_cli.known_names import closest_name
from t2i_cli.prompts.decoding import decode_text
from t2i_cli.request import GenerateRequest

_MAX_FILE_BYTES = 2**24
_PLACEHOLDER = "{prompt}"
_PROMPT_COLUMNS = ("prompt", "text")
"""The column of the prompt, and what old versions call it."""
_FIELD = "style"
_MAX_LISTED = 12


@dataclass(frozen=True)
class Style:
    """What a style adds to the prompts, from a line (from 1) of its file.

    `{prompt}` in it stands for the prompt; else it is added behind it.
    """

    line: int
    prompt: str
    negative_prompt: str


class StyleFile:
    """A file of styles, read when the first style of a request is looked up."""

    def __init__(self, path: Path) -> None:
        """`path` is a CSV file with columns `name`, `prompt` and `negative_prompt`."""
        self._path = path

    @cached_property
    def names(self) -> list[str]:
        """The names of the styles. Raises InputError."""
        return list(self._styles)

    def expand(self, request: GenerateRequest, own_negative: str | None) -> GenerateRequest:
        """The request with its styles in its prompts. Raises InputError."""
        prompt, negative = request.prompt, request.negative_prompt or ""
        styles = [self._find(name) for name in request.style or ()]
        if request.negative_prompt is None and any(style.negative_prompt for style in styles):
            negative = own_negative or ""
        for style in styles:
            prompt, negative = (
                _merged(prompt, style.prompt),
                _merged(negative, style.negative_prompt),
            )
        return replace(request, prompt=prompt, negative_prompt=negative or request.negative_prompt)

    def _find(self, name: str) -> Style:
        found = self._styles.get(name)
        if found is None:
            near = closest_name(name, self._styles)
            listed = ", ".join(self.names[:_MAX_LISTED])
            more = ", …" if len(self.names) > _MAX_LISTED else ""
            there_are = f"there are {listed}{more}." if listed else "there is none."
            raise InputError(
                f"There is no style {name!r} in '{self._path}'; "
                f"{f'did you mean {near}?' if near else there_are}",
                field=_FIELD,
            )
        if len(found) > 1:
            first, second = found[:2]
            raise InputError(
                f"The style {name!r} stands twice in '{self._path}', in lines {first.line} and "
                f"{second.line}, with other prompts.",
                field=_FIELD,
            )
        return found[0]

    @cached_property
    def _styles(self) -> Mapping[str, list[Style]]:
        """The styles by name; several of a name only where they differ. Raises InputError."""
        found: dict[str, list[Style]] = {}
        for name, style in _read_styles(self._path):
            alike = found.setdefault(name, [])
            if all(
                (one.prompt, one.negative_prompt) != (style.prompt, style.negative_prompt)
                for one in alike
            ):
                alike.append(style)
        return found


def expand_styles(
    request: GenerateRequest, styles: StyleFile | None, own_negative: str | None = None
) -> GenerateRequest:
    """The request with the styles that it names in its prompts. Raises InputError.

    `own_negative` is the negative prompt that the model brings: where the request has none, those
    of its styles are added to it, as AUTOMATIC1111 adds them to what stands in its field.
    """
    if not request.style:
        return request
    if styles is None:
        raise InputError(
            f"There is no file of styles, and so no style {request.style[0]!r}.",
            hint="--styles FILE names one, or the setting styles.",
            field=_FIELD,
        )
    return styles.expand(request, own_negative)


def _merged(prompt: str, style: str) -> str:
    """As AUTOMATIC1111's merge_prompts does (`modules/styles.py`)."""
    if _PLACEHOLDER in style:
        return style.replace(_PLACEHOLDER, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


def _read_styles(path: Path) -> list[tuple[str, Style]]:
    """Every style of a file with its name. Raises InputError."""
    try:
        text = decode_text(read_input(path, _MAX_FILE_BYTES))
    except OSError as error:
        raise InputError(
            f"Cannot read the styles in '{path}': {os_reason(error)}.", field="styles"
        ) from error
    except (ValueError, InputError) as error:
        raise InputError(f"Cannot read the styles in '{path}': {error}.", field="styles") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    found = []
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        prompt = next((name for name in _PROMPT_COLUMNS if name in columns), None)
        if "name" not in columns or prompt is None:
            raise InputError(
                f"The styles in '{path}' have no column {'prompt' if 'name' in columns else 'name'}"
                ".",
                hint="The first line is name,prompt,negative_prompt.",
                field="styles",
            )
        for row in reader:
            name = (row["name"] or "").strip()
            if not name or name.startswith("#"):
                continue  # a comment, or a line of Excel's behind the table
            style = Style(reader.line_num, row[prompt] or "", row.get("negative_prompt") or "")
            found.append((name, style))
    except csv.Error as error:
        raise InputError(
            f"The styles in '{path}' are no CSV: line {reader.line_num}: {error}.", field="styles"
        ) from error
    return found
