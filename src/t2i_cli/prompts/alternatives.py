"""`{red|blue} star`: alternatives in a prompt, expanded to all combinations."""

import itertools
import math
from collections.abc import Iterator

from t2i_cli.errors import InputError

MAX_COMBINATIONS = 10_000
"""Of one line: more is a slip, and would fill memory before anything could be said."""
_MAX_DEPTH = 20
_ESCAPED = "{}|\\#"

# A text is a sequence of parts; a part is a literal, or its alternatives as texts.
PromptPart = str | list["Text"]
Text = list[PromptPart]


def expand_alternatives(prompt: str) -> list[str]:
    r"""Every combination of the prompt's alternatives, the last varying fastest.

    Braces without a `|` stand for themselves, as does `\{`, `\|`, `\}`, `\\` or `\#`. Raises
    InputError for a brace that is never closed, and for too many combinations.
    """
    if not any(character in prompt for character in "{\\"):
        return [prompt]
    text, _ = _text(prompt, 0, 0)
    number = _count(text)
    if number > MAX_COMBINATIONS:
        raise InputError(
            f"the alternatives make {number:,} combinations; {MAX_COMBINATIONS:,} are the most."
        )
    return list(_combinations(text))


def _text(prompt: str, start: int, depth: int) -> tuple[Text, int]:
    """The text from `start` to the end, or inside braces to the next `|` or `}`."""
    parts: Text = []
    position = start
    while position < len(prompt):
        character = prompt[position]
        if character == "\\" and prompt[position + 1 : position + 2] in tuple(_ESCAPED):
            parts.append(prompt[position + 1])
            position += 2
        elif character == "{":
            found, position = _braces(prompt, position, depth + 1)
            parts.extend(found)
        elif depth and character in "|}":
            break
        else:
            parts.append(character)
            position += 1
    return parts, position


def _braces(prompt: str, start: int, depth: int) -> tuple[Text, int]:
    """What the braces that open at `start` stand for, and the position behind them."""
    if depth > _MAX_DEPTH:
        raise InputError(f"alternatives are nested more than {_MAX_DEPTH} deep.")
    choices: list[Text] = []
    position = start
    while True:
        text, position = _text(prompt, position + 1, depth)
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


def _count(text: Text) -> int:
    return math.prod(sum(map(_count, part)) for part in text if isinstance(part, list))


def _combinations(text: Text) -> Iterator[str]:
    choices = (
        [part] if isinstance(part, str) else [c for choice in part for c in _combinations(choice)]
        for part in text
    )
    return map("".join, itertools.product(*choices))
