"""The running server: its socket, its signals, and its end."""

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
"""Seconds that a client may take over a request's head, or leave unread what it was sent."""
SEND_TIMEOUT = 300.0
"""Seconds that a client may take over an answer that it reads a little at a time."""
SHUTDOWN_GRACE = 30.0
"""Seconds that what runs has to end in, after the first signal."""
_LAST_WORDS = 5
"""Seconds that clients then have to take their answers in."""
_BACKLOG = 2048
_LOCK = b"t2i serve\n"
"""What the lock beside a Unix socket says; those of earlier versions are empty."""


def run_server(
    app: FastAPI,
    engine: Engine,
    listener: socket.socket,
    *,
    grace: float = SHUTDOWN_GRACE,
    on_ready: Callable[[], None] = lambda: None,
    expired: Callable[[], bool] = lambda: False,
) -> None:
    """Serve until SIGINT or SIGTERM, or until `expired()`, which is asked all the time.

    What runs then has `grace` seconds to end; a second signal ends it now. Raises T2IError where
    the model cannot be loaded, and TerminatedError where work had to be given up.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        # Not what clients do wrong; anyone could fill the log with that.
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=_LAST_WORDS,
    )
    server = _Server(config, app, engine, grace, on_ready, expired)
    asyncio.run(server.serve(sockets=[listener]))
    if server.failure:
        raise server.failure
    if server.gave_up:
        raise TerminatedError("Stopped; what was not done in time was given up.")


class _Server(uvicorn.Server):
    """Ends in order: its engine first, while clients still get their answers."""

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
        self._signals = 0
        self._stops: list[asyncio.Task[bool]] = []
        self._waits: dict[H11Protocol, _Wait] = {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Count a signal; the next tick acts on it."""
        self._signals += 1

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, at what has changed; returns whether to leave."""
        await super().on_tick(counter)
        self._drop_stalled()
        starting: asyncio.Task[None] = self._app.state.starting
        if starting.done() and not starting.cancelled() and (error := starting.exception()):
            self.failure = error
            return True
        if self._engine.ready and self._on_ready:
            self._on_ready()
            self._on_ready = None
        if self._expired() and not self._signals:
            self._signals = 1
        if len(self._stops) < min(self._signals, 2):
            grace = 0 if self._stops else self._grace
            self._stops.append(asyncio.create_task(self._engine.stop(grace)))
        if not self._stops or not all(stop.done() for stop in self._stops):
            return False
        self.gave_up = any(stop.result() for stop in self._stops)
        return True

    def _drop_stalled(self) -> None:
        """Cut connections that only keep us waiting; uvicorn itself would wait for ever."""
        now = time.monotonic()
        waits: dict[H11Protocol, _Wait] = {}
        for connection in self.server_state.connections:
            if (
                isinstance(connection, H11Protocol)
                and (awaited := _awaited(connection)) is not None
            ):
                before = self._waits.get(connection)
                if before is None or bool(before.awaited) != bool(awaited):
                    before = _Wait(awaited, moved=now, began=now)
                moved = before.moved if before.awaited == awaited else now
                waits[connection] = _Wait(awaited, moved, before.began)
        for connection, wait in waits.items():
            if now - wait.moved > REQUEST_GRACE or (
                wait.awaited and now - wait.began > SEND_TIMEOUT
            ):
                # What it has not taken is dropped with it.
                connection.transport.abort()
        self._waits = waits


class _Wait(NamedTuple):
    """For a client: the bytes it has to take, when that last changed, and when it began."""

    awaited: int
    moved: float
    began: float


def _awaited(connection: H11Protocol) -> int | None:
    """The bytes that a client has still to take; 0 if it is to send a request, else `None`."""
    if unread := connection.transport.get_write_buffer_size():
        return unread
    between = connection.cycle is None or connection.cycle.response_complete
    return 0 if between and connection.timeout_keep_alive_task is None else None


class ServerLog(JobObserver):
    """What happens, on stderr: loading, measures, and jobs, with their prompts only if asked for.

    A context manager, as its progress bar is.
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
        """Show how loading goes on, and a measure taken."""
        self._progress(event)

    def on_queued(self, job: ImageJob) -> None:
        """Tell of what is asked."""
        if self._prompts:
            for request in job.requests:
                self._console.note(f"job {job.id}: {request.prompt!r}, seed {request.seed}")

    def on_finished(self, job: ImageJob) -> None:
        """Tell what became of it."""
        seconds = time.monotonic() - job.accepted
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in job.tally.items())
        self._console.detail(f"job {job.id}: {outcomes} in {seconds:.2f} s")


def is_loopback_host(host: str) -> bool:
    """Whether only this machine can reach that address or name. Raises InputError."""
    return all(
        ipaddress.ip_address(address.partition("%")[0]).is_loopback
        for _, address in _addresses(host)
    )


def listen_tcp(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 finds a free one. Raises InputError."""
    family, address = _addresses(host)[0]
    try:
        listener = socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host} port {port}: {os_reason(error)}.",
            hint="--port takes another port; --port 0 finds a free one.",
        ) from error
    # Connections inherit it; asyncio sets it only on sockets made with their protocol's number.
    # Without it the end of an answer waits for the client's acknowledgement, 40 ms on Linux.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _addresses(host: str) -> list[tuple[int, str]]:
    """Address families and addresses of a name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(
            f"There is no address {host}: {os_reason(error)}.", field="host"
        ) from error
    return [(family, str(address[0])) for family, _, _, _, address in found]


@contextmanager
def listen_unix(path: Path) -> Iterator[socket.socket]:
    """A Unix socket at that path, which only this user can reach; it goes with its server.

    Its folder must be the user's alone: it is made so if it is missing. Of two servers on one path,
    the second is refused; so is a path where anything lies but a socket that a killed t2i left.
    Raises InputError.
    """
    if sys.platform == "win32":
        raise InputError("There are no Unix sockets on this system.", field="uds")
    from filelock import lock_descriptor

    _check_folder(path.parent)
    beside = Path(f"{path}.lock")
    # t2i makes it before its first socket there, and leaves it.
    known = os.path.lexists(beside)
    if os.path.lexists(path) and not known:
        raise _taken(path)
    try:
        lock = open_regular(beside, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise InputError(f"Cannot use '{beside}': {os_reason(error)}.", field="uds") from error
    try:
        if not lock_descriptor(lock, blocking=False):
            raise InputError(f"Another server uses '{path}'.", field="uds")
        if not known:
            os.pwrite(lock, _LOCK, 0)
        if os.path.lexists(path):
            _remove_left(path, os.pread(lock, 100, 0))
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(str(path))
            except OSError as error:  # a path of more than 107 bytes, above all
                raise InputError(f"Cannot listen on '{path}': {error}.", field="uds") from error
            own = path.lstat()
            try:
                path.chmod(0o600)
                listener.listen(_BACKLOG)
                yield listener
            finally:
                with suppress(FileNotFoundError):
                    if os.path.samestat(path.lstat(), own):
                        path.unlink()
    finally:
        os.close(lock)


def _remove_left(path: Path, lock: bytes) -> None:
    """Remove the socket that a killed server left; raises InputError for anything else.

    `lock` is what the lock beside it says.
    """
    found = path.lstat()
    ours = stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid()
    # Other programs have empty locks as well, but leave their sockets open to more than the user.
    if not ours or not (lock == _LOCK or (lock == b"" and stat.S_IMODE(found.st_mode) == 0o600)):
        raise _taken(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:  # nobody listens
            path.unlink()
            return
        except OSError as error:
            raise InputError(f"Cannot listen on '{path}': {error}.", field="uds") from error
    raise InputError(f"Another program listens on '{path}'.", field="uds")


def _taken(path: Path) -> InputError:
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
