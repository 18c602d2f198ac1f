"""What the pool of Ray's workers does as they, nodes and the connection come and go; without Ray.

Workers are real PassRunners in this process, behind handles that answer as an actor's do.
"""

import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest

from t2i_cli.backend import CancellationToken, Failure, GeneratedImage
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.ray import RayBackend, RayOptions, connection, connection_attempts, pool
from t2i_cli.backends.ray.connection import ClusterNode
from t2i_cli.backends.ray.dispatcher import PassDispatcher
from t2i_cli.backends.ray.pass_runner import PassRunner
from t2i_cli.backends.ray.pool import WorkerPool
from t2i_cli.backends.ray.pool_state import PassInHand, PoolRun, PoolWorker
from t2i_cli.backends.ray.worker_table import WorkerTable
from t2i_cli.driver import run_backend
from t2i_cli.errors import RemoteError
from t2i_cli.events import Event, Notice, Step
from t2i_cli.request import ResolvedRequest
from tests.fakes.ray_workers import make_stub


def until(reached: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


class ThreadHandle:
    """A worker in this process: what is asked of it is done in order, beside its fetching."""

    def __init__(self, node: str, torch: str | None = None) -> None:
        self.node = node
        self._torch = torch
        self._ordered = ThreadPoolExecutor(1)
        self._fetching = ThreadPoolExecutor(1)
        self._runner: PassRunner | None = None

    def __getattr__(self, name: str) -> "_Method":
        threads = self._fetching if name == "fetch" else self._ordered
        return _Method(lambda *arguments: threads.submit(self._call, name, *arguments))

    def _call(self, name: str, *arguments: Any) -> object:  # noqa: ANN401
        if name == "versions":
            own = connection.own_versions()
            versions = {**own, "torch": self._torch or own["torch"]}
            return {"versions": versions, "node": self.node, "node_id": self.node}
        if name == "start":
            self._runner = PassRunner(pickle.loads(arguments[0]))  # noqa: S301 - of this test
            return None
        if name == "fetch":
            arguments = (min(arguments[0], 0.2), arguments[1])
        return getattr(self._runner, name)(*arguments)


@dataclass
class _Method:
    """A method of an actor's handle."""

    call: Callable[..., "Future[object]"]

    def remote(self, *arguments: object) -> "_Reference":
        return _Reference(self.call(*arguments))


@dataclass
class _Reference:
    """A reference to a result."""

    result: "Future[object]"

    def future(self) -> "Future[object]":
        return self.result


@dataclass
class ThreadRay:
    """The part of Ray that the pool calls; `nodes` are what a cluster has, `own` is this one's."""

    nodes: list[ClusterNode] = field(default_factory=list)
    own: str = "head"
    connections: int = 0
    started: list[ThreadHandle] = field(default_factory=list)
    torch: dict[str, str] = field(default_factory=dict)

    def add_node(self, name: str, gpus: float = 1) -> None:
        self.nodes.append(ClusterNode(id=name, name=name, gpus=gpus, cpus=1))

    def start_worker(self, _: WorkerPool) -> ThreadHandle:
        busy = {handle.node for handle in self.started}
        names = [node.id for node in self.nodes if node.gpus]
        free = [name for name in names if name not in busy] or names
        self.started.append(ThreadHandle(free[0], self.torch.get(free[0])))
        return self.started[-1]

    def connect(self, options: RayOptions, stop: Flag) -> bool:
        self.connections += 1
        if self.own not in {node.id for node in self.nodes}:
            self.add_node(self.own, gpus=0)
        return True

    def get_runtime_context(self) -> "ThreadRay":
        return self

    def get_node_id(self) -> str:
        return self.own

    def kill(self, handle: ThreadHandle) -> None:
        """It may live on for a while."""

    def shutdown(self) -> None:
        """Nothing is held."""


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> ThreadRay:
    """A cluster of a head and one node with a GPU, ticking quickly."""
    found = ThreadRay()
    found.add_node("head", gpus=0)
    found.add_node("node-1")
    monkeypatch.setattr(connection, "require_ray", lambda: None)
    monkeypatch.setattr(connection, "import_ray", lambda: found)
    monkeypatch.setattr(connection, "connect_ray", found.connect)
    monkeypatch.setattr(connection, "cluster_nodes", lambda ray: list(ray.nodes))
    monkeypatch.setattr(pool, "_TICK", 0.05)
    return found


@pytest.fixture
def make(ray: ThreadRay) -> Iterator[Callable[..., RayBackend]]:
    """Makes a backend on that cluster."""
    made: list[RayBackend] = []

    def make_one(**options: Any) -> RayBackend:  # noqa: ANN401
        made.append(
            RayBackend(
                RayOptions(local=LocalOptions(batch_size=1), address="h:1", **options),
                make_stub,
                lambda options, config: WorkerPool(options, config, ray.start_worker),
            )
        )
        return made[-1]

    yield make_one
    for one in made:
        one.close()


def requests(prompts: Sequence[str]) -> list[ResolvedRequest]:
    return [
        ResolvedRequest(prompt=text, model="postcard", seed=seed, steps=2, width=64, height=64)
        for seed, text in enumerate(prompts)
    ]


def run_all(made: RayBackend, prompts: Sequence[str], events: list[Event]) -> list[bool]:
    """Whether each prompt's one outcome is an image."""
    found: dict[int, GeneratedImage | Failure] = {}
    for outcome in run_backend(made, requests(prompts), events.append, Flag()):
        assert outcome.index not in found
        found[outcome.index] = outcome
    return [isinstance(found[index], GeneratedImage) for index in range(len(prompts))]


def told(events: Sequence[Event]) -> str:
    return "\n".join(event.message for event in events if isinstance(event, Notice))


def test_an_outcome_that_arrives_from_a_lost_worker_doubles_no_row(
    make: Callable[..., RayBackend], ray: ThreadRay, tmp_path: Path
) -> None:
    go, events = tmp_path / "go", list[Event]()
    found: list[bool] = []
    made = make(worker_timeout=0.5)
    work = [f"hold {go}", "plain", "plain"]
    thread = threading.Thread(target=lambda: found.extend(run_all(made, work, events)))
    thread.start()
    until(lambda: "was lost" in told(events))
    go.touch()  # now the lost one ends as well as the one in its place
    thread.join(30)
    assert found == [True] * 3
    assert len(ray.started) >= 2


def test_a_lost_connection_is_made_again_and_no_row_is_made_twice(
    make: Callable[..., RayBackend], ray: ThreadRay, tmp_path: Path
) -> None:
    go, events = tmp_path / "go", list[Event]()
    found: list[bool] = []
    made = make()
    work = ["plain", f"hold {go}", "plain"]
    thread = threading.Thread(target=lambda: found.extend(run_all(made, work, events)))
    thread.start()
    until(lambda: ray.started)
    ray.nodes = [node for node in ray.nodes if node.id != "head"]
    until(lambda: ray.connections == 2)
    go.touch()
    thread.join(30)
    assert found == [True] * 3
    assert "The node of the Ray cluster that this command is connected to has ended." in told(
        events
    )


def test_a_connection_that_is_lost_again_and_again_ends_the_run(
    make: Callable[..., RayBackend], ray: ThreadRay, tmp_path: Path
) -> None:
    def lose_own_node() -> None:
        while ray.connections < 4:
            until(lambda: any(node.id == "head" for node in ray.nodes))
            time.sleep(0.2)
            ray.nodes = [node for node in ray.nodes if node.id != "head"]
            count = ray.connections
            while ray.connections == count:
                time.sleep(0.01)
                if not thread.is_alive():
                    return

    raised: list[BaseException] = []

    def run() -> None:
        try:
            list(made.run(requests([f"hold {tmp_path / 'never'}"]), lambda _: None, Flag()))
        except RemoteError as error:
            raised.append(error)

    made = make()
    thread = threading.Thread(target=run)
    thread.start()
    lose_own_node()
    thread.join(30)
    assert len(raised) == 1
    assert ray.connections == 3


def test_ray_that_does_not_answer_is_an_error_not_a_wait(
    make: Callable[..., RayBackend], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pool, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(pool, "_CLOSE_SECONDS", 0.1)
    answers, asked = Flag(), list[float]()
    found = connection.cluster_nodes

    def late(ray: ThreadRay) -> list[ClusterNode]:
        asked.append(time.monotonic())
        if len(asked) > 3:
            answers.wait(20)
        return found(ray)

    monkeypatch.setattr(connection, "cluster_nodes", late)
    made = make()
    try:
        with pytest.raises(RemoteError, match=r"did not answer for 0\.3 s"):
            list(made.run(requests([f"hold {tmp_path / 'never'}"]), lambda _: None, Flag()))
    finally:
        answers.set()


def test_a_node_with_other_versions_is_left_out_also_when_others_fail(
    make: Callable[..., RayBackend], ray: ThreadRay, tmp_path: Path
) -> None:
    ray.add_node("node-2")
    ray.torch["node-2"] = "1.0"
    events = list[Event]()
    made = make()
    assert run_all(made, ["plain"] * 6, events) == [True] * 6
    assert "node-2 has torch 1.0" in told(events)
    assert made.parallelism() == 1
    # What is left out counts no more when it has left: the node with the right versions stays.
    ray.nodes = [node for node in ray.nodes if node.id != "node-2"]
    assert run_all(made, ["plain"] * 6, events) == [True] * 6
    assert made.parallelism() == 1


def test_a_cluster_of_which_no_node_has_the_versions_says_so_each_time(
    make: Callable[..., RayBackend], ray: ThreadRay
) -> None:
    ray.torch["node-1"] = "1.0"
    made = make()
    for _ in range(2):
        with pytest.raises(RemoteError, match="node-1 has torch 1.0"):
            list(made.run(requests(["plain"]), lambda _: None, Flag()))


def test_closing_waits_for_no_connection(
    make: Callable[..., RayBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_CLOSE_SECONDS", 0.2)
    answers = Flag()
    monkeypatch.setattr(connection, "connect_ray", lambda *_: answers.wait(20))
    cancel = CancellationToken(Flag())
    made = make()
    try:
        started = time.monotonic()
        threading.Timer(0.2, cancel.soon.set).start()
        with closing(made):
            assert list(made.run(requests(["plain"]), lambda _: None, cancel)) == []
        assert time.monotonic() - started < 5
    finally:
        answers.set()


def test_what_a_row_raises_is_its_failure_and_not_tried_again(
    make: Callable[..., RayBackend],
) -> None:
    events = list[Event]()
    assert run_all(make(), ["bug", "refuse", "plain"], events) == [False, False, True]
    begun = [event.indices for event in events if isinstance(event, Step)]
    assert sorted(begun) == [(0,), (1,), (2,)]


class _Silent:
    """A handle that takes all and answers nothing."""

    def __getattr__(self, name: str) -> _Method:
        return _Method(lambda *_: Future())


def test_the_pass_that_a_lost_worker_had_begun_is_the_first_with_images_left() -> None:
    dispatch = PassDispatcher(1, WorkerTable())
    run = PoolRun(requests(["a", "b", "c"]), ())
    worker = PoolWorker(_Silent(), ready=True)
    # The first pass's image is here, its end is not told yet.
    worker.passes = {1: PassInHand(run, []), 2: PassInHand(run, [1]), 3: PassInHand(run, [2])}
    run.pending.clear()
    dispatch.runs.append(run)
    dispatch.give_back(worker, "its process ended")
    assert [run.pending.was_lost(index) for index in range(3)] == [False, True, False]


class _Attempts:
    """A connection that fails with these errors, one after the other."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.made = 0

    def __call__(self) -> None:
        self.made += 1
        if self.errors:
            raise self.errors.pop(0)


PROXY_FAILED = ConnectionAbortedError(
    "Initialization failure from server:\nTraceback\nRuntimeError: Proxy failed to Connect."
)


@pytest.fixture
def attempt(ray: ThreadRay, monkeypatch: pytest.MonkeyPatch) -> Callable[[_Attempts], None]:
    """Connects within the limit, without pauses."""
    pytest.importorskip("grpc")
    monkeypatch.setattr(connection_attempts, "_PAUSE", 0.0)
    return lambda connect: connection_attempts.connect_within_limit(ray, connect, Flag())


def test_what_was_too_slow_is_tried_again(attempt: Callable[[_Attempts], None]) -> None:
    connect = _Attempts(
        PROXY_FAILED,
        ConnectionError("ray client connection timeout"),
        Exception("The current node timed out during startup."),
    )
    attempt(connect)
    assert connect.made == 4


@pytest.mark.parametrize(
    "error", [RuntimeError("Version mismatch"), ConnectionError("No Ray runs")]
)
def test_what_would_fail_again_is_not_tried_again(
    attempt: Callable[[_Attempts], None], error: Exception
) -> None:
    connect = _Attempts(error)
    with pytest.raises(type(error)):
        attempt(connect)
    assert connect.made == 1


def test_attempts_end(attempt: Callable[[_Attempts], None]) -> None:
    connect = _Attempts(*[PROXY_FAILED] * 100)
    with pytest.raises(ConnectionAbortedError):
        attempt(connect)
    assert connect.made == connection_attempts.MAX_CONNECTION_ATTEMPTS
    options = RayOptions(local=LocalOptions(), address="ray://h:1")
    assert "--address auto" in (connection.ray_error(options, PROXY_FAILED).hint or "")
