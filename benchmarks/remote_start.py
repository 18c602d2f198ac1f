"""How long `t2i remote generate` takes until its first call; to reach: `t2i --help` + 1.0 s.

The call goes to Vertex AI on loopback, with a token issued there; the time of its arrival counts.
Run as `python -m benchmarks.remote_start` in an environment with t2i installed.
"""

import argparse
import json
import statistics
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import RUNS, run
from tests.fakes.google import painted_png
from tests.fakes.vertex import running_vertex

T2I = str(Path(sysconfig.get_path("scripts")) / "t2i")


def measure(runs: int) -> dict[str, list[float]]:
    """Seconds of `t2i --help`, and until the first prediction is asked for, in turn."""
    seconds: dict[str, list[float]] = {"help": [], "first call": []}
    arrivals: list[float] = []

    def predictor(body: dict[str, Any]) -> tuple[int, Any]:
        arrivals.append(time.perf_counter())
        return 200, {"predictions": [painted_png(body)]}

    with tempfile.TemporaryDirectory() as folder, running_vertex(Path(folder)) as vertex:
        vertex.predictor = predictor
        env = {**vertex.environment, "HOME": folder, "XDG_STATE_HOME": folder}
        env["T2I_VERTEX_ENDPOINT"] = vertex.make_endpoint()
        command = [T2I, "remote", "generate", "a star", "-q", "-o", f"{folder}/{{seed}}.png"]
        for number in range(runs + 1):
            taken = run([T2I, "--help"]).wall
            started = time.perf_counter()
            run(command, env)
            # The first round warms the file cache, and looks the endpoint up.
            if number:
                seconds["help"].append(taken)
                seconds["first call"].append(arrivals[-1] - started)
    return seconds


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    seconds = measure(parser.parse_args().runs)
    pairs = zip(seconds["first call"], seconds["help"], strict=True)
    added = statistics.median(call - plain for call, plain in pairs)
    for name, taken in seconds.items():
        print(f"{name:<12}{statistics.median(taken):>7.2f} s")
    print(f"{'added':<12}{added:>7.2f} s")
    path = Path(__file__).parent / "results" / "remote_start.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"benchmark": "remote_start", "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
