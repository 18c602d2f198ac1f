"""A server of OpenAI's images API on loopback, in any of its dialects, that fails on demand."""

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Body = dict[str, Any]


@dataclass(kw_only=True)
class Fault:
    """One way to fail, for `times` requests for an image."""

    status: int = 0
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)
    stall: float = 0.0
    """Seconds without an answer; the connection is then closed."""
    cut: bool = False
    """Make the image, and close the connection in the middle of the answer."""
    image: str | None = None
    """The `b64_json` to answer with."""
    entry: dict[str, object] | None = None
    """The whole entry of `data` to answer with."""
    raw: bytes | None = None
    """The whole body to answer with, status 200."""
    page: bytes | None = None
    """The whole body to answer with, in `status`."""
    times: int = 1


def error(message: str, code: str | None = None, param: str | None = None) -> Body:
    """An error's body, as OpenAI words it."""
    return {"error": {"message": message, "type": "invalid_request", "param": param, "code": code}}


@dataclass
class FakeImages:
    """The server's state: what it is, how it fails, and what it was asked."""

    url: str = ""
    owner: str = "library"
    models: list[str] | None = field(default_factory=lambda: ["painter"])
    """None: it has no list."""
    facts: Body | None = None
    """What `GET /t2i/v1/model` says; None: there is no such page."""
    echo: Callable[[Body], Body] | None = None
    """What stands under `t2i` beside an image."""
    key: str | None = None
    size: tuple[int, int] = (16, 16)
    """Of an image whose size is not asked for."""
    format: str = "PNG"
    faults: list[Fault] = field(default_factory=list)
    look_faults: list[Fault] = field(default_factory=list)
    """Ways to fail when asked for the list of models."""
    fault: Callable[[Body], Fault | None] = lambda body: None
    """Called for every request that no entry of `faults` is for."""
    pause: float = 0.0
    """Seconds that an image takes."""
    asked: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    """What GET answers by path, for an entry's `url`."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def next_fault(self, body: Body) -> Fault | None:
        """The fault of this request; one of `faults` is used up by it."""
        return self._use_up(self.faults) or self.fault(body)

    def next_look_fault(self) -> Fault | None:
        """The fault of this request for the list of models."""
        with self.lock:
            return self._use_up(self.look_faults)

    def _use_up(self, faults: list[Fault]) -> Fault | None:
        for fault in faults:
            if fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def picture(self, body: Body) -> str:
        """Base64 of an image in one colour that follows from what is asked."""
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
        width, height = map(int, body["size"].split("x")) if "size" in body else self.size
        stream = io.BytesIO()
        colour = (digest[0], digest[1], digest[2])
        Image.new("RGB", (width, height), colour).save(stream, self.format)
        return base64.b64encode(stream.getvalue()).decode()


@contextmanager
def running_images() -> Iterator[FakeImages]:
    """The server on a free port until the block ends; `url` is its base."""
    state = FakeImages()

    class Handler(_Handler):
        images = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    images: FakeImages
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._seen()
        if self.path in self.images.files:
            self._send(200, self.images.files[self.path])
        elif not self._allowed():
            return
        elif self.path == "/v1/models" and (fault := self.images.next_look_fault()):
            self._fail(fault)
        elif self.path == "/v1/models" and self.images.models is not None:
            entries = [{"id": m, "owned_by": self.images.owner} for m in self.images.models]
            self._json({"object": "list", "data": entries})
        elif self.path == "/t2i/v1/model" and self.images.facts is not None:
            self._json(self.images.facts)
        else:
            self._json(error("Not found."), 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._seen()
        if not self._allowed():
            return
        if self.path != "/v1/images/generations":
            self._json(error("Not found."), 404)
            return
        with self.images.lock:
            self.images.asked.append(body)
            fault = self.images.next_fault(body)
            self.images.in_flight += 1
            self.images.most_in_flight = max(self.images.most_in_flight, self.images.in_flight)
        try:
            self._answer(body, fault or Fault())
        except ConnectionError:
            # The client went away, which some tests want.
            self.close_connection = True
        finally:
            with self.images.lock:
                self.images.in_flight -= 1

    def _answer(self, body: Body, fault: Fault) -> None:
        if not fault.stall:
            self.images.closing.wait(self.images.pause)
        if not self._fail(fault):
            entry: Body = {"b64_json": fault.image or self.images.picture(body)}
            if self.images.echo:
                entry["t2i"] = self.images.echo(body)
            data = [entry if fault.entry is None else fault.entry]
            self._send(200, json.dumps({"created": 1, "data": data}).encode(), cut=fault.cut)

    def _fail(self, fault: Fault) -> bool:
        """Answer as the fault says; whether it is one that needs no image."""
        if fault.stall:
            self.images.closing.wait(fault.stall)
            self.close_connection = True
        elif fault.status and fault.page is not None:
            self._send(fault.status, fault.page, {"Content-Type": "text/plain"})
        elif fault.status:
            self._json(fault.body, fault.status, fault.headers)
        elif fault.raw is not None:
            self._send(200, fault.raw)
        elif fault.cut and self.command == "GET":
            self._send(200, b"{}", cut=True)
        else:
            return False
        return True

    def _seen(self) -> None:
        self.images.paths.append(self.path)
        self.images.headers.append(dict(self.headers))

    def _allowed(self) -> bool:
        key = self.images.key
        given = self.headers.get("Authorization", "")
        if key is None or given == f"Bearer {key}":
            return True
        # As some servers do, it says which key it did not like.
        self._json(error(f"Incorrect API key provided: {given}", "invalid_api_key"), 401)
        return False

    def _json(
        self, value: object, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self._send(status, json.dumps(value).encode(), headers)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        self.send_response(status)
        named = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in (named | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True
