"""What a card makes of each model: plain diffusers, compiled, t2i alone and in passes, in one run.

All sides of a model run in one process, on the same files: `diffusers` as its documentation has it,
`compiled` with its repeated blocks compiled, `t2i` as it decides by itself, `t2i batched` with the
batch size that it finds, `t2i compiled` with `--compile on`, of models that take seconds also `t2i
step cache` and quantised, and `t2i 8 GiB free` where the rest of the card is taken. `--sides` picks
some. A line of JSON is printed as each is measured, with the seconds to reach on an H200, and a
table in the end. Run as `python -m benchmarks.gpu`; `--budget` seconds end it in order, `--check`
runs the tests of marker `gpu` and benchmarks/memory.py in what is left of them, `--profile` follows
each miss to the kernels that take the time. `--device cpu --tiny` tries the script itself.
docs/benchmarks.md says how to run it on a machine where nothing can be installed.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks import gpu_models
from benchmarks.gpu_models import MeasuredModel
from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local.options import CompileMode
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request import GenerateRequest

PROMPT = "a red house on green hills under a blue sky"
SEED = 1
RUNS = 3
BUDGET = 480.0
STEP_CACHE = 0.1
SIDES = (
    "diffusers",
    "compiled",
    "t2i",
    "t2i batched",
    "t2i compiled",
    "t2i lossy",
    "cold",
    "t2i scarce",
)
TINY_SIDE = 64
_PROFILE_ROWS = 25
_CHECK_RESERVE = 30.0
"""Seconds below which neither tests nor the memory table are begun."""

Record = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured: a model, its folder, the device's name, and steps and size in pixels."""

    model: MeasuredModel
    folder: Path
    device: str
    steps: int
    side: int

    def request(self, seed: int, **more: object) -> GenerateRequest:
        """The request that t2i gets."""
        return GenerateRequest(
            prompt=PROMPT,
            model=str(self.folder),
            seed=seed,
            steps=self.steps,
            width=self.side,
            height=self.side,
            guidance_scale=self.model.guidance,
            **more,  # type: ignore[arg-type]
        )


class Report:
    """Prints each record as a line of JSON, and all of them as a table in the end."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, **record: object) -> None:
        """Print a record at once: a run that is cut off has told what it knew."""
        self.records.append(record)
        print(json.dumps(record), flush=True)

    def table(self) -> str:
        """The seconds an image as a Markdown table."""
        lines = [
            "| model | side | first, s | an image, s | to reach, s | pictures, dB |",
            "|---|---|---|---|---|---|",
        ]
        for record in self.records:
            if "side" not in record:
                continue
            cells = [record[key] for key in ("model", "side")]
            if "failed" in record:
                lines.append(f"| {cells[0]} | {cells[1]} | {record['failed']} | | | |")
                continue
            figures = [record.get(key) for key in ("first", "seconds", "target", "psnr")]
            texts = ["–" if figure is None else f"{figure}" for figure in figures]
            if record.get("missed"):
                texts[1] = f"**{texts[1]}**"
            lines.append(f"| {' | '.join([*map(str, cells), *texts])} |")
        return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if something was missed or failed."""
    options = _parse(arguments)
    started = time.monotonic()

    def left() -> float:
        return float(options.budget) - (time.monotonic() - started)

    report = Report()
    report.add(**_machine(options.device))
    for name in options.models:
        (model,) = (one for one in gpu_models.MODELS if one.name == name)
        if not options.tiny and left() < model.seconds:
            report.add(model=name, skipped=f"{left():.0f} s are left, and it takes {model.seconds}")
            continue
        _import_libraries()
        with tempfile.TemporaryDirectory(prefix="t2i-gpu-", dir=options.folder) as folder:
            _measure_model(model, Path(folder), options, report)
    if options.check:
        _check(options, left, report)
    print(report.table(), flush=True)
    bad = [record for record in report.records if record.get("missed") or "failed" in record]
    return 1 if bad else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [model.name for model in gpu_models.MODELS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--models", default=",".join(names), help=f"of {', '.join(names)}, or none")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all")
    parser.add_argument("--runs", type=int, default=RUNS, help="images of each side")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"of {', '.join(SIDES)}")
    parser.add_argument("--check", action="store_true", help="the tests of marker gpu, and memory")
    parser.add_argument("--profile", action="store_true", help="kernels of what misses its target")
    parser.add_argument("--out", type=Path, help="folder for traces of --profile")
    parser.add_argument("--folder", type=Path, help="where models are saved; a temporary folder")
    options = parser.parse_args(arguments)
    options.models = [] if options.models == "none" else options.models.split(",")
    options.sides = options.sides.split(",")
    for given, known, what in ((options.models, names, "model"), (options.sides, SIDES, "side")):
        if unknown := sorted(set(given) - set(known)):
            parser.error(f"there is no {what} {', '.join(unknown)}; there is {', '.join(known)}")
    return options


def _import_libraries() -> None:
    """Import diffusers plainly, before t2i, which defers torch's compiler; one side needs it."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _machine(device: str) -> Record:
    """The card's name and memory, and the versions of what computes on it."""
    found: Record = {"machine": platform.machine(), "cores": os.cpu_count(), "device": device}
    found |= {name: version(name) for name in ("torch", "diffusers", "transformers")}
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(device)
        found |= {
            "card": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return found


def _measure_model(
    model: MeasuredModel, folder: Path, options: argparse.Namespace, report: Report
) -> None:
    """Build a model and measure all its sides."""
    started = time.monotonic()
    gpu_models.build(model, folder / model.name, options.device, tiny=options.tiny)
    _release(options.device)
    job = Job(
        model=model,
        folder=folder / model.name,
        device=options.device,
        steps=min(model.steps, 2) if options.tiny else model.steps,
        side=TINY_SIDE if options.tiny else model.side,
    )
    report.add(model=model.name, built=round(time.monotonic() - started, 1))
    pictures: dict[str, LibraryObject] = {}
    if "diffusers" in options.sides:
        with _reporting(report, model.name, "diffusers"):
            pictures["diffusers"] = _measure_diffusers(
                job, options.runs, report, compiles="compiled" in options.sides
            )
        _release(options.device)
    for side, target, measure in _sides(job, options):
        with _reporting(report, model.name, side):
            figures, pictures[side] = measure()
            missed = target is not None and not options.tiny and figures["seconds"] > target
            report.add(
                model=model.name,
                side=side,
                **figures,
                target=target,
                missed=missed,
                psnr=psnr(pictures.get("diffusers"), pictures[side]),
            )
            if options.profile and (missed or options.tiny) and side == "t2i":
                _profile(job, options.out, report)
        _release(options.device)
    if model.name == "sd15" and "cold" in options.sides:
        with _reporting(report, model.name, "t2i generate, a cold process"):
            report.add(
                model=model.name, side="t2i generate, a cold process", seconds=_cold_start(job)
            )


def _sides(
    job: Job, options: argparse.Namespace
) -> Iterator[tuple[str, float | None, Callable[[], LibraryObject]]]:
    """The sides of t2i that are asked for: name, seconds to reach, and what measures it."""
    model, runs = job.model, options.runs
    if "t2i" in options.sides:
        yield "t2i", model.alone, lambda: _measure_t2i(job, runs)
    if model.batch and "t2i batched" in options.sides:
        count = 4 if options.tiny else model.batch
        yield "t2i batched", model.batched, lambda: _measure_batched(job, count)
    if "t2i compiled" in options.sides:
        yield "t2i compiled", model.alone, lambda: _measure_t2i(job, runs, compile_mode="on")
    if model.step_cache and "t2i lossy" in options.sides:
        cached = partial(_measure_t2i, job, runs, step_cache=STEP_CACHE)
        yield "t2i step cache", model.step_cache, cached
    for kind in model.quantizations if "t2i lossy" in options.sides else ():
        yield f"t2i {kind}", None, partial(_measure_t2i, job, runs, quantize=kind)
    if model.free_gib and "t2i scarce" in options.sides and job.device.startswith("cuda"):
        scarce = partial(_measure_scarce, job, model.free_gib)
        yield f"t2i, {model.free_gib} GiB free", None, scarce


@contextmanager
def _reporting(report: Report, model: str, side: str) -> Iterator[None]:
    """A side that fails is a line of the report; the other sides go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the minutes of a card are not lost by one side
        report.add(model=model, side=side, failed=f"{type(error).__name__}: {error}"[:400])


def psnr(one: LibraryObject, other: LibraryObject) -> float | None:
    """How near two pictures are, in dB; None without one of them, 100 for equal ones."""
    if one is None or other is None:
        return None
    pictures = (np.asarray(picture.convert("RGB"), dtype=float) for picture in (one, other))
    first, second = pictures
    mean = float(np.mean((first - second) ** 2))
    return 100.0 if mean == 0 else round(10 * float(np.log10(255**2 / mean)), 1)


def _timed(call: Callable[[], LibraryObject], runs: int) -> tuple[dict[str, float], LibraryObject]:
    """Seconds of the first call and the median of `runs` more, with the last result."""
    seconds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        made = call()
        seconds.append(time.perf_counter() - started)
    first, *others = seconds
    return {"first": round(first, 3), "seconds": round(statistics.median(others), 3)}, made


def _measure_diffusers(job: Job, runs: int, report: Report, *, compiles: bool) -> LibraryObject:
    """Plain diffusers, then with its blocks compiled, on the same pipeline; the plain picture."""
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(job.folder, dtype=getattr(torch, job.model.dtype))
    pipe.to(job.device).set_progress_bar_config(disable=True)

    scale = job.model.guidance
    guidance = {} if scale is None else {"guidance_scale": scale}

    def make() -> LibraryObject:
        return pipe(
            prompt=PROMPT,
            num_inference_steps=job.steps,
            width=job.side,
            height=job.side,
            generator=torch.Generator("cpu").manual_seed(SEED),
            **guidance,
        ).images[0]

    figures, picture = _timed(make, runs)
    report.add(model=job.model.name, side="diffusers", **figures)
    if not compiles:
        return picture
    with _reporting(report, job.model.name, "diffusers, compiled"):
        denoiser = getattr(pipe, "unet", None) or pipe.transformer
        denoiser.compile_repeated_blocks(fullgraph=True)
        figures, compiled = _timed(make, runs)
        report.add(
            model=job.model.name,
            side="diffusers, compiled",
            **figures,
            psnr=psnr(picture, compiled),
        )
        torch.compiler.reset()
    return picture


def _images(
    backend: LibraryObject, requests: Sequence[GenerateRequest]
) -> tuple[list[GeneratedImage], list[str]]:
    """The images, and the notes and measures that were told; raises the first failure's error."""
    from t2i_cli.events import MemoryMeasure, Notice
    from t2i_cli.models.request_resolution import resolve_request

    resolved = [resolve_request(request, backend.describe(request)) for request in requests]
    told: list[str] = []

    def on_event(event: object) -> None:
        if isinstance(event, Notice):
            told.append(event.message)
        elif isinstance(event, MemoryMeasure):
            told.append(f"{event.name}: {event.reason}")

    outcomes = list(backend.run(resolved, on_event, threading.Event()))
    for outcome in outcomes:
        if not isinstance(outcome, GeneratedImage):
            raise outcome.error
    return outcomes, told


def _backend(
    job: Job, batch_size: int | None = 1, compile_mode: CompileMode = "auto"
) -> LibraryObject:
    """A local backend that decides by itself, the dtype aside: on a card it would be the same."""
    from t2i_cli.backends.local import LocalBackend, LocalOptions

    return LocalBackend(
        LocalOptions(
            device=job.device,
            dtype=job.model.dtype,
            batch_size=batch_size,
            compile=compile_mode,
        )
    )


def _measure_t2i(
    job: Job, runs: int, *, compile_mode: CompileMode = "auto", **more: object
) -> tuple[Record, LibraryObject]:
    """t2i, one image at a time; the first one's seconds have the load in them."""
    backend = _backend(job, compile_mode=compile_mode)
    try:
        told: list[str] = []

        def make() -> GeneratedImage:
            made, notes = _images(backend, [job.request(SEED, **more)])
            told.extend(notes)
            return made[0]

        figures, image = _timed(make, runs)
        return {**figures, **_decided(image), "told": told}, image.image
    finally:
        backend.close()


def _measure_scarce(job: Job, gib: int) -> tuple[Record, LibraryObject]:
    """t2i, one image at a time, while all but `gib` of the card's memory is taken."""
    import torch

    free, _ = torch.cuda.mem_get_info(job.device)
    taken = torch.empty(free - gib * 2**30, dtype=torch.uint8, device=job.device)
    try:
        return _measure_t2i(job, 1)
    finally:
        del taken


def _measure_batched(job: Job, count: int) -> tuple[Record, LibraryObject]:
    """t2i with the batch size that it finds: the seconds an image of its fastest passes."""
    backend = _backend(job, batch_size=None)
    try:
        made, told = _images(backend, [job.request(SEED + number) for number in range(count)])
        best = min(made, key=lambda image: image.seconds)
        record: Record = {"seconds": round(best.seconds, 3), **_decided(best), "told": told}
        return record, made[0].image
    finally:
        backend.close()


def _decided(image: GeneratedImage) -> Record:
    """What t2i chose for an image."""
    info = image.info
    names = ("engine", "attention", "vae_tile", "batch_size", "dtype", "measures")
    found = {name: getattr(info, name, None) for name in names}
    return {name: value for name, value in found.items() if value}


def _profile(job: Job, out: Path | None, report: Report) -> None:
    """Print the kernels that take the time of one image, and keep the trace in `out`."""
    from torch.profiler import ProfilerActivity, profile

    backend = _backend(job)
    cuda = job.device.startswith("cuda")
    try:
        _images(backend, [job.request(SEED)])
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=activities) as profiled:
            _images(backend, [job.request(SEED)])
    finally:
        backend.close()
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    print(profiled.key_averages().table(sort_by=order, row_limit=_PROFILE_ROWS), flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        trace = out / f"{job.model.name}.json"
        profiled.export_chrome_trace(str(trace))
        report.add(model=job.model.name, trace=trace.name)


def _cold_start(job: Job) -> float:
    """Seconds of a whole `t2i generate` process, whose files are in the page cache."""
    with tempfile.TemporaryDirectory(prefix="t2i-") as folder:
        command = [sys.executable, "-m", "t2i_cli", "generate", PROMPT, "-m", str(job.folder)]
        command += ["--steps", str(job.steps), "--size", f"{job.side}x{job.side}"]
        command += ["--device", job.device, "-o", f"{folder}/x.png", "--quiet"]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    return round(seconds, 2)


def _check(options: argparse.Namespace, left: Callable[[], float], report: Report) -> None:
    """The tests of marker gpu, then the plan against what is measured, in the time that is left."""
    # Plugins that happen to be there are not in the bundle of gpu_wheels.py.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment |= {"T2I_TEST_DEVICE": options.device}
    tests = ["-m", "pytest", "-q", "-m", "gpu", "--tb=short", "-p", "no:cacheprovider"]
    tests += ["tests/test_gpu_life.py", "tests/test_gpu_matrix.py"]
    if options.tiny:
        tests += ["-k", "sd-float32-model-offload or cancelled"]
    commands = {"tests": tests}
    if importlib.util.find_spec("benchmarks.memory"):
        commands["memory"] = ["-m", "benchmarks.memory", "--device", options.device]
    for name, command in commands.items():
        seconds = left()
        if seconds < _CHECK_RESERVE:
            report.add(check=name, skipped=f"{max(0.0, seconds):.0f} s are left")
            continue
        code = _run_shown([sys.executable, *command], environment, seconds)
        if code:
            report.add(check=name, failed="out of time" if code < 0 else f"exit code {code}")
        else:
            report.add(check=name, passed=True)


def _run_shown(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> int:
    """Run a command whose output is shown as it comes; its exit code, negative if it is ended."""
    process = subprocess.Popen(command, env=dict(environment))
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(30)
        return -1


def _release(device: str) -> None:
    """Collect what a side left, and give the card's memory back."""
    import torch

    gc.unfreeze()
    gc.collect()
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
