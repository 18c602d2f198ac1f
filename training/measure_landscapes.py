"""Measures landscapes: time of day by the sky, ground, light, and the object that stands there."""

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from training.measure import Mask, Pixels, near, patches
from training.objects import Pen, stand
from training.palette import COLOURS, GROUNDS, MOON, SKIES, SUNS
from training.render import SCALE, SIZE
from training.scenes import COLOURED, OBJECTS, Landscape

HORIZON: Final = 76.0  # pixels from the top, the middle of where horizons lie
SKY_ROWS: Final = slice(4, 46)
FOOT_ROWS: Final = slice(112, 127)
TOO_FAR: Final = 45.0  # mean distance in 8-bit RGB at which a sky or ground is none of ours
OBJECT_FAR: Final = 52.0  # the same for an object's own pixels
STAND_OUT: Final = 8.0  # by how much more its surroundings must differ from the object
_KEY: Final = (255, 0, 255)  # a colour that nothing in the world has


@dataclass(frozen=True)
class View:
    """What a landscape was seen to show; None where nothing known was seen."""

    time: str | None
    ground: str | None
    light: str | None
    thing: str | None
    colour: str | None


@dataclass(frozen=True)
class _Template:
    thing: str
    colour: str | None
    pixels: Pixels  # (90, 76, 3); the foot's middle at row 75, column 38
    inside: Mask
    ring: Mask
    ring_pixels: Pixels


def _time(pixels: Pixels) -> str | None:
    rows = np.median(pixels[SKY_ROWS], axis=1)
    share = (np.arange(SIZE, dtype=np.float32)[SKY_ROWS] / HORIZON)[:, None]
    far = {}
    for time, (top, low) in SKIES.items():
        expected = np.array(top) + (np.array(low) - np.array(top)) * share
        far[time] = float(np.linalg.norm(rows - expected, axis=1).mean())
    best = min(far, key=lambda time: far[time])
    return best if far[best] < TOO_FAR else None


def _ground(pixels: Pixels, time: str | None) -> str | None:
    if time is None:
        return None
    colour = np.median(pixels[FOOT_ROWS].reshape(-1, 3), axis=0)
    far = {name: float(near(colour, colours[time])) for name, colours in GROUNDS.items()}
    best = min(far, key=lambda name: far[name])
    return best if far[best] < TOO_FAR else None


def _light(pixels: Pixels, time: str | None) -> str | None:
    """Sun or moon by the largest patch of its colour in the sky; moons by their area."""
    if time is None:
        return None
    sky = pixels[: 44 if time in ("day", "night") else 78]
    if time in SUNS and (suns := patches(near(sky, SUNS[time]) < 36)) and suns[0].sum() > 110:
        return "sun"
    if time == "night" and (moons := patches(near(sky, MOON) < 60)):
        area = int(moons[0].sum())
        return "full moon" if area > 330 else "crescent moon" if area > 80 else None
    return None


@cache
def _templates(time: str) -> tuple[_Template, ...]:
    """Each object in each of its colours under a time of day's light."""
    made = []
    for thing in OBJECTS:
        for colour in COLOURS if thing in COLOURED else (None,):
            scene = Landscape(time, "hills", None, False, False, False, thing, colour, 0)
            canvas = Image.new("RGB", (76 * SCALE, 90 * SCALE), _KEY)
            stand(Pen(ImageDraw.Draw(canvas), SCALE), scene, 38.0, 75.0)
            # The exact colours without smoothed edges, which would be tinted by the key.
            small = canvas.resize((76, 90), Image.Resampling.NEAREST)
            pixels = np.asarray(small, np.float32)
            inside = near(pixels, _KEY) > 1
            made.append(_Template(thing, colour, pixels, inside, *_surround(pixels, inside)))
    return tuple(made)


def _surround(pixels: Pixels, inside: Mask) -> tuple[Mask, Pixels]:
    """The pixels two to three outside the object, each with the object's nearest colour."""
    spread, reached = pixels.copy(), inside.copy()
    first = reached
    for step in range(3):
        if step == 1:
            first = reached.copy()
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            moved = np.roll(reached, (dy, dx), (0, 1)) & ~reached
            spread[moved] = np.roll(spread, (dy, dx), (0, 1))[moved]
            reached = reached | moved
    return reached & ~first, spread


def _thing(pixels: Pixels, time: str | None) -> tuple[str | None, str | None]:
    """The object that fits best anywhere it may stand, and its colour."""
    if time is None:
        return None, None
    best: tuple[float, str | None, str | None] = (OBJECT_FAR, None, None)
    padded = np.pad(pixels, ((0, 15), (8, 8), (0, 0)), mode="edge")
    for template in _templates(time):
        for y in range(100, 117, 2):
            for x in range(36, 71, 2):
                window = padded[y - 75 : y + 15, x - 30 : x + 46]
                inside = _mean_distance(window, template.pixels, template.inside)
                if inside >= best[0]:
                    continue
                outside = _mean_distance(window, template.ring_pixels, template.ring)
                if outside - inside > STAND_OUT:
                    best = (inside, template.thing, template.colour)
    return best[1], best[2]


def _mean_distance(window: Pixels, wanted: Pixels, mask: Mask) -> float:
    return float(np.abs(window[mask] - wanted[mask]).sum(axis=1).mean()) / 1.5


def measure_landscape(pixels: Pixels) -> View:
    """What a picture (128, 128, 3) of values 0 to 255 shows as a landscape."""
    time = _time(pixels)
    thing, colour = _thing(pixels, time)
    return View(time, _ground(pixels, time), _light(pixels, time), thing, colour)
