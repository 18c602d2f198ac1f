"""Trains the text encoder and the UNet together on latents of fresh scenes; resumes where it was.

The loss is the squared error of v = alpha * noise - sigma * latent (Salimans and Ho, 2022,
"Progressive distillation", appendix D), over timesteps drawn almost evenly; where the signal is far
above the noise it weighs less (after Hang et al., 2023, "Min-SNR weighting": at most 5 in terms of
the latent).
"""

import math
import random
import string
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import ImageChops
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.averaging import Average, training_state
from training.captions import caption
from training.files import load_state, save_state
from training.render import render
from training.scenes import Landscape, Scene, sample_mixed
from training.tokenizer import MAX_TOKENS
from training.untyped import DDPMScheduler, UNet2DConditionModel, Untyped
from training.weight_sync import WeightSync

# A long tail of noise: at the last timestep alpha_bar is 6e-6, so that nothing of a flat
# background's colour is left in it and sampling can start from pure noise.
SCHEDULE: Final[dict[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.03,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
FAMILIES: Final = {"one": 0.28, "two": 0.36, "landscape": 0.36}
LATENT_CHANNELS: Final = 8
EMPTY_CAPTIONS: Final = 0.1
STRANGE_WORDS: Final = 0.05
MINUTES: Final = 60.0  # on two CPU cores
LEARNING_RATE: Final = 1e-3
WARM_UP: Final = 200  # steps
AVERAGE: Final = 0.998
MAX_WEIGHT: Final = 5.0
READING_SHARE: Final = 0.2  # of the learning rate, for what is pretrained
FOREGROUND: Final = 4.0  # how much more the error weighs where a shape or an object is
# From this timestep on hardly any signal is left: only a background can be learnt there.
NOISY: Final = 700
NOISY_SHARE: Final = 0.12


@dataclass(frozen=True, kw_only=True)
class Options:
    """`minutes` of wall-clock time end the run, at the end of a cosine over them."""

    minutes: float
    batch: int = 32
    pool: int = 4000
    fresh: int = 4
    seed: int = 0
    worker: int = 0
    workers: int = 1


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text model for this tokenizer, with random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> Untyped:
    """A small UNet over 16x16 latents of 8 channels, with random weights."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(48, 96, 160),
        # Attention at 16x16 would nearly double a step's time.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
        # A summary of the whole caption joins the timestep, and both scale and shift features.
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
        resnet_time_scale_shift="scale_shift",
    )


class Pool:
    """Scenes with their latents; a few are replaced by fresh ones at every step."""

    def __init__(self, vae: Untyped, size: int, rng: random.Random) -> None:
        self._vae, self._rng = vae, rng
        self._scenes: list[Scene] = []
        self._latents = torch.empty(size, LATENT_CHANNELS, 16, 16)
        self._masks = torch.empty(size, 16, 16)
        for start in range(0, size, 50):
            scenes, latents = self._make(min(50, size - start))
            self._scenes += scenes
            self._latents[start : start + len(scenes)] = latents
            self._masks[start : start + len(scenes)] = foreground(scenes)
        self._oldest = 0

    def _make(self, count: int) -> tuple[list[Scene], torch.Tensor]:
        scenes = [sample_mixed(self._rng, FAMILIES) for _ in range(count)]
        return scenes, encode(self._vae, scenes)

    def refresh(self, count: int) -> None:
        """Replace the oldest scenes."""
        scenes, latents = self._make(count)
        masks = foreground(scenes)
        for scene, latent, mask in zip(scenes, latents, masks, strict=True):
            self._scenes[self._oldest], self._latents[self._oldest] = scene, latent
            self._masks[self._oldest] = mask
            self._oldest = (self._oldest + 1) % len(self._scenes)

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """A batch: latents (count, 8, 16, 16), foregrounds (count, 16, 16), and new captions."""
        picked = self._rng.choices(range(len(self._scenes)), k=count)
        captions = [spoken(self._scenes[i], self._rng) for i in picked]
        return self._latents[picked], self._masks[picked], captions


@torch.no_grad()
def encode(vae: Untyped, scenes: list[Scene]) -> torch.Tensor:
    """The latents (n, 8, 16, 16) of the scenes' pictures, of unit variance."""
    pixels = np.stack([np.asarray(render(scene)) for scene in scenes])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    images = images.to(vae.device).contiguous(memory_format=torch.channels_last)
    latents: torch.Tensor = vae.encode(images).latent_dist.mean
    return latents.float().contiguous().cpu()


def foreground(scenes: list[Scene]) -> torch.Tensor:
    """Where shapes or objects are, (n, 16, 16): 1 in latent pixels that they touch, else 0."""
    masks = []
    for scene in scenes:
        empty: Scene
        if isinstance(scene, Landscape):
            empty = replace(scene, thing=None)
        else:
            empty = replace(scene, shapes=())
        changed = ImageChops.difference(render(scene), render(empty)).convert("L")
        masks.append(np.asarray(changed).reshape(16, 8, 16, 8).max((1, 3)) > 8)
    return torch.from_numpy(np.stack(masks)).float()


def spoken(scene: Scene, rng: random.Random) -> str:
    """A caption as people type: sometimes empty, sometimes with a word from outside the world."""
    if rng.random() < EMPTY_CAPTIONS:
        return ""
    words = caption(scene, rng)
    if rng.random() < STRANGE_WORDS:
        parts = words.split(" ")
        strange = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))
        parts.insert(rng.randint(0, len(parts)), strange)
        words = " ".join(parts)
    return words


def train(
    vae: Untyped,
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    options: Options,
    device: torch.device,
    start: Untyped,
) -> None:
    """Train until the time is up; averaged weights lie in the checkpoint, written each minute.

    Without a checkpoint, training begins with `start`: a ModuleDict of text encoder and UNet.
    """
    torch.manual_seed(options.seed)
    rng = random.Random()
    model: Untyped = start.to(device, memory_format=torch.channels_last)
    average = Average(model, AVERAGE)
    reading = [*model["text_encoder"].parameters(), *model["unet"].add_embedding.parameters()]
    known = {id(parameter) for parameter in reading}
    drawing = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [{"params": drawing, "share": 1.0}, {"params": reading, "share": READING_SHARE}]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, (0.9, 0.99), weight_decay=0.01)
    step, elapsed = 0, 0.0
    if state := load_state(checkpoint):
        model.load_state_dict(state["model"])
        average.module.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, elapsed = state["step"], state["elapsed"]
    own_seed = options.seed + step + 10**6 * options.worker
    rng.seed(own_seed)
    torch.manual_seed(own_seed)
    weight_sync = WeightSync(checkpoint.parent, options.worker, options.workers)
    pool = Pool(vae, options.pool, rng)
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    resumed, saved, total = time.monotonic() - elapsed, time.monotonic(), 0.0
    while (elapsed := time.monotonic() - resumed) < options.minutes * 60:
        share = elapsed / (options.minutes * 60)
        rate = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * max(0.01, _cosine(share))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        pool.refresh(options.fresh)
        loss = _loss(model, tokenizer, alphas, *pool.draw(options.batch))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        weight_sync.average(model)
        average.update(model, step)
        step, total = step + 1, total + loss.item()
        if step % 50 == 0:
            line = f"{step} {share:.3f} loss {total / 50:.4f} {elapsed / step:.3f} s/step"
            print(line, flush=True)  # noqa: T201
            total = 0.0
        if options.worker == 0 and time.monotonic() - saved > 60:
            save_state(checkpoint, training_state(model, average, optimizer, step, elapsed))
            saved = time.monotonic()
    if options.worker == 0:
        save_state(checkpoint, training_state(model, average, optimizer, step, elapsed))


def _cosine(share: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * share)


def _timesteps(count: int, total: int) -> torch.Tensor:
    """Timesteps (count,): the larger of two even draws below NOISY or, less often, one beyond."""
    below = torch.randint(NOISY, (2, count)).amax(0)
    beyond = torch.randint(NOISY, total, (count,))
    return torch.where(torch.rand(count) < NOISY_SHARE, beyond, below)


def _loss(
    model: Untyped,
    tokenizer: CLIPTokenizer,
    alphas: torch.Tensor,
    latents: torch.Tensor,
    masks: torch.Tensor,
    captions: list[str],
) -> Untyped:
    latents = latents.to(alphas.device)
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    states = model["text_encoder"](tokens.input_ids.to(alphas.device)).last_hidden_state
    times = _timesteps(len(latents), len(alphas)).to(alphas.device)
    signal = alphas[times].sqrt()[:, None, None, None]
    spread = (1 - alphas[times]).sqrt()[:, None, None, None]
    noise = torch.randn_like(latents)
    noisy = (signal * latents + spread * noise).contiguous(memory_format=torch.channels_last)
    predicted = model["unet"](noisy, times, states).sample
    squares = (predicted - (signal * noise - spread * latents)).square().mean(1)
    errors = ((1 + FOREGROUND * masks.to(alphas.device)) * squares).mean((1, 2))
    # One in terms of v is 1 / spread^2 in terms of the latent: the ratio of both powers, plus one.
    weights = (MAX_WEIGHT * spread.square().flatten()).clamp(max=1)
    return (weights * errors).mean()
