"""What attackers without a key can do to `t2i serve`, in figures; the server is the real process.

It runs with 1,024 descriptors, as most systems give, and a key. Measured are: connections held
against it, and by whom; bytes of log; whether a client with the key is served meanwhile; and the
longest stall of the event loop while large bodies come, which is how long /healthz takes.
Run as `python -m benchmarks.attack_serve`.
"""

import argparse
import gzip
import json
import os
import platform
import re
import resource
import secrets
import selectors
import signal
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

T2I = str(Path(sysconfig.get_path("scripts")) / "t2i")
DESCRIPTORS = 1024
CONNECTIONS = 1100
BODY_BYTES = 2**20
BODIES = 20
"""Bodies of each kind that are sent, by four clients."""
CLIENTS = 4


@dataclass(frozen=True)
class Server:
    """A running `t2i serve`; its standard error goes to the file `log`."""

    url: str
    key: str
    log: Path

    def connect(self) -> socket.socket:
        """A connection on which nothing is sent."""
        address = urlsplit(self.url)
        return socket.create_connection((str(address.hostname), address.port), timeout=60)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """The status and body of the answer to a request with the key, over a new connection."""
        address = urlsplit(self.url)
        connection = HTTPConnection(str(address.hostname), address.port, timeout=60)
        sent = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, body, sent | dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def figure(self, name: str) -> float:
        """A figure of /metrics."""
        _, text = self.ask("GET", "/metrics")
        found = re.search(rf"^{re.escape(name)} (\S+)$", text.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """`t2i serve` with 1,024 descriptors and a key."""
    key = secrets.token_urlsafe(32)
    log = folder / "serve.log"
    command = [T2I, "serve", "-m", "postcard", "--port", "0"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))

    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command,
            env={**os.environ, "T2I_API_KEY": key},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            preexec_fn=limit,  # noqa: PLW1509 - no thread runs yet
        ) as process,
    ):
        try:
            url = process.stdout.readline().strip() if process.stdout else ""
            if not url:
                raise SystemExit(f"t2i serve did not start:\n{log.read_text()}")
            yield Server(url, key, log)
        finally:
            process.send_signal(signal.SIGTERM)


class Probe:
    """Asks again and again, in a thread, and keeps the longest time and the failures."""

    def __init__(self, ask: Callable[[], bool], pause: float) -> None:
        self.longest = 0.0
        self.asked = self.failed = 0
        self._ask = ask
        self._pause = pause
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._pause):
            began = time.perf_counter()
            try:
                answered = self._ask()
            except (OSError, HTTPException):
                answered = False
            self.longest = max(self.longest, time.perf_counter() - began)
            self.asked += 1
            self.failed += not answered


def held(server: Server, send: bytes, trickle: bytes, seconds: float) -> dict[str, float]:
    """What 1,100 connections do that send `send`, and then `trickle` each second.

    `open` are those that the server has not closed at the end, `longest_open` seconds one stayed.
    """
    before = server.log.stat().st_size
    opened: dict[socket.socket, float] = {}
    longest, made = 0.0, 0
    began = time.monotonic()

    def served() -> bool:
        return server.ask("GET", "/t2i/v1/model")[0] == 200

    with Probe(served, 0.25) as probe, selectors.DefaultSelector() as selector, ExitStack() as all_:
        last = began
        while (now := time.monotonic()) - began < seconds:
            while len(opened) < CONNECTIONS:
                try:
                    one = all_.enter_context(server.connect())
                    one.sendall(send)
                except OSError:
                    continue
                one.setblocking(False)
                made += 1
                opened[one] = time.monotonic()
                selector.register(one, selectors.EVENT_READ)
            for chosen, _ in selector.select(0.05):
                one = chosen.fileobj  # type: ignore[assignment]
                try:
                    gone = not one.recv(2**16)
                except BlockingIOError:
                    continue
                except OSError:
                    gone = True
                if gone:
                    selector.unregister(one)
                    longest = max(longest, time.monotonic() - opened.pop(one))
                    one.close()
            if trickle and now - last > 1:
                last = now
                for one in opened:
                    try:
                        one.send(trickle)
                    except OSError:
                        pass  # noqa: S110 - the selector tells of it
        figures = {
            "made": float(made),
            "admitted": server.figure("t2i_connections_admitted"),
            "unadmitted": server.figure("t2i_connections_unadmitted"),
            "longest_open_s": longest,
        }
    return figures | {
        "log_bytes": float(server.log.stat().st_size - before),
        "key_holder_asked": float(probe.asked),
        "key_holder_failed": float(probe.failed),
        "key_holder_longest_s": probe.longest,
    }


def bodies() -> dict[str, tuple[str, bytes, dict[str, str]]]:
    """Bodies of 1 MiB that cost much to parse or to validate, with their route and headers."""

    def filled(begin: bytes, piece: bytes, end: bytes) -> bytes:
        room = BODY_BYTES - len(begin) - len(end)
        return begin + piece * (room // len(piece)) + end

    keys = b",".join(b'"%x":0' % number for number in range(100_000))
    native, openai, predict = "/t2i/v1/generate", "/v1/images/generations", "/predict"
    return {
        "requests of {}": (native, filled(b'{"requests":[', b"{},", b"{}]}"), {}),
        "requests of 0": (native, filled(b'{"requests":[', b"0,", b"0]}"), {}),
        "100,000 unknown fields": (openai, b"{" + keys + b"}", {}),
        "unknown fields in a request": (native, b'{"requests":[{' + keys + b"}]}", {}),
        "lists as a prompt": (predict, filled(b'{"prompt":[', b"[],", b"[]]}"), {}),
        "brackets": (predict, b"[" * BODY_BYTES, {}),
        "digits": (predict, b"1" * BODY_BYTES, {}),
        "gzip of 1 GiB": (predict, gzip.compress(bytes(2**30), 9), {"Content-Encoding": "gzip"}),
        "one-byte chunks": (predict, b"", {}),
    }


def stall(server: Server, path: str, body: bytes, headers: dict[str, str]) -> dict[str, float]:
    """The longest time that /healthz takes while clients with the key send such bodies."""
    statuses: list[int] = []

    def send() -> None:
        for _ in range(BODIES // CLIENTS):
            if body:
                statuses.append(server.ask("POST", path, body, headers)[0])
            else:
                statuses.append(chunked(server, path))

    def alive() -> bool:
        return server.ask("GET", "/healthz")[0] == 200

    with Probe(alive, 0.002) as quiet:
        time.sleep(1)
    threads = [threading.Thread(target=send) for _ in range(CLIENTS)]
    with Probe(alive, 0.002) as probe:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if len(statuses) < BODIES:
        raise SystemExit(f"Only {len(statuses)} of {BODIES} bodies were answered.")
    return {
        "stall_s": probe.longest,
        "quiet_s": quiet.longest,
        "bodies": float(len(statuses)),
        "status": float(max(statuses)),
    }


def chunked(server: Server, path: str) -> int:
    """The status of a request whose body of 256 KiB comes in chunks of one byte."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {server.key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with server.connect() as connection:
        connection.sendall(head.encode() + b"1\r\n \r\n" * (BODY_BYTES // 4) + b"0\r\n\r\n")
        return int(connection.recv(2**16).split()[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=25.0, help="Seconds of each flood.")
    arguments = parser.parse_args()
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    head = b"GET /predict HTTP/1.1\r\nHost: localhost\r\n"
    floods = {
        "silent": (b"", b""),
        "slow heads": (head, b"X-A: b\r\n"),
        "slow bodies": (head.replace(b"GET", b"POST") + b"Content-Length: 9999\r\n\r\n", b" "),
        "refused, kept alive": (head + b"\r\n", head + b"\r\n"),
    }
    record: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        for name, (path, body, headers) in bodies().items():
            record[name] = stall(server, path, body, headers)
            figures = record[name]
            print(
                f"{name:<30}{figures['stall_s'] * 1000:>8.0f} ms longest stall "
                f"(quiet: {figures['quiet_s'] * 1000:.0f} ms), status {figures['status']:.0f}",
                flush=True,
            )
        for name, (send, trickle) in floods.items():
            record[name] = held(server, send, trickle, arguments.seconds)
            print(
                f"{name}: " + ", ".join(f"{k} {v:.6g}" for k, v in record[name].items()), flush=True
            )
        print(f"connections at most: {server.figure('t2i_connections_max'):.0f}")
    file = Path(__file__).parent / "results" / "attack_serve.json"
    file.parent.mkdir(exist_ok=True)
    about = {
        "benchmark": "attack_serve",
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "descriptors": DESCRIPTORS,
        "connections": CONNECTIONS,
    }
    file.write_text(json.dumps(about | {"figures": record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
