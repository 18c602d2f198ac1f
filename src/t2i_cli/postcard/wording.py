"""Reword a prompt into the words that postcard was trained on: plurals, spellings, numbers."""

import re
from typing import NamedTuple

from t2i_cli import postcard

_SHAPES = ("circle", "disc", "square", "triangle", "star", "heart", "diamond", "rhombus")
_OBJECTS = ("house", "cottage", "tree", "sailboat", "boat", "cactus", "snowman")
_PLURALS = {f"{noun}s": noun for noun in _SHAPES + _OBJECTS} | {
    "cacti": "cactus",
    "cactuses": "cactus",
    "rhombi": "rhombus",
    "rhombuses": "rhombus",
    "snowmen": "snowman",
}
_SPELLINGS = {
    "coloured": "",
    "colored": "",
    "disk": "disc",
    "disks": "discs",
    "midday": "noon",
    "nighttime": "night",
    "rhomb": "rhombus",
    "sail boat": "sailboat",
    "sail boats": "sailboats",
    "snow man": "snowman",
    "snow men": "snowmen",
    "sun rise": "sunrise",
    "sun set": "sunset",
    "twilight": "dusk",
}
_NEAREST = {
    "gray": "black",
    "grey": "black",
    "crimson": "red",
    "scarlet": "red",
    "navy": "blue",
    "golden": "yellow",
    "lilac": "purple",
    "magenta": "pink",
}
"""Colours that postcard does not have, and the one of its own that stands in: this is told."""
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SEVERAL = ("both", "a pair of", "a couple of", "some", "several", "many", "a few", "few")
_ADJECTIVES = (
    "red orange yellow green blue purple violet pink brown black white "
    "tiny little small medium-sized mid-sized medium big large huge round"
).split()


def _any_of(words: tuple[str, ...] | list[str]) -> str:
    return "|".join(re.escape(word) for word in words)


_ADJECTIVE_LIST = rf"(?:(?:{_any_of(_ADJECTIVES)})\s+)*"
_COUNTED = re.compile(
    rf"\b(?:(?:the|an?)\s+)?(?:(?P<count>{_any_of(_NUMBERS + _SEVERAL)}|[1-9]\d{{0,5}})\s+)?"
    rf"(?P<adjectives>{_ADJECTIVE_LIST})(?:and\s+(?P<others>(?:{_any_of(_ADJECTIVES)})\s+))?"
    rf"(?P<noun>{_any_of([*_PLURALS, *_SHAPES, *_OBJECTS])})\b"
)
_REPLACED = re.compile(rf"\b(?:{_any_of([*_SPELLINGS, *_NEAREST])})\b")
_WORD = re.compile(r"[^\W\d_]+")


class Wording(NamedTuple):
    """What postcard reads for a prompt."""

    prompt: str
    """The prompt in words of the model where it has them; unchanged if all words are known."""
    changes: tuple[str, ...]
    """What was read as something else, such as "gray as black"."""


def reword(prompt: str) -> Wording:
    """Reword a prompt for postcard.

    Plurals become singular, and one or two shapes are said as the model learnt it: "two red
    circles" is read as "a red circle and a red circle".
    """
    lowered = prompt.lower()
    counts = any(match["count"] for match in _COUNTED.finditer(lowered))
    if not counts and all(word in postcard.words() for word in _WORD.findall(lowered)):
        return Wording(prompt, ())
    changes: list[str] = []

    def replace(match: re.Match[str]) -> str:
        word = match[0]
        if word in _NEAREST:
            changes.append(f"{word} as {_NEAREST[word]}")
            return _NEAREST[word]
        return _SPELLINGS[word]

    text = _REPLACED.sub(replace, lowered)
    shapes = [match for match in _COUNTED.finditer(text) if _singular(match) in _SHAPES]
    alone = len(shapes) == 1

    def say(match: re.Match[str]) -> str:
        said, change = _say(match, alone)
        changes.extend([change] if change else [])
        return said

    text = _WORD.sub(_known_number, _COUNTED.sub(say, text))
    return Wording(" ".join(text.split()), tuple(dict.fromkeys(changes)))


def _say(match: re.Match[str], alone: bool) -> tuple[str, str]:
    """A counted noun in the model's words, and what was changed in meaning, if anything.

    `alone` says that no other shape is asked for, so that there is room for two.
    """
    noun, count, plural = _singular(match), match["count"], match["noun"] in _PLURALS
    if (noun == "star" and plural and not count) or not (count or plural or match["others"]):
        return match[0], ""  # stars in the sky, or one of something
    wanted = _amount(count) if count else 2
    first = f"a {match['adjectives']}{noun}"
    if match["others"]:
        return f"{first} and a {match['others']}{noun}", ""
    drawn = min(wanted, 2 if noun in _SHAPES and alone else 1)
    said = " and ".join([first.replace("a orange", "an orange")] * drawn)
    exact = drawn == wanted and count not in ("some", "several", "many", "a few", "few")
    return said, "" if exact else f"{match[0].strip()} as {_NUMBERS[drawn - 1]}"


def _singular(match: re.Match[str]) -> str:
    return _PLURALS.get(match["noun"], match["noun"])


def _amount(count: str) -> int:
    if count.isdecimal():
        return int(count)
    return _NUMBERS.index(count) + 1 if count in _NUMBERS else 2


def _known_number(match: re.Match[str]) -> str:
    """A word in the number, singular or plural, that the model knows; or as it is."""
    word, known = match[0], postcard.words()
    if word in known:
        return word
    return next((each for each in (word.removesuffix("s"), f"{word}s") if each in known), word)
