"""Draws landscapes: sky, light, mountains, ground and what stands on it, from back to front."""

import math
import random

import numpy as np
from PIL import Image, ImageDraw

from training.objects import Pen, stand
from training.palette import GROUNDS, MOON, RGB, SKIES, SUNS, mix
from training.scenes import Landscape

WHITE: RGB = (255, 255, 255)
BLACK: RGB = (0, 0, 0)


def _sky(time: str, size: int, horizon: float) -> Image.Image:
    top, low = (np.array(colour, np.float32) for colour in SKIES[time])
    share = np.clip(np.arange(size, dtype=np.float32) / horizon, 0, 1)[:, None]
    column = np.round(top + (low - top) * share).astype(np.uint8)
    return Image.fromarray(column[:, None, :]).resize((size, size), Image.Resampling.NEAREST)


def _glow(image: Image.Image, x: float, y: float, radius: float, colour: RGB) -> None:
    """Lightens a disc around a light, strongest at its rim (pixels of the enlarged picture)."""
    for reach, alpha in ((1.75, 46), (1.38, 70)):
        halo = Image.new("L", image.size)
        r = radius * reach
        ImageDraw.Draw(halo).ellipse((x - r, y - r, x + r, y + r), fill=alpha)
        image.paste(Image.new("RGB", image.size, colour), mask=halo)


def _light(image: Image.Image, scene: Landscape, rng: random.Random, scale: int) -> None:
    if scene.light is None:
        return
    side = rng.uniform(94, 108)
    if scene.light == "sun":
        height, radius = {"day": (26.0, 12.0), "sunset": (60.0, 17.0), "dawn": (66.0, 14.0)}[
            scene.time
        ]
        x, y, r = side * scale, (height + rng.uniform(-3, 3)) * scale, radius * scale
        colour = SUNS[scene.time]
        _glow(image, x, y, r, mix(colour, WHITE, 0.35))
        ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=colour)
        return
    x, y, r = side * scale, (26 + rng.uniform(-4, 4)) * scale, 12.0 * scale
    moon = Image.new("L", image.size)
    pen = ImageDraw.Draw(moon)
    pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    if scene.light == "crescent moon":
        shift, r2 = r * 0.62, r * 0.92
        pen.ellipse((x + shift - r2, y - r2 - r * 0.1, x + shift + r2, y + r2 - r * 0.1), fill=0)
    else:
        _glow(image, x, y, r, MOON)
    image.paste(Image.new("RGB", image.size, MOON), mask=moon)


def _stars(pen: Pen, rng: random.Random) -> None:
    for index in range(14):
        x, y = 6 + 116 * ((index * 0.382 + rng.uniform(0, 0.07)) % 1.0), rng.uniform(5, 58)
        pen.disc(x, y, rng.choice((0.9, 1.4)), (236, 238, 255))


def _clouds(pen: Pen, rng: random.Random, time: str) -> None:
    colour = mix(WHITE, SKIES[time][1], 0.25 if time == "day" else 0.45)
    for base in (rng.uniform(14, 40), rng.uniform(72, 104)):
        y, wide = rng.uniform(14, 40), rng.uniform(0.85, 1.15)
        for dx, dy, r in ((-9, 0, 5), (0, -3, 7.5), (9, 0, 5.5)):
            pen.disc(base + dx * wide, y + dy, r, colour)
        pen.box(base - 9 * wide, y, base + 9 * wide, y + 5, colour)


def _mountains(pen: Pen, rng: random.Random, time: str, horizon: float) -> None:
    low = SKIES[time][1]
    body = mix(mix((92, 96, 140), low, 0.25), BLACK, 0.45 if time == "night" else 0.0)
    cap = mix((250, 250, 255), body, 0.35 if time == "night" else 0.08)
    shift = rng.uniform(-8, 8)
    for x, height, half in ((24.0, 25.0, 30.0), (102.0, 28.0, 33.0), (64.0, 36.0, 36.0)):
        x, peak = x + shift, horizon - height * rng.uniform(0.92, 1.08)
        pen.polygon([(x - half, horizon + 12), (x, peak), (x + half, horizon + 12)], body)
        drop = (horizon + 6 - peak) * 0.3
        wide = half * 0.3
        pen.polygon(
            [
                (x, peak),
                (x + wide, peak + drop),
                (x + wide * 0.35, peak + drop * 0.72),
                (x, peak + drop * 1.1),
                (x - wide * 0.35, peak + drop * 0.72),
                (x - wide, peak + drop),
            ],
            cap,
        )


def _rolling(pen: Pen, base: float, height: float, waves: float, phase: float, colour: RGB) -> None:
    """A layer of ground under a sine wave, from its crest (pixels) to the picture's foot."""
    crest: list[tuple[float, float]] = [
        (x, base - height * math.sin(waves * 2 * math.pi * x / 128 + phase))
        for x in np.arange(-2.0, 131.0, 1.5)
    ]
    pen.polygon([(-2, 130), *crest, (130, 130)], colour)


def _ground(pen: Pen, rng: random.Random, scene: Landscape, horizon: float) -> None:
    colour = GROUNDS[scene.ground][scene.time]
    haze = SKIES[scene.time][1]
    phase = rng.uniform(0, 2 * math.pi)
    if scene.ground in ("hills", "desert", "snow"):
        swell = {"hills": 6.5, "desert": 4.0, "snow": 4.0}[scene.ground]
        far = mix(colour, haze, 0.38)
        if scene.ground == "snow":
            far = mix(colour, (120, 150, 210), 0.3)
        middle = mix(far, colour, 0.5)
        _rolling(pen, horizon + 2, swell, 1.6, phase, far)
        _rolling(pen, horizon + 9, swell, 1.1, phase + 2.2, middle)
        _rolling(pen, horizon + 20, swell * 0.6, 0.8, phase + 4.1, colour)
    elif scene.ground == "sea":
        pen.box(-1, horizon, 129, 130, colour)
        foam = mix(colour, WHITE, 0.3)
        for row, y in enumerate((8, 17, 27, 38)):
            for step in range(4):
                x = (step * 37 + row * 19 + phase * 6) % 140 - 8
                pen.box(x, horizon + y, x + 10 + row * 2, horizon + y + 1.6, foam)
    else:
        pen.box(-1, horizon, 129, 130, colour)
        furrow = mix(colour, (112, 84, 24), 0.3)
        centre = 64 + rng.uniform(-14, 14)
        for step in range(-7, 8):
            near, far_x = centre + step * 30.0, centre + step * 9.0
            pen.polygon(
                [(far_x - 0.8, horizon), (far_x + 0.8, horizon), (near + 4, 130), (near - 4, 130)],
                furrow,
            )


def draw_landscape(scene: Landscape, rng: random.Random, size: int, scale: int) -> Image.Image:
    """The landscape at `scale` times `size` pixels a side, RGB."""
    horizon = 76 + rng.uniform(-4, 4)
    image = _sky(scene.time, size * scale, horizon * scale)
    pen = Pen(ImageDraw.Draw(image), scale)
    if scene.stars:
        _stars(pen, rng)
    _light(image, scene, rng, scale)
    if scene.clouds:
        _clouds(pen, rng, scene.time)
    if scene.mountains:
        _mountains(pen, rng, scene.time, horizon)
    _ground(pen, rng, scene, horizon)
    if scene.thing is not None:
        # One place for the object, another for the light: a small model draws both where it may
        # choose between places.
        x, y = 52 + rng.uniform(-6, 6), 108 + rng.uniform(-3, 3)
        stand(pen, scene, x, y)
    return image
