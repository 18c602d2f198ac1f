"""A Ray cluster of several nodes on this machine, with made-up GPUs, and what its workers meet."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any, Protocol

import httpx2
import psutil
import pytest

from t2i_cli.backend import CancellationToken, Failure, GeneratedImage
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.ray import (
    RayBackend,
    RayOptions,
    connection,
    pass_runner,
    worker_starts,
)
from t2i_cli.batch import manifest
from t2i_cli.driver import run_backend
from t2i_cli.errors import InputError, InternalError, ModelError, RemoteError
from t2i_cli.events import Event, Notice, Step
from t2i_cli.net.lazy_image import LazyImage
from t2i_cli.request import ResolvedRequest
from tests.amounts import full
from tests.fakes.ray_workers import make_stub

pytest.importorskip("ray")
# They start clusters, which take minutes together. The filter is for warnings of Ray's own.
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]

SOURCE = Path(__file__).parent.parent


class RayCluster(Protocol):
    """What is used of ray.cluster_utils.Cluster."""

    address: str

    def add_node(self, *, num_cpus: int, num_gpus: int) -> object: ...

    def remove_node(self, node: object, *, allow_graceful: bool) -> None: ...


def until(reached: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A cluster of a head without GPUs and two nodes with one GPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(SOURCE))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        connection.import_ray()
        from ray.cluster_utils import Cluster

        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
        for _ in range(2):
            found.add_node(num_cpus=1, num_gpus=1, wait=False)
        found.wait_for_nodes()
        yield found
        found.shutdown()


@contextmanager
def backend(cluster: RayCluster, **options: Any) -> Iterator[RayBackend]:  # noqa: ANN401
    made = RayBackend(
        RayOptions(local=LocalOptions(batch_size=1), **{"address": cluster.address, **options}),
        make_stub,
    )
    with closing(made):
        yield made


def requests(prompts: Sequence[str]) -> list[ResolvedRequest]:
    return [
        ResolvedRequest(prompt=text, model="postcard", seed=seed, steps=2, width=64, height=64)
        for seed, text in enumerate(prompts)
    ]


def run_all(
    made: RayBackend, prompts: Sequence[str], on_event: Callable[[Event], None] = lambda _: None
) -> dict[int, GeneratedImage | Failure]:
    """The outcomes by their positions, each of which comes once."""
    found: dict[int, GeneratedImage | Failure] = {}
    for outcome in run_backend(made, requests(prompts), on_event, Flag()):
        assert outcome.index not in found
        found[outcome.index] = outcome
    assert sorted(found) == list(range(len(prompts)))
    return found


def devices(found: dict[int, GeneratedImage | Failure]) -> set[str]:
    return {one.info.device or "" for one in found.values() if isinstance(one, GeneratedImage)}


def test_lossy_files_come_with_the_pixels() -> None:
    (plain,) = make_stub(LocalOptions()).run(requests(["x"]), lambda _: None, Flag())
    assert isinstance(plain, GeneratedImage)
    sent = pass_runner.encoded_image(plain, "jpeg")
    assert sent.file.format == "jpeg"
    assert sent.image.tobytes() == plain.image.tobytes()


def test_a_worker_that_hangs_is_replaced(cluster: RayCluster, tmp_path: Path) -> None:
    with backend(cluster, worker_timeout=2.0) as short:
        found = run_all(short, [f"hang-once {tmp_path / 'hung'}", *["plain"] * 6])
    assert all(isinstance(one, GeneratedImage) for one in found.values())


def held(events: Sequence[Event]) -> int:
    """How many requests that wait were begun."""
    begun = {index for event in events if isinstance(event, Step) for index in event.indices}
    return len({index for index in begun if index >= 4})


DRIVER = """
import sys
from threading import Event
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.ray import RayBackend, RayOptions
from tests.fakes.ray_workers import make_stub
from tests.test_ray import requests
made = RayBackend(
    RayOptions(local=LocalOptions(batch_size=1), address=sys.argv[1], workers=2), make_stub
)
for one in made.run(requests(["plain", "plain", "hold " + sys.argv[2]] * 2), print, Event()):
    print("made", one.info.device, flush=True)
"""


def test_a_killed_driver_leaves_no_actor(cluster: RayCluster, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", DRIVER, cluster.address, str(tmp_path / "never")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=SOURCE,
    )
    assert process.stdout
    lines = (line.split() for line in process.stdout)
    pids = {int(next(words[1] for words in lines if words[0] == "made")) for _ in range(2)}
    assert all(psutil.pid_exists(pid) for pid in pids)
    process.kill()
    process.wait()
    process.stdout.close()
    until(lambda: not any(map(psutil.pid_exists, pids)))


def test_ray_s_client_does_the_same(cluster: RayCluster) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = ["-m", "ray.util.client.server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--mode", "specific-server", "--address", cluster.address]
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: is_listening(port))
        with backend(cluster, address=f"ray://127.0.0.1:{port}", workers=1) as other:
            assert len(devices(run_all(other, ["plain"] * 6))) == 1
    finally:
        server.kill()
        server.wait()


def is_listening(port: int) -> bool:
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 1)):
        return True
    return False


def test_versions_that_differ_are_refused_by_name(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = connection.own_versions()
    monkeypatch.setattr(connection, "own_versions", lambda: {**own, "torch": "1.0"})
    with backend(cluster) as other, pytest.raises(RemoteError, match=r"has torch .* has 1\.0"):
        other.estimate(requests(["x"])[0])


def other_versions(unfit: str) -> Callable[[Sequence[str]], dict[str, str | None]]:
    """Finds versions as ever, but for another torch on that node."""
    find = connection.find_versions()

    def find_other(packages: Sequence[str]) -> dict[str, str | None]:
        import ray

        found = find(packages)
        if ray.get_runtime_context().get_node_id() == unfit:
            found["torch"] = "1.0"
        return found

    return find_other


def test_a_node_with_other_versions_gets_no_worker_again(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events: list[Event] = []
    once = [f"die-once {tmp_path / str(number)}" for number in range(2)]
    with backend(cluster) as other:
        other.estimate(requests(["x"])[0])
        nodes = connection.cluster_nodes(connection.import_ray())
        find = other_versions(next(node.id for node in nodes if node.gpus))
        monkeypatch.setattr(connection, "find_versions", lambda: find)
        found = run_all(other, [*["plain"] * 4, *once, *["plain"] * 4], events.append)
        assert other.parallelism() == 1
    assert all(isinstance(one, GeneratedImage) for one in found.values())
    left_out = [e for e in events if isinstance(e, Notice) and "has torch 1.0" in e.message]
    assert len(left_out) == 1


def test_builds_of_one_version_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "own_versions", lambda: {"torch": "2.13.0+cpu"})
    connection.compare_versions("n", {"torch": "2.13.0+cu130"})
    with pytest.raises(RemoteError, match="n has torch not at all"):
        connection.compare_versions("n", {"torch": None})


def test_a_cluster_without_a_gpu_says_so_before_anything_loads(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = connection.cluster_nodes
    monkeypatch.setattr(
        connection, "cluster_nodes", lambda ray: [replace(one, gpus=0.0) for one in found(ray)]
    )
    with backend(cluster) as other, pytest.raises(RemoteError, match="has no GPU") as raised:
        other.estimate(requests(["x"])[0])
    assert "--device cpu" in (raised.value.hint or "")


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    for address in (f"ray://127.0.0.1:{port}", f"127.0.0.1:{port}"):
        started = time.monotonic()
        with pytest.raises(RemoteError, match="cannot be reached"):
            connection.check_address(address)
        assert time.monotonic() - started < 5


def test_what_is_no_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CLUSTER_TIMEOUT", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        with pytest.raises(RemoteError, match="is no Ray cluster"):
            connection.check_address(f"ray://127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_s_traceback_is_told_by_its_last_line() -> None:
    options = RayOptions(local=LocalOptions(), address="ray://h:1")
    raised = ConnectionAbortedError(
        "Failure: Traceback (most recent call last):\n  File\nNo: room."
    )
    told = connection.ray_error(options, raised).message
    assert told == "The Ray cluster at ray://h:1 lets nobody in: No: room."


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package ray\[client\]") as raised:
        RayBackend(RayOptions(local=LocalOptions()), make_stub)
    assert "pip install" in (raised.value.hint or "")


def test_a_worker_that_cannot_start_is_an_error_not_a_wait(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def start(self, config: bytes) -> None:
            raise OSError("no disk")

        def versions(self, packages: Sequence[str], find: Callable[..., object]) -> dict[str, Any]:
            return {"versions": find(packages), "node": "n", "pid": 0}

    monkeypatch.setattr(worker_starts, "make_actor_class", lambda: Broken)
    with (
        backend(cluster) as other,
        pytest.raises(RemoteError, match="No worker could start.*no disk"),
    ):
        list(other.run(requests(["x"]), lambda _: None, Flag()))


def test_a_killed_driver_ends_the_ray_that_it_started(tmp_path: Path) -> None:
    env = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    env |= {"HOME": str(tmp_path), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-W",
                "ignore",
                "-c",
                DRIVER.replace("workers=2", "workers=1").replace(
                    "batch_size=1", 'batch_size=1, device="cpu"'
                ),
            ),
            *("local", str(tmp_path / "never")),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=SOURCE,
        env=env,
        start_new_session=True,
    )
    assert process.stdout
    assert any(line.startswith("made") for line in process.stdout)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in children)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    # Ray's two small agents beside them look for their parent from time to time only.
    ending = [child for child in children if "Agent" not in child.name()]
    assert psutil.wait_procs(ending, timeout=30)[1] == []


@pytest.mark.parametrize("kills", [full(5), full(50)])
def test_drivers_workers_and_nodes_killed_at_random_lose_and_double_nothing(
    cluster: RayCluster, tmp_path: Path, kills: int
) -> None:
    chance = random.Random(1)  # noqa: S311
    source = tmp_path / "prompts.txt"
    rows = 60 + 30 * kills
    source.write_text("\n".join(f"picture {number}" for number in range(rows)))
    command = [sys.executable, "-W", "ignore", "-m", "tests.fakes.batch_process"]
    command += [str(source), str(tmp_path / "out")]
    env = {**os.environ, "CLUSTER": cluster.address}
    spare: object = None
    for _ in range(kills):
        spare = spare or cluster.add_node(num_cpus=1, num_gpus=1)
        driver = subprocess.Popen(
            [*command, "--events"],
            cwd=SOURCE,
            env=env,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        assert driver.stderr
        while (line := driver.stderr.readline()) and json.loads(line)["event"] != "step":
            pass
        victims = chance.sample(["worker", "node", "driver"], 2)
        for victim in victims:
            time.sleep(chance.uniform(0, 0.3))
            if victim == "node":
                cluster.remove_node(spare, allow_graceful=False)
                spare = None
            elif victim == "driver":
                driver.kill()
            elif workers := worker_processes():
                with suppress(psutil.NoSuchProcess):
                    chance.choice(workers).kill()
        driver.stderr.close()
        driver.kill()
        driver.wait()
    if spare is not None:
        cluster.remove_node(spare, allow_graceful=False)
    done = subprocess.run(command, cwd=SOURCE, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [one for one in manifest.read_records(tmp_path / "out" / "manifest.jsonl") if one]
    made = [one["file"] for one in lines if one.get("status") == "done"]
    assert len(made) == len(set(made)) == rows
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == set(made)


def test_a_server_outlives_its_workers_and_tells_of_each_by_number(
    cluster: RayCluster, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.fakes.ray_serving"],
        cwd=SOURCE,
        env={**os.environ, "CLUSTER": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    statuses: dict[str, int] = {}
    try:
        assert process.stdout
        with httpx2.Client(base_url=process.stdout.readline().strip(), timeout=120) as http:

            def ask(prompt: str) -> None:
                body = {"prompt": prompt, "steps": 2}
                statuses[prompt] = http.post("/v1/images/generations", json=body).status_code

            def figure(name: str) -> float:
                return sum(float(found) for found in figures(http, name).values())

            go = [tmp_path / "first", tmp_path / "second"]
            held_prompts = [*(f"hold {path}" for path in go), "plain"]
            threads = [Thread(target=ask, args=(prompt,)) for prompt in held_prompts]
            for thread in threads[:2]:
                thread.start()
            until(lambda: http.get("/readyz").json()["workers"] == {"busy": 2})
            threads[2].start()
            until(lambda: figure("t2i_jobs_waiting") == 1)
            assert figure("t2i_images_running") == 2
            for path in go:
                path.touch()
            for thread in threads:
                thread.join(60)
            assert statuses == dict.fromkeys(held_prompts, 200)
            assert figure("t2i_worker_losses_total") == 0
            ask(f"die-once {tmp_path / 'died'}")
            assert figure("t2i_worker_losses_total") == 1
            for prompt in ("die", "bug", "refuse"):
                ask(prompt)
            assert figure("t2i_worker_losses_total") == 4  # three workers had the one that kills
            until(lambda: http.get("/readyz").json()["workers"] == {"ready": 2})
            ask("plain again")
            assert list(statuses.values()) == [200, 200, 200, 200, 502, 500, 500, 200]
            assert figure("t2i_worker_images_total") == 5
            assert figure("t2i_worker_failures_total") == 3
            assert figure("t2i_worker_seconds_total") == 2.5  # as the stub says of its images
            assert figures(http, "t2i_worker_up") == {'{worker="0"}': "1.0", '{worker="1"}': "1.0"}
            assert figures(http, "t2i_worker_losses_total").keys() == {
                '{worker="0"}',
                '{worker="1"}',
            }
            listed = http.get("/t2i/v1/workers").json()["workers"]
            assert [one["number"] for one in listed] == [0, 1]
            assert {one["node"] for one in listed} == {socket.gethostname()}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def figures(http: httpx2.Client, name: str) -> dict[str, str]:
    """The figures of that name by their labels."""
    text = http.get("/metrics").text
    return dict(re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE))


def worker_processes() -> list[psutil.Process]:
    """The workers of this test's cluster."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name().startswith("ray::T2IWorker"):
                found.append(child)
    return found


# From here on the cluster's GPUs are taken by the workers of one backend.


@pytest.fixture(scope="module")
def made(cluster: RayCluster) -> Iterator[RayBackend]:
    """One backend for the tests that need no options."""
    with backend(cluster) as found:
        found.load(requests(["x"])[0], lambda _: None)
        yield found


def test_every_gpu_has_a_worker_and_images_come_as_files(made: RayBackend) -> None:
    events: list[Event] = []
    assert made.estimate(requests(["x"])[0])["workers"] == 2
    found = run_all(made, ["note a", *["plain"] * 20, "refuse", "bug"], events.append)
    assert made.parallelism() == 2
    assert len(devices(found)) == 2
    first = found[0]
    assert isinstance(first, LazyImage)
    assert first.notes == ("It is: note a",)
    assert first.file.data.startswith(b"\x89PNG")
    assert b"It is: note a" in first.file.data
    assert "image" not in vars(first)  # nothing was decoded
    assert first.image.size == first.size == (16, 16)
    refused, broken = found[21], found[22]
    assert isinstance(refused, Failure) and isinstance(refused.error, ModelError)
    assert isinstance(broken, Failure) and isinstance(broken.error, InternalError)
    assert "the backend broke" in str(broken.error.__cause__)
    assert {index for event in events if isinstance(event, Step) for index in event.indices} >= {0}


def test_a_lost_worker_gives_its_rows_back_and_a_row_that_kills_fails(
    made: RayBackend, tmp_path: Path
) -> None:
    events: list[Event] = []
    once = [f"die-once {tmp_path / str(number)}" for number in range(2)]
    found = run_all(made, [*once, "die", *["plain"] * 10], events.append)
    failed = found.pop(2)
    assert isinstance(failed, Failure) and isinstance(failed.error, RemoteError)
    assert "its process ended" in failed.error.message
    assert all(isinstance(one, GeneratedImage) for one in found.values())
    lost = [e.message for e in events if isinstance(e, Notice) and "was lost" in e.message]
    assert 5 <= len(lost) <= 8  # a row that is lost beside another is tried alone


def test_nodes_that_join_are_used_and_those_that_leave_are_missed_by_nobody(
    cluster: RayCluster, made: RayBackend, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    seen: list[Event] = []
    found: dict[int, GeneratedImage | Failure] = {}
    prompts = [*["plain"] * 4, *[f"hold {go}"] * 12]
    thread = Thread(target=lambda: found.update(run_all(made, prompts, seen.append)))
    thread.start()
    until(lambda: held(seen) == 2)
    late = cluster.add_node(num_cpus=1, num_gpus=1)
    until(lambda: held(seen) == 3)
    cluster.remove_node(late, allow_graceful=False)
    until(lambda: any(isinstance(e, Notice) and "was lost" in e.message for e in seen))
    go.touch()
    thread.join(60)
    assert len(found) == len(prompts)
    assert all(isinstance(one, GeneratedImage) for one in found.values())


def test_a_run_ends_soon_or_now(made: RayBackend, tmp_path: Path) -> None:
    go, seen = tmp_path / "go", list[Event]()
    soon, outcomes = Flag(), list[Any]()
    cancel = CancellationToken(soon)
    work = [*["plain"] * 4, *[f"hold {go}"] * 8]

    def run() -> None:
        outcomes.extend(run_backend(made, requests(work), seen.append, cancel))

    thread = Thread(target=run)
    thread.start()
    until(lambda: held(seen) == 2)
    soon.set()
    time.sleep(0.3)
    go.touch()
    thread.join(20)
    assert not thread.is_alive()
    assert len(outcomes) == 6  # the images that were in progress, and no others
    go.unlink()
    outcomes.clear()
    seen.clear()
    soon.clear()
    thread = Thread(target=run)
    thread.start()
    until(lambda: held(seen) == 2)
    cancel.set()
    thread.join(1)
    assert not thread.is_alive()
    go.touch()
    assert len(run_all(made, ["plain"] * 4)) == 4  # the workers are there for the next run


def test_runs_beside_each_other_and_a_model_loaded_ahead(made: RayBackend, tmp_path: Path) -> None:
    go = tmp_path / "go"
    made.load(requests(["x"])[0], lambda _: None)
    blocked = Thread(target=run_all, args=(made, [f"hold {go}"]))
    blocked.start()
    assert len(run_all(made, ["plain"] * 4)) == 4
    go.touch()
    blocked.join(20)
    assert not blocked.is_alive()
