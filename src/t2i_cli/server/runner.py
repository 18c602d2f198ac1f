"""Runs the server: signals, graceful shutdown, the log."""

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

import uvicorn
from fastapi import FastAPI

from t2i_cli.errors import T2IError, TerminatedError
from t2i_cli.events import Event
from t2i_cli.known_secrets import SecretFilter
from t2i_cli.server.batcher import batcher_log
from t2i_cli.server.connections import BoundedProtocol, accept_burst, listen_backlog
from t2i_cli.server.engine import Engine
from t2i_cli.server.jobs import ImageJob, JobObserver
from t2i_cli.server.log_limit import limited_logs
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.progress import Progress

_SECRET_FILTER = SecretFilter()
SHUTDOWN_GRACE = 30.0
"""Seconds for started jobs to finish after the first signal."""
_RESPONSE_GRACE = 5
"""Seconds for clients to read their responses after that."""
_LOGGERS = ("asyncio", "uvicorn.error", batcher_log.name)
"""Loggers of which clients can cause lines."""


def run_server(
    app: FastAPI,
    engine: Engine,
    listener: socket.socket,
    *,
    grace: float = SHUTDOWN_GRACE,
    on_ready: Callable[[], None] = lambda: None,
    expired: Callable[[], bool] = lambda: False,
    on_hangup: Callable[[], None] | None = None,
    on_failure: Callable[[T2IError], float] = lambda _: 0,
    root_log: bool = False,
) -> None:
    """Serve until SIGINT, SIGTERM or `expired()`, which is called every 0.1 s.

    With `on_hangup` SIGHUP calls it, and does not end the process. `on_failure` is called if the
    model cannot be loaded, and returns for how many seconds the server still answers, as with its
    reason where it is asked for its health. With `root_log` uvicorn logs as the root logger does.

    Started jobs then have `grace` seconds to finish; a second signal cancels them. `on_ready` is
    called once the model is loaded. Raises T2IError if the model cannot be loaded, TerminatedError
    if jobs were cancelled.
    """
    config = uvicorn.Config(
        app,
        # Without a number it reads WEB_CONCURRENCY, of which it makes no use here.
        workers=1,
        http=BoundedProtocol,
        backlog=accept_burst(),
        # No client errors: anyone could fill the log with them.
        log_level="error",
        log_config=None if root_log else uvicorn.config.LOGGING_CONFIG,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=_RESPONSE_GRACE,
    )
    with limited_logs(_LOGGERS) as log_limit, _hangups(on_hangup) as hangup:
        logging.getLogger("uvicorn.error").addFilter(_SECRET_FILTER)

        def on_tick() -> None:
            app.state.connections.drop_slow()
            log_limit.tick()
            if hangup.is_set() and on_hangup:
                hangup.clear()
                on_hangup()

        server = _Server(config, app, engine, grace, on_ready, expired, on_tick, on_failure)
        asyncio.run(server.serve(sockets=[listener]))
    if server.failure:
        raise server.failure
    if server.gave_up:
        raise TerminatedError("Stopped; what was not done in time was given up.")


@contextmanager
def _hangups(wanted: object) -> Iterator[threading.Event]:
    """An event that SIGHUP sets until the block ends, if that is `wanted` and can be had."""
    received = threading.Event()
    number = getattr(signal, "SIGHUP", None)  # not on Windows
    in_main = threading.current_thread() is threading.main_thread()
    if wanted is None or number is None or not in_main:
        yield received
        return
    previous = signal.signal(number, lambda *_: received.set())
    try:
        yield received
    finally:
        signal.signal(number, previous)


class _Server(uvicorn.Server):
    """Shuts down gracefully: the engine first, while clients still get their responses."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: FastAPI,
        engine: Engine,
        grace: float,
        on_ready: Callable[[], None],
        expired: Callable[[], bool],
        tick: Callable[[], None],
        on_failure: Callable[[T2IError], float],
    ) -> None:
        super().__init__(config)
        self.failure: BaseException | None = None
        self.gave_up = False
        self._app = app
        self._engine = engine
        self._grace = grace
        self._on_ready: Callable[[], None] | None = on_ready
        self._expired = expired
        self._tick = tick
        self._on_failure = on_failure
        self._ends_at = 0.0
        self._signal_count = 0
        self._stop_tasks: list[asyncio.Task[bool]] = []

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Count a signal; the next tick acts on it."""
        self._signal_count += 1

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept; the system's backlog is longer than what is accepted at once."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(listen_backlog())

    async def on_tick(self, counter: int) -> bool:
        """Check, ten times a second, for failures and signals; return whether to exit."""
        await super().on_tick(counter)
        self._tick()
        starting: asyncio.Task[None] = self._app.state.starting
        if starting.done() and not starting.cancelled() and (error := starting.exception()):
            return self._has_failed(error)
        if self._engine.ready and self._on_ready:
            self._on_ready()
            self._on_ready = None
        if self._expired() and not self._signal_count:
            self._signal_count = 1
        if len(self._stop_tasks) < min(self._signal_count, 2):
            grace = 0 if self._stop_tasks else self._grace
            self._stop_tasks.append(asyncio.create_task(self._engine.stop(grace)))
        if not self._stop_tasks or not all(stop.done() for stop in self._stop_tasks):
            return False
        self.gave_up = any(stop.result() for stop in self._stop_tasks)
        return True

    def _has_failed(self, error: BaseException) -> bool:
        """Tell of the failure once; return whether to exit."""
        if self.failure is None:
            self.failure = error
            seconds = self._on_failure(error) if isinstance(error, T2IError) else 0
            self._ends_at = time.monotonic() + seconds
        return self._signal_count > 0 or time.monotonic() >= self._ends_at


class ServerLog(JobObserver):
    """Logs loading, memory measures and jobs to stderr; prompts only with `prompts`.

    A context manager, which removes the progress bar.
    """

    def __init__(self, console: Console, prompts: bool) -> None:
        self._console = console
        self._prompts = prompts
        self._progress = Progress(console, images=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()

    def on_event(self, event: Event) -> None:
        """Show the progress of loading, or a memory measure."""
        self._progress(event)

    def on_queued(self, job: ImageJob) -> None:
        """Log the prompts and seeds of a queued job, if enabled."""
        if self._prompts:
            for request in job.requests:
                self._console.note(f"job {job.id}: {request.prompt!r}, seed {request.seed}")

    def on_finished(self, job: ImageJob) -> None:
        """Log a finished job's outcomes and duration."""
        seconds = time.monotonic() - job.accepted
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in job.outcomes.items())
        self._console.detail(f"job {job.id}: {outcomes} in {seconds:.2f} s")
