"""What a long run does to memory, and what clients that leave do to the server.

prompts: one process makes images of 3,000 different prompts with postcard at one step. Its memory
may grow by the cache of prompt embeddings and no more: at the documented limit, and at one of
16 MiB, which is reached. server, worker: 200 images of different prompts by `t2i serve` and by the
warm worker; memory flat. leaving: 400 clients ask `t2i serve` for an image and close the connection
in the middle; no job stays, memory flat. Run as `python -m benchmarks.soak [--only prompts server
worker leaving]`.
"""

import argparse
import itertools
import json
import os
import platform
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

T2I = str(Path(sysconfig.get_path("scripts")) / "t2i")
MIB = 2**20
PROMPTS = 3000
PROMPT_MARKS = (500, 1500, 3000)
IMAGES = 200
IMAGE_MARKS = (20, 100, 200)
CLIENTS = 400
AT_ONCE = 40
SMALL_CACHE = 16 * MIB
SECONDS_TO_SETTLE = 60
"""In which the server has to be rid of the jobs of clients that left."""


def prompts(count: int) -> list[str]:
    """So many prompts of postcard's words, all different to its text encoder."""
    colours = "red blue green yellow purple orange black white pink brown".split()
    shapes = "circle square star heart triangle diamond tree house boat moon".split()
    sizes = "big small large tiny huge".split()
    combined = itertools.product(colours, shapes, sizes, colours)
    every = [f"a {size} {colour} {shape} on {behind}" for colour, shape, size, behind in combined]
    return random.Random(4).sample(every, count)  # noqa: S311 - no secret


def make_many(cache_bytes: int) -> None:
    """In this process: print the memory after some of 3,000 images, and the cache's size."""
    from threading import Event

    from t2i_cli.backend import GeneratedImage
    from t2i_cli.backends.local import LocalBackend, LocalOptions, prompt_embedding_cache
    from t2i_cli.driver import run_backend
    from t2i_cli.models.request_resolution import resolve_request
    from t2i_cli.request import GenerateRequest

    if cache_bytes:
        prompt_embedding_cache.MAX_CACHE_BYTES = cache_bytes
    backend = LocalBackend(LocalOptions(batch_size=8))
    requests = []
    for number, prompt in enumerate(prompts(PROMPTS)):
        asked = GenerateRequest(prompt=prompt, model="postcard", steps=1, seed=number)
        requests.append(resolve_request(asked, backend.describe(asked)))
    made, memory = 0, {}
    for outcome in run_backend(backend, requests, lambda _: None, Event()):
        if not isinstance(outcome, GeneratedImage):
            raise SystemExit(f"No image: {outcome}")
        made += 1
        if made in PROMPT_MARKS:
            memory[f"mib_at_{made}"] = psutil.Process().memory_info().rss / MIB
    encoder = backend._loaded.pipe.text_encoder.forward  # type: ignore[union-attr]
    cached = {"cached_texts": len(encoder._cache), "cache_mib": encoder._bytes / MIB}
    limit = prompt_embedding_cache.MAX_CACHE_BYTES / MIB
    print(json.dumps({"limit_mib": limit, **memory, **cached}))


def prompts_section() -> dict[str, dict[str, float]]:
    """Memory over 3,000 prompts, at the documented limit of the cache and at a small one."""
    found = {}
    for name, cache_bytes in (("documented limit", 0), ("a limit of 16 MiB", SMALL_CACHE)):
        command = [sys.executable, "-m", "benchmarks.soak", "--make-many", str(cache_bytes)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass(frozen=True)
class Server:
    """A running `t2i serve`."""

    url: str
    process: psutil.Process

    @property
    def memory(self) -> float:
        """MiB."""
        return float(self.process.memory_info().rss / MIB)

    def post(self, body: Mapping[str, object], timeout: float = 600) -> bytes:
        """The answer to a request for an image; raises OSError if it is not awaited."""
        asked = urllib.request.Request(  # noqa: S310 - the address is this server's
            f"{self.url}/predict", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=timeout) as answer:  # noqa: S310
            return bytes(answer.read())

    def figure(self, name: str) -> float:
        """A figure of /metrics; 0 for one that nothing has counted."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:  # noqa: S310
            text = answer.read().decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """`t2i serve -m postcard`, which has made an image."""
    command = [T2I, "serve", "-m", "postcard", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip() if process.stdout else ""
            if not url:
                raise SystemExit("t2i serve did not start.")
            server = Server(url, psutil.Process(process.pid))
            server.post({"prompt": "a red star", "steps": 1})
            yield server
        finally:
            process.terminate()


def server_section() -> dict[str, float]:
    """The server's memory over 200 images of different prompts."""
    found = {}
    with serving() as server:
        for number, prompt in enumerate(prompts(IMAGES), start=1):
            server.post({"prompt": prompt, "steps": 2})
            if number in IMAGE_MARKS:
                found[f"mib_at_{number}"] = server.memory
    return found


def worker_section() -> dict[str, float]:
    """The warm worker's memory over 200 images, twenty by each process of `t2i generate`."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="t2i-") as folder:
        env = {**os.environ, "XDG_RUNTIME_DIR": folder}
        options = ["-m", "postcard", "--steps", "2", "-n", "20", "--keep-alive", "10m", "-q"]
        try:
            for number, prompt in enumerate(prompts(IMAGES // 20), start=1):
                target = ["-o", f"{folder}/{number}/"]
                subprocess.run(
                    [T2I, "generate", prompt, *options, *target],
                    env=env,
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                if 20 * number in IMAGE_MARKS:
                    status = subprocess.check_output([T2I, "worker", "status", "--json"], env=env)
                    worker = psutil.Process(json.loads(status)["pid"])
                    found[f"mib_at_{20 * number}"] = worker.memory_info().rss / MIB
        finally:
            subprocess.run([T2I, "worker", "stop"], env=env, check=True)
    return found


def leaving_section() -> dict[str, float]:
    """What 400 clients leave behind that close their connection within half a second."""
    chance = random.Random(5)  # noqa: S311 - no secret
    waits = [chance.uniform(0.02, 0.5) for _ in range(CLIENTS)]
    left = iter(zip(prompts(CLIENTS), waits, strict=True))
    lock, answered = threading.Lock(), 0

    def client(server: Server) -> None:
        nonlocal answered
        while True:
            with lock:
                if (mine := next(left, None)) is None:
                    return
            prompt, seconds = mine
            try:
                server.post({"prompt": prompt, "steps": 50}, timeout=seconds)
            except OSError:
                continue
            with lock:
                answered += 1

    with serving("--queue", str(CLIENTS)) as server:
        for number in range(IMAGE_MARKS[0]):
            server.post({"prompt": f"a star {number}", "steps": 2})
        before = server.memory
        threads = [threading.Thread(target=client, args=[server]) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        names = ("t2i_jobs_waiting", "t2i_images_running")
        end = time.monotonic() + SECONDS_TO_SETTLE
        while (stuck := sum(map(server.figure, names))) and time.monotonic() < end:
            time.sleep(0.1)
        server.post({"prompt": "a red star", "steps": 1})
        return {
            "clients": CLIENTS,
            "answered_before_they_left": answered,
            "jobs_stuck": stuck,
            "mib_before": before,
            "mib_after": server.memory,
        }


SECTIONS: dict[str, Callable[[], object]] = {
    "prompts": prompts_section,
    "server": server_section,
    "worker": worker_section,
    "leaving": leaving_section,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--make-many", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make_many is not None:
        make_many(arguments.make_many)
        return
    record: dict[str, object] = {
        "benchmark": "soak",
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    for name in arguments.only:
        record[name] = SECTIONS[name]()
        print(f"{name}: {json.dumps(record[name])}", flush=True)
    path = Path(__file__).parent / "results" / "soak.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
