"""Parses AUTOMATIC1111's weights in prompts: `(word:1.3)`, `((word))`, `[word]`, escapes as `\\(`.

The rules are those of `modules/prompt_parser.py` (parse_prompt_attention) of
AUTOMATIC1111/stable-diffusion-webui. What else that program reads in a prompt is refused by name.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from t2i_cli.errors import InputError

MAX_WORD_WEIGHT = 10.0
"""Far more than any model stands; images turn to noise at 2 or so."""

_ROUND = 1.1
"""The factor of a pair of round brackets without a number; square brackets divide by it."""
_SIGN = re.compile(
    r"""
    \\[()\[\]\\] | \\ | \( | \[ |
    :\s*(?P<weight>[+-]?[.\d]+)\s*\) |
    \) | ] | [^\\()\[\]:]+ | :
    """,
    re.VERBOSE,
)
_KEYWORD = re.compile(r"\b(?:BREAK|AND)\b")
_STEP = re.compile(r":\s*[-+]?[0-9]*\.?[0-9]+\s*$")
"""The end of `[from:to:when]`; looked for in so many characters of a bracket:"""
_MAX_STEP = 40
_PLAIN_HINT = "--prompt-syntax plain reads it as words."
_MAX_SHOWN = 40


class WeightedText(NamedTuple):
    """A part of a prompt, and its weight; 1 is that of plain text."""

    text: str
    weight: float


def parse_weights(text: str, field: str = "prompt") -> list[WeightedText]:
    """The parts of a prompt; neighbours differ in weight, and one part at least is there.

    Raises InputError for what is no weight: `BREAK`, `AND`, prompt editing, alternating words.
    """
    _refuse_other_syntax(text, field)
    parts: list[list[str | float]] = []
    rounds: list[int] = []
    squares: list[int] = []
    for match in _SIGN.finditer(text):
        sign, weight = match[0], match["weight"]
        if sign[0] == "\\":
            parts.append([sign[1:], 1.0])
        elif sign == "(":
            rounds.append(len(parts))
        elif sign == "[":
            squares.append(len(parts))
        elif weight is not None and rounds:
            _multiply(parts, rounds.pop(), _number(weight, field))
        elif sign == ")" and rounds:
            _multiply(parts, rounds.pop(), _ROUND)
        elif sign == "]" and squares:
            _multiply(parts, squares.pop(), 1 / _ROUND)
        else:
            parts.append([sign, 1.0])
    # Brackets that nothing closes reach to the end.
    for start in rounds:
        _multiply(parts, start, _ROUND)
    for start in squares:
        _multiply(parts, start, 1 / _ROUND)
    # Rounded: products that are 1 but for their last bits are plain text.
    found = [WeightedText(str(text), round(float(weight), 9)) for text, weight in parts]
    for part in found:
        check_weight(part.weight, field)
    return _joined(found)


def check_weight(weight: float, field: str) -> None:
    """Raise InputError for a weight that no text encoder can be given."""
    if not 0 <= weight <= MAX_WORD_WEIGHT:
        raise InputError(
            f"A weight in the {field.replace('_', ' ')} is {weight:.4g}; weights are from 0 to "
            f"{MAX_WORD_WEIGHT:g}.",
            hint="Brackets that are no weights are written \\( and \\).",
            field=field,
        )


def is_weighted(text: str) -> bool:
    """Whether AUTOMATIC1111 reads a weight in a text, and nothing that t2i does not."""
    try:
        return any(part.weight != 1 for part in parse_weights(text))
    except InputError:
        return False


def _refuse_other_syntax(text: str, field: str) -> None:
    """Raise InputError for syntax of AUTOMATIC1111 that is no weight."""
    if keyword := _KEYWORD.search(text):
        raise InputError(
            f"The {field.replace('_', ' ')} has {keyword[0]}, which t2i does not read as "
            "AUTOMATIC1111 does.",
            hint=f"In lower case it is a word; {_PLAIN_HINT}",
            field=field,
        )
    opened: list[tuple[int, bool]] = []
    escaped = False
    for place, character in enumerate(text):
        if escaped or character == "\\":
            escaped = not escaped
        elif character == "[":
            opened.append((place, False))
        elif character == "|" and opened:
            opened[-1] = (opened[-1][0], True)
        elif character == "]" and opened:
            start, alternates = opened.pop()
            inside = text[max(start + 1, place - _MAX_STEP) : place]
            if alternates or _STEP.search(inside):
                kind = "words that alternate" if alternates else "a change between steps"
                raise InputError(
                    f"The {field.replace('_', ' ')} has {kind}, which t2i does not make: "
                    f"`{_shortened(text[start : place + 1])}`.",
                    hint=_PLAIN_HINT,
                    field=field,
                )


def _multiply(parts: list[list[str | float]], start: int, factor: float) -> None:
    for part in parts[start:]:
        part[1] = float(part[1]) * factor


def _number(text: str, field: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"{_shortened(text)} in the {field.replace('_', ' ')} is no weight.",
            hint="As (word:1.3); a bracket that is meant is written \\( and \\).",
            field=field,
        ) from None


def _joined(parts: Sequence[WeightedText]) -> list[WeightedText]:
    """The parts with neighbours of one weight joined, and without those that have no text."""
    found: list[WeightedText] = []
    for part in parts:
        if found and found[-1].weight == part.weight:
            found[-1] = WeightedText(found[-1].text + part.text, part.weight)
        elif part.text:
            found.append(part)
    told = [part for part in found if part.text.strip()]
    return (told if len(told) > 1 or told[0].weight != 1 else found) if told else [_EMPTY]


_EMPTY = WeightedText("", 1.0)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
