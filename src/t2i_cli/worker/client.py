"""HTTP client of the worker, in the t2i dialect. Uses http.client: it is fast to import."""

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from t2i_cli import errors
from t2i_cli.backend import EncodedImage, Failure, GeneratedImage
from t2i_cli.errors import T2IError
from t2i_cli.events import (
    EVENT_NAMES,
    Event,
    OnEvent,
)
from t2i_cli.files.state_files import MAX_STATE_BYTES, is_amount, is_count, parse_json
from t2i_cli.image_formats import ImageFormat
from t2i_cli.known_secrets import register_secret
from t2i_cli.model_spec import ModelSpec
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import MAX_IMAGE_SIDE
from t2i_cli.worker.lazy_image import LazyImage
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
_TERMINATED_CODE = "terminated"
"""Error code of a worker that is exiting."""
_INTERNAL_CODES = ("bug",)
"""Error codes of bugs in the worker: a run without it shows the bug with its traceback."""
_QUOTA_CODE = "quota"
"""Error code of a worker whose queue is full."""

WorkerRequest = tuple[int, ResolvedRequest]
"""A request and its position in the run."""


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


@contextmanager
def _checking_answer() -> Iterator[None]:
    """Raise WorkerUnavailableError for an answer that is not of the form that a worker sends."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise WorkerUnavailableError("The warm worker's answer cannot be read.") from error


@dataclass(frozen=True, kw_only=True)
class WorkerActivity:
    """What a worker does; `idle`, in seconds, is None while it starts or works."""

    idle: float | None
    keep_alive: float
    waiting: int


def worker_activity(exchange: WorkerExchange) -> WorkerActivity:
    """The answer to a request for the status. Raises WorkerUnavailableError if it is none."""
    response = exchange.json()
    with _checking_answer():
        found = WorkerActivity(
            idle=response["idle"], keep_alive=response["keep_alive"], waiting=response["waiting"]
        )
        valid = (
            exchange.ok
            and (found.idle is None or is_amount(found.idle))
            and is_amount(found.keep_alive)
            and is_count(found.waiting)
        )
        if not valid:
            raise ValueError("no status")
    return found


def worker_model(exchange: WorkerExchange) -> ModelSpec:
    """The spec of the worker's model. Raises T2IError if there is no such model."""
    response = exchange.json()
    if not exchange.ok:
        raise _parse_error(exchange, response)
    with _checking_answer():
        folder = response.pop("folder")
        refuses = tuple((name, why) for name, why in response.pop("refuses"))
        return ModelSpec(**response, folder=folder and Path(folder), refuses=refuses)


def build_body(members: Sequence[WorkerRequest], format: ImageFormat) -> dict[str, object]:
    """The body of a generate request for these images."""
    omitted = ("model", "revision")
    requests = [
        {k: v for k, v in request.to_json().items() if v is not None and k not in omitted}
        for _, request in members
    ]
    return {"requests": requests, "format": format}


def read_outcomes(
    exchange: WorkerExchange, members: Sequence[WorkerRequest], on_event: OnEvent
) -> Iterator[GeneratedImage | Failure]:
    """Yield one outcome for each of `members`, the requests sent.

    Raises T2IError if the worker rejected them, WorkerUnavailableError if it cannot run them.
    """
    if not exchange.ok:
        raise _parse_error(exchange, exchange.json(), (*_INTERNAL_CODES, _QUOTA_CODE))
    missing = set(range(len(members)))
    pixels = max((r.width or MAX_IMAGE_SIDE) * (r.height or MAX_IMAGE_SIDE) for _, r in members)
    for name, text in exchange.events(2**22 + 6 * pixels):  # base64 takes 4 bytes a pixel
        with _checking_answer():
            message = _parse_message(exchange, members, name, json.loads(text))
            if isinstance(message, GeneratedImage | Failure):
                missing.remove([index for index, _ in members].index(message.index))
        if isinstance(message, GeneratedImage | Failure):
            yield message
        elif message is not None:
            on_event(message)


def _parse_message(
    exchange: WorkerExchange, members: Sequence[WorkerRequest], name: str, data: dict[str, Any]
) -> GeneratedImage | Failure | Event | None:
    """An outcome or event, None for others; an invalid one raises whatever its values cause."""
    if name == "image":
        index, request = members[data["index"]]
        return LazyImage(
            index=index,
            request=request,
            info=GenerationInfo(**data["lock"] | {"measures": tuple(data["lock"]["measures"])}),
            seconds=float(data["seconds"]),
            file_size=(int(data["width"]), int(data["height"])),
            file=EncodedImage(format=data["format"], data=base64.b64decode(data["image"])),
        )
    if name == "failure":
        index, request = members[data["index"]]
        return Failure(index=index, request=request, error=_parse_error(exchange, data))
    if kind := _EVENTS.get(name):
        if "indices" in data:
            data["indices"] = tuple(members[position][0] for position in data["indices"])
        return kind(**data)
    return None


_EVENTS: dict[str, Callable[..., Event]] = {name: kind for kind, name in EVENT_NAMES.items()}


def _parse_error(
    exchange: WorkerExchange,
    response: Mapping[str, Any],
    unavailable_codes: Collection[str] = _INTERNAL_CODES,
) -> T2IError:
    """The error in a response, if a run without the worker would raise it as well.

    Else raises WorkerExitingError or WorkerUnavailableError.
    """
    record = response.get("error")
    error = errors.error_from_json(record) if isinstance(record, dict) else None
    if error is not None and error.code == _TERMINATED_CODE:
        raise WorkerExitingError(exchange.runtime_dir)
    if error is None or error.code in unavailable_codes:
        raise WorkerUnavailableError("The warm worker cannot take this run.")
    return error
