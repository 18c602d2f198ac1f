"""Times whole processes, side by side: A B C A B C …, medians, and ratios round by round."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RUNS = 5


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One process: wall-clock and processor seconds, and its peak resident memory in MiB."""

    wall: float
    cpu: float
    peak_mib: float


def run(command: Sequence[str], env: Mapping[str, str] | None = None, status: int = 0) -> Sample:
    """Run a command to its end, output thrown away; raises if its exit code is not `status`."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **(env or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None  # noqa: S101 - tells the type checker what PIPE means
    errors = process.stderr.read()
    _, ended, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(ended)
    if process.returncode != status:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()}")
    # ru_maxrss is KiB on Linux and bytes on macOS (getrusage(2)).
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Sample(wall=wall, cpu=usage.ru_utime + usage.ru_stime, peak_mib=usage.ru_maxrss / unit)


def compare(
    sides: Mapping[str, Sequence[str]],
    env: Mapping[str, str] | None = None,
    runs: int = RUNS,
    statuses: Mapping[str, int] | None = None,
) -> dict[str, list[Sample]]:
    """Samples of each side, taken in turn after one round that only warms the file cache.

    `statuses` are the exit codes of sides that are to end with another one than 0.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for round_number in range(runs + 1):
        for name, command in sides.items():
            sample = run(command, env, (statuses or {}).get(name, 0))
            if round_number:
                samples[name].append(sample)
    return samples


def median(samples: Sequence[Sample], figure: str) -> float:
    """The median of one figure of the samples."""
    return float(statistics.median(getattr(sample, figure) for sample in samples))


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], figure: str) -> float:
    """The median of the ratios round by round, which drift of the machine hardly touches."""
    pairs = zip(ours, theirs, strict=True)
    return float(statistics.median(getattr(a, figure) / getattr(b, figure) for a, b in pairs))


def report(name: str, samples: Mapping[str, Sequence[Sample]], first: str) -> None:
    """Print a table with every side's medians and the first side's ratios; write it as JSON too."""
    print(f"{'side':<34}{'wall s':>8}{'cpu s':>8}{'MiB':>8}   {first} / side: wall, cpu, MiB")
    for side, taken in samples.items():
        ours = samples[first]
        ratios = ", ".join(f"{ratio(ours, taken, f):.2f}" for f in ("wall", "cpu", "peak_mib"))
        print(
            f"{side:<34}{median(taken, 'wall'):>8.2f}{median(taken, 'cpu'):>8.2f}"
            f"{median(taken, 'peak_mib'):>8.0f}   {ratios}"
        )
    record = {
        "benchmark": name,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "samples": {side: [asdict(s) for s in taken] for side, taken in samples.items()},
    }
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
