"""The worker's process: a t2i server for one user that exits after an idle time.

Run as `python -m t2i_cli.worker.daemon CONFIG`, CONFIG being JSON, by worker/spawn.py only.
"""

import json
import math
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from t2i_cli import __version__
from t2i_cli.backend import Backend
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.errors import T2IError
from t2i_cli.files.state_files import open_regular, remove_socket
from t2i_cli.part_source import PART_FIELDS, PartSource
from t2i_cli.request_fields import MAX_IMAGE_SIDE, MAX_STEPS
from t2i_cli.worker import process_proof
from t2i_cli.worker.backend import MAX_REQUESTS_PER_CALL
from t2i_cli.worker.client import KEEP_ALIVE_HEADER
from t2i_cli.worker.spawn import MODEL_PATH, STATUS_PATH
from t2i_cli.worker.state import HEARTBEAT_INTERVAL, RuntimeDir, WorkerState

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

    from t2i_cli.server.engine import Engine

MAX_LOG = 2**20
"""Bytes; a longer log is truncated."""


def run_worker(make_backend: Callable[[LocalOptions], Backend] = LocalBackend) -> None:
    """Run the worker, unless there is one already; ends the process."""
    config = json.loads(sys.argv[1])
    runtime_dir = RuntimeDir(Path(config["folder"]))
    # A client in is_alive() may hold the lock for an instant.
    with suppress(Timeout), runtime_dir.lifetime_lock().acquire(timeout=2):
        state = WorkerState(
            pid=os.getpid(),
            identity=config["identity"],
            version=__version__,
            model=config["model"],
            started=process_proof.start_time(os.getpid()),
            # Popped: child processes must not inherit it.
            token=os.environ.pop(process_proof.TOKEN_VARIABLE, None),
        )
        # Before the slow imports: clients wait for the state file.
        runtime_dir.write(state)
        try:
            _serve(runtime_dir, state, config, make_backend(LocalOptions(**config["options"])))
        finally:
            runtime_dir.clear()
    # As cli.main() does: torch takes a second to tear down, and nothing is left to save.
    os._exit(0)


def _serve(
    runtime_dir: RuntimeDir, state: WorkerState, config: dict[str, Any], backend: Backend
) -> None:
    from starlette.middleware import Middleware

    from t2i_cli.server.app import create_app
    from t2i_cli.server.engine import Engine
    from t2i_cli.server.options import ServerLimits, ServerOptions
    from t2i_cli.server.runner import run_server

    # Requests run as without the worker: not batched with other runs', without a time limit.
    limits = ServerLimits(
        max_batch=MAX_REQUESTS_PER_CALL,
        timeout=None,
        pixels=MAX_IMAGE_SIDE**2,
        steps=MAX_STEPS,
    )
    model, revision = config["model"], config["revision"]
    parts = {name: PartSource(*source) for name, source in config["parts"].items()}
    engine = Engine(
        backend,
        model,
        limits,
        revision=revision,
        parts=parts,
        load=False,
        jobs_share=False,
        named_adapters=False,
    )
    listener, state = _listen(runtime_dir, state)
    app = create_app(engine, ServerOptions(api_key=state.secret))
    monitor = _WorkerMonitor(runtime_dir, state, engine, app, config["keep_alive"])
    # Innermost: it sees only requests that the security middleware accepts.
    app.user_middleware.append(Middleware(_KeepAlive, monitor=monitor))
    # Before the server accepts: connections until then wait in the socket's backlog.
    runtime_dir.write(state)
    # The clients have been sent the error of a model that cannot be loaded.
    with suppress(T2IError):
        run_server(app, engine, listener, expired=monitor.expired)


def _listen(runtime_dir: RuntimeDir, state: WorkerState) -> tuple[socket.socket, WorkerState]:
    """A listening socket that only this user can use, and the state with its address."""
    if path := runtime_dir.socket:
        listener = socket.socket(socket.AF_UNIX)
        remove_socket(path)
        listener.bind(str(path))
        listener.listen()
        return listener, replace(state, socket=str(path))
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return listener, replace(state, port=port, secret=secrets.token_urlsafe(32))


class _WorkerMonitor:
    """Heartbeat, idle time and log size of the worker, and its status and model routes."""

    def __init__(
        self,
        runtime_dir: RuntimeDir,
        state: WorkerState,
        engine: "Engine",
        app: "FastAPI",
        keep_alive: float,
    ) -> None:
        self._runtime_dir = runtime_dir
        self._state = state
        self._engine = engine
        self._app = app
        self.keep_alive = keep_alive
        self._idle_from = self._last_heartbeat = time.monotonic()
        app.add_api_route(STATUS_PATH, self.status)
        app.add_api_route(MODEL_PATH, self.model)

    async def status(self) -> dict[str, object]:
        """The worker's status; `idle`, in seconds, is None while it starts or works."""
        return {
            "idle": self._idle_seconds(),
            "keep_alive": self.keep_alive,
            "waiting": self._engine.waiting,
            "running": self._engine.running,
        }

    async def model(self) -> dict[str, object]:
        """The model's spec, once it is known."""
        spec = await self._engine.wait_described()
        # Models with parts from elsewhere, or in single files, are described by the client; only it
        # knows the user's own names.
        own = {name: None for name in ("composition", *PART_FIELDS)}
        found = asdict(spec) | {"folder": spec.folder and str(spec.folder)} | own
        del found["own_name"], found["defaults"]
        return found

    def expired(self) -> bool:
        """Heartbeat, truncate the log, return whether to exit. The server calls it every 0.1 s."""
        if time.monotonic() - self._last_heartbeat > HEARTBEAT_INTERVAL:
            self._last_heartbeat = time.monotonic()
            if not self._runtime_dir.heartbeat():
                return True
            # A missing log or a full disk must not end the worker.
            with suppress(OSError):
                _truncate_if_long(self._runtime_dir.log)
            if self._engine.ready and not self._state.warm:
                with suppress(OSError):
                    warm = replace(self._state, warm=True)
                    self._runtime_dir.write(warm)
                    self._state = warm
        idle = self._idle_seconds()
        return idle is not None and idle > self.keep_alive

    def _idle_seconds(self) -> float | None:
        if not self._app.state.starting.done():
            self._idle_from = time.monotonic()
            return None
        since = self._engine.idle_since
        return None if since is None else time.monotonic() - max(since, self._idle_from)


def _truncate_if_long(log: Path) -> None:
    """Truncate the log if it has more than MAX_LOG bytes. Raises OSError."""
    handle = open_regular(log, os.O_WRONLY)
    try:
        if os.fstat(handle).st_size > MAX_LOG:
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


class _KeepAlive:
    """An ASGI middleware that reads the T2I-Keep-Alive header of each request."""

    def __init__(self, app: "ASGIApp", monitor: _WorkerMonitor) -> None:
        self._app = app
        self._monitor = monitor

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        for name, value in scope.get("headers", ()):
            if name == KEEP_ALIVE_HEADER.lower().encode():
                with suppress(ValueError):
                    seconds = float(value)
                    if 0 <= seconds < math.inf:
                        self._monitor.keep_alive = seconds
        await self._app(scope, receive, send)


if __name__ == "__main__":
    run_worker()
