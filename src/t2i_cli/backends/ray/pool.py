"""The connection to Ray: one thread opens it, does what is asked of it, and closes it."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from t2i_cli.backends.ray import connection, losses
from t2i_cli.backends.ray.dispatcher import PassDispatcher
from t2i_cli.backends.ray.options import RayOptions
from t2i_cli.backends.ray.pass_runner import WorkerConfig
from t2i_cli.backends.ray.pool_state import PoolRun
from t2i_cli.backends.ray.worker_starts import ClusterWorkers
from t2i_cli.backends.ray.worker_table import WorkerTable
from t2i_cli.errors import RemoteError, T2IError, error_reason, internal_error
from t2i_cli.events import Notice
from t2i_cli.request import ResolvedRequest

_TICK = 1.0
"""Seconds between two looks at the cluster's nodes and at workers that hang."""
_WAIT_TOLD_AFTER = 15.0
"""Seconds without any worker after which it is told that they wait for room."""
STALL_SECONDS = 45.0
"""Seconds that a call of Ray's may take; without its head Ray ends the process after 60."""
_CLOSE_SECONDS = 20.0
"""Seconds that closing waits for what Ray is asked for at the moment."""


class WorkerPool:
    """The workers of one connection to Ray. Everything of Ray's is called in one thread.

    A connection that is lost ends the runs, and is opened anew by the next `open`. `make_config`
    makes what workers are started with. `make_handle` starts a worker's actor.
    """

    def __init__(
        self,
        options: RayOptions,
        make_config: Callable[[], WorkerConfig],
        make_handle: Callable[["WorkerPool"], Any] | None = None,
    ) -> None:
        self._options = options
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._opened = threading.Event()
        self._closing = threading.Event()
        self._open_error: T2IError | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.table = WorkerTable()
        self._dispatch = PassDispatcher(options.local.batch_size, self.table)
        self._workers = ClusterWorkers(
            options,
            self._dispatch,
            make_config,
            self._orders.put,
            partial(make_handle, self) if make_handle else None,
        )
        self._waiting_since = 0.0
        self._connected = False
        self._last_turn = math.inf

    @property
    def size(self) -> int:
        """How many workers there are to be, by the nodes that were seen last; 0 if none was."""
        return self._workers.size

    @property
    def is_open(self) -> bool:
        """Whether Ray is connected."""
        return self._opened.is_set() and self._open_error is None

    def check_progress(self) -> None:
        """Raise LostConnectionError if Ray has not answered a call for too long."""
        if self.is_open and time.monotonic() - self._last_turn > STALL_SECONDS:
            raise losses.lost_connection_error(f"it did not answer for {STALL_SECONDS:g} s")

    def open(self, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start Ray or connect to it, unless that is done, or cancelled. Raises T2IError."""
        with self._lock:
            if self._thread is None:
                self._opened.clear()
                self._closing.clear()
                self._thread = threading.Thread(target=self._work, daemon=True, name="ray")
                self._thread.start()
            elif self._opened.is_set() and self._open_error:
                self._opened.clear()
                self._orders.put(self._connect)
        while not self._opened.wait(0.1):
            if is_cancelled():
                return
        if error := self._open_error:
            raise error

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
            self._closing.set()
            self._orders.put(None)
            # A Ray that is being started ends with its thread, and that with the process.
            thread.join(_CLOSE_SECONDS)

    def _work(self) -> None:
        self._connect()
        next_tick = time.monotonic() + _TICK
        while True:
            self._last_turn = time.monotonic()
            with suppress(Empty):
                order = self._orders.get(timeout=max(0.0, next_tick - time.monotonic()))
                if order is None:
                    break
                self._guard(order)
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + _TICK
                self._guard(self._tick)
        if not self._open_error:
            self._workers.end()
            if self._connected:
                self._shut_down()

    def _connect(self) -> None:
        self._open_error = None
        try:
            self._connected = connection.connect_ray(self._options, self._closing)
            self._workers.look_at_nodes()
        except T2IError as error:
            self._open_error = error
        except Exception as raised:  # noqa: BLE001 - told by open()
            self._open_error = internal_error(raised)
        self._last_turn = time.monotonic()
        self._opened.set()

    def _shut_down(self) -> None:
        with suppress(Exception):
            connection.import_ray().shutdown()

    def _guard(self, order: Callable[[], None]) -> None:
        """Carry an order out; what Ray raises ends the runs."""
        try:
            order()
        except losses.LostConnectionError as lost:
            self._disconnect(lost)
        except T2IError as error:
            self._dispatch.fail_runs(error)
        except Exception as raised:  # noqa: BLE001 - told by the runs
            if losses.is_connection_loss(raised):
                self._disconnect(losses.lost_connection_error(error_reason(raised)))
            elif type(raised).__module__.partition(".")[0] == "ray":
                self._dispatch.fail_runs(RemoteError(f"Ray failed: {error_reason(raised)}"))
            else:
                self._dispatch.fail_runs(internal_error(raised))

    def _disconnect(self, error: T2IError) -> None:
        """End the runs with the loss of the connection; the next `open` makes another."""
        self._open_error = error
        self._dispatch.fail_runs(error)
        self._workers.forget()
        self._shut_down()

    def _add_run(self, run: PoolRun) -> None:
        if self._open_error:
            run.end(self._open_error)
            return
        self._dispatch.runs.append(run)
        self._waiting_since = self._waiting_since or time.monotonic()
        self._workers.scale()
        self._dispatch.hand_out_all()

    def _add_load(self, run: PoolRun, request: ResolvedRequest) -> None:
        run.load = request
        if self._open_error:
            run.end(self._open_error)
            return
        self._dispatch.load_run = run
        self._workers.scale()
        for worker in self._dispatch.workers:
            if worker.ready:
                self._dispatch.submit_load(worker)

    def _tick(self) -> None:
        if self._open_error:
            return
        self._workers.replace_hung()
        if self._dispatch.runs or self._dispatch.load_run:
            self._workers.look_at_nodes()
            self._workers.scale()
            self._dispatch.hand_out_all()
            self._tell_of_waiting(time.monotonic())

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
