"""The workers of a Ray cluster: one thread starts them, hands passes out, and replaces the lost."""

import math
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from t2i_cli.backends.ray import connection, losses
from t2i_cli.backends.ray.connection import ClusterNode
from t2i_cli.backends.ray.dispatcher import PassDispatcher
from t2i_cli.backends.ray.options import RayOptions
from t2i_cli.backends.ray.pass_runner import (
    PassMessage,
    WorkerConfig,
)
from t2i_cli.backends.ray.pool_state import PoolRun, PoolWorker
from t2i_cli.backends.ray.worker_actor import FETCHING, make_actor_class
from t2i_cli.errors import RemoteError, T2IError, error_reason, internal_error
from t2i_cli.events import Notice
from t2i_cli.request import ResolvedRequest

FETCH_SECONDS = 10.0
"""Seconds that a worker waits for something to tell before it says that there is nothing."""
_TICK = 1.0
"""Seconds between two looks at the cluster's nodes and at workers that hang."""
_MIN_LINGER, _LINGER_PER_WORKER = 0.2, 1 / 128
"""Seconds that a worker's steps are collected, so that many workers do not tell each of theirs."""
_WAIT_TOLD_AFTER = 15.0
"""Seconds without any worker after which it is told that they wait for room."""
_MAX_FAILED_STARTS = 3
"""Starts of workers that fail in a row, without any other worker, before runs fail with it."""


class WorkerPool:
    """The workers of one connection to Ray. Everything of Ray's is called in one thread.

    `make_config` makes what workers are started with. `make_handle` starts a worker's actor.
    """

    def __init__(
        self,
        options: RayOptions,
        make_config: Callable[[], WorkerConfig],
        make_handle: Callable[["WorkerPool"], Any] | None = None,
    ) -> None:
        self._options = options
        self._make_config = make_config
        self._make_handle = make_handle or WorkerPool._start_actor
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._opened = threading.Event()
        self._open_error: T2IError | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._dispatch = PassDispatcher(options.local.batch_size)
        self._nodes: Sequence[ClusterNode] = ()
        self._left_out = self._failed_starts = 0
        self._waiting_since = 0.0
        self._actor_class: Any = None
        self._cpus = 0.0
        self._connected = False

    @property
    def size(self) -> int:
        """How many workers there are to be, by the nodes that were seen last; 0 if none was."""
        return max(0, self._wanted() - self._left_out)

    @property
    def is_open(self) -> bool:
        """Whether Ray is connected."""
        return self._opened.is_set() and self._open_error is None

    def open(self) -> None:
        """Start Ray or connect to it, once. Raises T2IError."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="ray")
                self._thread.start()
        while not self._opened.wait(0.1):
            pass
        if self._open_error:
            raise self._open_error

    def add_run(self, run: PoolRun) -> None:
        """Hand the run's requests out, until it is removed."""
        self._orders.put(partial(self._add_run, run))

    def add_load(self, request: ResolvedRequest) -> PoolRun:
        """Have every worker load the request's model; the run ends with the first that has."""
        run = PoolRun([], ())
        self._orders.put(partial(self._add_load, run, request))
        return run

    def remove_run(self, run: PoolRun) -> None:
        """Cancel what is left of a run."""
        self._orders.put(partial(self._dispatch.remove_run, run))

    def finish_soon(self, run: PoolRun) -> None:
        """Begin none of the run's requests any more; it ends with the images in progress."""
        self._orders.put(partial(self._dispatch.finish_soon, run))

    def hand_out(self) -> None:
        """Hand passes out to workers that have too few."""
        self._orders.put(self._dispatch.hand_out_all)

    def close(self) -> None:
        """End the workers, and the Ray that was started."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread:
            self._orders.put(None)
            thread.join()

    def _work(self) -> None:
        try:
            self._connected = connection.connect_ray(self._options)
            self._look_at_nodes()
        except T2IError as error:
            self._open_error = error
        except Exception as raised:  # noqa: BLE001 - told by open()
            self._open_error = internal_error(raised)
        self._opened.set()
        next_tick = time.monotonic() + _TICK
        while True:
            with suppress(Empty):
                order = self._orders.get(timeout=max(0.0, next_tick - time.monotonic()))
                if order is None:
                    break
                self._guard(order)
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + _TICK
                self._guard(self._tick)
        self._shut_down()

    def _shut_down(self) -> None:
        if self._open_error:
            return
        ray = connection.import_ray()
        for worker in self._dispatch.workers:
            with suppress(Exception):
                ray.kill(worker.handle)
        if self._connected:
            with suppress(Exception):
                ray.shutdown()

    def _guard(self, order: Callable[[], None]) -> None:
        """Carry an order out; what Ray raises ends the runs."""
        try:
            order()
        except T2IError as error:
            self._dispatch.fail_runs(error)
        except Exception as raised:  # noqa: BLE001 - told by the runs
            if type(raised).__module__.partition(".")[0] in {"ray", "grpc"} or isinstance(
                raised, ConnectionError
            ):
                self._dispatch.fail_runs(RemoteError(f"Ray failed: {error_reason(raised)}"))
            else:
                self._dispatch.fail_runs(internal_error(raised))

    def _add_run(self, run: PoolRun) -> None:
        if self._open_error:
            run.end(self._open_error)
            return
        self._dispatch.runs.append(run)
        self._waiting_since = self._waiting_since or time.monotonic()
        self._scale()
        self._dispatch.hand_out_all()

    def _add_load(self, run: PoolRun, request: ResolvedRequest) -> None:
        run.load = request
        self._dispatch.load_run = run
        self._scale()
        for worker in self._dispatch.workers:
            if worker.ready:
                self._dispatch.submit_load(worker)

    def _tick(self) -> None:
        if self._open_error:
            return
        now = time.monotonic()
        for worker in list(self._dispatch.workers):
            limit = self._options.worker_timeout
            if worker.is_busy and now - worker.last_sign > limit:
                self._kill(worker)
                self._lose(worker, f"it gave no sign for {limit:g} s")
        if self._dispatch.runs or self._dispatch.load_run:
            self._look_at_nodes()
            self._scale()
            self._dispatch.hand_out_all()
            self._tell_of_waiting(now)

    def _tell_of_waiting(self, now: float) -> None:
        if any(worker.ready for worker in self._dispatch.workers):
            self._waiting_since = math.inf
        elif now - self._waiting_since > _WAIT_TOLD_AFTER:
            self._waiting_since = math.inf
            self._dispatch.tell(
                Notice(
                    message="No worker could start yet: they wait for room on the Ray cluster.",
                    hint="`ray status` shows what its nodes are busy with.",
                )
            )

    def _look_at_nodes(self) -> None:
        self._nodes = connection.cluster_nodes(connection.import_ray())

    def _wanted(self) -> int:
        return self._options.workers or connection.worker_capacity(self._nodes, self._options)

    def _scale(self) -> None:
        """Start the workers that are missing, no more than there is work for."""
        if self._options.workers is None and not self._wanted():
            raise connection.no_gpu_error(self._options)
        left = sum(len(run.pending) for run in self._dispatch.runs)
        in_hand = sum(bool(worker.passes) for worker in self._dispatch.workers)
        work = self.size if self._dispatch.load_run else left + in_hand
        for _ in range(min(self.size, work) - len(self._dispatch.workers)):
            self._start_worker()

    def _start_worker(self) -> None:
        worker = PoolWorker(self._make_handle(self))
        self._dispatch.workers.append(worker)
        versions = worker.handle.versions.remote(
            connection.COMPARED_PACKAGES, connection.find_versions()
        )
        self._when_done(versions, partial(self._on_versions, worker))

    def _start_actor(self) -> Any:  # noqa: ANN401 - an actor's handle
        ray = connection.import_ray()
        # Fetching has a thread of its own; all else is done in the order in which it is asked.
        self._actor_class = self._actor_class or ray.remote(concurrency_groups={FETCHING: 1})(
            make_actor_class()
        )
        if self._options.uses_gpus:
            resources: dict[str, Any] = {"num_gpus": self._options.gpus_per_worker, "num_cpus": 0}
        else:
            # The share at the first start holds: a worker's threads are not to depend on when.
            self._cpus = self._cpus or connection.worker_cpus(self._nodes, self.size)
            resources = {"num_cpus": self._cpus, "scheduling_strategy": "SPREAD"}
        return self._actor_class.options(
            max_concurrency=1, max_restarts=0, max_task_retries=0, **resources
        ).remote()

    def _when_done(self, reference: Any, then: Callable[["Future[Any]"], None]) -> None:  # noqa: ANN401
        """Call `then` in this thread once Ray has the result, or the error."""
        future = reference.future()
        future.add_done_callback(lambda done: self._orders.put(partial(then, done)))

    def _on_versions(self, worker: PoolWorker, done: "Future[Any]") -> None:
        if worker not in self._dispatch.workers:
            return
        if error := done.exception():
            self._fail_start(worker, error)
            return
        answer = done.result()
        worker.node, worker.last_sign = answer["node"], time.monotonic()
        try:
            connection.compare_versions(worker.node, answer["versions"])
        except T2IError as differs:
            self._drop(worker)
            self._left_out += 1
            if not self._dispatch.workers:
                raise
            self._dispatch.tell(
                Notice(message=f"{differs.message} It is left out.", hint=differs.hint)
            )
            return
        worker.started = True
        config = pickle.dumps(self._make_config())
        self._when_done(worker.handle.start.remote(config), partial(self._on_started, worker))

    def _on_started(self, worker: PoolWorker, done: "Future[Any]") -> None:
        if worker not in self._dispatch.workers:
            return
        if error := done.exception():
            self._fail_start(worker, error)
            return
        self._failed_starts = 0
        worker.ready, worker.last_sign = True, time.monotonic()
        self._fetch(worker)
        self._dispatch.submit_load(worker)
        self._dispatch.hand_out(worker)
        self._dispatch.take_over(worker)

    def _fail_start(self, worker: PoolWorker, error: BaseException) -> None:
        self._drop(worker)
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS and not any(
            w.ready for w in self._dispatch.workers
        ):
            self._failed_starts = 0
            raise RemoteError(f"No worker could start: {losses.loss_reason(error)}.")

    def _fetch(self, worker: PoolWorker) -> None:
        linger = max(_MIN_LINGER, len(self._dispatch.workers) * _LINGER_PER_WORKER)
        fetched = worker.handle.fetch.remote(FETCH_SECONDS, linger)
        self._when_done(fetched, partial(self._on_fetched, worker))

    def _on_fetched(self, worker: PoolWorker, done: "Future[Any]") -> None:
        if worker not in self._dispatch.workers:
            return
        if error := done.exception():
            self._lose(worker, losses.loss_reason(error))
            return
        messages: list[PassMessage] = done.result()
        if messages:
            worker.last_sign = time.monotonic()
        self._dispatch.receive(worker, messages)
        self._dispatch.hand_out(worker)
        self._dispatch.take_over(worker)
        self._fetch(worker)

    def _lose(self, worker: PoolWorker, reason: str) -> None:
        """Give back what a lost worker had; another takes its place."""
        self._drop(worker)
        self._dispatch.give_back(worker, reason)
        self._scale()
        self._dispatch.hand_out_all()

    def _drop(self, worker: PoolWorker) -> None:
        if worker in self._dispatch.workers:
            self._dispatch.workers.remove(worker)
        self._kill(worker)

    def _kill(self, worker: PoolWorker) -> None:
        with suppress(Exception):
            connection.import_ray().kill(worker.handle)
