"""Expands alternatives in a prompt, as `{red|blue} star`, to all combinations."""

import itertools
import math
from collections.abc import Iterator

from t2i_cli.errors import InputError
from t2i_cli.request_field import MAX_PROMPT

MAX_COMBINATIONS = 10_000
"""Largest number of combinations of one line; checked before they are built in memory."""
_MAX_SHOWN = 10**12
_MAX_DEPTH = 20
_ESCAPABLE = "{}|\\#"

# A text is a list of parts; a part is a literal, or a list of alternative texts.
PromptPart = str | list["Text"]
Text = list[PromptPart]


def expand_alternatives(prompt: str) -> list[str]:
    r"""All combinations of the prompt's alternatives; the last alternatives vary fastest.

    Braces without a `|` are literal, as are `\{`, `\|`, `\}`, `\\` and `\#`. Raises InputError
    for an unclosed brace, too deep nesting, and more than MAX_COMBINATIONS combinations.
    """
    if not any(character in prompt for character in "{\\"):
        return [prompt]
    text, _ = _parse_text(prompt, 0, 0)
    number = _count_combinations(text)
    if number > MAX_COMBINATIONS:
        # Python refuses to print numbers of thousands of digits.
        made = f"{number:,}" if number < _MAX_SHOWN else f"more than {_MAX_SHOWN:,}"
        raise InputError(
            f"the alternatives make {made} combinations; {MAX_COMBINATIONS:,} are the most."
        )
    if number > 1 and (longest := _longest(text)) > MAX_PROMPT:
        raise InputError(
            f"the alternatives make prompts of {longest:,} characters; at most {MAX_PROMPT:,} are "
            "taken."
        )
    return list(_combinations(text))


def _parse_text(prompt: str, start: int, depth: int) -> tuple[Text, int]:
    """Parse from `start` to the end, or inside braces to the next `|` or `}`.

    Returns the text and the position after it.
    """
    parts: Text = []
    position = start
    while position < len(prompt):
        character = prompt[position]
        if character == "\\" and prompt[position + 1 : position + 2] in tuple(_ESCAPABLE):
            parts.append(prompt[position + 1])
            position += 2
        elif character == "{":
            found, position = _parse_braces(prompt, position, depth + 1)
            parts.extend(found)
        elif depth and character in "|}":
            break
        else:
            parts.append(character)
            position += 1
    return parts, position


def _parse_braces(prompt: str, start: int, depth: int) -> tuple[Text, int]:
    """Parse the braces that open at `start`; returns their parts and the position after them."""
    if depth > _MAX_DEPTH:
        raise InputError(f"alternatives are nested more than {_MAX_DEPTH} deep.")
    choices: list[Text] = []
    position = start
    while True:
        text, position = _parse_text(prompt, position + 1, depth)
        choices.append(text)
        if position == len(prompt):
            raise InputError(
                f"the brace at character {start + 1} is never closed; "
                r"\{ is a brace of the prompt's own."
            )
        if prompt[position] == "}":
            break
    if len(choices) == 1:
        return ["{", *choices[0], "}"], position + 1
    return [choices], position + 1


def _count_combinations(text: Text) -> int:
    return math.prod(sum(map(_count_combinations, part)) for part in text if isinstance(part, list))


def _longest(text: Text) -> int:
    """Characters of the longest combination."""
    return sum(len(part) if isinstance(part, str) else max(map(_longest, part)) for part in text)


def _combinations(text: Text) -> Iterator[str]:
    choices = (
        [part] if isinstance(part, str) else [c for choice in part for c in _combinations(choice)]
        for part in text
    )
    return map("".join, itertools.product(*choices))
