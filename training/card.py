"""The model card, with the figures of the last grading."""

import json
from pathlib import Path
from typing import Final

from training.grade import render

_HEAD: Final = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# postcard

A small text-conditioned latent diffusion model of flat postcards, 128x128 pixels, which t2i carries
inside its package so that it and its tests run for real with nothing downloaded. It is a standard
`StableDiffusionPipeline`: `DiffusionPipeline.from_pretrained(folder)` loads it.

Its world: one shape (circle, square, triangle, star, heart, diamond; small, medium, large) of one
of ten colours (red, orange, yellow, green, blue, purple, pink, brown, black, white) on a background
of another; two shapes, one left of or above the other; small landscapes at day, sunset, night or
dawn, of green hills, desert, snow, sea or field, with sun, moon, stars, clouds, mountains, and a
house, tree, sailboat, cactus or snowman. It knows no other words and no other world.

Use 20 steps and a guidance scale of 2. All training pictures and captions were drawn by a script,
so it holds no one's photographs, art or words.
"""


def text(report: Path, steps: int) -> str:
    """The card in Markdown; `report` is grading's JSON, if there is one, `steps` the UNet's."""
    parts = [_HEAD]
    if steps:
        parts.append(f"The UNet and the text encoder were last trained for {steps:,} steps.\n")
    else:
        parts.append("The weights in this folder are random: it has not been trained.\n")
    if steps and report.exists():
        graded = json.loads(report.read_text(encoding="utf-8"))
        parts.append(
            f"## Figures\n\nOn {graded['captions']} captions of combinations that training never"
            " saw, judged by measuring\npixels (`training/grade.py`), at"
            f" {graded['steps']} steps and guidance {graded['guidance']:g}:\n\n"
            f"{render(graded['table'])}\n"
        )
    return "\n".join(parts)
