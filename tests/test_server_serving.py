"""The running server with a stub backend: sockets, stalled connections and shutdown."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag

import httpx2
import pytest
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from t2i_cli.backend import Backend, Failure, GeneratedImage
from t2i_cli.errors import InputError, ModelError, T2IError, TerminatedError
from t2i_cli.events import OnEvent
from t2i_cli.request import ResolvedRequest
from t2i_cli.server import connections, listeners, runner
from t2i_cli.server import engine as engine_module
from t2i_cli.server.app import create_app
from t2i_cli.server.engine import Engine
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.vertex_container import VertexContainer
from tests.fakes.stub_backend import Held, StubBackend

BODY = json.dumps({"requests": [{"prompt": "a red house"}]}).encode()


def post(path: str, body: bytes = BODY) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def served(backend: Backend, listener: socket.socket) -> Iterator[Engine]:
    """The server as `t2i serve` runs it, in a thread."""
    engine = Engine(backend, "postcard")
    app = create_app(engine, ServerOptions())
    end, ready = threading.Event(), threading.Event()
    caught: list[T2IError] = []

    def run() -> None:
        try:
            runner.run_server(
                app, engine, listener, grace=5, on_ready=ready.set, expired=end.is_set
            )
        except T2IError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(30)
        yield engine
    finally:
        end.set()
        thread.join()
    assert not caught


def until(true: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


class Noisy(StubBackend):
    """Paints pictures that no format makes small."""

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        for outcome in super().run(requests, on_event, cancel):
            assert isinstance(outcome, GeneratedImage)
            yield replace(outcome, image=Image.effect_noise((2000, 2000), 90).convert("RGB"))


def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_GRACE", 0.5)
    with listeners.listen_tcp("127.0.0.1", 0) as listener, served(Noisy(), listener):
        with socket.create_connection(listener.getsockname()[:2], timeout=30) as idle:
            idle.sendall(post("/t2i/v1/generate"))
            received = b""
            while b"event: image" not in received:
                received += idle.recv(1000)
            assert httpx2.get(f"{url(listener)}/healthz", timeout=30).status_code == 200
            time.sleep(2)
            with pytest.raises(ConnectionResetError):
                while piece := idle.recv(2**20):
                    received += piece
                raise ConnectionResetError
            assert b"event: done" not in received


@pytest.mark.parametrize("path", ["/t2i/v1/generate", "/v1/images/generations"])
def test_a_client_that_only_trickles_is_cut_off_and_its_images_are_let_go(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SEND_TIMEOUT", 1.0)
    body = BODY if "t2i" in path else b'{"prompt": "a red house"}'
    held: dict[H11Protocol, int] = {}
    awaited = connections.unsent_bytes

    def seen(connection: H11Protocol) -> int | None:
        held[connection] = connection.transport.get_write_buffer_size()
        return awaited(connection)

    monkeypatch.setattr(connections, "unsent_bytes", seen)
    with listeners.listen_tcp("127.0.0.1", 0) as listener, served(Noisy(), listener) as engine:
        with socket.create_connection(listener.getsockname()[:2], timeout=60) as slow:
            slow.sendall(post(path, body))
            with pytest.raises(ConnectionResetError):
                # It never stops reading for long.
                while slow.recv(2**15):
                    time.sleep(0.05)
                raise ConnectionResetError
        [(connection, before)] = held.items()
        assert before > 0
        assert connection.transport.get_write_buffer_size() == 0
        until(lambda: not engine.batcher.jobs)


def test_clients_that_never_ask_are_cut_off_and_harm_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(listeners.listen_tcp("127.0.0.1", 0))
        stack.enter_context(served(StubBackend(), listener))
        slow = [
            stack.enter_context(socket.create_connection(listener.getsockname()[:2], timeout=60))
            for _ in range(40)
        ]
        for number, one in enumerate(slow):
            one.sendall(b"POST /predict HTTP/1.1\r\nHost: local"[: number + 1])
        with httpx2.Client(base_url=url(listener), timeout=60) as client:
            assert client.post("/predict", json={"prompt": "a"}).status_code == 200
            monkeypatch.setattr(connections, "REQUEST_GRACE", 0.5)
            for one in slow:
                with pytest.raises(ConnectionResetError):
                    assert one.recv(100) == b""
                    raise ConnectionResetError
            assert client.post("/predict", json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize("path", ["/predict", "/t2i/v1/generate", "/v1/images/generations"])
@pytest.mark.parametrize("half", [True, False])
def test_a_client_that_goes_away_frees_the_device(path: str, half: bool) -> None:
    body = BODY if "t2i" in path else b'{"prompt": "a red house"}'
    held = Held()
    with listeners.listen_tcp("127.0.0.1", 0) as listener, served(held, listener) as engine:
        with socket.create_connection(listener.getsockname()[:2], timeout=30) as gone:
            gone.sendall(post(path, body))
            until(lambda: held.passes)
            if half:
                # uvicorn closes what its client has closed by half.
                gone.shutdown(socket.SHUT_WR)
                until(lambda: held.cancelled)
        until(lambda: held.cancelled)
        held.go.set()
        answer = httpx2.post(f"{url(listener)}/predict", json={"prompt": "next"}, timeout=30)
        assert answer.status_code == 200
        assert not engine.batcher.jobs


def test_a_client_that_leaves_the_queue_frees_its_place() -> None:
    held = Held()
    with listeners.listen_tcp("127.0.0.1", 0) as listener, served(held, listener) as engine:
        with socket.create_connection(listener.getsockname()[:2], timeout=30) as stays:
            stays.sendall(post("/t2i/v1/generate"))
            until(lambda: engine.running)
            with socket.create_connection(listener.getsockname()[:2], timeout=30) as leaves:
                leaves.sendall(post("/t2i/v1/generate"))
                until(lambda: engine.waiting == 1)
            until(lambda: engine.waiting == 0)
            assert not held.cancelled
            held.go.set()
            received = b""
            while b"event: done" not in received:
                received += stays.recv(2**16)
        assert len(held.passes) == 1


def test_a_backend_that_hangs_does_not_keep_the_server_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Hung(StubBackend):
        def run(self, *_: object, **__: object) -> Iterator[GeneratedImage | Failure]:
            assert stuck.wait(120)
            yield from ()

    monkeypatch.setattr(engine_module, "FORCED_STOP_TIMEOUT", 0.2)
    stuck, end = threading.Event(), threading.Event()
    caught: list[T2IError] = []
    with listeners.listen_tcp("127.0.0.1", 0) as listener:
        engine = Engine(Hung(), "postcard")
        app = create_app(engine, ServerOptions())

        def run() -> None:
            with pytest.raises(TerminatedError) as raised:
                runner.run_server(app, engine, listener, grace=0.2, expired=end.is_set)
            caught.append(raised.value)

        thread = threading.Thread(target=run)
        thread.start()
        with socket.create_connection(listener.getsockname()[:2], timeout=60) as waits:
            waits.sendall(post("/t2i/v1/generate"))
            until(lambda: engine.running)
            end.set()
            received = b""
            while piece := waits.recv(2**16):
                received += piece
        thread.join(60)
    stuck.set()
    assert caught
    assert b'"code": "terminated"' in received


def test_what_cannot_be_loaded_ends_the_server() -> None:
    class Broken(StubBackend):
        def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
            raise ModelError("The weights are torn.")

    with listeners.listen_tcp("127.0.0.1", 0) as listener:
        engine = Engine(Broken(), "postcard")
        app = create_app(engine, ServerOptions())
        with pytest.raises(ModelError, match="torn"):
            runner.run_server(app, engine, listener)


def test_a_container_that_cannot_serve_answers_for_a_while_and_then_ends() -> None:
    class Broken(StubBackend):
        def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
            raise ModelError("The weights are torn.")

    told: list[str] = []
    answers: list[bytes] = []

    def ask() -> None:
        with suppress(OSError), socket.create_connection(address, timeout=30) as client:
            client.sendall(b"GET /up HTTP/1.1\r\nHost: vertex\r\nConnection: close\r\n\r\n")
            answers.append(b"".join(iter(lambda: client.recv(2**16), b"")))

    def on_failure(error: T2IError) -> float:
        told.append(error.message)
        threading.Thread(target=ask).start()
        return 1.0

    variables = {"AIP_HTTP_PORT": "1", "AIP_HEALTH_ROUTE": "/up"}
    options = ServerOptions(container=VertexContainer.from_environment(variables))
    with listeners.listen_tcp("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        engine = Engine(Broken(), "postcard")
        with pytest.raises(ModelError, match="torn"):
            runner.run_server(create_app(engine, options), engine, listener, on_failure=on_failure)
    assert told == ["The weights are torn."]
    assert answers
    assert answers[0].startswith(b"HTTP/1.1 503")
    assert b"The weights are torn." in answers[0]


def test_a_port_is_taken_once() -> None:
    with listeners.listen_tcp("127.0.0.1", 0) as listener:
        with pytest.raises(InputError, match="Cannot listen on 127.0.0.1 port"):
            listeners.listen_tcp("127.0.0.1", listener.getsockname()[1])
    with pytest.raises(InputError, match="no address"):
        listeners.listen_tcp("nowhere.invalid", 0)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("0.0.0.0", False)],  # noqa: S104
)
def test_what_only_this_machine_can_reach_is_known(host: str, loopback: bool) -> None:
    assert listeners.is_loopback_host(host) is loopback


def test_a_unix_socket_is_the_users_alone_and_goes_with_its_server(tmp_path: Path) -> None:
    path = tmp_path / "run" / "t2i.sock"
    with listeners.listen_unix(path) as listener:
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with served(StubBackend(), listener):
            with httpx2.Client(
                transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://localhost"
            ) as client:
                assert client.post("/predict", json={"prompt": "a"}).status_code == 200
            with (
                pytest.raises(InputError, match="Another server uses"),
                listeners.listen_unix(path),
            ):
                pass
    assert not path.exists()


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The socket of a t2i that was killed."""
    path = tmp_path / "run" / "t2i.sock"
    code = (
        "import os, sys; from pathlib import Path; from t2i_cli.server import listeners\n"
        "with listeners.listen_unix(Path(sys.argv[1])): os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)
    assert path.is_socket()
    return path


@pytest.mark.parametrize("version", ["this", "an earlier one"])
def test_a_unix_socket_left_by_a_killed_server_is_replaced(left: Path, version: str) -> None:
    path = left
    if version != "this":
        Path(f"{path}.lock").write_bytes(b"")
    with listeners.listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_link(path: Path) -> None:
    path.symlink_to(path.with_name("others"))


def anothers_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))


def anothers_socket_and_lock(path: Path) -> None:
    Path(f"{path}.lock").write_bytes(b"")
    anothers_socket(path)


def anothers_lock(path: Path) -> None:
    Path(f"{path}.lock").write_text("precious")
    anothers_socket(path)


PLANTED = [a_file, a_link, anothers_socket, anothers_socket_and_lock, anothers_lock]


@pytest.mark.parametrize("before", [True, False], ids=["t2i was there", "t2i was not"])
@pytest.mark.parametrize("plant", [*PLANTED, os.mkfifo, os.mkdir])
def test_what_is_no_socket_that_t2i_left_stays(
    tmp_path: Path, plant: Callable[[Path], None], before: bool
) -> None:
    path = tmp_path / "run" / "t2i.sock"
    path.parent.mkdir(mode=0o700)
    (path.parent / "others").write_text("precious")
    if before and "anothers" not in plant.__name__:
        with listeners.listen_unix(path):
            pass
    plant(path)
    kind = stat.S_IFMT(path.lstat().st_mode)
    lock = Path(f"{path}.lock")
    locked = lock.read_bytes() if lock.exists() else None
    for _ in range(2):
        with (
            pytest.raises(InputError, match="no socket that t2i left"),
            listeners.listen_unix(path),
        ):
            pass
    assert stat.S_IFMT(path.lstat().st_mode) == kind
    assert kind not in {stat.S_IFREG, stat.S_IFLNK} or path.read_text() == "precious"
    assert (lock.read_bytes() if lock.exists() else None) == locked


def test_a_unix_socket_that_someone_listens_on_stays(left: Path) -> None:
    left.unlink()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(left))
        listener.listen()
        with (
            pytest.raises(InputError, match="Another program listens"),
            listeners.listen_unix(left),
        ):
            pass
        client.connect(str(left))


@pytest.mark.parametrize("plant", [a_link, os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    path = tmp_path / "run" / "t2i.sock"
    path.parent.mkdir(mode=0o700)
    (path.parent / "others").write_text("precious")
    plant(Path(f"{path}.lock"))
    with pytest.raises(InputError, match="Cannot use .*: it is "), listeners.listen_unix(path):
        pass
    assert (path.parent / "others").read_text() == "precious"
    assert not os.path.lexists(path)


def test_a_server_that_ends_leaves_the_socket_of_the_next(tmp_path: Path) -> None:
    path = tmp_path / "run" / "t2i.sock"
    with listeners.listen_unix(path):
        path.rename(path.with_name("first"))  # keeps its inode from being used again
        path.write_text("precious")
    assert path.read_text() == "precious"


def test_a_unix_socket_that_others_could_reach_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(InputError, match="Others can reach"), listeners.listen_unix(tmp_path / "s"):
        pass
    tmp_path.chmod(0o700)
    long = tmp_path / ("x" * 120)
    with pytest.raises(InputError, match="Cannot listen"), listeners.listen_unix(long):
        pass
    assert not os.path.lexists(long)
