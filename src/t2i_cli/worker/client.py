"""Exchanges with the worker, in t2i's own dialect. `http.client` starts quicker than others."""

import base64
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from t2i_cli import errors
from t2i_cli.backend import EncodedImage, Failure, GeneratedImage
from t2i_cli.errors import T2IError
from t2i_cli.events import Downloading, Event, Loading, MemoryMeasure, Notice, OnEvent, Step
from t2i_cli.image_formats import ImageFormat
from t2i_cli.model_spec import ModelSpec
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest
from t2i_cli.worker.state import (
    HEARTBEAT_INTERVAL,
    RuntimeDir,
    WorkerExitingError,
    WorkerState,
    WorkerUnavailableError,
    WorkerUnresponsiveError,
)

if TYPE_CHECKING:
    from PIL.Image import Image

GENERATE_PATH = "/t2i/v1/generate"
KEEP_ALIVE_HEADER = "T2I-Keep-Alive"
"""Seconds that the worker is to stay after its last image; the newest run's word counts."""
_CONNECT = 2.0
"""Seconds; to a process on this machine, a connection takes none unless it is stopped."""
_LEAVING = "terminated"
"""What it says where it is leaving."""
_OWN = ("bug",)
"""Errors of the worker's own: bugs, which a run without it meets again, with their traceback."""
_BUSY = "quota"
"""What the worker says where its queue is full."""

WorkerRequest = tuple[int, ResolvedRequest]
"""A request and its position in the run."""


@dataclass(frozen=True, kw_only=True)
class LazyImage(GeneratedImage):
    """An image that came as a file with its records; decoded only where someone looks at it."""

    image: "Image" = field(init=False, repr=False, compare=False)
    file: EncodedImage
    file_size: tuple[int, int]

    def __getattr__(self, name: str) -> "Image":
        if name != "image":
            raise AttributeError(name)
        from PIL import Image

        image = Image.open(io.BytesIO(self.file.data)).convert("RGB")
        object.__setattr__(self, "image", image)
        return image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.file_size


class WorkerExchange:
    """One request to a worker and its answer. Leaving it early cancels what was asked.

    Raises UnusableError wherever the worker fails, LeavingError where it has not answered yet, and
    HungError as soon as its heart stops.
    """

    def __init__(
        self,
        place: RuntimeDir,
        state: WorkerState,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.place = place
        self._state = state
        self._over = threading.Event()
        self._heard = time.monotonic()
        self._connection = _Connection(state)
        key = {"Authorization": f"Bearer {state.secret}"} if state.secret else {}
        sent = None if body is None else json.dumps(body).encode()
        self._request = (
            *("GET" if sent is None else "POST", path, sent),
            {"Content-Type": "application/json", **key, **(headers or {})},
        )

    def __enter__(self) -> Self:
        with self._reading(WorkerExitingError(self.place)):
            self._connection.connect()
        watch = threading.Thread(target=self._watch, args=[self._connection.sock], daemon=True)
        watch.start()
        try:
            with self._reading(WorkerExitingError(self.place)):
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
        self._over.set()
        self._connection.close()

    @property
    def ok(self) -> bool:
        """Whether the worker took the request."""
        return self._response.status == 200

    def json(self) -> dict[str, Any]:
        """The answer's body."""
        with self._reading():
            found = json.loads(self._response.read())
            if not isinstance(found, dict):
                raise ValueError("no object")
        return found

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The answer's server-sent events with their data, until the event `done`.

        https://html.spec.whatwg.org/multipage/server-sent-events.html, as far as t2i's server
        makes use of it: one line of data an event.
        """
        name = ""
        while name != "done":
            with self._reading():
                line = self._response.readline()
                if not line:
                    raise EOFError
            self._heard = time.monotonic()
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)

    def _watch(self, connected: socket.socket) -> None:
        """Cut off a worker that is silent and whose heart has stopped."""
        while not self._over.wait(HEARTBEAT_INTERVAL):
            if (
                time.monotonic() - self._heard > 2 * HEARTBEAT_INTERVAL
                and self.place.is_unresponsive(self._state)
            ):
                with suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)
                return

    @contextmanager
    def _reading(self, ended: WorkerUnavailableError | None = None) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError, http.client.HTTPException) as error:
            if self.place.is_unresponsive(self._state):
                raise WorkerUnresponsiveError(self.place) from error
            raise ended or WorkerUnavailableError("The warm worker has ended.") from error


def can_connect(state: WorkerState) -> bool:
    """Whether something takes connections there."""
    try:
        connection = _Connection(state)
        connection.connect()
        connection.close()
    except OSError:
        return False
    return state.listening


class _Connection(http.client.HTTPConnection):
    """To a worker's Unix socket, or to its port on loopback."""

    def __init__(self, state: WorkerState) -> None:
        super().__init__("127.0.0.1", state.port)
        self._path = state.socket

    def connect(self) -> None:
        """Connect, without waiting for long."""
        if self._path is None:
            self.timeout = _CONNECT
            super().connect()
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(_CONNECT)
            try:
                self.sock.connect(self._path)
            except OSError:
                self.close()
                raise
        # From here on the worker's heart tells how long to wait.
        self.sock.settimeout(None)


def worker_model(exchange: WorkerExchange) -> ModelSpec:
    """The model that the worker holds. Raises T2IError where there is none such."""
    answer = exchange.json()
    if not exchange.ok:
        raise _error(exchange, answer)
    folder = answer.pop("folder")
    refuses = tuple((name, why) for name, why in answer.pop("refuses"))
    return ModelSpec(**answer, folder=folder and Path(folder), refuses=refuses)


def build_body(members: Sequence[WorkerRequest], format: ImageFormat) -> dict[str, object]:
    """The body that asks for these images."""
    left_out = ("model", "revision")
    requests = [
        {k: v for k, v in request.to_json().items() if v is not None and k not in left_out}
        for _, request in members
    ]
    return {"requests": requests, "format": format}


def read_outcomes(
    exchange: WorkerExchange, members: Sequence[WorkerRequest], on_event: OnEvent
) -> Iterator[GeneratedImage | Failure]:
    """What becomes of the requests that were sent; raises T2IError if they were refused."""
    if not exchange.ok:
        raise _error(exchange, exchange.json(), (*_OWN, _BUSY))
    for name, data in exchange.events():
        if name == "image":
            index, request = members[data["index"]]
            yield LazyImage(
                index=index,
                request=request,
                info=GenerationInfo(**data["lock"] | {"measures": tuple(data["lock"]["measures"])}),
                seconds=data["seconds"],
                file_size=(data["width"], data["height"]),
                file=EncodedImage(format=data["format"], data=base64.b64decode(data["image"])),
            )
        elif name == "failure":
            index, request = members[data["index"]]
            yield Failure(index=index, request=request, error=_error(exchange, data))
        elif kind := _EVENTS.get(name):
            if "indices" in data:
                data["indices"] = tuple(members[position][0] for position in data["indices"])
            on_event(kind(**data))


_EVENTS: dict[str, Callable[..., Event]] = {
    "downloading": Downloading,
    "loading": Loading,
    "measure": MemoryMeasure,
    "note": Notice,
    "step": Step,
}


def _error(
    exchange: WorkerExchange, answer: Mapping[str, Any], own: Collection[str] = _OWN
) -> T2IError:
    """The error in an answer, where a run without the worker would meet it as well."""
    record = answer.get("error")
    error = errors.error_from_json(record) if isinstance(record, dict) else None
    if error is not None and error.code == _LEAVING:
        raise WorkerExitingError(exchange.place)
    if error is None or error.code in own:
        raise WorkerUnavailableError("The warm worker cannot take this run.")
    return error
