"""HTTP client of the worker. Uses http.client: it is fast to import."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from t2i_cli.files.state_files import MAX_STATE_BYTES, parse_json
from t2i_cli.known_secrets import register_secret
from t2i_cli.terminal.console import console
from t2i_cli.worker.state import (
    HEARTBEAT_INTERVAL,
    RuntimeDir,
    WorkerExitingError,
    WorkerState,
    WorkerUnavailableError,
    WorkerUnresponsiveError,
)

GENERATE_PATH = "/t2i/v1/generate"
KEEP_ALIVE_HEADER = "T2I-Keep-Alive"
"""Seconds that the worker stays after its last request; the newest run's value applies."""
_CONNECT_TIMEOUT = 2.0
"""Seconds to connect: immediate on this machine, unless the worker's process is stopped."""


class WorkerExchange:
    """One request to a worker and its response; leaving the context early cancels the request.

    Raises WorkerUnavailableError where the connection fails: WorkerExitingError before the
    response begins, WorkerUnresponsiveError if the heartbeat has stopped.
    """

    def __init__(
        self,
        runtime_dir: RuntimeDir,
        state: WorkerState,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.runtime_dir = runtime_dir
        self._state = state
        register_secret(state.secret)
        self._closed = threading.Event()
        self._last_read = time.monotonic()
        self._connection = _Connection(state)
        auth = {"Authorization": f"Bearer {state.secret}"} if state.secret else {}
        content = None if body is None else json.dumps(body).encode()
        self._request = (
            *("GET" if content is None else "POST", path, content),
            {"Content-Type": "application/json", **auth, **(headers or {})},
        )

    def __enter__(self) -> Self:
        with self._translating_errors(WorkerExitingError(self.runtime_dir)):
            self._connection.connect()
        watch = threading.Thread(target=self._watch, args=[self._connection.sock], daemon=True)
        watch.start()
        method, path = self._request[:2]
        console.trace(f"{method} {path} to the warm worker (process {self._state.pid})")
        try:
            with self._translating_errors(WorkerExitingError(self.runtime_dir)):
                self._connection.request(*self._request)
                self._response = self._connection.getresponse()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._connection.close()

    @property
    def ok(self) -> bool:
        """Whether the worker accepted the request."""
        return self._response.status == 200

    def json(self) -> dict[str, Any]:
        """The response's JSON object."""
        with self._translating_errors():
            # What is cut off here is no JSON.
            value = parse_json(self._response.read(MAX_STATE_BYTES))
            if not isinstance(value, dict):
                raise ValueError("no object")
        return value

    def events(self, longest: int) -> Iterator[tuple[str, str]]:
        """The response's server-sent events, each as name and JSON, up to and including `done`.

        Reads the part of https://html.spec.whatwg.org/multipage/server-sent-events.html that t2i's
        server uses: one line of data per event, of at most `longest` bytes.
        """
        name = ""
        while name != "done":
            with self._translating_errors():
                line = self._response.readline(longest)
                if not line.endswith(b"\n"):  # the end, or a longer line
                    raise EOFError
            self._last_read = time.monotonic()
            field, _, value = line.decode(errors="replace").rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, value

    def _watch(self, sock: socket.socket) -> None:
        """Shut the connection down if nothing arrives and the heartbeat has stopped."""
        while not self._closed.wait(HEARTBEAT_INTERVAL):
            if (
                time.monotonic() - self._last_read > 2 * HEARTBEAT_INTERVAL
                and self.runtime_dir.is_unresponsive(self._state)
            ):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                return

    @contextmanager
    def _translating_errors(
        self, unavailable: WorkerUnavailableError | None = None
    ) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError, http.client.HTTPException) as error:
            if self.runtime_dir.is_unresponsive(self._state):
                raise WorkerUnresponsiveError(self.runtime_dir) from error
            raise unavailable or WorkerUnavailableError("The warm worker has ended.") from error


def can_connect(state: WorkerState) -> bool:
    """Whether the worker listens and accepts connections."""
    try:
        connection = _Connection(state)
        connection.connect()
        connection.close()
    except OSError:
        return False
    return state.listening


class _Connection(http.client.HTTPConnection):
    """Connection to a worker's Unix socket, or to its loopback port."""

    def __init__(self, state: WorkerState) -> None:
        super().__init__("127.0.0.1", state.port)
        self._path = state.socket

    def connect(self) -> None:
        """Connect within _CONNECT_TIMEOUT. Raises OSError."""
        if self._path is None:
            self.timeout = _CONNECT_TIMEOUT
            super().connect()
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(_CONNECT_TIMEOUT)
            try:
                self.sock.connect(self._path)
            except OSError:
                self.close()
                raise
        # From here on no timeout: the heartbeat shows whether the worker runs.
        self.sock.settimeout(None)
