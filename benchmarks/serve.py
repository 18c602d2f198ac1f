"""`t2i serve` against the bare pipeline, and under more clients than it can serve.

To reach: at most 5 ms a request beyond the pipeline's own time, at one client; with 8 clients 0.95
of the bare pipeline's best throughput in batches of 1, 2, 4 and 8; of 1,000 requests from 50
clients against a queue of 16 every one answered 200 or 429, and the server's memory flat. Run as
`python -m benchmarks.serve`; `--model sd15` or `sdxl` measures those shapes with random weights,
for a GPU.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks import models
from t2i_cli.backends.local import device

T2I = str(Path(sysconfig.get_path("scripts")) / "t2i")
PROMPT = "a red star on a white background"
SIZES = (1, 2, 4, 8)
CLIENTS = 8
MANY_CLIENTS = 50
QUEUE = 16
PAUSE = 1.0
"""Seconds that a refused client waits before it asks again."""


@dataclass(frozen=True)
class Server:
    """A running `t2i serve`."""

    url: str
    process: psutil.Process

    def ask(self, connection: HTTPConnection, **body: object) -> tuple[int, dict[str, Any]]:
        """One request's status and answer; JPEG, whose encoding takes next to nothing."""
        asked = {"prompt": PROMPT, "output_format": "jpeg"} | body
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/images/generations", json.dumps(asked), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def connect(self) -> HTTPConnection:
        """A connection that is kept from request to request."""
        address = urlsplit(self.url)
        return HTTPConnection(str(address.hostname), address.port, timeout=600)

    def crowd(self, clients: int, requests: int, **body: object) -> Counter[int]:
        """The statuses of so many requests, by clients that ask again and again."""
        left = iter(range(requests))
        lock = threading.Lock()
        statuses: Counter[int] = Counter()

        def client() -> None:
            with closing(self.connect()) as connection:
                while True:
                    with lock:
                        if next(left, None) is None:
                            return
                    status, _ = self.ask(connection, **body)
                    with lock:
                        statuses[status] += 1
                    if status == 429:
                        time.sleep(PAUSE)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return statuses


@contextmanager
def serving(model: str) -> Iterator[Server]:
    """A server of the model that has made its first images, alone and in a full pass."""
    command = [T2I, "serve", "-m", model, "--port", "0"]
    limits = ["--queue", str(QUEUE), "--max-batch", str(max(SIZES))]
    with subprocess.Popen([*command, *limits], stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip() if process.stdout else ""
            if not url:
                raise SystemExit("t2i serve did not start.")
            server = Server(url, psutil.Process(process.pid))
            for clients in (1, CLIENTS):
                server.crowd(clients, 2 * clients, num_inference_steps=1)
            yield server
        finally:
            process.terminate()


def overhead(server: Server, requests: int, steps: int) -> float:
    """The median of the seconds that a request takes beyond its image's time in the pipeline."""
    beyond = []
    with closing(server.connect()) as connection:
        for _ in range(requests):
            started = time.perf_counter()
            status, answer = server.ask(connection, num_inference_steps=steps)
            wall = time.perf_counter() - started
            if status != 200:
                raise SystemExit(f"The server answered {status}: {answer}")
            beyond.append(wall - float(answer["data"][0]["t2i"]["seconds"]))
    return statistics.median(beyond)


def throughput(server: Server, requests: int, steps: int) -> float:
    """Images a second that eight clients get."""
    started = time.perf_counter()
    statuses = server.crowd(CLIENTS, requests, num_inference_steps=steps)
    taken = time.perf_counter() - started
    if statuses != {200: requests}:
        raise SystemExit(f"The server answered {dict(statuses)}")
    return requests / taken


def load(server: Server, requests: int) -> dict[str, float]:
    """What became of many requests, and what they did to the server's memory."""
    server.crowd(MANY_CLIENTS, requests // 4, num_inference_steps=1)
    before = server.process.memory_info().rss
    statuses = server.crowd(MANY_CLIENTS, requests, num_inference_steps=1)
    after = server.process.memory_info().rss
    return {
        "requests": requests,
        "made": statuses[200],
        "refused": statuses[429],
        "lost": requests - statuses[200] - statuses[429],
        "mib_before": before / 2**20,
        "mib_after": after / 2**20,
    }


def bare(folder: str, requests: int, steps: int) -> dict[str, float]:
    """Images a second of the pipeline alone, by the size of its batches."""
    import torch
    from diffusers import DiffusionPipeline

    place = device.find_device(None)
    dtype = device.choose_dtype(place, None, transformer=False)
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype)).to(place.name)
    pipe.set_progress_bar_config(disable=True)
    pipe(PROMPT, num_inference_steps=1)
    rates = {}
    for size in SIZES:
        passes = max(1, requests // size)
        started = time.perf_counter()
        for number in range(passes):
            noise = [torch.Generator("cpu").manual_seed(number * size + n) for n in range(size)]
            pipe([PROMPT] * size, generator=noise, num_inference_steps=steps)
        rates[str(size)] = passes * size / (time.perf_counter() - started)
    return rates


def _bare(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The bare pipeline in a process of its own, so that both sides have the machine alone."""
    command = [sys.executable, "-m", "benchmarks.serve", "--bare", str(folder)]
    numbers = ["--requests", str(arguments.requests), "--steps", str(arguments.steps)]
    done = subprocess.run([*command, *numbers], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _round(arguments: argparse.Namespace, folder: Path, name: str) -> dict[str, Any]:
    rates = _bare(arguments, folder)
    with serving(name) as server:
        beyond = overhead(server, arguments.requests, arguments.steps)
        rate = throughput(server, arguments.requests, arguments.steps)
    return {"bare": rates, "overhead": beyond, "rate": rate, "share": rate / max(rates.values())}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=models.NAMES, default="postcard")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--load", type=int, default=1000)
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(bare(arguments.bare, arguments.requests, arguments.steps)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = models.folder(arguments.model, Path(made))
        # postcard by its name, as people ask for it.
        name = "postcard" if arguments.model == "postcard" else str(folder)
        rounds = [_round(arguments, folder, name) for _ in range(arguments.runs)]
        with serving(name) as server:
            crowded = load(server, arguments.load)
    figures: dict[str, Callable[[dict[str, Any]], float]] = {
        "beyond the pipeline, ms a request": lambda one: one["overhead"] * 1000,
        "8 clients, images a second": lambda one: one["rate"],
        "bare pipeline's best": lambda one: max(one["bare"].values()),
        "share of the best": lambda one: one["share"],
    }
    for title, figure in figures.items():
        print(f"{title:<36}{statistics.median(map(figure, rounds)):>10.3f}")
    for title, value in crowded.items():
        print(f"{MANY_CLIENTS} clients: {title:<24}{value:>10.0f}")
    record = {
        "benchmark": "serve",
        "model": arguments.model,
        "requests": arguments.requests,
        "steps": arguments.steps,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": device.find_device(None).label,
        "rounds": rounds,
        "load": crowded,
    }
    suffix = "" if arguments.model == "postcard" else f"_{arguments.model}"
    path = Path(__file__).parent / "results" / f"serve{suffix}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
