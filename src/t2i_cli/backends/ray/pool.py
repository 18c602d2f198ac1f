"""The workers of a Ray cluster: one thread starts them, hands passes out, and replaces the lost."""

import math
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.ray import connection, losses
from t2i_cli.backends.ray.connection import ClusterNode
from t2i_cli.backends.ray.options import RayOptions
from t2i_cli.backends.ray.pass_runner import (
    PassEnded,
    PassMessage,
    WorkerConfig,
    WorkerPass,
    restore_cause,
)
from t2i_cli.backends.ray.pending_requests import pass_rows
from t2i_cli.backends.ray.pool_state import PASSES_IN_HAND, PassInHand, PoolRun, PoolWorker
from t2i_cli.backends.ray.worker_actor import FETCHING, make_actor_class
from t2i_cli.errors import RemoteError, T2IError, error_reason, internal_error
from t2i_cli.events import Notice, OnEvent
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
        self._workers: list[PoolWorker] = []
        self._runs: list[PoolRun] = []
        self._load_run: PoolRun | None = None
        self._nodes: Sequence[ClusterNode] = ()
        self._left_out = self._failed_starts = 0
        self._numbers = 0
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
        self._orders.put(partial(self._remove_run, run))

    def finish_soon(self, run: PoolRun) -> None:
        """Begin none of the run's requests any more; it ends with the images in progress."""
        self._orders.put(partial(self._finish_soon, run))

    def hand_out(self) -> None:
        """Hand passes out to workers that have too few."""
        self._orders.put(self._hand_out_all)

    def close(self) -> None:
        """End the workers, and the Ray that was started."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread:
            self._orders.put(None)
            thread.join()

    def _work(self) -> None:
        try:
            self._connected = connection.connect(self._options)
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
        for worker in self._workers:
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
            self._fail_runs(error)
        except Exception as raised:  # noqa: BLE001 - told by the runs
            if type(raised).__module__.partition(".")[0] in {"ray", "grpc"} or isinstance(
                raised, ConnectionError
            ):
                self._fail_runs(RemoteError(f"Ray failed: {error_reason(raised)}"))
            else:
                self._fail_runs(internal_error(raised))

    def _fail_runs(self, error: T2IError) -> None:
        for run in [*self._runs, *([self._load_run] if self._load_run else [])]:
            run.end(error)

    def _add_run(self, run: PoolRun) -> None:
        if self._open_error:
            run.end(self._open_error)
            return
        self._runs.append(run)
        self._waiting_since = self._waiting_since or time.monotonic()
        self._scale()
        self._hand_out_all()

    def _add_load(self, run: PoolRun, request: ResolvedRequest) -> None:
        run.load = request
        self._load_run = run
        self._scale()
        for worker in self._workers:
            if worker.ready:
                self._submit_load(worker)

    def _submit_load(self, worker: PoolWorker) -> None:
        if self._load_run and self._load_run.load:
            self._submit(worker, PassInHand(self._load_run, [], load=self._load_run.load))

    def _remove_run(self, run: PoolRun) -> None:
        run.pending.clear()
        if run in self._runs:
            self._runs.remove(run)
        for worker in self._workers:
            if numbers := [n for n, one in worker.passes.items() if one.run is run]:
                worker.handle.cancel.remote(numbers)

    def _finish_soon(self, run: PoolRun) -> None:
        run.pending.clear()
        run.ends_soon = True
        for worker in self._workers:
            if any(one.run is run for one in worker.passes.values()):
                worker.handle.finish_soon.remote()
        self._end_if_done(run)

    def _end_if_done(self, run: PoolRun) -> None:
        if run.ends_soon and not any(
            one.run is run for worker in self._workers for one in worker.passes.values()
        ):
            run.end(None)

    def _tick(self) -> None:
        if self._open_error:
            return
        now = time.monotonic()
        for worker in list(self._workers):
            limit = self._options.worker_timeout
            if worker.is_busy and now - worker.last_sign > limit:
                self._kill(worker)
                self._lose(worker, f"it gave no sign for {limit:g} s")
        if self._runs or self._load_run:
            self._look_at_nodes()
            self._scale()
            self._hand_out_all()
            self._tell_of_waiting(now)

    def _tell_of_waiting(self, now: float) -> None:
        if any(worker.ready for worker in self._workers):
            self._waiting_since = math.inf
        elif now - self._waiting_since > _WAIT_TOLD_AFTER:
            self._waiting_since = math.inf
            self._tell(
                Notice(
                    message="No worker could start yet: they wait for room on the Ray cluster.",
                    hint="`ray status` shows what its nodes are busy with.",
                )
            )

    def _tell(self, notice: Notice) -> None:
        for run in self._runs:
            run.outbox.put(notice)

    def _look_at_nodes(self) -> None:
        self._nodes = connection.cluster_nodes(connection.import_ray())

    def _wanted(self) -> int:
        return self._options.workers or connection.worker_capacity(self._nodes, self._options)

    def _scale(self) -> None:
        """Start the workers that are missing, no more than there is work for."""
        if self._options.workers is None and not self._wanted():
            raise connection.no_gpu_error(self._options)
        left = sum(len(run.pending) for run in self._runs)
        in_hand = sum(bool(worker.passes) for worker in self._workers)
        work = self.size if self._load_run else left + in_hand
        for _ in range(min(self.size, work) - len(self._workers)):
            self._start_worker()

    def _start_worker(self) -> None:
        worker = PoolWorker(self._make_handle(self))
        self._workers.append(worker)
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
        if worker not in self._workers:
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
            if not self._workers:
                raise
            self._tell(Notice(message=f"{differs.message} It is left out.", hint=differs.hint))
            return
        worker.started = True
        config = pickle.dumps(self._make_config())
        self._when_done(worker.handle.start.remote(config), partial(self._on_started, worker))

    def _on_started(self, worker: PoolWorker, done: "Future[Any]") -> None:
        if worker not in self._workers:
            return
        if error := done.exception():
            self._fail_start(worker, error)
            return
        self._failed_starts = 0
        worker.ready, worker.last_sign = True, time.monotonic()
        self._fetch(worker)
        self._submit_load(worker)
        self._hand_out(worker)
        self._take_over(worker)

    def _fail_start(self, worker: PoolWorker, error: BaseException) -> None:
        self._drop(worker)
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS and not any(w.ready for w in self._workers):
            self._failed_starts = 0
            raise RemoteError(f"No worker could start: {losses.loss_reason(error)}.")

    def _fetch(self, worker: PoolWorker) -> None:
        linger = max(_MIN_LINGER, len(self._workers) * _LINGER_PER_WORKER)
        fetched = worker.handle.fetch.remote(FETCH_SECONDS, linger)
        self._when_done(fetched, partial(self._on_fetched, worker))

    def _on_fetched(self, worker: PoolWorker, done: "Future[Any]") -> None:
        if worker not in self._workers:
            return
        if error := done.exception():
            self._lose(worker, losses.loss_reason(error))
            return
        messages: list[PassMessage] = done.result()
        if messages:
            worker.last_sign = time.monotonic()
        for number, content in messages:
            if one := worker.passes.get(number):
                self._on_message(worker, number, one, content)
        self._hand_out(worker)
        self._take_over(worker)
        self._fetch(worker)

    def _on_message(self, worker: PoolWorker, number: int, one: PassInHand, content: Any) -> None:  # noqa: ANN401
        run = one.run
        if isinstance(content, PassEnded):
            del worker.passes[number]
            if one.load:
                run.end(restore_cause(content.error) if content.error else None)
                return
            for index in content.failed:
                if index in one.members and content.error:
                    one.members.remove(index)
                    error = restore_cause(content.error)
                    run.put_outcome(Failure(index=index, request=run.requests[index], error=error))
            if one.members and run in self._runs and not run.ends_soon:
                run.pending.give_back(one.members)
                self._hand_out_all()
            self._end_if_done(run)
        elif isinstance(content, GeneratedImage | Failure):
            if content.index in one.members:
                one.members.remove(content.index)
                if isinstance(content, GeneratedImage):
                    used = content.info.batch_size or 1
                    worker.largest_pass = max(worker.largest_pass, used)
                else:
                    restore_cause(content.error)
                run.put_outcome(content)
        else:
            run.outbox.put(content)

    def _hand_out_all(self) -> None:
        # Workers with the fewest passes first: at the start each gets one before any gets two.
        for fullness in range(PASSES_IN_HAND):
            for worker in self._workers:
                if worker.ready and len(worker.passes) <= fullness:
                    self._hand_out(worker, fullness + 1)

    def _hand_out(self, worker: PoolWorker, most: int = PASSES_IN_HAND) -> None:
        while len(worker.passes) < most:
            if any(one.is_alone for one in worker.passes.values()):
                return
            run = next((run for run in self._runs if run.takes_more(len(self._workers))), None)
            if run is None:
                return
            others = [other.kind for other in self._workers if other is not worker and other.kind]
            members = run.pending.take(
                worker.kind,
                others,
                most=pass_rows(self._options.local.batch_size, worker.largest_pass),
                workers=max(1, sum(one.ready for one in self._workers)),
                idle=not worker.passes,
            )
            if not members:
                return
            self._submit(worker, PassInHand(run, members))
            # The next pass is another run's, if there is one.
            self._runs.remove(run)
            self._runs.append(run)

    def _take_over(self, idle: PoolWorker) -> None:
        """Have another worker give back a pass that waits there, for one that has nothing."""
        if idle.passes or not idle.ready or any(run.is_held_up for run in self._runs):
            return
        for worker in self._workers:
            for number, one in list(worker.passes.items())[1:]:
                fits = idle.kind is None or (one.members and idle.kind[:2] == one.kind[:2])
                if fits and one.run in self._runs and not one.withdrawn:
                    one.withdrawn = True
                    worker.handle.withdraw.remote(number)
                    return

    def _submit(self, worker: PoolWorker, one: PassInHand) -> None:
        self._numbers += 1
        if not worker.passes:
            worker.last_sign = time.monotonic()
        worker.passes[self._numbers] = one
        if one.members:
            worker.kind = one.kind
        members = [(index, one.run.requests[index]) for index in one.members]
        previews = one.run.previews and [one.run.previews[index] for index in one.members]
        worker.handle.submit.remote(
            WorkerPass(number=self._numbers, members=members, previews=previews, load=one.load)
        )

    def _lose(self, worker: PoolWorker, reason: str) -> None:
        """Give back what a lost worker had; another takes its place."""
        self._drop(worker)
        passes = deque(worker.passes.values())
        given_back = 0
        for place, one in enumerate(passes):
            run = one.run
            if one.load or run not in self._runs:
                if one.load:
                    run.lost_loads += 1
                    if run.lost_loads > losses.MAX_LOST_LOADS:
                        run.end(losses.load_error(reason))
                continue
            if run.ends_soon:
                self._end_if_done(run)
                continue
            given_back += len(one.members)
            if place:
                run.pending.give_back(one.members)
                continue
            for index in run.pending.give_back_lost(one.members):
                given_back -= 1
                error = losses.request_error(reason)
                run.put_outcome(Failure(index=index, request=run.requests[index], error=error))
        self._tell(losses.loss_notice(worker.node, reason, given_back))
        self._scale()
        self._hand_out_all()

    def _drop(self, worker: PoolWorker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        self._kill(worker)

    def _kill(self, worker: PoolWorker) -> None:
        with suppress(Exception):
            connection.import_ray().kill(worker.handle)


def forward_events(run: PoolRun, on_event: OnEvent, seconds: float) -> object | None:
    """The next outcome or end of a run within `seconds`; events before it go to `on_event`."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            item = run.outbox.get(timeout=left)
        except Empty:
            return None
        if isinstance(item, losses.RunEnded | GeneratedImage | Failure):
            return item
        on_event(item)
    return None
