"""Draws scenes: 128x128 RGB pictures, drawn four times as large and reduced for smooth edges."""

import math
import random
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw

from training.landscapes import draw_landscape
from training.palette import COLOURS, RGB
from training.scenes import Landscape, Scene, ShapeScene

SIZE: Final = 128  # pixels
SCALE: Final = 4
# Half the extent of a shape in pixels, alone and beside another.
RADII_ONE: Final = {"small": 19.0, "medium": 29.0, "large": 43.0}
RADII_TWO: Final = {"small": 15.0, "medium": 19.5, "large": 25.0}

Point = tuple[float, float]


def outline(kind: str) -> list[Point]:
    """A shape's outline as points with coordinates from -1 to 1, y downwards."""
    if kind == "circle":
        turns = [2 * math.pi * step / 90 for step in range(90)]
        return [(math.cos(turn) * 0.98, math.sin(turn) * 0.98) for turn in turns]
    if kind == "square":
        return [(-0.87, -0.87), (0.87, -0.87), (0.87, 0.87), (-0.87, 0.87)]
    if kind == "triangle":
        return [(0.0, -0.95), (1.0, 0.83), (-1.0, 0.83)]
    if kind == "diamond":
        return [(0.0, -1.05), (0.78, 0.0), (0.0, 1.05), (-0.78, 0.0)]
    if kind == "star":
        spokes = [(math.pi * step / 5 - math.pi / 2, step % 2) for step in range(10)]
        reach = (1.08, 0.46)
        return [
            (reach[odd] * math.cos(turn), reach[odd] * math.sin(turn) + 0.08)
            for turn, odd in spokes
        ]
    # The heart curve: https://mathworld.wolfram.com/HeartCurve.html (its sixth form).
    turns = [2 * math.pi * step / 90 for step in range(90)]
    return [
        (
            math.sin(turn) ** 3,
            -(
                13 * math.cos(turn)
                - 5 * math.cos(2 * turn)
                - 2 * math.cos(3 * turn)
                - math.cos(4 * turn)
            )
            / 16
            * 0.98
            - 0.06,
        )
        for turn in turns
    ]


def place(points: Sequence[Point], x: float, y: float, radius: float) -> list[Point]:
    """The outline moved and scaled into the enlarged picture, from pixels of the final one."""
    return [((x + px * radius) * SCALE, (y + py * radius) * SCALE) for px, py in points]


def silhouette(kind: str, size: int) -> Image.Image:
    """A shape filling a square of `size` pixels: an 8-bit mask, 255 inside."""
    mask = Image.new("L", (size * SCALE, size * SCALE))
    half = size / 2
    ImageDraw.Draw(mask).polygon(place(outline(kind), half, half, half * 0.9), fill=255)
    return mask.reduce(SCALE)


def _positions(scene: ShapeScene, rng: random.Random) -> list[Point]:
    if len(scene.shapes) < 2:
        return [(64 + rng.uniform(-7, 7), 64 + rng.uniform(-7, 7))]
    near, far = 33 + rng.uniform(-2, 2), 95 + rng.uniform(-2, 2)
    across = [64 + rng.uniform(-5, 5) for _ in range(2)]
    if scene.relation == "left":
        return [(near, across[0]), (far, across[1])]
    return [(across[0], near), (across[1], far)]


def _draw_shapes(scene: ShapeScene, rng: random.Random) -> Image.Image:
    background: RGB = COLOURS[scene.background]
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), background)
    pen = ImageDraw.Draw(image)
    radii = RADII_ONE if len(scene.shapes) == 1 else RADII_TWO
    for shape, (x, y) in zip(scene.shapes, _positions(scene, rng), strict=False):
        radius = radii[shape.size] * rng.uniform(0.95, 1.05)
        pen.polygon(place(outline(shape.kind), x, y, radius), fill=COLOURS[shape.colour])
    return image


def render(scene: Scene) -> Image.Image:
    """The picture of a scene: 128x128 RGB; the same scene gives the same picture."""
    rng = random.Random(scene.layout)  # noqa: S311 (layout, not secrets)
    if isinstance(scene, Landscape):
        large = draw_landscape(scene, rng, SIZE, SCALE)
    else:
        large = _draw_shapes(scene, rng)
    return large.reduce(SCALE)
