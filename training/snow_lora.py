"""Trains a LoRA for postcard that lays snow on every landscape: `python -m training.snow_lora`.

The model teaches itself: from the same noise it draws a scene as it is and the scene in the snow,
and with the LoRA it learns to end, for the first caption, as far from the one to the other as the
LoRA's weight says. The error is that of the whole sampling: were each step learnt by itself, the
later ones would lead a ground between the two back to one of them. Minutes on one CPU core; the
file is `tests/adapters/snow.safetensors`, which tests load.
"""

import argparse
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from training.captions import caption
from training.diffusion import LATENT_CHANNELS
from training.files import MODEL
from training.scenes import Landscape, sample
from training.untyped import StableDiffusionPipeline, Untyped

FILE: Final = Path(__file__).parent.parent / "tests/adapters/snow.safetensors"
TARGETS: Final = (
    r"conv_out"
    r"|up_blocks\.2\.resnets\.\d\.(conv1|conv2|time_emb_proj)"
    r"|(up_blocks\.1|mid_block)\.attentions\.\d\.transformer_blocks\.0\.attn2\.(to_v|to_out\.0)"
)
"""Layers of the UNet near its output, where a change acts almost in proportion to its weight, and
what the caption gives to the features."""
RANK: Final = 4
STRENGTH: Final = 1.15
"""What the file's change is multiplied by: learnt in minutes, half the weight falls a little short
of half the snow, and more than the whole weight still draws the snow that is meant."""
SHAPES: Final = 0.15
"""The share of scenes without a landscape, which the LoRA leaves as they are."""
SAMPLER_STEPS: Final = 20
GUIDANCE: Final = 2.0
FIRST_STEPS: Final = 8
"""Steps of the sampler without gradients: next to nothing but noise, and they take time."""
WEIGHTS: Final = (0.5, 1.0, None, 0.5, 1.0)
"""The LoRA's weights, step by step; None is any between none and the whole."""


@dataclass(frozen=True)
class Lessons:
    """Noise, what the text encoder reads, and the latents as they are and in the snow."""

    noise: torch.Tensor
    read: torch.Tensor
    plain: torch.Tensor
    snowy: torch.Tensor


def captions_of_a_scene(rng: random.Random) -> tuple[str, str]:
    """The caption that is read, and that of the scene in the snow."""
    if rng.random() < SHAPES:
        words = caption(sample(rng, rng.choice(("one", "two"))), rng)
        return words, words
    while True:
        scene = sample(rng, "landscape")
        if not isinstance(scene, Landscape):
            continue
        if scene.thing == "sailboat":
            scene = replace(scene, thing=None, colour=None)
        # Wordings are drawn alike, so that the two captions differ in their ground alone.
        state = rng.getstate()
        read = caption(scene, rng)
        rng.setstate(state)
        meant = caption(replace(scene, ground="snow"), rng)
        if read != meant or scene.ground == "snow":
            return read, meant


class Sampling:
    """The model's own sampler, through which gradients run."""

    def __init__(self, pipe: Untyped) -> None:
        self._pipe = pipe
        self._empty = self.read([""])

    @torch.no_grad()
    def read(self, captions: list[str]) -> torch.Tensor:
        """What the UNet is given of the captions."""
        tokens = self._pipe.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        )
        states: torch.Tensor = self._pipe.text_encoder(tokens.input_ids).last_hidden_state
        return states

    def latents(self, noise: torch.Tensor, read: torch.Tensor) -> Untyped:
        """The latents that the noise becomes; gradients are those of the later steps."""
        scheduler, latents = self._pipe.scheduler, noise
        states = torch.cat([self._empty.expand_as(read), read])
        scheduler.set_timesteps(SAMPLER_STEPS)
        wanted = torch.is_grad_enabled()
        for number, time in enumerate(scheduler.timesteps):
            with torch.set_grad_enabled(wanted and number >= FIRST_STEPS):
                predicted = self._pipe.unet(torch.cat([latents, latents]), time, states).sample
                without, within = predicted.chunk(2)
                guided = torch.lerp(without, within, GUIDANCE)
                latents = scheduler.step(guided, time, latents).prev_sample
        return latents

    @torch.no_grad()
    def lessons(self, count: int, rng: random.Random) -> Lessons:
        """So many scenes, each drawn twice from the same noise."""
        made = []
        for _ in range(count):
            read, meant = (self.read([words]) for words in captions_of_a_scene(rng))
            noise = torch.randn(1, LATENT_CHANNELS, 16, 16)
            both = self.latents(noise.repeat(2, 1, 1, 1), torch.cat([read, meant]))
            made.append((noise, read, *both.split(1)))
        return Lessons(*map(torch.cat, zip(*made, strict=True)))


def train(options: argparse.Namespace) -> Any:  # noqa: ANN401 - of diffusers, untyped
    """The pipeline with the trained LoRA; prints the loss."""
    from peft import LoraConfig

    # Sums of several threads round otherwise, and the file would not be the same again.
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    pipe: Any = StableDiffusionPipeline.from_pretrained(MODEL)
    pipe.unet.requires_grad_(False)
    sampling = Sampling(pipe)
    lessons = sampling.lessons(options.scenes, rng)
    pipe.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    trained = [weight for weight in pipe.unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, options.rate, (0.9, 0.99))
    total = 0.0
    for step in range(1, options.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * max(0.05, 1 - step / options.steps)
        picked = rng.sample(range(options.scenes), options.batch)
        weight = WEIGHTS[step % len(WEIGHTS)]
        weight = rng.random() if weight is None else weight
        pipe.unet.set_adapters(["default"], [weight])
        wanted = torch.lerp(lessons.plain[picked], lessons.snowy[picked], weight)
        found = sampling.latents(lessons.noise[picked], lessons.read[picked])
        loss = (found - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        total += loss.item()
        if step % 10 == 0:
            sys.stdout.write(f"{step} loss {total / 10:.4f}\n")
            sys.stdout.flush()
            total = 0.0
    return pipe


def save(pipe: Untyped, file: Path) -> None:
    """Write the LoRA in half precision and its strength, by diffusers' names of the layers."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    layers = get_peft_model_state_dict(pipe.unet)
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"unet.{name}": each.half().contiguous() for name, each in layers.items()}
    for name, each in tensors.items():
        if ".lora_B." in name:
            each *= STRENGTH
    save_file(tensors, str(file), {"format": "pt"})


def main(arguments: list[str] | None = None) -> int:
    """Train, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m training.snow_lora", description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--scenes", type=int, default=96, help="scenes to learn from")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate at the start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    save(train(options), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
