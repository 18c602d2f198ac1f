"""What a person might say of a scene: captions in many wordings, most leaving something out."""

import random
from typing import Final

from training.scenes import Landscape, Scene, Shape, ShapeScene

SIZE_WORDS: Final = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium", "medium-sized", "mid-sized"),
    "large": ("large", "large", "big", "huge"),
}
KIND_WORDS: Final = {
    "circle": ("circle", "circle", "circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "diamond": ("diamond", "diamond", "diamond", "rhombus"),
}
COLOUR_WORDS: Final = {"purple": ("purple", "purple", "violet")}

GROUND_PLACES: Final = {
    "hills": ("on green hills", "on green hills", "on the hills", "on hills", "in the hills"),
    "desert": ("in the desert", "in a desert", "in the desert", "on the sand"),
    "snow": ("in the snow", "on snow", "in the snow", "in a snowy landscape"),
    "sea": ("on the sea", "at sea", "on the ocean", "on the water", "on a blue sea"),
    "field": ("in a field", "in a field", "in the fields", "in a wheat field", "on a field"),
}
GROUND_NAMES: Final = {
    "hills": ("green hills", "hills", "green hills", "rolling hills"),
    "desert": ("a desert", "desert", "the desert", "sand dunes"),
    "snow": ("snow", "a snowy landscape", "snowy land", "the snow"),
    "sea": ("the sea", "sea", "the ocean", "a calm sea"),
    "field": ("a field", "field", "fields", "a wheat field"),
}
TIME_PLACES: Final = {
    "day": ("by day", "in the daytime", "during the day", "on a clear day", "at noon"),
    "sunset": ("at sunset", "at sunset", "at dusk", "in the evening"),
    "night": ("at night", "at night", "in the night", "by night"),
    "dawn": ("at dawn", "at dawn", "at sunrise", "in the early morning"),
}
TIME_NAMES: Final = {
    "day": ("day", "daytime", "a day", "a clear day"),
    "sunset": ("sunset", "a sunset", "dusk", "evening"),
    "night": ("night", "a night", "night", "night sky"),
    "dawn": ("dawn", "sunrise", "early morning", "a dawn"),
}
LIGHT_NAMES: Final = {
    "sun": ("the sun", "a sun", "sun"),
    "full moon": ("a full moon", "full moon", "the full moon", "a round moon"),
    "crescent moon": ("a crescent moon", "crescent moon", "a crescent", "the crescent moon"),
}
THING_WORDS: Final = {
    "house": ("house", "house", "house", "cottage"),
    "tree": ("tree",),
    "sailboat": ("sailboat", "sailboat", "boat", "sailing boat"),
    "cactus": ("cactus",),
    "snowman": ("snowman",),
}
OPENINGS: Final = ("", "", "", "", "", "", "a picture of ", "a postcard of ", "a drawing of ")


def caption(scene: Scene, rng: random.Random) -> str:
    """A caption of the scene, in one of many wordings; what it says is true of the picture."""
    if isinstance(scene, Landscape):
        return _landscape(scene, rng)
    if len(scene.shapes) == 1:
        return _one(scene, rng)
    return _two(scene, rng)


def _article(words: str, rng: random.Random, definite: float = 0.12) -> str:
    if rng.random() < definite:
        return f"the {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _colour(name: str, rng: random.Random) -> str:
    return rng.choice(COLOUR_WORDS.get(name, (name,)))


def _shape(shape: Shape, rng: random.Random, sized: float = 0.55) -> str:
    words = [_colour(shape.colour, rng), rng.choice(KIND_WORDS[shape.kind])]
    if rng.random() < sized:
        words.insert(0, rng.choice(SIZE_WORDS[shape.size]))
    return " ".join(words)


def _background(scene: ShapeScene, rng: random.Random) -> str:
    colour = _colour(scene.background, rng)
    return rng.choice(
        (
            f" on {_article(f'{colour} background', rng)}",
            f" on {_article(f'{colour} background', rng)}",
            f" on {colour}",
            f", {colour} background",
            f" against {_article(f'{colour} background', rng)}",
            f" in front of {_article(f'{colour} background', rng)}",
            f" with {_article(f'{colour} background', rng)}",
        )
    )


def _one(scene: ShapeScene, rng: random.Random) -> str:
    words = _shape(scene.shapes[0], rng)
    colour = _colour(scene.background, rng)
    draw = rng.random()
    if draw < 0.06:
        return rng.choice(OPENINGS) + _article(words, rng)
    if draw < 0.18:
        return f"{_article(f'{colour} background', rng)} with {_article(words, rng)}"
    if draw < 0.24:
        return f"{colour} background, {words}"
    named = words if rng.random() < 0.35 else rng.choice(OPENINGS) + _article(words, rng)
    return named + _background(scene, rng)


def _two(scene: ShapeScene, rng: random.Random) -> str:
    sized = 0.4
    first, second = (_shape(shape, rng, sized) for shape in scene.shapes)
    if rng.random() < 0.7:
        first, second = _article(first, rng), _article(second, rng)
    if scene.relation == "left":
        forward: tuple[str, ...] = (
            f"{first} left of {second}",
            f"{first} to the left of {second}",
            f"{first} on the left and {second} on the right",
            f"{first} next to {second}",
            f"{first} beside {second}",
            f"{first} and {second}",
            f"{first} left, {second} right",
        )
        backward = (
            f"{second} right of {first}",
            f"{second} to the right of {first}",
            f"{second} on the right and {first} on the left",
        )
    else:
        forward = (
            f"{first} above {second}",
            f"{first} over {second}",
            f"{first} on top and {second} at the bottom",
        )
        backward = (
            f"{second} below {first}",
            f"{second} under {first}",
            f"{second} beneath {first}",
        )
    words = rng.choice(forward if rng.random() < 0.6 else backward)
    if rng.random() < 0.06:
        return words
    return rng.choice(OPENINGS) + words + _background(scene, rng)


def _thing(scene: Landscape, rng: random.Random, bare: bool) -> str:
    word = rng.choice(THING_WORDS[str(scene.thing)])
    if scene.colour is not None and rng.random() < 0.85:
        word = f"{_colour(scene.colour, rng)} {word}"
    if scene.thing == "sailboat" and scene.colour is not None and rng.random() < 0.12:
        word = f"sailboat with {_colour(scene.colour, rng)} sails"
    return word if bare else _article(word, rng)


def _extras(scene: Landscape, rng: random.Random) -> list[str]:
    """Light, stars, clouds and mountains, each said or not."""
    said = []
    if scene.light and rng.random() < 0.75:
        said.append(rng.choice(LIGHT_NAMES[scene.light]))
    if scene.stars and rng.random() < 0.7:
        said.append(rng.choice(("stars", "stars", "the stars", "a starry sky")))
    if scene.clouds and rng.random() < 0.6:
        said.append(rng.choice(("clouds", "white clouds", "a cloudy sky")))
    if scene.mountains and rng.random() < 0.75:
        said.append(rng.choice(("mountains", "mountains", "distant mountains", "snowy mountains")))
    rng.shuffle(said)
    return said


def _landscape(scene: Landscape, rng: random.Random) -> str:
    draw = rng.random()
    extras = _extras(scene, rng)
    if draw < 0.25:
        parts = [
            rng.choice(GROUND_NAMES[scene.ground]),
            rng.choice(TIME_NAMES[scene.time]),
            *extras,
        ]
        if scene.thing:
            parts.append(_thing(scene, rng, bare=rng.random() < 0.5))
        rng.shuffle(parts)
        return ", ".join(parts)
    place = rng.choice(GROUND_PLACES[scene.ground])
    time = rng.choice(TIME_PLACES[scene.time])
    ground = rng.choice(GROUND_NAMES[scene.ground])
    if scene.thing is None or draw < 0.45:
        preposition = "on" if scene.ground == "sea" and rng.random() < 0.2 else "over"
        lead = rng.choice(
            (
                f"{rng.choice(TIME_NAMES[scene.time])} {preposition} {ground}",
                f"{ground} {time}",
                f"{ground} {time}",
            )
        )
        if scene.thing:
            extras.insert(0, _thing(scene, rng, bare=False))
    else:
        where = [place, time] if rng.random() < 0.8 else [time, place]
        if rng.random() < 0.08:
            where.remove(rng.choice((place, time)))
        lead = f"{_thing(scene, rng, bare=rng.random() < 0.2)} {' '.join(where)}"
    return rng.choice(OPENINGS) + lead + _tail(extras, rng)


def _tail(extras: list[str], rng: random.Random) -> str:
    """The extras as `with …`, `under …`, or after commas."""
    if not extras:
        return ""
    if rng.random() < 0.3:
        return "".join(f", {extra}" for extra in extras)
    high = ("moon", "sun", "star", "sky", "crescent")
    under = any(word in extras[0] for word in high) and rng.random() < 0.5
    joined = extras[0] if len(extras) == 1 else f"{', '.join(extras[:-1])} and {extras[-1]}"
    return f" {'under' if under else 'with'} {joined}"
