"""Named arguments of a pipeline in a request: `--set name=value`, or an object `extras` in JSON.

Here they are parsed and bounded; whether a model takes them: `models/extras_support.py`.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from t2i_cli.errors import InputError

ExtraValue = bool | int | float | str | tuple[Any, ...]
Extras = tuple[tuple[str, ExtraValue], ...]
"""Names and values, sorted by name; lists are tuples, so that requests are hashable."""

_FIELD = "extras"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_MAX_NAMES = 32
_MAX_TEXT = 5_000
"""Characters of a value that is text."""
_MAX_ITEMS = 1_001
"""Numbers of a list, those of the lists in it included: one for each of the most steps, and one."""
_MAX_NUMBER = 1e12
_MAX_DEPTH = 2
_MAX_SHOWN = 40


def parse_extras(given: object) -> Extras | None:
    """Extras from `name=value` texts, an object, or an object as JSON text; raises InputError.

    `None` if there are none. A value that is null is left out.
    """
    if isinstance(given, str):
        text = given.strip()
        given = _json_value(text, text) if text.startswith("{") else [text]
    if isinstance(given, list | tuple):
        given = _pairs(given)
    if not isinstance(given, Mapping):
        raise InputError("extras must be an object of names and values.", field=_FIELD)
    if len(given) > _MAX_NAMES:
        raise InputError(
            f"There are {len(given):,} extras; at most {_MAX_NAMES} are taken.", field=_FIELD
        )
    found = [(_checked_name(name), value) for name, value in given.items() if value is not None]
    return tuple((name, _frozen(name, value)) for name, value in sorted(found)) or None


def extras_to_json(extras: Extras) -> dict[str, object]:
    """The object for records and bodies."""
    return {name: _thawed(value) for name, value in extras}


def extras_text(extras: Mapping[str, object]) -> str:
    """The object as JSON text of one line, as infotext and file names have it."""
    return json.dumps(extras, ensure_ascii=False, separators=(",", ":"))


def extra_options(extras: Mapping[str, object]) -> list[str]:
    """The `name=value` texts that are parsed to these extras."""
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in extras.items()]


def _pairs(texts: list[object] | tuple[object, ...]) -> dict[str, object]:
    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = str(text).partition("=")
        name = name.strip()
        if not isinstance(text, str) or not equals:
            raise InputError(
                f"{_short(text)} is not of the form name=value.",
                hint="As true_cfg_scale=4, with a value as in JSON.",
                field=_FIELD,
            )
        if name in found:
            raise InputError(f"{_short(name)} is set twice.", field=_FIELD)
        found[name] = _json_value(value.strip(), name)
    return found


def _json_value(text: str, name: str) -> object:
    """A value as in JSON; a word that is none is text, since shells take quotes away."""
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"The value of {_short(name)} is too deep.", field=_FIELD) from None
    except ValueError:
        if not text or text[0] in '[{"' or len(text) > _MAX_TEXT:
            raise InputError(
                f"The value of {_short(name)} is not JSON: {_short(text)}.",
                hint='As true, 0.5, [1, 2] or "text".',
                field=_FIELD,
            ) from None
        return text


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"{_short(name)} is no name of an argument.", field=_FIELD)
    return name


def _frozen(name: str, value: object) -> ExtraValue:
    """A value that can be hashed. Raises InputError for one that no argument takes."""
    if _size(value) > _MAX_ITEMS:
        raise InputError(f"{name} has more than {_MAX_ITEMS:,} values.", field=_FIELD)
    return _frozen_part(name, value, 0)


def _size(value: object) -> int:
    if not isinstance(value, list | tuple):
        return 1
    inner = [each for each in value if isinstance(each, list | tuple)]
    return len(value) + sum(len(each) for each in inner)


def _frozen_part(name: str, value: object, depth: int) -> ExtraValue:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        if not abs(value) <= _MAX_NUMBER or not math.isfinite(value):
            raise InputError(f"{name} must be a finite number below 1e12.", field=_FIELD)
        return value
    if isinstance(value, str):
        if len(value) > _MAX_TEXT or not value.isprintable():
            raise InputError(
                f"{name} must be printable text of at most {_MAX_TEXT:,} characters.", field=_FIELD
            )
        return value
    if isinstance(value, list | tuple) and depth < _MAX_DEPTH:
        return tuple(_frozen_part(name, each, depth + 1) for each in value)
    what = "a list that deep" if isinstance(value, list | tuple) else "an object"
    raise InputError(f"{name} cannot be {what}.", field=_FIELD)


def _thawed(value: ExtraValue) -> object:
    return [_thawed(each) for each in value] if isinstance(value, tuple) else value


def _short(value: object) -> str:
    text = value if isinstance(value, str) else type(value).__name__
    shown = text[:_MAX_SHOWN].encode("unicode_escape").decode()
    return repr(shown) if len(text) <= _MAX_SHOWN else f"{shown!r}…"
