"""Planned peak memory against measured: `python -m benchmarks.memory [--device cuda] [--real]`.

Without options: tiny pipelines of each family on the CPU, against the allocator's own count, for
float32 and bfloat16: a small size, one image a pass and four; a large one, with every measure.
`--device cuda` measures them on a card by torch.cuda.max_memory_allocated(). `--real` takes the
networks of the catalogue's models at their real width instead: on a card they are run with random
weights; without one, their allocations are counted without computing anything.
Prints a line of JSON per case as it comes, and at the end the median and the least of
planned / measured; the exit code is 1 if anything was planned below what was measured.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import network_shapes
from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import (
    LocalBackend,
    LocalOptions,
    batch_size,
    device,
    load_target,
    memory,
    planning,
)
from t2i_cli.backends.local.device import Device
from t2i_cli.backends.local.memory import MIB
from t2i_cli.models import diffusers_folder, resolution
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest

FAMILIES = (
    "sdxl",
    "sd3",
    "flux",
    "flux2-klein",
    "qwen-image",
    "z-image",
    "sana",
    "pixart",
    "lumina2",
    "lcm",
)
SIDES = {2: (128, 320), 8: (256, 512)}
"""A small and a large side in pixels, by the VAE's pixels per latent."""
MEASURES: dict[str, tuple[memory.Measures, ...]] = {
    "cpu": ((), (memory.VAE_TILING,)),
    "gpu": (
        (),
        (memory.VAE_TILING,),
        (memory.VAE_TILING, memory.TEXT_ENCODER_OFFLOAD),
        (memory.MODEL_OFFLOAD,),
        (memory.VAE_TILING, memory.GROUP_OFFLOAD),
    ),
}


@dataclass(frozen=True, kw_only=True)
class MemoryCase:
    """One measurement, in bytes; what the plan and the run count in addition to the weights."""

    model: str
    size: str
    dtype: str
    batch: int
    measures: memory.Measures
    planned: int
    measured: int

    @property
    def ratio(self) -> float:
        """Planned over measured."""
        return self.planned / max(self.measured, 1)

    def to_json(self) -> str:
        """A line of output."""
        return json.dumps(
            {
                "model": self.model,
                "size": self.size,
                "dtype": self.dtype,
                "batch": self.batch,
                "measures": "+".join(self.measures) or "none",
                "planned_mib": round(self.planned / MIB, 1),
                "measured_mib": round(self.measured / MIB, 1),
                "ratio": round(self.ratio, 2),
            }
        )


def peak_of(run: Callable[[], object], place: Device) -> int:
    """The most bytes that torch had allocated at once during `run`, above those before it."""
    import torch

    if place.kind != "cpu":
        torch.cuda.synchronize(place.name)
        torch.cuda.reset_peak_memory_stats(place.name)
        before = torch.cuda.memory_allocated(place.name)
        run()
        torch.cuda.synchronize(place.name)
        return torch.cuda.max_memory_allocated(place.name) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def measure_pipeline(
    folder: Path, place: Device, dtype: str, side: int, batch: int, measures: memory.Measures
) -> MemoryCase:
    """Plan a pipeline's images, make them with those measures, and compare the working memory."""
    options = LocalOptions(device=place.name, dtype=dtype, batch_size=batch)
    backend = LocalBackend(replace(options, lenient=True))
    wanted = GenerateRequest(
        prompt="a red boat on a lake", model=str(folder), steps=2, width=side, height=side, seed=1
    )
    request = resolve_request(wanted, backend.describe(wanted))
    target = load_target.fetch_files(
        load_target.resolve_target(backend._spec(request), backend._options),
        options,
        lambda _: None,
    )
    needed = planning._estimate(target, side, side, dtype)
    tile = min(needed.tiles) if memory.VAE_TILING in measures else None
    chosen, tiles = memory.choose_measures, memory.choose_tile
    memory.choose_measures = lambda *_, **__: measures
    memory.choose_tile = lambda *_, **__: tile
    requests = [replace(request, seed=seed) for seed in range(1, batch + 1)]

    def generate() -> None:
        for outcome in backend.run(requests, lambda _: None, threading.Event()):
            if not isinstance(outcome, GeneratedImage):
                raise outcome.error
            assert outcome.info.batch_size == batch, outcome.info  # noqa: S101

    try:
        backend.load(request, lambda _: None)
        resident = backend._loaded.resident_bytes if backend._loaded else 0
        measured = peak_of(generate, place)
    finally:
        memory.choose_measures, memory.choose_tile = chosen, tiles
        backend.close()
    return MemoryCase(
        model=folder.name,
        size=f"{side}x{side}",
        dtype=dtype,
        batch=batch,
        measures=measures,
        planned=needed.peak(measures, batch, place, tile) - resident,
        measured=measured,
    )


def tiny_cases(place: Device, families: tuple[str, ...] = FAMILIES) -> Iterator[MemoryCase]:
    """Tiny pipelines of each family, whole runs."""
    from tests import tiny_models

    half = "bfloat16" if place.kind == "cpu" else "float16"
    sets = MEASURES["gpu" if place.own_memory else "cpu"]
    with tempfile.TemporaryDirectory() as folder:
        for family in families:
            saved = tiny_models.save(family, Path(folder) / family)
            facts = resolution.pipeline_facts(saved, trust_remote_code=False)
            alone = not batch_size.is_independent_class(facts.name, facts.module)
            scale = diffusers_folder.vae_scale_factor(saved)
            small, large = SIDES.get(scale, SIDES[8])
            runs = [(small, batch, sets[0]) for batch in ((1,) if alone else (1, 4))]
            runs += [(large, 1, measures) for measures in sets]
            for dtype, (side, batch, measures) in itertools.product(("float32", half), runs):
                yield measure_pipeline(saved, place, dtype, side, batch, measures)


def main(argv: list[str] | None = None) -> int:
    """Print the cases and their summary; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--models", nargs="*", default=None)
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    place = device.find_device(options.device)
    if options.real:
        cases: Iterator[MemoryCase] = (
            MemoryCase(
                model=name,
                size=f"{side}x{side}",
                dtype=dtype,
                batch=1,
                measures=(),
                planned=planned,
                measured=measured,
            )
            for name, side, dtype, planned, measured in network_shapes.real_networks(
                place, options.models
            )
        )
    else:
        cases = tiny_cases(place, tuple(options.models or FAMILIES))
    found = []
    for case in cases:
        found.append(case)
        sys.stdout.write(case.to_json() + "\n")
        sys.stdout.flush()
    ratios = [case.ratio for case in found]
    summary = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    sys.stdout.write(json.dumps({n: round(v, 2) for n, v in summary.items()}) + "\n")
    return 1 if min(ratios) < 1 else 0


if __name__ == "__main__":
    sys.exit(main())
