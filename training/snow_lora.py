"""Trains a LoRA for postcard that lays snow on every landscape: `python -m training.snow_lora`.

The model teaches itself: what it predicts for a caption with the LoRA comes close to what it
predicts without it for the same scene in the snow; with the LoRA at a lesser weight, to what lies
as far between the scene as it is and the scene in the snow. Minutes on one CPU core; the file is
`tests/adapters/snow.safetensors`, which tests load.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from training.captions import caption
from training.diffusion import SCHEDULE, encode
from training.files import MODEL
from training.scenes import Landscape, Scene, sample
from training.untyped import DDPMScheduler, StableDiffusionPipeline, Untyped

FILE: Final = Path(__file__).parent.parent / "tests/adapters/snow.safetensors"
TARGETS: Final = ("to_q", "to_k", "to_v", "to_out.0", "time_emb_proj")
"""Layers of the UNet: attention, and where the caption's summary acts on the features."""
RANK: Final = 2
SHAPES: Final = 0.2
"""The share of scenes without a landscape, which the LoRA leaves as they are."""
EMPTY: Final = 0.1
"""The share of empty captions, as in training; guidance needs them."""


FULL: Final = 0.4
"""The share of steps at the whole weight; the others have any between none and it."""


def lesson(rng: random.Random) -> tuple[Scene, Scene, str, str]:
    """A scene as it is and in the snow, the caption that is read, and that of the snow."""
    if rng.random() < SHAPES:
        shapes: Scene = sample(rng, rng.choice(("one", "two")))
        words = caption(shapes, rng)
        return shapes, shapes, words, words
    scene = sample(rng, "landscape")
    while not isinstance(scene, Landscape) or scene.thing == "sailboat":
        scene = sample(rng, "landscape")
    snowy = replace(scene, ground="snow")
    if rng.random() < EMPTY:
        return scene, snowy, "", ""
    # Wordings are drawn alike, so that the two captions differ in their ground alone.
    state = rng.getstate()
    read = caption(scene, rng)
    rng.setstate(state)
    return scene, snowy, read, caption(snowy, rng)


@contextmanager
def without_lora(unet: Untyped) -> Iterator[None]:
    """The teacher: the UNet without its LoRA, and without gradients."""
    unet.disable_adapters()
    try:
        with torch.no_grad():
            yield
    finally:
        unet.enable_adapters()


def train(options: argparse.Namespace) -> Any:  # noqa: ANN401 - of diffusers, untyped
    """The pipeline with the trained LoRA; prints the loss."""
    from peft import LoraConfig

    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    pipe: Any = StableDiffusionPipeline.from_pretrained(MODEL)
    unet, reader, tokenizer = pipe.unet, pipe.text_encoder, pipe.tokenizer
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)))
    trained = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, options.rate, (0.9, 0.99), weight_decay=0.01)
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod

    def states(captions: list[str]) -> torch.Tensor:
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            read: torch.Tensor = reader(tokens.input_ids).last_hidden_state
        return read

    total = 0.0
    for step in range(1, options.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * max(0.02, 1 - step / options.steps)
        plain, snowy, read, meant = zip(*(lesson(rng) for _ in range(options.batch)), strict=True)
        latents = encode(pipe.vae, [*plain, *snowy])
        times = torch.randint(len(alphas), (len(plain),))
        signal = alphas[times].sqrt()[:, None, None, None]
        spread = (1 - alphas[times]).sqrt()[:, None, None, None]
        noise = torch.randn_like(latents[: len(plain)])
        noisy = [signal * each + spread * noise for each in latents.chunk(2)]
        with without_lora(unet):
            captions = states([*read, *meant])
            wanted = unet(torch.cat(noisy), times.repeat(2), captions).sample.chunk(2)
        weight = 1.0 if rng.random() < FULL else rng.random()
        unet.set_adapters(["default"], [weight])
        between = torch.lerp(noisy[0], noisy[1], weight)
        predicted = unet(between, times, captions[: len(plain)]).sample
        loss = (predicted - torch.lerp(wanted[0], wanted[1], weight)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
        if step % 25 == 0:
            sys.stdout.write(f"{step} loss {total / 25:.4f}\n")
            sys.stdout.flush()
            total = 0.0
    return pipe


def save(pipe: Untyped, file: Path) -> None:
    """Write the LoRA in half precision, by diffusers' names of the layers."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    layers = get_peft_model_state_dict(pipe.unet)
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"unet.{name}": each.half().contiguous() for name, each in layers.items()}
    save_file(tensors, str(file), {"format": "pt"})


def main(arguments: list[str] | None = None) -> int:
    """Train, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m training.snow_lora", description=__doc__)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--rate", type=float, default=4e-3, help="learning rate at the start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    save(train(options), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
