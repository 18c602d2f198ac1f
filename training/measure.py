"""Measures flat shapes in a picture: background, and each shape's colour, kind, size and place."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.palette import COLOURS, RGB
from training.render import RADII_ONE, RADII_TWO, outline, silhouette
from training.scenes import SHAPES

Pixels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

NORMAL: Final = 48  # pixels a side that silhouettes are brought to before they are compared
CONTRAST: Final = 40.0  # distance in 8-bit RGB from which a pixel is not background
SPECK: Final = 24  # pixels; a smaller patch is no shape
FIT: Final = 0.7  # intersection over union from which the best silhouette counts as the shape


@dataclass(frozen=True)
class Found:
    """One patch of colour; `x` and `y` its middle in pixels, `fit` 0 to 1."""

    kind: str
    fit: float
    colour: str
    size: str
    x: float
    y: float


def nearest_colour(rgb: npt.NDArray[np.floating]) -> str:
    """The palette's nearest colour, by distance in 8-bit RGB."""
    return min(COLOURS, key=lambda name: float(np.linalg.norm(rgb - np.array(COLOURS[name]))))


def background_colour(pixels: Pixels) -> npt.NDArray[np.floating]:
    """The median colour of the picture's rim, 4 pixels wide."""
    rim = np.ones(pixels.shape[:2], bool)
    rim[4:-4, 4:-4] = False
    median: npt.NDArray[np.floating] = np.median(pixels[rim], axis=0)
    return median


def patches(mask: Mask) -> list[Mask]:
    """The connected parts of a mask (by their four sides), largest first, specks left out."""
    left = mask.copy()
    found: list[Mask] = []
    height, width = mask.shape
    while left.any():
        start = divmod(int(left.argmax()), width)
        part, queue = np.zeros_like(mask), [start]
        left[start] = False
        while queue:
            y, x = queue.pop()
            part[y, x] = True
            for row, column in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= row < height and 0 <= column < width and left[row, column]:
                    left[row, column] = False
                    queue.append((row, column))
        if part.sum() >= SPECK:
            found.append(part)
    return sorted(found, key=lambda part: -int(part.sum()))


@cache
def _template(kind: str) -> Mask:
    return _normal(np.asarray(silhouette(kind, 96)) > 127)


def _normal(mask: Mask) -> Mask:
    """A mask's bounding box, stretched to NORMAL pixels a side."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray((box * 255).astype(np.uint8))
    return np.asarray(image.resize((NORMAL, NORMAL), Image.Resampling.BILINEAR)) > 127


def _kind(mask: Mask) -> tuple[str, float]:
    """The shape whose silhouette covers the mask best, and its intersection over union."""
    normal = _normal(mask)
    fits = {}
    for kind in SHAPES:
        template = _template(kind)
        fits[kind] = float((normal & template).sum() / (normal | template).sum())
    best = max(fits, key=lambda kind: fits[kind])
    return best, fits[best]


def _size(kind: str, mask: Mask, radii: dict[str, float]) -> str:
    """The size whose radius is nearest by ratio, from the mask's area."""
    points = outline(kind)
    turned = [*points[1:], points[0]]
    crossed = sum(ax * by - bx * ay for (ax, ay), (bx, by) in zip(points, turned, strict=True))
    unit = abs(crossed) / 2
    radius = math.sqrt(float(mask.sum()) / unit)
    return min(radii, key=lambda size: abs(math.log(radius / radii[size])))


def shapes(pixels: Pixels, expected: int) -> list[Found]:
    """The shapes in a picture (128, 128, 3) of values 0 to 255, largest first."""
    base = background_colour(pixels)
    found = []
    for patch in patches(np.linalg.norm(pixels - base, axis=2) > CONTRAST):
        inside = _shrunk(patch)
        colour = np.median(pixels[inside if inside.sum() >= SPECK else patch], axis=0)
        # The edge lies where a pixel is half way from the background to the shape.
        towards = (colour - base) / max(float(np.square(colour - base).sum()), 1.0)
        mask = _grown(patch) & ((pixels - base) @ towards > 0.5)
        if not mask.any():
            continue
        kind, fit = _kind(mask)
        rows, columns = np.nonzero(mask)
        size = _size(kind, mask, RADII_ONE if expected == 1 else RADII_TWO)
        x, y = float(columns.mean()), float(rows.mean())
        found.append(Found(kind, fit, nearest_colour(colour), size, x, y))
    return found


def _grown(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    wide = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    grown: Mask = wide[:-2] | wide[1:-1] | wide[2:]
    return grown


def _shrunk(mask: Mask) -> Mask:
    return ~_grown(~mask)


def pixels_of(image: Image.Image) -> Pixels:
    """A picture as (128, 128, 3) of values 0 to 255; one of another size is resized."""
    resized = image.convert("RGB")
    if resized.size != (128, 128):
        resized = resized.resize((128, 128), Image.Resampling.LANCZOS)
    return np.asarray(resized, np.float32)


def near(pixels: Pixels, colour: RGB) -> Pixels:
    """Each pixel's distance from a colour in 8-bit RGB."""
    distance: Pixels = np.linalg.norm(pixels - np.array(colour, np.float32), axis=-1)
    return distance
