"""Names of styles in a request: `--style NAME`, or a list `style` in JSON."""

import json

from t2i_cli.errors import InputError

_FIELD = "style"
_MAX_NAMES = 32
_MAX_NAME = 200
"""Characters of a style's name."""


def parse_style_names(given: object) -> tuple[str, ...] | None:
    """Names from a list, a JSON list as text, or a text with commas between; raises InputError.

    `None` if there are none.
    """
    if isinstance(given, str):
        text = given.strip()
        given = _json_list(text) if text.startswith("[") else text.split(",")
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise InputError("style must be a list of names.", field=_FIELD)
    names = tuple(stripped for name in given if (stripped := name.strip()))
    if len(names) > _MAX_NAMES:
        raise InputError(
            f"There are {len(names):,} styles; at most {_MAX_NAMES} are taken.", field=_FIELD
        )
    for name in names:
        if len(name) > _MAX_NAME or not name.isprintable():
            raise InputError(
                f"A style's name is printable text of at most {_MAX_NAME} characters.", field=_FIELD
            )
    return names or None


def _json_list(text: str) -> object:
    try:
        return json.loads(text)
    except (RecursionError, ValueError):
        return [text]
