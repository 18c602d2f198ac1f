"""What the number of a Ray cluster's workers brings, and what the driver bears; all in one run.

To reach: 1, 2 and 4 workers of a backend that takes 0.5 s an image: at least 0.97 of linear. 256
simulated workers: the driver keeps 250 images of 300 kB a second on the disk, with flat memory.
Two workers of postcard with one thread each: 0.9 of two processes beside each other. A local Ray:
8 s, the median of three. Run as `python -m benchmarks.ray_scale [IMAGES_A_WORKER]`; with the 40
that it takes without, it needs about five minutes and 3 GB of the disk for the time.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from typing import Any

import psutil
from PIL import Image

from benchmarks.batch_scale import Constant
from t2i_cli.backend import EncodedImage, Failure, GeneratedImage
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.ray import RayBackend, RayOptions
from t2i_cli.backends.ray.pass_runner import PassEnded, PassMessage, WorkerConfig, WorkerPass
from t2i_cli.backends.ray.pool import WorkerPool
from t2i_cli.batch import session
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.plan import SelectionOptions
from t2i_cli.events import OnEvent, Step
from t2i_cli.net.lazy_image import LazyImage
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest
from t2i_cli.terminal.console import console

SECONDS = 0.5
"""Seconds an image, of the backend that waits."""
SIMULATED = 256
PASS_SECONDS = 0.5
"""Seconds an image, of a simulated worker."""
HOSTS = 2
"""Processes that the simulated workers share."""
FILE_BYTES = 300_000
MEMORY_SAMPLES = 12
"""How often the driver's memory is looked at while images come."""
T2I = str(Path(sysconfig.get_path("scripts")) / "t2i")


@dataclass
class Waiting(Constant):
    """A backend that takes SECONDS for each image."""

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage]:
        """One image for each request, in order."""
        for index, request in enumerate(requests):
            on_event(Step(indices=(index,), step=1, steps=1))
            time.sleep(SECONDS)
            yield GeneratedImage(
                index=index,
                request=request,
                image=Image.new("RGB", (64, 64)),
                info=GenerationInfo(backend="local", model=request.model, batch_size=1),
                seconds=SECONDS,
            )


def make_waiting(options: LocalOptions) -> Waiting:
    """A worker's backend."""
    return Waiting()


def some_requests(count: int) -> list[ResolvedRequest]:
    """Requests that differ in the seed."""
    return [
        ResolvedRequest(prompt="x", model="postcard", seed=seed, steps=1, width=64, height=64)
        for seed in range(count)
    ]


def measure_workers(workers: int, images: int) -> tuple[float, float]:
    """Images a second with so many workers that have started, and the seconds of the start."""
    options = RayOptions(local=LocalOptions(device="cpu"), workers=workers)
    with closing(RayBackend(options, make_waiting)) as backend:
        started = time.perf_counter()
        backend.load(some_requests(1)[0], lambda _: None)
        start = time.perf_counter() - started
        for _ in backend.run(some_requests(4 * workers), lambda _: None, Flag()):
            pass  # all workers have begun
        started = time.perf_counter()
        made = sum(1 for _ in backend.run(some_requests(images), lambda _: None, Flag()))
        return made / (time.perf_counter() - started), start


class SimulatedHost:
    """Many workers in one process: each image takes PASS_SECONDS; it tells what a worker tells."""

    def __init__(self) -> None:
        self._messages: dict[int, list[PassMessage]] = defaultdict(list)
        self._told: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._busy: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._data = os.urandom(FILE_BYTES)

    async def versions(self, worker: int, packages: Sequence[str], find: Any) -> dict[str, Any]:  # noqa: ANN401
        """The versions here."""
        return {"versions": find(packages), "node": "simulated", "pid": os.getpid()}

    async def start(self, worker: int, config: bytes) -> None:
        """Nothing is loaded."""

    async def submit(self, worker: int, one: WorkerPass) -> None:
        """Make a pass, after those before it."""
        async with self._busy[worker]:
            if one.members:
                await asyncio.sleep(PASS_SECONDS * len(one.members))
            for index, request in one.members:
                image = LazyImage(
                    index=index,
                    request=request,
                    info=GenerationInfo(backend="local", model=request.model, batch_size=1),
                    seconds=PASS_SECONDS,
                    file=EncodedImage(format="png", data=self._data),
                    file_size=(64, 64),
                )
                self._messages[worker].append((one.number, image))
            self._messages[worker].append((one.number, PassEnded()))
            self._told[worker].set()

    async def fetch(self, worker: int, seconds: float, linger: float) -> list[PassMessage]:
        """What a worker has to tell."""
        try:
            await asyncio.wait_for(self._told[worker].wait(), seconds)
        except TimeoutError:
            return []
        self._told[worker].clear()
        return self._messages.pop(worker, [])

    async def cancel(self, worker: int, numbers: Sequence[int]) -> None:
        """Passes end by themselves."""

    async def withdraw(self, worker: int, number: int) -> None:
        """Passes stay where they are."""


class SimulatedHandle:
    """What an actor's handle is to the pool, for one worker of a host."""

    def __init__(self, host: Any, worker: int) -> None:  # noqa: ANN401 - an actor's handle
        self._host, self._worker = host, worker

    def __getattr__(self, name: str) -> "_Method":
        return _Method(getattr(self._host, name), self._worker)


@dataclass
class _Method:
    method: Any
    worker: int

    def remote(self, *arguments: object) -> Any:  # noqa: ANN401 - an object reference
        """Call it for the worker."""
        return self.method.remote(self.worker, *arguments)


def simulated_pool(options: RayOptions, make_config: Callable[[], WorkerConfig]) -> WorkerPool:
    """A pool of simulated workers."""
    hosts: list[Any] = []
    started = iter(range(1_000_000))

    def make_handle(_: WorkerPool) -> SimulatedHandle:
        import ray

        if not hosts:
            actor = ray.remote(SimulatedHost)
            hosts.extend(
                actor.options(num_cpus=0, max_concurrency=4000).remote() for _ in range(HOSTS)
            )
        worker = next(started)
        return SimulatedHandle(hosts[worker % HOSTS], worker)

    return WorkerPool(options, make_config, make_handle)


class SampledBackend(RayBackend):
    """Looks at the driver's memory as images come; `samples` are MiB of resident memory."""

    samples: Sequence[float] = ()

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """The images, and a look at the memory now and then."""
        process, every, samples = psutil.Process(), len(requests) // MEMORY_SAMPLES, []
        for made, outcome in enumerate(super().run(requests, on_event, cancel, previews), 1):
            if made % every == 0:
                samples.append(process.memory_info().rss / 2**20)
            yield outcome
        self.samples = samples


def measure_driver(images: int) -> dict[str, float]:
    """A batch of images from simulated workers, with all that a batch does with them.

    Memory is the most in each third of the images: what waits to be written is there from the
    first on, what is kept of each image would show in the last.
    """
    options = RayOptions(local=LocalOptions(device="cpu"), workers=SIMULATED)
    process = psutil.Process()
    with tempfile.TemporaryDirectory(prefix="t2i-") as folder:
        source = Path(folder) / "prompts.txt"
        source.write_text("\n".join(f"picture {number}" for number in range(images)))
        config = session.BatchConfig(
            source=str(source),
            input_format=None,
            folder=Path(folder) / "out",
            options=BatchOptions(),
            selection=SelectionOptions(),
        )
        backend = SampledBackend(options, make_waiting, simulated_pool)
        with closing(backend):
            backend.load(some_requests(1)[0], lambda _: None)
            before, cpu = process.memory_info().rss / 2**20, sum(process.cpu_times()[:2])
            started = time.perf_counter()
            console.configure(quiet=True, json=True)
            with open(os.devnull, "w") as nowhere:
                out, sys.stdout = sys.stdout, nowhere
                try:
                    session.run_batch(config, backend, console)
                finally:
                    sys.stdout = out
            wall = time.perf_counter() - started
            used = sum(process.cpu_times()[:2]) - cpu
        written = sum(1 for _ in (Path(folder) / "out").glob("*.png"))
    return {
        "images": written,
        "images_a_second": round(written / wall, 1),
        "driver_cores": round(used / wall, 2),
        "driver_cpu_ms_an_image": round(1000 * used / written, 2),
        "mib_before": round(before),
        "mib_first_third": round(max(backend.samples[: MEMORY_SAMPLES // 3])),
        "mib_last_third": round(max(backend.samples[-MEMORY_SAMPLES // 3 :])),
    }


def measure_postcard(images: int) -> dict[str, float]:
    """Seconds of two processes with half the rows each, and of one on Ray with two workers."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory(prefix="t2i-") as folder:
        source = Path(folder) / "prompts.txt"
        source.write_text("\n".join(f"a red star {number}" for number in range(images)))
        common = ["batch", str(source), "-m", "postcard", "--device", "cpu", "--strict", "-q"]

        def timed(*commands: Sequence[str]) -> float:
            started = time.perf_counter()
            running = [
                subprocess.Popen([T2I, *common, *one], env=env, stdout=subprocess.DEVNULL)
                for one in commands
            ]
            if any([process.wait() for process in running]):
                raise RuntimeError("A batch failed.")
            return time.perf_counter() - started

        shards = [["-o", f"{folder}/shards", "--shard", f"{part}/2"] for part in (1, 2)]
        apart = timed(*shards)
        on_ray = timed(["-o", f"{folder}/ray", "--backend", "ray", "--workers", "2"])
    return {
        "processes_s": round(apart, 1),
        "ray_s_with_its_start": round(on_ray, 1),
        "ratio": round(apart / on_ray, 2),
    }


def main() -> None:
    """Measure and print, one JSON object a line."""
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    starts = []
    for workers in (1, 2, 4):
        rate, start = measure_workers(workers, images * workers)
        starts.append(start)
        found = {"images_a_second": round(rate, 3), "of_linear": round(rate * SECONDS / workers, 3)}
        print(json.dumps({"workers": workers, **found, "start_s": round(start, 1)}), flush=True)
    print(json.dumps({"start_s_median": round(statistics.median(starts), 1)}), flush=True)
    print(json.dumps({"simulated": SIMULATED, **measure_driver(225 * images)}), flush=True)
    print(json.dumps({"postcard": 2, **measure_postcard(images)}))


if __name__ == "__main__":
    # Workers import this module by its name, which `__main__` is not.
    from benchmarks import ray_scale

    ray_scale.main()
