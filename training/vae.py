"""Trains the autoencoder, 128x128 pictures to 16x16 latents of 8 channels, on crops of scenes."""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from training.averaging import Average, training_state
from training.files import load_state, save_state
from training.render import SIZE, render
from training.scenes import sample_mixed
from training.untyped import AutoencoderKL, Untyped

FAMILIES: Final = {"one": 0.25, "two": 0.4, "landscape": 0.35}
WARM_UP: Final = 100  # steps
KL_WEIGHT: Final = 5e-5  # of the divergence summed over a latent pixel's channels, averaged
AVERAGE: Final = 0.998
# The share of the time at which a stage ends, and its batches in turn: pixels a side, crops.
Stages = tuple[tuple[float, tuple[tuple[int, int], ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Options:
    """`minutes` of wall-clock time end the run, at the end of a cosine over them.

    `edges` is how much more the error weighs where the picture is not flat. With `noise` the
    encoder stays as it is, and the decoder learns to see past up to so much noise in its latents,
    which those of a diffusion model have.
    """

    minutes: float
    stages: Stages
    rate: float
    edges: float = 0.0
    noise: float = 0.0
    pool: int = 6000
    seed: int = 1


# Small crops teach most a second; whole pictures come last, since group norms see the statistics
# of the whole. The second round then sharpens edges and small things; the third is the decoder's.
FIRST: Final[Stages] = ((0.4, ((32, 32),)), (0.7, ((64, 8),)), (1.0, ((SIZE, 2),)))
THIRD: Final[Stages] = ((1.0, ((SIZE, 4),)),)
SECOND: Final[Stages] = ((0.75, ((64, 8), (SIZE, 2))), (1.0, ((SIZE, 2),)))
ROUNDS: Final = (
    Options(minutes=34, stages=FIRST, rate=2e-3),
    Options(minutes=12, stages=SECOND, rate=1.2e-3, edges=4.0, seed=2),
    Options(minutes=20, stages=THIRD, rate=8e-4, edges=4.0, noise=0.4, seed=3),
)


def new_vae() -> Untyped:
    """The autoencoder with random weights."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=SIZE,
        scaling_factor=1.0,  # latents are normal already
    )


class Crops:
    """A pool of drawn pictures (n, 128, 128, 3), uint8, from which batches of crops are cut."""

    def __init__(self, size: int, seed: int) -> None:
        scenes = random.Random(seed)
        pictures = (render(sample_mixed(scenes, FAMILIES)) for _ in range(size))
        self._pool = np.stack([np.asarray(picture) for picture in pictures])
        self._rng = np.random.default_rng(seed)

    def batch(self, side: int, count: int) -> torch.Tensor:
        """Crops (count, 3, side, side) from -1 to 1, in some batches mirrored."""
        picked = self._rng.integers(0, len(self._pool), count)
        corners = self._rng.integers(0, SIZE - side + 1, (count, 2))
        cut = [
            self._pool[i, y : y + side, x : x + side]
            for i, (y, x) in zip(picked, corners, strict=True)
        ]
        crops = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if self._rng.random() < 0.3:
            crops = crops.flip(3)
        return crops.contiguous(memory_format=torch.channels_last)


def _weights(images: torch.Tensor, edges: float) -> torch.Tensor:
    """One where a picture is flat for 2 pixels around, `edges` more where it is not."""
    pool = nn.functional.max_pool2d
    contrast = pool(images, 5, 1, 2) + pool(-images, 5, 1, 2)
    return 1 + edges * (contrast.amax(1, keepdim=True) > 0.15)


def _loss(vae: Untyped, images: torch.Tensor, options: Options) -> tuple[Untyped, float]:
    """The loss, and the mean absolute error alone (of values from -1 to 1)."""
    spread = vae.encode(images).latent_dist
    latents = spread.sample()
    if options.noise:
        strength = options.noise * torch.rand(len(images), 1, 1, 1, device=images.device)
        latents = spread.mean + strength * torch.randn_like(spread.mean)
    error = vae.decode(latents).sample - images
    weights = _weights(images, options.edges)
    absolute = (weights * error.abs()).mean()
    squared = (weights * error.square()).mean()
    divergence = spread.kl().mean() / (images.shape[-1] / 8) ** 2
    return absolute + 2 * squared + KL_WEIGHT * divergence, error.abs().mean().item()


@torch.no_grad()
def _normalise(
    vae: Untyped, average: Average, optimizer: torch.optim.Optimizer, images: torch.Tensor
) -> None:
    """Give every latent channel zero mean and unit variance, by rewriting the layers around it.

    A pipeline divides all latent channels by one factor; diffusion learns best if each is normal.
    Only the decoder's padding at the rim changes its meaning, which the rest of training mends.
    """
    latents = torch.cat(
        [average.module.encode(part).latent_dist.mean for part in torch.split(images, 8)]
    )
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    for module in (vae, average.module):
        last, first = module.encoder.conv_out, module.decoder.conv_in
        last.bias -= torch.cat([mean, 2 * std.log()])  # means, then logarithms of variances
        rows = len(mean)
        last.weight[:rows] /= std[:, None, None, None]
        last.bias[:rows] /= std
        first.bias += torch.einsum("oiyx,i->o", first.weight, mean)
        first.weight *= std[None, :, None, None]
    for layer in (vae.encoder.conv_out, vae.decoder.conv_in):
        for parameter in layer.parameters():
            optimizer.state.pop(parameter, None)


def train(
    checkpoint: Path, options: Options, device: torch.device, start: Path | None = None
) -> None:
    """Train until the time is up; averaged weights lie in the checkpoint, written each minute.

    A first call begins with the averaged weights of the checkpoint `start`, if one is given.
    """
    torch.manual_seed(options.seed)
    vae = new_vae().to(device, memory_format=torch.channels_last)
    normal = start is not None
    if start is not None:
        vae.load_state_dict(load_average(start).state_dict())
    average = Average(vae, AVERAGE)
    vae.encoder.requires_grad_(not options.noise)
    optimizer = torch.optim.AdamW(vae.parameters(), options.rate, (0.9, 0.99), weight_decay=0.01)
    step, elapsed = 0, 0.0
    if state := load_state(checkpoint):
        vae.load_state_dict(state["model"])
        average.module.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, elapsed, normal = state["step"], state["elapsed"], state["normal"]
    crops = Crops(options.pool, options.seed + step)
    resumed, saved, total = time.monotonic() - elapsed, time.monotonic(), 0.0
    while (elapsed := time.monotonic() - resumed) < options.minutes * 60:
        share = elapsed / (options.minutes * 60)
        rate = options.rate * min(1, (step + 1) / WARM_UP)
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * share)))
        batches = next(batches for end, batches in options.stages if share < end)
        side, count = batches[step % len(batches)]
        if batches == ((SIZE, 2),) and not normal:
            _normalise(vae, average, optimizer, crops.batch(SIZE, 128).to(device))
            normal = True
        loss, absolute = _loss(vae, crops.batch(side, count).to(device), options)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae, step)
        step, total = step + 1, total + absolute
        if step % 50 == 0:
            line = f"{step} {share:.3f} side {side} L1 {total / 50:.4f} {elapsed / step:.3f} s/step"
            print(line, flush=True)  # noqa: T201
            total = 0.0
        if time.monotonic() - saved > 60:
            state = training_state(vae, average, optimizer, step, elapsed)
            save_state(checkpoint, state | {"normal": normal})
            saved = time.monotonic()
    state = training_state(vae, average, optimizer, step, elapsed)
    save_state(checkpoint, state | {"normal": normal})


def load_average(checkpoint: Path) -> Untyped:
    """The averaged autoencoder of a checkpoint; raises FileNotFoundError without one."""
    state = load_state(checkpoint)
    if state is None:
        raise FileNotFoundError(checkpoint)
    vae = new_vae()
    vae.load_state_dict(state["average"])
    return vae.eval().requires_grad_(False)
