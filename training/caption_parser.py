"""Parses captions of the postcard vocabulary into the shapes or the landscape they ask for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from training.captions import COLOUR_WORDS, KIND_WORDS, SIZE_WORDS
from training.palette import COLOURS


@dataclass(frozen=True)
class ParsedShape:
    """A shape asked for; None where the caption leaves something open."""

    kind: str
    colour: str | None
    size: str | None


@dataclass(frozen=True)
class ParsedShapes:
    """One shape or two; with `relation` "left" or "above" the first is the left or upper one."""

    background: str | None
    shapes: tuple[ParsedShape, ...]
    relation: str | None


@dataclass(frozen=True)
class ParsedLandscape:
    """What a caption says of a landscape; `moon` alone may be full or crescent."""

    time: str | None = None
    ground: str | None = None
    light: str | None = None
    thing: str | None = None
    colour: str | None = None


ParsedCaption = ParsedShapes | ParsedLandscape


def _meanings(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: meaning for meaning, words in table.items() for word in words}


_COLOURS: Final = {name: name for name in COLOURS} | _meanings(COLOUR_WORDS)
_KINDS: Final = _meanings(KIND_WORDS)
_SIZES: Final = _meanings(SIZE_WORDS)
_TIMES: Final = _meanings(
    {
        "day": ("day", "daytime", "noon"),
        "sunset": ("sunset", "dusk", "evening"),
        "night": ("night",),
        "dawn": ("dawn", "sunrise", "morning"),
    }
)
_GROUNDS: Final = _meanings(
    {
        "hills": ("hills",),
        "desert": ("desert", "sand", "dunes"),
        "snow": ("snow", "snowy"),
        "sea": ("sea", "ocean", "water"),
        "field": ("field", "fields"),
    }
)
_THINGS: Final = _meanings(
    {
        "house": ("house", "cottage"),
        "tree": ("tree",),
        "sailboat": ("sailboat", "boat"),
        "cactus": ("cactus",),
        "snowman": ("snowman",),
    }
)


def parse_caption(caption: str) -> ParsedCaption:
    """What the caption asks for; raises ValueError if nothing in it is of the postcard world."""
    text = caption.lower()
    words = re.findall(r"[a-z]+(?:-[a-z]+)*", text)
    parsed: ParsedCaption = (
        _shapes(words) if any(word in _KINDS for word in words) else _landscape(words)
    )
    if parsed == ParsedLandscape():
        raise ValueError(f"nothing to check in {caption!r}")
    return parsed


def _shapes(words: list[str]) -> ParsedShapes:
    shapes: list[ParsedShape] = []
    background = colour = size = None
    for word in words:
        if word in _COLOURS:
            background = colour or background
            colour = _COLOURS[word]
        elif word in _SIZES:
            size = _SIZES[word]
        elif word in _KINDS:
            shapes.append(ParsedShape(_KINDS[word], colour, size))
            colour = size = None
        elif word == "background":
            background, colour = colour or background, None
    parsed = ParsedShapes(colour or background, tuple(shapes), None)
    return _ordered(parsed, words) if len(shapes) == 2 else parsed


def _ordered(parsed: ParsedShapes, words: list[str]) -> ParsedShapes:
    """The shapes with their relation, turned so that the left or upper one comes first."""
    sides = [word for word in words if word in ("left", "right")]
    if sides:
        relation, turned = "left", sides[0] == "right"
    else:
        upper = {"above", "over", "top"} & set(words)
        lower = {"below", "under", "beneath", "underneath"} & set(words)
        if not upper and not lower:
            return parsed
        relation, turned = "above", bool(lower)
    shapes = parsed.shapes[::-1] if turned else parsed.shapes
    return replace(parsed, shapes=shapes, relation=relation)


def _landscape(words: list[str]) -> ParsedLandscape:
    said: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "snowy" and following == "mountains":
            continue
        for field, table in (("time", _TIMES), ("ground", _GROUNDS), ("thing", _THINGS)):
            if word in table:
                said[field] = table[word]
        if word in _COLOURS and following in ("house", "cottage", "boat", "sails", "sailing"):
            said["colour"] = _COLOURS[word]
        elif word in _COLOURS and following == "sailboat":
            said["colour"] = _COLOURS[word]
        elif word == "sun":
            said["light"] = "sun"
        elif word == "crescent":
            said["light"] = "crescent moon"
        elif word == "moon":
            full = {"full", "round"} & set(words)
            said.setdefault("light", "full moon" if full else "moon")
    return ParsedLandscape(**said)
