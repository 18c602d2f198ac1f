"""What `--quantize` and `--step-cache` cost in PSNR and gain in time and memory.

    python -m benchmarks.lossy [--device cpu] [--models postcard flux] [--blocks 19 38]

All sides of a model run in one process: plain, every quantisation that this machine can have, and
for transformers step caches. PSNR is of each picture to the plain one of the same seed. postcard's
pictures are real. flux is FLUX.1's transformer at its own width, with random weights, tiny encoders
and as many double and single blocks as asked for: its seconds and bytes are real on a card with 19
and 38 of them, and its PSNR is that of noise, an upper bound of the damage and no figure to quote.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.dtype import PROMPTS, psnr
from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.errors import T2IError
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.postcard import FOLDER
from t2i_cli.request import GenerateRequest
from t2i_cli.request_fields import QUANTIZATIONS

THRESHOLDS = (0.05, 0.1, 0.2)
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Result:
    """One side: median seconds an image, MiB of weights, and its pictures' PSNR in dB to plain."""

    model: str
    side: str
    seconds: float
    weights_mib: int
    psnr: list[float]

    def line(self) -> str:
        """The result as a line of a table."""
        worst = f"{min(self.psnr):6.1f} to {max(self.psnr):6.1f} dB" if self.psnr else "as plain"
        middle = f", median {statistics.median(self.psnr):.1f}" if self.psnr else ""
        return (
            f"{self.model:<9}{self.side:<18}{self.seconds:8.2f} s{self.weights_mib:8,} MiB  "
            f"{worst}{middle}"
        )


def flux_folder(into: Path, blocks: tuple[int, int]) -> Path:
    """A FLUX.1 pipeline with a transformer of its width and so many blocks, random, in bfloat16."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    from tests import tiny_models

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        num_layers=blocks[0],
        num_single_layers=blocks[1],
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
    )
    pipe: LibraryObject = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_models.vae(16, stages=4),
        text_encoder=tiny_models.clip("CLIPTextModel"),
        tokenizer=tiny_models.clip_tokenizer(),
        text_encoder_2=tiny_models.t5(),
        tokenizer_2=tiny_models.t5_tokenizer(),
        transformer=transformer,
    )
    pipe.to(torch.bfloat16).save_pretrained(into)
    return into


def sides(model: str) -> Iterator[tuple[str, dict[str, object]]]:
    """The names and request fields of a model's sides, plain first."""
    yield "plain", {}
    for kind in QUANTIZATIONS:
        yield kind, {"quantize": kind}
    if model == "flux":
        for threshold in THRESHOLDS:
            yield f"step cache {threshold}", {"step_cache": threshold}


def measure(
    model: str, folder: Path, asked: argparse.Namespace, backend: LocalBackend
) -> Iterator[Result]:
    """The results of a model's sides as they come; a side that this machine lacks is told."""
    plain: dict[int, np.ndarray] = {}
    prompts = PROMPTS[: asked.prompts if model == "postcard" else 2]
    steps, side = (20, None) if model == "postcard" else (asked.steps, asked.side)
    for name, fields in sides(model):
        seconds, ratios = [], []
        try:
            for number in (-1, *range(len(prompts))):  # the first one warms up
                request = GenerateRequest(
                    prompt=prompts[max(0, number)],
                    model=str(folder),
                    seed=max(0, number),
                    steps=steps,
                    width=side,
                    height=side,
                    **fields,  # type: ignore[arg-type]
                )
                settled = resolve_request(request, backend.describe(request))
                backend.check(settled)
                started = time.perf_counter()
                [outcome] = backend.run([settled], lambda _: None, threading.Event())
                if not isinstance(outcome, GeneratedImage):
                    raise outcome.error
                if number < 0:
                    continue
                seconds.append(time.perf_counter() - started)
                pixels = np.asarray(outcome.image, dtype=np.float64)
                if name == "plain":
                    plain[number] = pixels
                else:
                    ratios.append(min(psnr(plain[number], pixels), 99.0))
        except T2IError as error:
            print(f"{model:<9}{name:<18}{error.message}", flush=True)
            continue
        planned = backend.plan(settled).weights_mib
        yield Result(
            model=model,
            side=name,
            seconds=statistics.median(seconds),
            weights_mib=planned,
            psnr=ratios,
        )


def main() -> None:
    """Print a line a side as it comes, and write all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--models", nargs="+", default=["postcard"], choices=["postcard", "flux"])
    parser.add_argument("--blocks", nargs=2, type=int, default=(19, 38))
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--steps", type=int, default=28, help="of flux")
    parser.add_argument("--side", type=int, default=1024, help="of flux, in pixels")
    asked = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for model in asked.models:
            made = Path(temporary) / model
            folder = FOLDER if model == "postcard" else flux_folder(made, tuple(asked.blocks))
            backend = LocalBackend(LocalOptions(device=asked.device, dtype=asked.dtype))
            for result in measure(model, folder, asked, backend):
                print(result.line(), flush=True)
                results.append(asdict(result))
            backend.close()
    path = Path(__file__).parent / "results" / "lossy.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
