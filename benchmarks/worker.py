"""A one-shot image with postcard by way of the warm worker, whole process, against a cold one.

To reach: at most 0.3 of the cold run's wall clock, and at most 0.4 s beyond the image's own time in
the pipeline. Run as `python -m benchmarks.worker [RUNS]` in an environment with t2i installed.
"""

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from benchmarks.measure import RUNS, compare, report

T2I = str(Path(sysconfig.get_path("scripts")) / "t2i")
PROMPT = "a red star on a white background"


def beyond(command: list[str]) -> float:
    """Seconds that a whole process takes beyond those that the pipeline took for its image."""
    started = time.perf_counter()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    wall = time.perf_counter() - started
    return wall - float(json.loads(done.stdout)["seconds"])


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    with tempfile.TemporaryDirectory(prefix="t2i-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        image = [T2I, "generate", PROMPT, "-m", "postcard", "--overwrite", "-o", f"{folder}/x.png"]
        sides = {
            "warm t2i generate": [*image, "--keep-alive", "10m"],
            "cold t2i generate": [*image, "--keep-alive", "0"],
        }
        try:
            samples = compare(sides, runs=runs)
            extra = [beyond(sides["warm t2i generate"]) for _ in range(runs)]
        finally:
            subprocess.run([T2I, "worker", "stop"], check=True)
    report("worker", samples, "warm t2i generate")
    print(f"warm, beyond the image's own time: {statistics.median(extra):.2f} s")


if __name__ == "__main__":
    main()
