"""What `t2i batch` itself costs, with a backend that returns a constant image at once.

To reach, with 100,000 rows: checked in 10 s and 400 MiB; resuming with 99,990 of them done, the
backend has work after 10 s; the loop, without encode and fsync, costs 1 ms a row; with both, it
makes 200 rows a second. With 1,000,000 rows of a text file: planned as fast by the row as a tenth
of them, in 2 KiB a row. Run as `python -m benchmarks.batch_scale`.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event as Flag

from PIL import Image

from t2i_cli.backend import GeneratedImage
from t2i_cli.batch import manifest, plan, runner, session
from t2i_cli.batch.executor import LocalExecutor
from t2i_cli.batch.interrupt import StopSignal
from t2i_cli.batch.local_folder import LocalFolder, LocalManifest
from t2i_cli.batch.manifest import Manifest, ManifestState
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.outcome_recorder import manifest_line
from t2i_cli.batch.plan import BatchPlan, SelectionOptions
from t2i_cli.batch.rows import expand_rows
from t2i_cli.batch.runner import BatchWriter
from t2i_cli.events import OnEvent
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.prompts import read_prompts
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.terminal.console import Console

RUNS = 5


@dataclass
class Constant:
    """A backend that has its image already; `began` is when it was first asked for one."""

    side: int = 128
    began: float | None = None
    image: Image.Image = field(init=False)

    def __post_init__(self) -> None:
        self.image = Image.effect_noise((self.side, self.side), 60).convert("RGB")

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """postcard, as far as the catalogue tells."""
        return catalog.MODELS["postcard"]

    def check(self, request: ResolvedRequest) -> None:
        """Every request can be honoured."""

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """Nothing."""
        return {}

    def image_price(self, request: ResolvedRequest) -> None:
        """Nothing is billed."""

    def parallelism(self) -> int:
        """One run at a time."""
        return 1

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """There is none."""
        return None

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """It is there."""

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage]:
        """The same image for every request."""
        self.began = time.perf_counter()
        lock = GenerationInfo(backend="local", model="postcard", device="cpu", batch_size=1)
        for index, request in enumerate(requests):
            if cancel.is_set():
                return
            yield GeneratedImage(
                index=index, request=request, image=self.image, info=lock, seconds=0.1
            )

    def close(self) -> None:
        """Nothing is held."""


class Silent:
    """A listener that tells nobody."""

    def event(self, *_: object) -> None:
        """Nothing."""

    image = failed = event


def check(folder: Path, rows: int) -> dict[str, float]:
    """Read, expand, resolve, name and plan every row."""
    started = time.perf_counter()
    _planned(folder, rows)
    return {"seconds": time.perf_counter() - started, "peak_mib": _peak()}


def resume(folder: Path, rows: int) -> dict[str, float]:
    """From the start to the first request that reaches the backend, ten of all rows missing."""
    found = _planned(folder, rows)
    out = folder / "out"
    out.mkdir()
    book = Manifest(out / manifest.MAIN_MANIFEST)
    for at in range(0, rows - 10, 1000):
        lines = []
        for job in found.jobs[at : min(at + 1000, rows - 10)]:
            (out / job.file).write_bytes(b"x")
            line = manifest_line(job, _saved(out, job))
            lines.append(line)
        book.append(lines)
    book.close()
    del found, lines
    backend = Constant()
    started = time.perf_counter()
    session.run_batch(
        session.BatchConfig(
            source=str(folder / "prompts.jsonl"),
            input_format=None,
            folder=out,
            options=BatchOptions(),
            selection=SelectionOptions(),
        ),
        backend,
        _quiet(),
    )
    began = backend.began or 0.0
    return {
        "seconds": began - started,
        "whole_run": time.perf_counter() - started,
        "peak_mib": _peak(),
    }


def loop(folder: Path, rows: int) -> dict[str, float]:
    """The loop alone: nothing is encoded, written whole, or synced."""
    found = _planned(folder, rows)
    out = folder / "out"
    out.mkdir()
    book = LocalManifest(out, manifest.MAIN_MANIFEST, durable=False)
    seconds = _make(found, book, lambda image: _saved(out, found.jobs[image.index]))
    return {"ms_a_row": 1000 * seconds / rows}


def durable(folder: Path, rows: int) -> dict[str, float]:
    """The loop with encode and fsync, each row told of once it is durable."""
    found = _planned(folder, rows)
    scratch = folder / "out" / ".t2i"
    scratch.mkdir(parents=True)
    book = LocalManifest(folder / "out", manifest.MAIN_MANIFEST)
    found = replace(found, folder=LocalFolder(folder / "out", scratch))
    seconds = _make(found, book, BatchWriter(found))
    return {"rows_a_second": rows / seconds}


def plan_text(folder: Path, rows: int) -> dict[str, float]:
    """Plan every line of a text file, as `--dry-run` does; beside reading its lines alone."""
    source = folder / "prompts.txt"
    with source.open("w") as file:
        file.writelines(f"a red star, blue background, number {n}\n" for n in range(rows))
    started = time.perf_counter()
    with source.open() as file:
        assert sum(1 for _ in file) == rows  # noqa: S101
    lines, before = time.perf_counter() - started, _peak()
    started, began = time.perf_counter(), time.process_time()
    config = session.BatchConfig(
        source=str(source),
        input_format=None,
        folder=folder / "out",
        options=BatchOptions(),
        selection=SelectionOptions(),
        dry_run=True,
    )
    console = Console()
    console.configure(quiet=True)
    with (folder / "plan.txt").open("w") as file, redirect_stdout(file):
        session.run_batch(config, Constant(), console)
    return {
        "lines_seconds": lines,
        "seconds": time.perf_counter() - started,
        "cpu_us_a_row": 1e6 * (time.process_time() - began) / rows,
        "bytes_a_row": 2**20 * (_peak() - before) / rows,
        "peak_mib": _peak(),
    }


STAGES: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "check": check,
    "plan_text": plan_text,
    "resume": resume,
    "loop": loop,
    "durable": durable,
}


def _make(
    found: BatchPlan, book: LocalManifest, save: Callable[[GeneratedImage], SavedImage]
) -> float:
    started = time.perf_counter()
    tally = runner.run_plan(found, LocalExecutor(Constant()), save, book, Silent(), StopSignal())
    assert tally.made == len(found.jobs)  # noqa: S101 - a benchmark of what failed says nothing
    book.close()
    return time.perf_counter() - started


def _planned(folder: Path, rows: int) -> BatchPlan:
    source = folder / "prompts.jsonl"
    if not source.exists():
        with source.open("w") as file:
            for n in range(rows):
                row = {"prompt": f"a red star, blue background, number {n}", "steps": 10 + n % 3}
                file.write(json.dumps(row) + "\n")
    found = read_prompts(str(source), "jsonl")
    asked, problems = expand_rows(found.entries, BatchOptions(), Constant())
    assert not problems  # noqa: S101
    return plan.build_plan(
        asked, [], LocalFolder(folder / "out"), ManifestState(), SelectionOptions()
    )


def _saved(folder: Path, job: plan.PlannedImage) -> SavedImage:
    return SavedImage(
        index=0,
        path=folder / job.file,
        format="png",
        width=128,
        height=128,
        size_bytes=1,
        sha256="0" * 64,
        seconds=0.1,
        request=job.row.request,
        info=GenerationInfo(backend="local", model="postcard", device="cpu", batch_size=1),
    )


def _quiet() -> Console:
    console = Console()
    console.configure(json=True, quiet=True)
    return console


def _peak() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _stage(name: str, rows: int) -> dict[str, float]:
    """A stage in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.batch_scale", "--stage", name]
        done = subprocess.run(
            [*command, "--rows", str(rows), "--folder", folder],
            env={**os.environ, "XDG_CACHE_HOME": folder},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.stage:
        print(json.dumps(STAGES[given.stage](given.folder, given.rows)))
        return
    sizes = {"check": given.rows, "resume": given.rows, "loop": given.rows // 5}
    sizes["durable"] = max(1, given.rows // 50)
    sizes["plan_text"] = 10 * given.rows
    results = {
        name: [_stage(name, rows) for _ in range(given.runs)] for name, rows in sizes.items()
    }
    for name, runs in results.items():
        for figure in runs[0]:
            middle = statistics.median(run[figure] for run in runs)
            print(f"{name:<10}{sizes[name]:>9,} rows {figure:>14} {middle:>12.3f}")
    record = {
        "benchmark": "batch_scale",
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "rows": sizes,
        "results": results,
    }
    path = Path(__file__).parent / "results" / "batch_scale.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
