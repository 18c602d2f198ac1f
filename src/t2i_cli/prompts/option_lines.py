"""Parses lines of options in a text file, as AUTOMATIC1111's script "Prompts from file" has them.

The format follows `scripts/prompts_from_file.py` (cmdargs) of AUTOMATIC1111/stable-diffusion-webui:
`--prompt "a red star" --steps 5`, where prompts need no quotes.
"""

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping

from t2i_cli.errors import InputError
from t2i_cli.prompts.entries import (
    MAX_FIELDS,
    ROW_FIELDS,
    PromptEntry,
    PromptProblem,
    Value,
    parse_value,
    read_entry,
    short_name,
)
from t2i_cli.request_fields import FIELDS

_OPTION = re.compile(r"--([A-Za-z][\w-]*)(=.*)?", re.DOTALL)
MAX_OPTION_LINE = 100_000
"""Characters of a line of options; alternatives may make it longer than a prompt."""
_COUNTS = ("n_iter", "batch_size")
"""Options whose product is the number of images."""
_OPTIONS: Mapping[str, str] = (
    {name: name for name in ROW_FIELDS}
    | {
        flag.removeprefix("--").replace("-", "_"): name
        for name, field in FIELDS.items()
        for flag in field.flags
        if flag.startswith("--")
    }
    | {"sampler_name": "scheduler", "sd_model": "model", "styles": "style"}
    | dict.fromkeys(_COUNTS, "count")
)
"""Names of options, with underscores, to fields of rows."""
_WITHOUT_COUNTERPART = frozenset(
    {
        *("outpath_samples", "outpath_grids", "prompt_for_display", "subseed"),
        *("subseed_strength", "seed_resize_from_h", "seed_resize_from_w", "sampler_index"),
        *("restore_faces", "tiling", "do_not_save_samples", "do_not_save_grid"),
    }
)
"""Options of AUTOMATIC1111 that t2i has nothing for."""


def is_option_line(text: str) -> bool:
    """Whether a line begins with an option."""
    return text.startswith("--") and _OPTION.match(text) is not None


def read_option_line(number: int, text: str) -> Iterator[PromptEntry | PromptProblem]:
    """Yield the entry of a line of options, or its problems."""
    try:
        pairs = _parse_options(text)
    except InputError as error:
        yield PromptProblem(number, error.field, error.message)
        return
    for item in read_entry(number, pairs, _parse_value):
        if isinstance(item, PromptProblem):
            yield item
        else:
            yield _with_field_names(item)


def _parse_options(text: str) -> list[tuple[str, str]]:
    """Parse a line to its options and their values, in order. Raises InputError."""
    if len(text) > MAX_OPTION_LINE:
        raise InputError(
            f"this line has {len(text):,} characters; at most {MAX_OPTION_LINE:,} are read."
        )
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError("a quote of these options is never closed.") from error
    found: dict[str, list[str]] = {}
    for word in words:
        if match := _OPTION.fullmatch(word):
            name = match[1].replace("-", "_")
            if _OPTIONS.get(name, name) in {_OPTIONS.get(one, one) for one in found} - {"count"}:
                raise InputError("this option is there twice.", field=short_name(name))
            if len(found) > MAX_FIELDS:
                raise InputError("there are too many options; it cannot be a row.")
            found[name] = [] if match[2] is None else [match[2][1:]]
        elif not found[name] or _OPTIONS.get(name) in {"prompt", "negative_prompt"}:
            found[name].append(word)  # prompts of several words need no quotes
        else:
            raise InputError(f"{short_name(word)!r} belongs to no option.")
    return [(name, " ".join(values)) for name, values in found.items()]


def _parse_value(name: str, text: str) -> Value | None:
    field = _OPTIONS.get(name)
    if field is not None:
        return parse_value(field, text)
    if name in _WITHOUT_COUNTERPART:
        raise InputError("t2i has no such option.")
    near = difflib.get_close_matches(name, _OPTIONS, n=1)
    meant = f"did you mean --{near[0]}?" if near else f"there are {', '.join(_OPTIONS)}."
    raise InputError(f"unknown option; {meant}")


def _with_field_names(entry: PromptEntry) -> PromptEntry:
    values: dict[str, Value] = {}
    for name, value in entry.values.items():
        field = _OPTIONS[name]
        values[field] = int(value) * int(values.get(field, 1)) if field == "count" else value
    return PromptEntry(entry.line, values)
