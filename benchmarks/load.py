"""Loading a single file against a folder with the same weights: `python -m benchmarks.load`.

A pipeline of Stable Diffusion's kind with random weights is written as a diffusers folder and as
one file of ldm's layout, both loaded in turn by the local backend; `--width` is the channels of the
UNet's first stage (320 in Stable Diffusion). To reach: the file takes at most 1.3 times as long as
the folder, in medians, and after each load and `close()` the process has as much memory as after
the first.
"""

import argparse
import gc
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.part_source import PartSource
from tests import tiny_checkpoints, tiny_models
from tests.fakes import single_files
from tests.tiny_unets import small_unet, stable_diffusion

RUNS = 5
MIB = 2**20
TO_REACH = 1.3


def main() -> None:
    """Measure and print; the exit code is 1 if the file takes longer than TO_REACH allows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        tiny_models.save_pipeline(lambda: _pipeline(options.width), root / "folder")
        file = single_files.save_checkpoint(root / "folder", root / "file.safetensors")
        sides: dict[str, dict[str, object]] = {
            "folder": {"model": str(root / "folder")},
            "file": {"model": str(file), "base": PartSource(str(root / "folder"))},
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        memory: list[int] = []
        for round_number in range(options.runs + 1):
            for side, named in sides.items():
                taken = _load(named)
                memory.append(_resident())
                if round_number:  # the first one imports the libraries
                    seconds[side].append(taken)
    ratios = [a / b for a, b in zip(seconds["file"], seconds["folder"], strict=True)]
    ratio = statistics.median(ratios)
    print(
        json.dumps(
            {
                "weights_mib": _weights(options.width),
                **{f"{side}_s": round(statistics.median(s), 3) for side, s in seconds.items()},
                "file/folder": round(ratio, 3),
                "resident_mib_after_first": memory[1] // MIB,
                "resident_mib_after_last": memory[-1] // MIB,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10,
            }
        )
    )
    raise SystemExit(ratio > TO_REACH)


def _pipeline(width: int) -> LibraryObject:
    unet = small_unet(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        layers_per_block=2,
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        cross_attention_dim=768,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    encoder = tiny_checkpoints.sd15().text_encoder
    return stable_diffusion("StableDiffusionPipeline", unet=unet, text_encoder=encoder)


def _weights(width: int) -> int:
    return int(sum(p.numel() * 4 for p in _pipeline(width).unet.parameters())) // MIB


def _load(named: dict[str, object]) -> float:
    """Seconds to describe, check and load a model."""
    backend = LocalBackend(LocalOptions(device="cpu", dtype="float32", offline=True))
    request = build_request({"prompt": "x", "seed": 1, "steps": 1, **named})
    started = time.perf_counter()
    backend.load(resolve_request(request, backend.describe(request)), lambda _: None)
    taken = time.perf_counter() - started
    backend.close()
    gc.collect()
    return taken


def _resident() -> int:
    """The process's resident bytes, without pages of files, which are the system's cache."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
