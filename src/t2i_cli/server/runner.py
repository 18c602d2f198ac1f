"""Runs the server: listening sockets, signals, slow clients, graceful shutdown, the log."""

import asyncio
import ipaddress
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Self

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from t2i_cli.errors import InputError, TerminatedError, os_reason
from t2i_cli.events import Event
from t2i_cli.files.state_files import open_regular
from t2i_cli.server.engine import Engine
from t2i_cli.server.jobs import ImageJob, JobObserver
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.progress import Progress

REQUEST_GRACE = 60.0
"""Seconds for a client to send a request's headers, or to read any of a response."""
SEND_TIMEOUT = 300.0
"""Seconds for a client to read a whole response."""
SHUTDOWN_GRACE = 30.0
"""Seconds for started jobs to finish after the first signal."""
_RESPONSE_GRACE = 5
"""Seconds for clients to read their responses after that."""
_BACKLOG = 2048
_LOCK = b"t2i serve\n"
"""Contents of the lock file beside a Unix socket; those of earlier versions are empty."""


def run_server(
    app: FastAPI,
    engine: Engine,
    listener: socket.socket,
    *,
    grace: float = SHUTDOWN_GRACE,
    on_ready: Callable[[], None] = lambda: None,
    expired: Callable[[], bool] = lambda: False,
) -> None:
    """Serve until SIGINT, SIGTERM or `expired()`, which is called every 0.1 s.

    Started jobs then have `grace` seconds to finish; a second signal cancels them. `on_ready` is
    called once the model is loaded. Raises T2IError if the model cannot be loaded, TerminatedError
    if jobs were cancelled.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        # No client errors: anyone could fill the log with them.
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=_RESPONSE_GRACE,
    )
    server = _Server(config, app, engine, grace, on_ready, expired)
    asyncio.run(server.serve(sockets=[listener]))
    if server.failure:
        raise server.failure
    if server.gave_up:
        raise TerminatedError("Stopped; what was not done in time was given up.")


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
    ) -> None:
        super().__init__(config)
        self.failure: BaseException | None = None
        self.gave_up = False
        self._app = app
        self._engine = engine
        self._grace = grace
        self._on_ready: Callable[[], None] | None = on_ready
        self._expired = expired
        self._signal_count = 0
        self._stop_tasks: list[asyncio.Task[bool]] = []
        self._client_waits: dict[H11Protocol, _ClientWait] = {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Count a signal; the next tick acts on it."""
        self._signal_count += 1

    async def on_tick(self, counter: int) -> bool:
        """Check, ten times a second, for failures and signals; return whether to exit."""
        await super().on_tick(counter)
        self._drop_stalled()
        starting: asyncio.Task[None] = self._app.state.starting
        if starting.done() and not starting.cancelled() and (error := starting.exception()):
            self.failure = error
            return True
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

    def _drop_stalled(self) -> None:
        """Close connections of clients that are too slow; uvicorn has no such time limit."""
        now = time.monotonic()
        waits: dict[H11Protocol, _ClientWait] = {}
        for connection in self.server_state.connections:
            if (
                isinstance(connection, H11Protocol)
                and (unsent := _unsent_bytes(connection)) is not None
            ):
                previous = self._client_waits.get(connection)
                if previous is None or bool(previous.unsent) != bool(unsent):
                    previous = _ClientWait(unsent, changed=now, started=now)
                changed = previous.changed if previous.unsent == unsent else now
                waits[connection] = _ClientWait(unsent, changed, previous.started)
        for connection, wait in waits.items():
            if now - wait.changed > REQUEST_GRACE or (
                wait.unsent and now - wait.started > SEND_TIMEOUT
            ):
                # Unsent data is dropped, too.
                connection.transport.abort()
        self._client_waits = waits


class _ClientWait(NamedTuple):
    """Unsent bytes of a slow client; when they last changed and when the wait started."""

    unsent: int
    changed: float
    started: float


def _unsent_bytes(connection: H11Protocol) -> int | None:
    """Bytes that the client has not read; 0 if it has to send a request, else None."""
    if unread := connection.transport.get_write_buffer_size():
        return unread
    idle = connection.cycle is None or connection.cycle.response_complete
    return 0 if idle and connection.timeout_keep_alive_task is None else None


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
        self._progress.pause()

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


def is_loopback_host(host: str) -> bool:
    """Whether the name or address is loopback only. Raises InputError."""
    return all(
        ipaddress.ip_address(address.partition("%")[0]).is_loopback
        for _, address in _addresses(host)
    )


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises InputError."""
    family, address = _addresses(host)[0]
    try:
        listener = socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host} port {port}: {os_reason(error)}.",
            hint="--port takes another port; --port 0 finds a free one.",
        ) from error
    # Inherited by connections; asyncio sets it only on sockets made with the protocol's number.
    # Without it the end of a response waits for the client's ACK, 40 ms on Linux.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _addresses(host: str) -> list[tuple[int, str]]:
    """Address families and addresses of a host name. Raises InputError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(
            f"There is no address {host}: {os_reason(error)}.", field="host"
        ) from error
    return [(family, str(address[0])) for family, _, _, _, address in found]


@contextmanager
def listen_unix(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket that only this user can connect to; removed at the end.

    Its folder must be private to the user; it is created if it is missing. Raises InputError if
    another server uses the path, or if it exists and is not the socket of a killed t2i server.
    """
    if sys.platform == "win32":
        raise InputError("There are no Unix sockets on this system.", field="uds")
    from filelock import lock_descriptor

    _check_folder(path.parent)
    lock_path = Path(f"{path}.lock")
    # t2i creates the lock file before its first socket there, and keeps it.
    lock_existed = os.path.lexists(lock_path)
    if os.path.lexists(path) and not lock_existed:
        raise _path_in_use(path)
    try:
        lock = open_regular(lock_path, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise InputError(f"Cannot use '{lock_path}': {os_reason(error)}.", field="uds") from error
    try:
        if not lock_descriptor(lock, blocking=False):
            raise InputError(f"Another server uses '{path}'.", field="uds")
        if not lock_existed:
            os.pwrite(lock, _LOCK, 0)
        if os.path.lexists(path):
            _remove_stale_socket(path, os.pread(lock, 100, 0))
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(str(path))
            except OSError as error:  # mostly a path of more than 107 bytes
                raise InputError(f"Cannot listen on '{path}': {error}.", field="uds") from error
            socket_stat = path.lstat()
            try:
                path.chmod(0o600)
                listener.listen(_BACKLOG)
                yield listener
            finally:
                with suppress(FileNotFoundError):
                    if os.path.samestat(path.lstat(), socket_stat):
                        path.unlink()
    finally:
        os.close(lock)


def _remove_stale_socket(path: Path, content: bytes) -> None:
    """Remove the socket of a killed server. Raises InputError for anything else.

    `content` is that of the lock file beside it.
    """
    found = path.lstat()
    is_own_socket = stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid()
    # Other programs have empty lock files as well, but their sockets are not mode 0600.
    if not is_own_socket or not (
        content == _LOCK or (content == b"" and stat.S_IMODE(found.st_mode) == 0o600)
    ):
        raise _path_in_use(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:  # no process listens
            path.unlink()
            return
        except OSError as error:
            raise InputError(f"Cannot listen on '{path}': {error}.", field="uds") from error
    raise InputError(f"Another program listens on '{path}'.", field="uds")


def _path_in_use(path: Path) -> InputError:
    return InputError(
        f"'{path}' is there, and no socket that t2i left.",
        hint="Move it away, or name another path.",
        field="uds",
    )


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise InputError(f"Cannot use '{folder}': {os_reason(error)}.", field="uds") from error
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise InputError(
            f"Others can reach '{folder}', and so could a socket in it.",
            hint=f"chmod 700 '{folder}', or name a folder of your own.",
        )
