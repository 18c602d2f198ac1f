"""float32 against bfloat16 on this CPU: seconds a forward, and how far the pictures differ.

    OMP_NUM_THREADS=1 python -m benchmarks.dtype [--prompts 20] [--steps 20] [--rounds 5]

Both sides run in one process, in turn: postcard whole (its pictures are compared by PSNR, prompt by
prompt), and the denoiser of Stable Diffusion 1.5's shape with random weights at 512x512 (a forward
with guidance, batch 2; the relative error of its output stands for the pictures that random weights
do not make). Convolution weights are in channels-last order on both sides, as t2i has them.
"""

import argparse
import json
import math
import platform
import statistics
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.models import libraries
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest

DTYPES = ("float32", "bfloat16")
PROMPTS = tuple(
    f"{article} {colour} {shape}{where}"
    for article, colour, shape, where in (
        ("a", "red", "star", ""),
        ("a", "blue", "circle", " on a white background"),
        ("a", "green", "square", ""),
        ("a", "yellow", "triangle", " at night"),
        ("a", "red", "house", " on green hills"),
        ("a", "white", "boat", " on the sea"),
        ("a", "blue", "house", " in snow"),
        ("a", "yellow", "moon", " at night"),
        ("an", "orange", "sun", " over the sea"),
        ("a", "green", "tree", ""),
        ("a", "purple", "star", ""),
        ("a", "red", "circle", ""),
        ("a", "black", "square", ""),
        ("a", "pink", "triangle", ""),
        ("a", "brown", "house", ""),
        ("a", "blue", "star", " at night"),
        ("a", "white", "moon", ""),
        ("a", "red", "boat", " at sunset"),
        ("an", "orange", "circle", ""),
        ("a", "green", "house", " by the sea"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One prompt's picture: seconds by dtype, and the PSNR in dB of bfloat16's to float32's."""

    prompt: str
    seconds: dict[str, float]
    psnr: float


def psnr(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Peak signal-to-noise ratio in dB of two images of 0 to 255; infinite if they are equal."""
    error = float(np.mean((one - other) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def postcards(prompts: int, steps: int) -> list[Picture]:
    """The pictures of postcard in both dtypes, through the backend; the first of each warms up."""
    backends = {dtype: LocalBackend(LocalOptions(device="cpu", dtype=dtype)) for dtype in DTYPES}
    found = []
    for number, prompt in enumerate((PROMPTS[0], *PROMPTS[:prompts])):
        made: dict[str, GeneratedImage] = {}
        for dtype, backend in backends.items():
            asked = GenerateRequest(prompt=prompt, model="postcard", seed=number, steps=steps)
            request = resolve_request(asked, backend.describe(asked))
            [outcome] = backend.run([request], lambda _: None, threading.Event())
            if not isinstance(outcome, GeneratedImage):
                raise SystemExit(f"{prompt!r} failed: {outcome.error}")
            made[dtype] = outcome
        arrays = [np.asarray(made[dtype].image, dtype=np.float64) for dtype in DTYPES]
        seconds = {dtype: image.seconds for dtype, image in made.items()}
        found.append(Picture(prompt=prompt, seconds=seconds, psnr=psnr(arrays[0], arrays[1])))
    return found[1:]


def unet(rounds: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each forward of an SD 1.5 UNet by dtype, and bfloat16's relative error."""
    torch = libraries.import_torch()
    libraries.import_diffusers()
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    network: LibraryObject = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    )
    inputs = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)
    seconds: dict[str, list[float]] = {}
    outputs = {}
    for dtype in DTYPES:
        kind = getattr(torch, dtype)
        network.to(kind).to(memory_format=torch.channels_last)
        latents, text = (each.to(kind) for each in inputs)
        with torch.inference_mode():
            for _ in range(rounds + 1):
                started = time.perf_counter()
                outputs[dtype] = network(latents, 500, text).sample.float()
                seconds.setdefault(dtype, []).append(time.perf_counter() - started)
    right = outputs["float32"]
    error = float((outputs["bfloat16"] - right).norm() / right.norm())
    return {dtype: taken[1:] for dtype, taken in seconds.items()}, error


def main() -> None:
    """Print the figures, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch = libraries.import_torch()
    print(f"{torch.get_num_threads()} threads; {torch.cpu.get_capabilities()['cpu_name']}")
    pictures = postcards(asked.prompts, asked.steps)
    for picture in pictures:
        print(f"{picture.psnr:6.1f} dB  {picture.prompt}")
    medians = {d: statistics.median(each.seconds[d] for each in pictures) for d in DTYPES}
    worst = min(each.psnr for each in pictures)
    print(f"postcard: {medians}, worst {worst:.1f} dB", flush=True)
    seconds, error = unet(asked.rounds)
    denoiser = {dtype: statistics.median(taken) for dtype, taken in seconds.items()}
    print(f"SD 1.5's UNet at 512x512 with guidance: {denoiser}, relative error {error:.4f}")
    record = {
        "benchmark": "dtype",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "pictures": [asdict(each) for each in pictures],
        "unet": {"seconds": seconds, "relative_error": error},
    }
    path = Path(__file__).parent / "results" / "dtype.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
