"""The worker's process: t2i's server for one user, until nobody has asked it for long enough.

Run as `python -m t2i_cli.worker.daemon ORDER`, by `hiring` alone.
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
from t2i_cli.request_fields import MAX_IMAGE_SIDE, MAX_STEPS
from t2i_cli.worker import process_proof
from t2i_cli.worker.client import KEEP_ALIVE_HEADER
from t2i_cli.worker.spawn import MODEL_PATH, STATUS_PATH
from t2i_cli.worker.state import HEARTBEAT_INTERVAL, RuntimeDir, WorkerState

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

    from t2i_cli.server.engine import Engine

MAX_LOG = 2**20
"""Bytes after which the log begins anew."""


def run_worker(make_backend: Callable[[LocalOptions], Backend] = LocalBackend) -> None:
    """Be the worker, unless there is one; ends the process."""
    order = json.loads(sys.argv[1])
    place = RuntimeDir(Path(order["folder"]))
    # A client that looks whether a worker lives holds the lock for an instant.
    with suppress(Timeout), place.lifetime_lock().acquire(timeout=2):
        state = WorkerState(
            pid=os.getpid(),
            identity=order["identity"],
            version=__version__,
            model=order["model"],
            started=process_proof.start_time(os.getpid()),
            # No process of its own has to know it.
            token=os.environ.pop(process_proof.TOKEN_VARIABLE, None),
        )
        # Before the imports, for those who wait.
        place.write(state)
        try:
            _serve(place, state, order, make_backend(LocalOptions(**order["options"])))
        finally:
            place.clear()
    # As cli.main() does: tearing down torch takes a second, and nothing is left to save.
    os._exit(0)


def _serve(place: RuntimeDir, state: WorkerState, order: dict[str, Any], backend: Backend) -> None:
    from starlette.middleware import Middleware

    from t2i_cli.server.app import create_app
    from t2i_cli.server.engine import Engine
    from t2i_cli.server.options import ServerLimits, ServerOptions
    from t2i_cli.server.runner import run_server

    # Whatever is asked is done as it would be without the worker: alone, however long it takes.
    limits = ServerLimits(max_batch=1, timeout=None, pixels=MAX_IMAGE_SIDE**2, steps=MAX_STEPS)
    engine = Engine(backend, order["model"], limits, revision=order["revision"], load=False)
    listener, state = _listen(place, state)
    app = create_app(engine, ServerOptions(api_key=state.secret))
    watch = _Watch(place, state, engine, app, order["keep_alive"])
    # The innermost: it hears of what the guard lets through only.
    app.user_middleware.append(Middleware(_KeepAlive, watch=watch))
    # Before anything is accepted: what comes meanwhile waits in the socket's backlog.
    place.write(state)
    # Whoever asked has heard of the model that could not be had.
    with suppress(T2IError):
        run_server(app, engine, listener, expired=watch.expired)


def _listen(place: RuntimeDir, state: WorkerState) -> tuple[socket.socket, WorkerState]:
    """A socket that only this user can talk to, and where it is."""
    if path := place.socket:
        listener = socket.socket(socket.AF_UNIX)
        remove_socket(path)
        listener.bind(str(path))
        listener.listen()
        return listener, replace(state, socket=str(path))
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return listener, replace(state, port=port, secret=secrets.token_urlsafe(32))


class _Watch:
    """What a worker has beside the server: its heart, its idle time, and its status."""

    def __init__(
        self,
        place: RuntimeDir,
        state: WorkerState,
        engine: "Engine",
        app: "FastAPI",
        keep_alive: float,
    ) -> None:
        self._place = place
        self._state = state
        self._engine = engine
        self._app = app
        self.keep_alive = keep_alive
        self._began = self._beat = time.monotonic()
        app.add_api_route(STATUS_PATH, self.status)
        app.add_api_route(MODEL_PATH, self.model)

    async def status(self) -> dict[str, object]:
        """How the worker is; `idle` seconds are `None` while it is at work, or starts."""
        return {
            "idle": self._idle(),
            "keep_alive": self.keep_alive,
            "waiting": self._engine.waiting,
            "running": self._engine.running,
        }

    async def model(self) -> dict[str, object]:
        """All that is known of the model, once the libraries have told."""
        spec = await self._engine.wait_described()
        return asdict(spec) | {"folder": spec.folder and str(spec.folder)}

    def expired(self) -> bool:
        """Beat, keep the log short, and say whether it is time to leave; asked all the time."""
        if time.monotonic() - self._beat > HEARTBEAT_INTERVAL:
            self._beat = time.monotonic()
            if not self._place.heartbeat():
                return True
            # Whoever empties the folder, or fills its disk, does not end the worker.
            with suppress(OSError):
                _shorten(self._place.log)
            if self._engine.ready and not self._state.warm:
                with suppress(OSError):
                    warm = replace(self._state, warm=True)
                    self._place.write(warm)
                    self._state = warm
        idle = self._idle()
        return idle is not None and idle > self.keep_alive

    def _idle(self) -> float | None:
        if not self._app.state.starting.done():
            self._began = time.monotonic()
            return None
        since = self._engine.idle_since
        return None if since is None else time.monotonic() - max(since, self._began)


def _shorten(log: Path) -> None:
    """Have a log that has grown too long begin anew. Raises OSError."""
    handle = open_regular(log, os.O_WRONLY)
    try:
        if os.fstat(handle).st_size > MAX_LOG:
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


class _KeepAlive:
    """A middleware that notes how long the one who asks wants the worker to stay."""

    def __init__(self, app: "ASGIApp", watch: _Watch) -> None:
        self._app = app
        self._watch = watch

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        for name, value in scope.get("headers", ()):
            if name == KEEP_ALIVE_HEADER.lower().encode():
                with suppress(ValueError):
                    seconds = float(value)
                    if 0 <= seconds < math.inf:
                        self._watch.keep_alive = seconds
        await self._app(scope, receive, send)


if __name__ == "__main__":
    run_worker()
