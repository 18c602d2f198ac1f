"""Pretrains the text encoder to classify what captions say, before the UNet is trained.

From a caption alone, the text encoder and the UNet's own pooling of its output are to name what the
scene holds. The UNet then starts with a summary of the caption that already tells a star from a
heart and the left shape from the right, and learns to draw them many times sooner than when errors
in pictures had to teach it the language, too.
"""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from training.captions import caption
from training.files import save_state
from training.scenes import (
    COLOUR_NAMES,
    LIGHTS,
    OBJECTS,
    PLACES,
    SHAPES,
    SIZES,
    TIMES,
    Landscape,
    Scene,
    sample_mixed,
)
from training.untyped import Untyped

FAMILIES: Final = {"one": 0.25, "two": 0.45, "landscape": 0.3}
LEARNING_RATE: Final = 1.5e-3
WARM_UP: Final = 100  # steps
_SHAPE: Final = {"kind": SHAPES, "colour": COLOUR_NAMES, "size": SIZES}
# What there is to name; first of each, implicitly, that there is none.
ASKED: Final[dict[str, tuple[str, ...]]] = {
    "background": COLOUR_NAMES,
    **{
        f"{which} {name}": values
        for which in ("first", "second")
        for name, values in _SHAPE.items()
    },
    "relation": ("left", "above"),
    "time": TIMES,
    "ground": PLACES,
    "light": tuple(sorted({str(name) for each in LIGHTS.values() for name, _ in each if name})),
    "stars": ("yes",),
    "clouds": ("yes",),
    "mountains": ("yes",),
    "thing": OBJECTS,
    "colour": COLOUR_NAMES,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """`minutes` of wall-clock time end the run, at the end of a cosine over them."""

    minutes: float = 5.0
    batch: int = 96
    seed: int = 0


def answers(scene: Scene) -> list[int]:
    """For each of ASKED the number of what the scene holds, 0 for none."""
    held: dict[str, str | None]
    if isinstance(scene, Landscape):
        held = {
            name: getattr(scene, name) for name in ("time", "ground", "light", "thing", "colour")
        }
        held |= {name: "yes" for name in ("stars", "clouds", "mountains") if getattr(scene, name)}
    else:
        held = {"background": scene.background, "relation": scene.relation}
        for which, shape in zip(("first", "second"), scene.shapes, strict=False):
            held |= {f"{which} {name}": getattr(shape, name) for name in _SHAPE}
    return [
        0 if (value := held.get(name)) is None else values.index(value) + 1
        for name, values in ASKED.items()
    ]


def train(
    text_encoder: CLIPTextModel,
    pooling: Untyped,
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    options: Options,
) -> None:
    """Train both until the time is up, then write the checkpoint: their weights.

    `pooling` is the UNet's `add_embedding`: states (n, tokens, 128) in, summaries (n, width) out.
    """
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    sizes = [len(values) + 1 for values in ASKED.values()]
    model: Untyped = nn.ModuleDict(
        {
            "text_encoder": text_encoder,
            "pooling": pooling,
            "head": nn.Linear(pooling.proj.out_features, sum(sizes)),
        }
    )
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, (0.9, 0.99), weight_decay=0.01)
    begun, step, total = time.monotonic(), 0, 0.0
    while (share := (time.monotonic() - begun) / (options.minutes * 60)) < 1:
        for group in optimizer.param_groups:
            warm = min(1, (step + 1) / WARM_UP)
            group["lr"] = LEARNING_RATE * warm * (0.52 + 0.48 * math.cos(math.pi * share))
        scenes = [sample_mixed(rng, FAMILIES) for _ in range(options.batch)]
        words = [caption(scene, rng) for scene in scenes]
        tokens = tokenizer(words, padding="max_length", truncation=True, return_tensors="pt")
        states = model["text_encoder"](tokens.input_ids.to(text_encoder.device)).last_hidden_state
        guesses = model["head"](model["pooling"](states)).split(sizes, dim=1)
        right = torch.tensor([answers(scene) for scene in scenes], device=states.device)
        losses = [
            nn.functional.cross_entropy(guess, right[:, column])
            for column, guess in enumerate(guesses)
        ]
        loss: Untyped = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, total = step + 1, total + loss.item()
        if step % 50 == 0:
            named = " ".join(
                f"{name} {e.item():.2f}" for name, e in zip(ASKED, losses, strict=True)
            )
            print(f"{step} {share:.3f} loss {total / 50:.3f} ({named})", flush=True)  # noqa: T201
            total = 0.0
    state = {"text_encoder": text_encoder.state_dict(), "pooling": pooling.state_dict()}
    save_state(checkpoint, state)
