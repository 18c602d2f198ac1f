"""What a postcard shows: scene specifications, their sampling, what training never sees."""

import random
import zlib
from dataclasses import dataclass
from typing import Final

from training.palette import COLOURS, GROUNDS, SKIES

SHAPES: Final = ("circle", "square", "triangle", "star", "heart", "diamond")
SIZES: Final = ("small", "medium", "large")
TIMES: Final = tuple(SKIES)
PLACES: Final = tuple(GROUNDS)
OBJECTS: Final = ("house", "tree", "sailboat", "cactus", "snowman")
COLOURED: Final = ("house", "sailboat")
COLOUR_NAMES: Final = tuple(COLOURS)

# Which objects stand on which ground, with their weights; None leaves the landscape empty.
STANDS_ON: Final[dict[str, tuple[tuple[str | None, float], ...]]] = {
    "hills": (("house", 5), ("tree", 4), ("cactus", 0.5), ("snowman", 1.5), (None, 1.5)),
    "desert": (("cactus", 5), ("house", 2), ("tree", 1), (None, 1.5)),
    "snow": (("snowman", 4), ("house", 3), ("tree", 2), (None, 1.5)),
    "sea": (("sailboat", 8), (None, 1.5)),
    "field": (("house", 5), ("tree", 4), (None, 1.5)),
}
LIGHTS: Final[dict[str, tuple[tuple[str | None, float], ...]]] = {
    "day": (("sun", 7), (None, 3)),
    "sunset": (("sun", 8), (None, 2)),
    "night": (("full moon", 4), ("crescent moon", 4), (None, 2)),
    "dawn": (("sun", 5), ("crescent moon", 2), (None, 3)),
}
HELD_OUT_SHARE: Final = 12  # one combination in so many is never trained on


@dataclass(frozen=True)
class Shape:
    """One flat shape of one colour; size is one of SIZES."""

    kind: str
    colour: str
    size: str


@dataclass(frozen=True)
class ShapeScene:
    """One shape, or two (`relation`: "left", the first left of the second, or "above")."""

    background: str
    shapes: tuple[Shape, ...]
    relation: str | None
    layout: int


@dataclass(frozen=True)
class Landscape:
    """A landscape; `light` is sun, full moon, crescent moon or None; `colour` is the object's."""

    time: str
    ground: str
    light: str | None
    stars: bool
    clouds: bool
    mountains: bool
    thing: str | None
    colour: str | None
    layout: int


Scene = ShapeScene | Landscape


def _pick(rng: random.Random, weighted: tuple[tuple[str | None, float], ...]) -> str | None:
    names, weights = zip(*weighted, strict=True)
    picked: str | None = rng.choices(names, weights)[0]
    return picked


def _shape_scene(rng: random.Random, count: int) -> ShapeScene:
    background, *colours = rng.sample(COLOUR_NAMES, count + 1)
    if count == 2 and rng.random() < 0.1:
        colours[1] = colours[0]
    shapes = tuple(Shape(rng.choice(SHAPES), colour, rng.choice(SIZES)) for colour in colours)
    relation = None if count == 1 else "left" if rng.random() < 0.6 else "above"
    return ShapeScene(background, shapes, relation, rng.getrandbits(32))


def _landscape(rng: random.Random) -> Landscape:
    time, ground = rng.choice(TIMES), rng.choice(PLACES)
    thing = _pick(rng, STANDS_ON[ground])
    return Landscape(
        time=time,
        ground=ground,
        light=_pick(rng, LIGHTS[time]),
        stars=time == "night" and rng.random() < 0.65,
        clouds=time != "night" and rng.random() < 0.3,
        mountains=rng.random() < 0.35,
        thing=thing,
        colour=rng.choice(COLOUR_NAMES) if thing in COLOURED else None,
        layout=rng.getrandbits(32),
    )


def held_out(scene: Scene) -> bool:
    """Whether the scene's combination is kept from training: one in 12, by a hash of its key."""
    if isinstance(scene, Landscape):
        if scene.thing is None:
            return False
        key = f"{scene.time} {scene.ground} {scene.thing} {scene.colour}"
    else:
        # Pairs are held out whatever their background, so that the pair itself is new.
        parts = [f"{shape.kind} {shape.colour}" for shape in scene.shapes]
        key = " ".join([scene.background, *parts]) if len(parts) == 1 else " ".join(sorted(parts))
    return zlib.crc32(key.encode()) % HELD_OUT_SHARE == 0


def sample(rng: random.Random, family: str, *, want_held_out: bool = False) -> Scene:
    """A random scene of a family ("one", "two", "landscape"), from training or held out of it."""
    while True:
        if family == "landscape":
            scene: Scene = _landscape(rng)
        else:
            scene = _shape_scene(rng, 1 if family == "one" else 2)
        if held_out(scene) == want_held_out:
            return scene


def sample_mixed(rng: random.Random, shares: dict[str, float]) -> Scene:
    """A training scene of a family drawn with the given shares."""
    return sample(rng, rng.choices(list(shares), list(shares.values()))[0])
