"""Starts the workers that are missing on a cluster's nodes, asks them, and replaces the lost."""

import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from t2i_cli.backends.ray import connection, losses
from t2i_cli.backends.ray.connection import ClusterNode
from t2i_cli.backends.ray.dispatcher import PassDispatcher
from t2i_cli.backends.ray.options import RayOptions
from t2i_cli.backends.ray.pass_runner import PassMessage, WorkerConfig
from t2i_cli.backends.ray.pool_state import PoolWorker
from t2i_cli.backends.ray.worker_actor import FETCHING, make_actor_class
from t2i_cli.errors import RemoteError, T2IError
from t2i_cli.events import Notice

NODE_ID_LABEL = "ray.io/node-id"
"""The label that Ray gives each node, with its id."""
FETCH_SECONDS = 10.0
"""Seconds that a worker waits for something to tell before it says that there is nothing."""
_MIN_LINGER, _LINGER_PER_WORKER = 0.2, 1 / 128
"""Seconds that a worker's steps are collected, so that many workers do not tell each of theirs."""
_MAX_FAILED_STARTS = 3
"""Starts of workers that fail in a row, without any other worker, before runs fail with it."""


class ClusterWorkers:
    """The life of the dispatcher's workers, from their start to their loss; for one thread only.

    `call_later` has a function called in that thread. `make_config` makes what workers are started
    with, `make_handle` starts a worker's actor.
    """

    def __init__(
        self,
        options: RayOptions,
        dispatch: PassDispatcher,
        make_config: Callable[[], WorkerConfig],
        call_later: Callable[[Callable[[], None]], None],
        make_handle: Callable[[], Any] | None,
    ) -> None:
        self._options = options
        self._dispatch = dispatch
        self._make_config = make_config
        self._call_later = call_later
        self._make_handle = make_handle or self._start_actor
        self._nodes: Sequence[ClusterNode] = ()
        self._own_node = ""
        self._unfit: dict[str, T2IError] = {}
        self._failed_starts = 0
        self._actor_class: Any = None
        self._cpus = 0.0

    @property
    def size(self) -> int:
        """How many workers there are to be, by the nodes that were seen last; 0 if none was."""
        return self._options.workers or self._room()

    def _room(self) -> int:
        """How many workers the nodes have room for whose versions do not differ."""
        fit = [node for node in self._nodes if node.id not in self._unfit]
        return connection.worker_capacity(fit, self._options)

    def look_at_nodes(self) -> None:
        """See which nodes there are. Raises LostConnectionError if this process's own is not."""
        ray = connection.import_ray()
        self._nodes = connection.cluster_nodes(ray)
        alive = {node.id for node in self._nodes}
        if not self._own_node:
            own = ray.get_runtime_context().get_node_id()
            self._own_node = own if own in alive else ""
        elif self._own_node not in alive:
            raise losses.own_node_error(self._options.starts_ray)

    def scale(self) -> None:
        """Start the workers that are missing, no more than there is work for."""
        if not self.size:
            unfit = [self._unfit[node.id] for node in self._nodes if node.id in self._unfit]
            raise unfit[-1] if unfit else connection.no_gpu_error(self._options)
        left = sum(len(run.pending) for run in self._dispatch.runs)
        in_hand = sum(bool(worker.passes) for worker in self._dispatch.workers)
        work = self.size if self._dispatch.load_run else left + in_hand
        for _ in range(min(self.size, work) - len(self._dispatch.workers)):
            self._start_worker()

    def replace_hung(self) -> None:
        """Replace the workers that gave no sign for too long."""
        limit = self._options.worker_timeout
        for worker in list(self._dispatch.workers):
            if worker.is_busy and time.monotonic() - worker.last_sign > limit:
                self._lose(worker, f"it gave no sign for {limit:g} s")

    def end(self) -> None:
        """End the workers' processes."""
        for worker in self._dispatch.workers:
            self._kill(worker)

    def forget(self) -> None:
        """Forget workers and nodes, of which nothing more is heard."""
        for worker in self._dispatch.workers:
            self._dispatch.table.remove(worker)
        self._dispatch.workers.clear()
        self._nodes, self._own_node, self._actor_class = (), "", None
        self._unfit.clear()

    def _start_worker(self) -> None:
        worker = PoolWorker(self._make_handle())
        self._dispatch.workers.append(worker)
        self._dispatch.table.add(worker)
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
        if self._unfit:
            resources["label_selector"] = {NODE_ID_LABEL: f"!in({','.join(sorted(self._unfit))})"}
        return self._actor_class.options(
            max_concurrency=1, max_restarts=0, max_task_retries=0, **resources
        ).remote()

    def _when_done(self, reference: Any, then: Callable[["Future[Any]"], None]) -> None:  # noqa: ANN401
        """Call `then` in this thread once Ray has the result, or the error."""
        future = reference.future()
        future.add_done_callback(lambda done: self._call_later(partial(then, done)))

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
            # Another node of the same id does not come: it is left out for good.
            self._unfit[answer["node_id"]] = differs
            if not self._dispatch.workers and not self._room():
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
        if losses.is_connection_loss(error):
            raise error
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
            if losses.is_connection_loss(error):
                raise error
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
        self._dispatch.table.count(worker, losses=1)
        self._dispatch.give_back(worker, reason)
        self.scale()
        self._dispatch.hand_out_all()

    def _drop(self, worker: PoolWorker) -> None:
        if worker in self._dispatch.workers:
            self._dispatch.workers.remove(worker)
            self._dispatch.table.remove(worker)
        self._kill(worker)

    def _kill(self, worker: PoolWorker) -> None:
        with suppress(Exception):
            connection.import_ray().kill(worker.handle)
