"""A hundred and fifty malformed requests: none is let in, none is answered with a server error."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2

KEY = "kept-by-the-tests-of-raw-requests"
HOST = "Host: localhost"
BODY = '{"prompt": "a red house"}'
GUARDED = "/v1/models"
MADE = 't2i_images_total{outcome="made"}'

TARGETS = [
    *("//v1/models", "/./v1/models", "/v1//models", "/v1/./models", "/static/../v1/models"),
    *("/healthz/../v1/models", "/static/..%2f..%2fv1/models", "/healthz%2f..%2fv1%2fmodels"),
    *("/%76%31/models", "/v1/models/", "/V1/MODELS", "/v1/models%00", "/v1/models;/healthz"),
    *("/v1/models?/healthz", "/v1/models#/healthz", "/healthz;/../v1/models", "\\v1\\models"),
    *("/static/%2e%2e/v1/models", "/healthz/v1/models", "/v1/models%20", "/v1%2fmodels"),
    *("http://localhost/v1/models", "http://localhost@localhost/v1/models", "localhost:7860"),
    *("*", "v1/models", "?", "http://", "http://[/v1/models", "/%", "/%zz", "/\x01", "/\xff"),
    *(f"/{'a' * 70_000}", f"/v1/models?{'b' * 70_000}", "/v1/models HTTP/1.1 /healthz"),
]
"""Of a path that needs the key, or of none."""
METHODS = ["get", "GETT", "", "GET\t", "TRACE", "CONNECT", "G\x00ET", "PROPFIND", "A" * 9000, "É"]
VERSIONS = [
    "",
    "HTTP",
    "HTTP/",
    "HTTP/9.9",
    "HTTP/0.9",
    "HTTP/1.1.1",
    "http/1.1",
    "HTTP/1,1",
    "1.1",
]
AUTHORIZATIONS = [
    *("Bearer", "Bearer ", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Bearer {KEY.upper()}"),
    *(f"Basic {KEY}", f"{KEY}", f"Bearer  x{KEY}", f"Bearer {KEY}\x00", f"Bearer {KEY},x"),
    *(f"Bearer\x0b{KEY}", f'Bearer "{KEY}"', f"Bearer x\r\n {KEY}", f"Digest key={KEY}"),
    *("Bearer \xff\xfe", f"Bearer {'k' * 70_000}", f"BearerBearer {KEY}", "Bearer null"),
]
HEADERS = [
    *(f"Authorization : Bearer {KEY}", f" Authorization: Bearer {KEY}", "no colon", ": no name"),
    *(f"X-Api-Key: {KEY}", f"Cookie: key={KEY}", f"Proxy-Authorization: Bearer {KEY}", "A: \x00"),
    *("X-Original-URL: /healthz", "X-HTTP-Method-Override: OPTIONS", "Host: localhost", "Host: x"),
    *("X-Forwarded-Host: localhost\r\nX-Forwarded-For: 127.0.0.1", "A: b\nC: d", "A: b\rC: d"),
    *("Connection: upgrade\r\nUpgrade: h2c", "Connection: upgrade\r\nUpgrade: websocket"),
    *("Expect: 200-ok", "\r\n".join(f"A{n}: b" for n in range(5000)), f"A: {'b' * 70_000}"),
]
FRAMES = [
    *("Content-Length: -1", "Content-Length: +25", "Content-Length: 0x19", "Content-Length: 2 5"),
    *("Content-Length: 25\r\nContent-Length: 26", "Content-Length: 25, 26", "Content-Length:"),
    *("Content-Length: 99999999999999999999999", "Content-Length: 1e2", "Content-Length: ²"),
    *("Content-Length: 25\r\nTransfer-Encoding: chunked", "Transfer-Encoding: xchunked"),
    *("Transfer-Encoding: chunked, identity", "Transfer-Encoding: \x0bchunked"),
    *("Transfer-Encoding : chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip"),
]
CHUNKS = [
    *(
        "g\r\na\r\n",
        "-1\r\na\r\n",
        "0x1\r\na\r\n",
        "1 \r\nab\r\n",
        "ffffffffffffffffff\r\n",
        "1\na\n",
    ),
    *(
        f"1;{'x' * 70_000}\r\na\r\n",
        "0\r\nHost: other\r\n\r\n",
        "1\r\nabc\r\n0\r\n\r\n",
        "\r\n\r\n",
    ),
]
SMUGGLED = f"GET {GUARDED} HTTP/1.1\r\n{HOST}\r\n\r\n"


def raw_requests() -> list[bytes]:
    """Malformed requests without the key, or that say it where it does not count."""
    texts = [f"GET {target} HTTP/1.1\r\n{HOST}\r\n\r\n" for target in TARGETS]
    texts += [f"{method} {GUARDED} HTTP/1.1\r\n{HOST}\r\n\r\n" for method in METHODS]
    texts += [f"GET {GUARDED} {version}\r\n{HOST}\r\n\r\n" for version in VERSIONS]
    begin = f"GET {GUARDED} HTTP/1.1\r\n{HOST}\r\n"
    texts += [f"{begin}Authorization: {value}\r\n\r\n" for value in AUTHORIZATIONS]
    texts += [f"{begin}{header}\r\n\r\n" for header in HEADERS]
    post = f"POST /predict HTTP/1.1\r\n{HOST}\r\nContent-Type: application/json\r\n"
    texts += [f"{post}{frame}\r\n\r\n{BODY}{SMUGGLED}" for frame in FRAMES]
    texts += [f"{post}Transfer-Encoding: chunked\r\n\r\n{chunk}{SMUGGLED}" for chunk in CHUNKS]
    others = [f"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{SMUGGLED}", SMUGGLED[:20], f"\n\n\n{SMUGGLED}"]
    found = [text.encode("latin-1") for text in texts + others]
    found += [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), bytes(70_000)]
    chance = random.Random(3)  # noqa: S311 - no secret
    return found + [chance.randbytes(300) for _ in range(150 - len(found))]


@contextmanager
def guarded(env: dict[str, str], log: Path) -> Iterator[str]:
    """The address of a server with a key, in a process of its own."""
    command = [sys.executable, "-m", "tests.fakes.serving"]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        assert process.stdout is not None
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def answer(url: str, request: bytes) -> bytes:
    """All that the server sends until it closes; it is told of the end once it waits for more."""
    host, _, port = url.rpartition("/")[2].partition(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        try:
            connection.sendall(request)
            connection.settimeout(1)
            while piece := connection.recv(2**16):
                received += piece
        except TimeoutError:
            connection.settimeout(30)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(2**16):
                received += piece
        except ConnectionError:
            pass
    return received


def test_none_is_let_in_and_none_is_the_servers_error(
    t2i_env: dict[str, str], tmp_path: Path
) -> None:
    requests, log = raw_requests(), tmp_path / "log"
    assert len(requests) == len(set(requests)) == 150
    outcomes: Counter[str] = Counter()
    env = t2i_env | {"T2I_API_KEY": KEY, "PYTHONPATH": os.fspath(Path(__file__).parent.parent)}
    with guarded(env, log) as url, ThreadPoolExecutor(16) as pool:
        for request, received in zip(
            requests, pool.map(lambda one: answer(url, one), requests), strict=True
        ):
            statuses = re.findall(rb"^HTTP/1\.1 (\d{3}) ", received, re.MULTILINE)
            assert all(status.startswith(b"4") for status in statuses), (request[:300], received)
            assert not received or statuses, (request[:300], received)
            assert KEY.encode() not in received
            outcomes.update([status.decode() for status in statuses] or ["closed"])
        known = {"Authorization": f"Bearer {KEY}"}
        with httpx2.Client(base_url=url, headers=known, timeout=30) as client:
            before = client.get("/metrics").text
            assert client.post("/predict", json={"prompt": "a red house"}).status_code == 200
            after = client.get("/metrics").text
    print(dict(sorted(outcomes.items())))  # noqa: T201 - the figures of docs/reliability.md
    assert MADE not in before and f"{MADE} 1.0" in after
    assert outcomes["401"] > 50
    assert "Traceback" not in log.read_text()
