"""`t2i generate -n 8` against eight `t2i generate`, against `--strict` and against `t2i batch`.

Whole processes, postcard at 20 steps, in turn after one round that only warms the file cache. To
reach: -n 8 is as fast as a batch of the same eight, within 10 %. With `--encoders` the threads that
encode files are measured instead: one thread against two, for each format of 1024 x 1024.
Run as `python -m benchmarks.generate_passes`.
"""

import argparse
import json
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.measure import Sample, report, run
from t2i_cli.backend import GeneratedImage
from t2i_cli.image_formats import EXTENSIONS
from t2i_cli.output import metadata
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest

T2I = str(Path(sysconfig.get_path("scripts")) / "t2i")
PROMPT = "a red star on a white background"
IMAGES = 8
ENCODED = 16
SIDE = 1024


def _request(*options: str) -> list[str]:
    return [T2I, "generate", PROMPT, "-m", "postcard", "-q", "--overwrite", *options]


def _sides(folder: Path) -> dict[str, Callable[[], Sample]]:
    """What makes the eight images of seeds 1 to 8, by side."""
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": PROMPT, "seed": n + 1}) + "\n" for n in range(IMAGES))
    )
    out = f"{folder}/{{index}}.png"
    several = _request("-s", "1", "-n", str(IMAGES), "-o", out)
    batch = [T2I, "batch", str(rows), "-m", "postcard", "-o", str(folder / "out"), "--force", "-q"]
    return {
        f"generate -n {IMAGES}": lambda: run(several),
        f"{IMAGES} generates": lambda: _all(
            [run(_request("-s", str(n + 1), "-o", f"{folder}/{n}.png")) for n in range(IMAGES)]
        ),
        f"generate -n {IMAGES} --strict": lambda: run([*several, "--strict"]),
        f"batch of {IMAGES}": lambda: run(batch),
    }


def _all(samples: list[Sample]) -> Sample:
    """Several processes after one another, as one sample."""
    return Sample(
        wall=sum(each.wall for each in samples),
        cpu=sum(each.cpu for each in samples),
        peak_mib=max(each.peak_mib for each in samples),
    )


def _processes(runs: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        sides = _sides(Path(name))
        samples: dict[str, list[Sample]] = {side: [] for side in sides}
        for round_number in range(runs + 1):
            for side, make in sides.items():
                sample = make()
                if round_number:
                    samples[side].append(sample)
    report("generate_passes", samples, f"generate -n {IMAGES}")


def _photograph() -> GeneratedImage:
    """An image of 1024 x 1024 with gradients and a little noise, as a photograph has."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    coarse = Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = noise.normal(0, 2.5, smooth.shape).astype(np.int16)
    pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
    size = {"width": SIDE, "height": SIDE, "steps": 20, "guidance_scale": 4.0}
    unset = {"negative_prompt": None, "revision": None, "scheduler": None}
    request = ResolvedRequest(prompt=PROMPT, model="postcard", seed=1, **size, **unset)  # type: ignore[arg-type]
    info = GenerationInfo(backend="local", model="postcard")
    image = Image.fromarray(pixels)
    return GeneratedImage(index=0, request=request, image=image, info=info, seconds=1.0)


def _encoders() -> None:
    """Print milliseconds an image by one thread, and how many times as fast two are."""
    image = _photograph()
    for format in EXTENSIONS:
        encode = partial(metadata.image_file_bytes, image, format)
        seconds = []
        for threads in (1, 2):
            with ThreadPoolExecutor(threads) as pool:
                started = time.perf_counter()
                for each in [pool.submit(encode) for _ in range(ENCODED)]:
                    each.result()
                seconds.append(time.perf_counter() - started)
        one, two = seconds
        print(f"{format:<6}{1000 * one / ENCODED:>8.1f} ms an image, two threads {one / two:.2f} x")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--encoders", action="store_true")
    arguments = parser.parse_args()
    if arguments.encoders:
        _encoders()
    else:
        _processes(arguments.runs)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
