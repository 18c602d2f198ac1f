"""Draws the objects that stand in a landscape, each at the middle of its base (x, y).

Sizes are in pixels of a picture of 128, before `stand` enlarges them.
"""

from collections.abc import Callable, Sequence
from typing import Final

from PIL import ImageDraw

from training.palette import (
    CACTUS,
    COLOURS,
    DARK,
    GLASS,
    HULL,
    LIT,
    RGB,
    RIM,
    ROOF,
    SNOWBALL,
    TREE,
    TRUNK,
    mix,
)
from training.scenes import Landscape

NIGHT: Final[RGB] = (16, 20, 60)
ENLARGED: Final = 1.25


class Pen:
    """Draws in pixels of the final picture on an enlarged one."""

    def __init__(self, draw: ImageDraw.ImageDraw, scale: float) -> None:
        self._draw = draw
        self._scale = scale

    def times(self, factor: float) -> "Pen":
        """A pen whose pixels are larger."""
        return Pen(self._draw, self._scale * factor)

    def polygon(self, points: Sequence[tuple[float, float]], colour: RGB) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * self._scale, y * self._scale) for x, y in points], fill=colour)

    def box(self, left: float, top: float, right: float, foot: float, colour: RGB) -> None:
        """A filled rectangle."""
        corners = [value * self._scale for value in (left, top, right, foot)]
        self._draw.rectangle((corners[0], corners[1], corners[2] - 1, corners[3] - 1), fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: RGB) -> None:
        """A filled circle."""
        left, top, right, foot = (
            value * self._scale for value in (x - radius, y - radius, x + radius, y + radius)
        )
        self._draw.ellipse((left, top, right, foot), fill=colour)

    def pill(self, left: float, top: float, right: float, foot: float, colour: RGB) -> None:
        """A rectangle with round ends."""
        corners = tuple(value * self._scale for value in (left, top, right, foot))
        radius = min(corners[2] - corners[0], corners[3] - corners[1]) / 2
        self._draw.rounded_rectangle(corners, radius, fill=colour)


def _shade(colour: RGB, scene: Landscape) -> RGB:
    return mix(colour, NIGHT, 0.3) if scene.time == "night" else colour


def house(pen: Pen, x: float, y: float, scene: Landscape) -> None:
    """A house 40 pixels wide, 44 high, its walls in the scene's colour."""
    walls = COLOURS[scene.colour or "white"]
    roof = ROOF if scene.colour not in ("brown", "black") else (198, 88, 70)
    pen.box(x + 8, y - 45, x + 14, y - 30, roof)
    pen.box(x - 17, y - 26, x + 17, y, walls)
    pen.polygon([(x - 22, y - 25), (x, y - 45), (x + 22, y - 25)], roof)
    door = DARK if scene.colour != "black" else (232, 224, 210)
    pen.box(x - 11, y - 17, x - 2, y, door)
    pane = LIT if scene.time == "night" else GLASS
    pen.box(x + 3, y - 19, x + 13, y - 9, DARK)
    pen.box(x + 4.2, y - 17.8, x + 11.8, y - 10.2, pane)


def tree(pen: Pen, x: float, y: float, scene: Landscape) -> None:
    """A tree 50 pixels high with a round crown."""
    crown = TREE[scene.time]
    pen.box(x - 3.5, y - 22, x + 3.5, y, _shade(TRUNK, scene))
    for dx, dy, radius in ((-9, -26, 10), (9, -26, 10), (0, -36, 13)):
        pen.disc(x + dx, y + dy, radius, crown)
    pen.disc(x - 4, y - 38, 5, mix(crown, (190, 230, 140), 0.25))


def sailboat(pen: Pen, x: float, y: float, scene: Landscape) -> None:
    """A boat 44 pixels wide, 50 high, its sails in the scene's colour."""
    sails = COLOURS[scene.colour or "white"]
    pen.box(x - 1, y - 50, x + 1.4, y - 8, DARK)
    pen.polygon([(x + 3, y - 48), (x + 3, y - 13), (x + 23, y - 13)], sails)
    pen.polygon([(x - 3, y - 42), (x - 3, y - 13), (x - 18, y - 13)], sails)
    hull = _shade(HULL, scene) if scene.colour != "brown" else (238, 232, 222)
    pen.polygon([(x - 24, y - 10), (x + 25, y - 10), (x + 17, y), (x - 17, y)], hull)


def cactus(pen: Pen, x: float, y: float, scene: Landscape) -> None:
    """A cactus 46 pixels high with two arms."""
    colour = _shade(CACTUS, scene)
    pen.pill(x - 5.5, y - 46, x + 5.5, y + 6, colour)
    pen.box(x - 16, y - 24, x, y - 18, colour)
    pen.pill(x - 18, y - 35, x - 11, y - 17, colour)
    pen.box(x, y - 18, x + 16, y - 12, colour)
    pen.pill(x + 11, y - 31, x + 18, y - 11, colour)


def snowman(pen: Pen, x: float, y: float, scene: Landscape) -> None:
    """A snowman 48 pixels high with hat and scarf; a face is more than the latents hold."""
    body = mix(SNOWBALL, NIGHT, 0.12) if scene.time == "night" else SNOWBALL
    for dy, radius in ((-12, 13), (-30, 9.5)):
        if scene.time != "night":
            pen.disc(x, y + dy, radius + 1.4, mix(body, RIM, 0.65))
        pen.disc(x, y + dy, radius, body)
    pen.box(x - 8.5, y - 25.5, x + 8.5, y - 20, COLOURS["red"])
    pen.box(x - 10.5, y - 39.5, x + 10.5, y - 36, DARK)
    pen.box(x - 7, y - 48, x + 7, y - 37, DARK)


DRAWERS: Final[dict[str, Callable[[Pen, float, float, Landscape], None]]] = {
    "house": house,
    "tree": tree,
    "sailboat": sailboat,
    "cactus": cactus,
    "snowman": snowman,
}


def stand(pen: Pen, scene: Landscape, x: float, y: float) -> None:
    """Draw the scene's object, enlarged, with the middle of its foot at (x, y)."""
    if scene.thing is not None:
        DRAWERS[scene.thing](pen.times(ENLARGED), x / ENLARGED, y / ENLARGED, scene)
