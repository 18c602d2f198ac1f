"""How many connections the server holds, for how long, and what a flood leaves in its log."""

import asyncio
import logging
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from t2i_cli.server import connections, listeners, log_limit, runner
from t2i_cli.server.app import create_app
from t2i_cli.server.batcher import batcher_log
from t2i_cli.server.connections import BoundedProtocol, ConnectionTable
from t2i_cli.server.engine import Engine
from t2i_cli.server.options import ServerOptions
from tests.fakes.stub_backend import StubBackend

DESCRIPTORS = 256
CLIENTS = 300
KEY = {"Authorization": "Bearer kept-by-the-tests"}


@contextmanager
def served(most: int | None = None) -> Iterator[tuple[str, ConnectionTable]]:
    """A server with a key, as `t2i serve` runs it, in a thread: its address and connections."""
    engine = Engine(StubBackend(), "postcard")
    app = create_app(engine, ServerOptions(api_key="kept-by-the-tests"))
    if most is not None:
        app.state.connections = ConnectionTable(most)
    table: ConnectionTable = app.state.connections
    end, ready = threading.Event(), threading.Event()
    with listeners.listen_tcp("127.0.0.1", 0) as listener:
        thread = threading.Thread(
            target=runner.run_server,
            args=(app, engine, listener),
            kwargs={"grace": 1, "on_ready": ready.set, "expired": end.is_set},
        )
        thread.start()
        try:
            assert ready.wait(30)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", table
        finally:
            end.set()
            thread.join()


def connect(url: str) -> socket.socket:
    host, _, port = url.rpartition("/")[2].partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def closed(one: socket.socket) -> bool:
    """Whether the server has closed the connection, after all that it sent."""
    one.settimeout(30)
    try:
        while one.recv(2**16):
            pass
    except ConnectionError:
        pass
    return True


@pytest.fixture
def flooded(t2i_env: dict[str, str], tmp_path: Path) -> Iterator[tuple[str, psutil.Process, Path]]:
    """A server's process with few descriptors: its address, itself, and its log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * CLIENTS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4 * CLIENTS, hard), hard))
    log = tmp_path / "log"
    code = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))\n"
        "from tests.fakes import serving; serving.main()"
    )
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=t2i_env,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), psutil.Process(process.pid), log
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def test_more_connections_than_descriptors_keep_nobody_out(
    flooded: tuple[str, psutil.Process, Path],
) -> None:
    url, process, log = flooded
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(connect(url)).sendall(b"GET / HTTP/1.1\r\nHost: local")
        assert httpx2.post(f"{url}/predict", json={"prompt": "a"}, timeout=30).status_code == 200
        figures = httpx2.get(f"{url}/metrics", timeout=30).text
        assert process.num_fds() < DESCRIPTORS
    assert f"t2i_connections_max {DESCRIPTORS // 2}.0" in figures
    waiting = DESCRIPTORS // 8
    assert f"t2i_connections_unadmitted {waiting - 1}.0" in figures
    dropped = figures.partition('t2i_connections_dropped_total{reason="crowded"} ')[2]
    assert float(dropped.split()[0]) >= CLIENTS - waiting
    assert log.read_bytes() == b""


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux's prlimit")
def test_a_server_out_of_descriptors_waits_in_silence_and_goes_on(
    flooded: tuple[str, psutil.Process, Path],
) -> None:
    url, process, log = flooded
    limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (process.num_fds(), limits[1]))
    with ExitStack() as stack:
        before = process.cpu_times().user
        for _ in range(10):
            stack.enter_context(connect(url)).sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(2.5)
        assert process.cpu_times().user - before < 1
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
    assert httpx2.get(f"{url}/healthz", timeout=60).status_code == 200
    said = log.read_text()
    assert 1 <= said.count("out of system resource") <= log_limit.LOG_LINES
    assert len(said) < 20_000


def test_who_shows_no_key_stays_for_seconds_whatever_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "UNADMITTED_SECONDS", 1.0)
    probe = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with served() as (url, table), ExitStack() as stack:
        silent, slow, refused, asking = (stack.enter_context(connect(url)) for _ in range(4))
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n")
        refused.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(60):
                asking.sendall(probe)
                if not asking.recv(2**16):
                    raise ConnectionResetError
                time.sleep(0.1)
        assert all(closed(one) for one in (silent, slow, refused))
        with httpx2.Client(base_url=url, headers=KEY, timeout=30) as client:
            assert client.get("/v1/models").status_code == 200
            time.sleep(1.5)
            assert client.get("/v1/models").status_code == 200
            assert (table.admitted, table.unadmitted) == (1, 0)
        assert table.dropped["slow"] >= 3


def test_a_full_server_says_so_to_those_with_the_key_too() -> None:
    with served(most=4) as (url, table), ExitStack() as stack:
        for number in range(5):
            client = stack.enter_context(httpx2.Client(base_url=url, headers=KEY, timeout=30))
            answer = client.get("/v1/models")
            if number < 3:
                assert answer.status_code == 200
                continue
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "quota"
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.headers["Connection"] == "close"
            assert client.get("/healthz").status_code == 200
        assert (table.admitted, table.refused) == (3, 2)


class Unconnected(BoundedProtocol):
    """A connection of a client's address, without a socket."""

    def __init__(self, address: str, gone: list["Unconnected"]) -> None:
        app = create_app(Engine(StubBackend(), "postcard"), ServerOptions())
        super().__init__(config=Config(app), server_state=ServerState(), app_state={})
        self.address = address
        self.transport = self  # type: ignore[assignment]
        self._gone = gone

    def abort(self) -> None:
        self._gone.append(self)


def test_the_client_that_holds_most_gives_way_its_oldest_first() -> None:
    async def crowd() -> None:
        gone: list[Unconnected] = []
        table = ConnectionTable(16)
        attacker = [Unconnected("192.0.2.1", gone) for _ in range(3)]
        for one in (Unconnected("192.0.2.2", gone), *attacker):
            table.add(one)
        for number in range(2):
            table.add(Unconnected(f"198.51.100.{number}", gone))
        assert gone == attacker[:2]
        assert table.unadmitted == 4
        assert table.dropped == {"crowded": 2}

    asyncio.run(crowd())


@pytest.mark.parametrize("name", ["uvicorn.error", batcher_log.name])
def test_lines_of_one_kind_are_counted_and_not_written(
    caplog: pytest.LogCaptureFixture, name: str
) -> None:
    logger = logging.getLogger(name)
    with caplog.at_level(logging.ERROR), log_limit.limited_logs([logger.name]) as limit:
        for number in range(1000):
            logger.error("A client did it: %d\nits traceback", number)
            if number < 3:
                logger.error("Something else.")
        assert len(caplog.messages) == log_limit.LOG_LINES + 3
        limit.sum_up()
        assert caplog.messages[-1] == "995 more lines like this: A client did it: %d"
        logger.error("A client did it: %d\nits traceback", 1)
        assert caplog.messages[-1].startswith("A client did it: 1")
    for number in range(20):
        logger.error("unlimited %d", number)
    assert caplog.messages[-1] == "unlimited 19"


def test_endless_kinds_of_lines_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("asyncio")
    with caplog.at_level(logging.ERROR), log_limit.limited_logs([logger.name]):
        for number in range(10_000):
            logger.error(f"Another kind: {number}")
    assert len(caplog.messages) < 300
    assert caplog.messages[-1] == "9795 more lines like this: of other kinds"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("host", ["::", "0::0"])
def test_all_addresses_are_those_of_both_families(host: str) -> None:
    with listeners.listen_tcp(host, 0) as listener:
        port = listener.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), timeout=10):
                pass


def test_one_byte_chunks_are_refused_before_they_are_parsed_by_the_thousand(
    caplog: pytest.LogCaptureFixture,
) -> None:
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "{}Transfer-Encoding: chunked\r\n\r\n"
    )
    with served() as (url, _):
        for key in ("Authorization: Bearer kept-by-the-tests\r\n", ""):
            with connect(url) as one:
                one.sendall(
                    head.format(key).encode() + b"1\r\n \r\n" * (connections.MAX_CHUNKS + 9)
                )
                assert one.recv(100).startswith(b"HTTP/1.1 400 ")
        # Chunks that are none, while the answer to the first is on its way.
        with connect(url) as one:
            one.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
            )
            assert one.recv(100).startswith(b"HTTP/1.1 400 ")
            one.sendall(b"no chunk\r\n" * 10)
            assert closed(one)
        assert httpx2.get(f"{url}/healthz").status_code == 200
    assert not caplog.records
