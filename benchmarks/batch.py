"""`t2i batch` of 100 prompts against (a) a process a prompt and (b) the naive loop.

(a) is `diffusers-cli run`, measured on five prompts and scaled; (b) holds the pipeline loaded,
makes one image at a time and saves it as it comes. The bare pipeline in micro-batches, which
saves nothing, says what batching can gain here. To reach: 15 x (a); 0.95 x the bare gain over
(b); less than 3 % of the time outside the pipeline; the peak memory of image 100 within 2 % of
image 10's. Run as `python -m benchmarks.batch`; `--model sd15` or `sdxl` measures those shapes
with random weights, for a GPU.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import models
from benchmarks.measure import run
from t2i_cli.backends.local import device, pipeline
from t2i_cli.backends.local.pipeline_output import PipelineOutput
from t2i_cli.errors import ModelError
from t2i_cli.models.libraries import LibraryObject

SCRIPTS = Path(sysconfig.get_path("scripts"))
RUNS = 5
SIZES = (1, 2, 4, 8, 16, 32)
COLOURS = ("red", "blue", "green", "yellow", "purple")
SHAPES = ("circle", "square", "star", "heart", "triangle")
GROUNDS = ("white", "black", "grey", "orange")


@dataclass(frozen=True)
class Given:
    """What all sides make: `model` is a folder."""

    model: Path
    prompts: Sequence[str]
    steps: int
    side: int
    folder: Path

    @property
    def arguments(self) -> dict[str, object]:
        """The pipeline's arguments, the prompt aside."""
        return {"num_inference_steps": self.steps, "width": self.side, "height": self.side}


def naive(given: Given) -> dict[str, float]:
    """(b): one image at a time, saved as it comes; images a second, the load left out."""
    pipe = _pipe(given)
    _images(pipe, given, given.prompts[:1])
    started = time.perf_counter()
    for number, prompt in enumerate(given.prompts):
        _images(pipe, given, [prompt])[0].save(given.folder / f"{number}.png")
    return {"rate": len(given.prompts) / (time.perf_counter() - started)}


def bare(given: Given) -> dict[str, float]:
    """The pipeline alone, in micro-batches; images a second at each size."""
    pipe = _pipe(given)
    _images(pipe, given, given.prompts[:1])
    rates = {}
    for size in (size for size in SIZES if size <= len(given.prompts)):
        started = time.perf_counter()
        # A third of the prompts tells a rate; the best size is measured on all of them.
        part = given.prompts[: max(size, len(given.prompts) // 3 // size * size)]
        for at in range(0, len(part), size):
            _images(pipe, given, part[at : at + size])
        rates[size] = len(part) / (time.perf_counter() - started)
    best = max(rates, key=lambda size: rates[size])
    started = time.perf_counter()
    for at in range(0, len(given.prompts), best):
        _images(pipe, given, given.prompts[at : at + best])
    return {"rate": len(given.prompts) / (time.perf_counter() - started), "size": best}


def ours(given: Given) -> dict[str, float]:
    """t2i batch in this process: images a second from the first pass on, and time outside it."""
    passes: list[tuple[float, float]] = []
    with _timed(passes, lambda: None):
        _t2i(given, "auto")
    whole = time.perf_counter() - passes[0][0]
    inside = sum(end - begin for begin, end in passes)
    return {"rate": len(given.prompts) / whole, "outside": 1 - inside / whole}


def memory(given: Given) -> dict[str, float]:
    """t2i batch in passes of two: the process's peak memory after image 10 and after the last."""
    passes: list[tuple[float, float]] = []
    peaks: list[float] = []
    with _timed(passes, lambda: peaks.append(_peak())):
        _t2i(given, "2")
    tenth = peaks[min(4, len(peaks) - 1)]
    return {"mib_at_10": tenth, "mib_at_end": peaks[-1], "growth": peaks[-1] / tenth - 1}


STAGES: dict[str, Callable[[Given], dict[str, float]]] = {
    "naive": naive,
    "bare": bare,
    "ours": ours,
    "memory": memory,
}


def _pipe(given: Given) -> LibraryObject:
    import torch
    from diffusers import DiffusionPipeline

    place = device.find_device(None)
    dtype = device.choose_dtype(place, None, transformer=False)
    pipe = DiffusionPipeline.from_pretrained(given.model, dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place.name)


def _images(pipe: LibraryObject, given: Given, prompts: Sequence[str]) -> LibraryObject:
    import torch

    noise = [torch.Generator("cpu").manual_seed(n) for n in range(len(prompts))]
    return pipe(list(prompts), generator=noise, **given.arguments).images


@contextmanager
def _timed(passes: list[tuple[float, float]], then: Callable[[], None]) -> Iterator[None]:
    """Note when each pass of t2i's pipeline began and ended."""
    real = pipeline.run_pipeline

    def timed(*args: LibraryObject) -> list[PipelineOutput | ModelError]:
        started = time.perf_counter()
        pictures = real(*args)
        passes.append((started, time.perf_counter()))
        then()
        return pictures

    pipeline.run_pipeline = timed  # type: ignore[assignment]
    try:
        yield
    finally:
        pipeline.run_pipeline = real


def _t2i(given: Given, size: str) -> None:
    from t2i_cli.cli import main

    code = main._run([*_command(given), "--batch-size", size, "--json", "-q"])  # noqa: SLF001
    if code:
        raise SystemExit(f"t2i batch ended with {code}")


def _command(given: Given) -> list[str]:
    source = given.folder / "prompts.txt"
    source.write_text("\n".join(given.prompts))
    # postcard by its name, as people ask for it.
    model = "postcard" if given.side == models.NATIVE["postcard"] else str(given.model)
    return [
        *("batch", str(source), "-m", model, "-o", str(given.folder / "out")),
        *("--steps", str(given.steps), "--size", f"{given.side}x{given.side}"),
    ]


def _peak() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _prompts(number: int) -> list[str]:
    """Prompts of postcard's world, each once."""
    all_of_them = (
        f"a {c} {s} on a {g} background" for c in COLOURS for s in SHAPES for g in GROUNDS
    )
    return [prompt for _, prompt in zip(range(number), all_of_them, strict=False)]


def _stage(name: str, arguments: argparse.Namespace, model: Path) -> dict[str, float]:
    """A stage in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.batch", "--stage", name, "--folder", folder]
        settings = ("--model", arguments.model, "--model-folder", str(model))
        numbers = ("--images", str(arguments.images), "--steps", str(arguments.steps))
        done = subprocess.run(
            [*command, *settings, *numbers],
            env={**os.environ, "XDG_CACHE_HOME": folder},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _whole(arguments: argparse.Namespace, model: Path) -> dict[str, float]:
    """(a) and t2i as whole processes: wall-clock seconds for all the prompts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = _given(arguments, model, folder)
        singles = []
        for number, prompt in enumerate(given.prompts[:5]):
            kwargs = json.dumps({"prompt": prompt, **given.arguments})
            command = [str(SCRIPTS / "diffusers-cli"), "run", "--model", str(model)]
            out = str(folder / f"{number}.png")
            sample = run([*command, "--pipeline-kwargs", kwargs, "--output", out])
            singles.append(sample.wall)
        environment = {"XDG_CACHE_HOME": name}
        batch = run([str(SCRIPTS / "t2i"), *_command(given)], environment)
    scaled = statistics.mean(singles) * len(given.prompts)
    return {"a_seconds": scaled, "ours_seconds": batch.wall, "ratio": scaled / batch.wall}


def _given(arguments: argparse.Namespace, model: Path, folder: Path) -> Given:
    side = models.NATIVE[arguments.model]
    return Given(model, _prompts(arguments.images), arguments.steps, side, folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=models.NAMES, default="postcard")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--model-folder", type=Path)
    arguments = parser.parse_args()
    if arguments.stage:
        given = _given(arguments, arguments.model_folder, arguments.folder)
        print(json.dumps(STAGES[arguments.stage](given)))
        return
    with tempfile.TemporaryDirectory() as name:
        model = models.folder(arguments.model, Path(name))
        rounds = [
            {"whole": _whole(arguments, model)}
            | {stage: _stage(stage, arguments, model) for stage in STAGES}
            for _ in range(arguments.runs)
        ]
    figures = {
        "times (a), a process a prompt": [r["whole"]["ratio"] for r in rounds],
        "times (b), the naive loop": [r["ours"]["rate"] / r["naive"]["rate"] for r in rounds],
        "bare pipeline, times (b)": [r["bare"]["rate"] / r["naive"]["rate"] for r in rounds],
        "share of the bare gain": [r["ours"]["rate"] / r["bare"]["rate"] for r in rounds],
        "time outside the pipeline": [r["ours"]["outside"] for r in rounds],
        "memory, last over tenth image": [r["memory"]["growth"] for r in rounds],
        "images a second": [r["ours"]["rate"] for r in rounds],
    }
    for title, values in figures.items():
        print(f"{title:<32}{statistics.median(values):>10.3f}")
    record = {
        "benchmark": "batch",
        "model": arguments.model,
        "images": arguments.images,
        "steps": arguments.steps,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": device.find_device(None).label,
        "rounds": rounds,
    }
    suffix = "" if arguments.model == "postcard" else f"_{arguments.model}"
    path = Path(__file__).parent / "results" / f"batch{suffix}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
