"""What the server refuses, to whom, and what it shows of itself."""

import asyncio
import hmac
import json
import re
import socket
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from t2i_cli.backend import WorkerReport
from t2i_cli.errors import InputError
from t2i_cli.events import MemoryMeasure
from t2i_cli.server import request_body, security
from t2i_cli.server.app import create_app
from t2i_cli.server.engine import Engine
from t2i_cli.server.options import ServerLimits, ServerOptions
from t2i_cli.server.runner import ServerLog
from t2i_cli.server.vertex_container import VertexContainer
from t2i_cli.terminal.console import Console
from tests import tiny_models
from tests.fakes.serving import serving
from tests.fakes.stub_backend import StubBackend

KEY = "kept-by-the-tests"
POSTS: dict[str, dict[str, object]] = {
    "/predict": {"prompt": "a red house"},
    "/v1/images/generations": {"prompt": "a red house"},
    "/t2i/v1/generate": {"requests": [{"prompt": "a red house"}]},
    "/t2i/v1/jobs/none/cancel": {},
}
GETS = [
    "/v1/models",
    "/v1/images/none",
    "/t2i/v1/model",
    "/t2i/v1/workers",
    "/metrics",
    "/docs",
    "/openapi.json",
]
OPEN = ["/", "/static/page.js", "/healthz", "/readyz"]
CONTAINER = VertexContainer(
    port=8080, health_route="/alive", predict_route="/v1/endpoints/1:predict", storage_uri=None
)


def client(options: ServerOptions | None = None, limits: ServerLimits | None = None) -> TestClient:
    engine = Engine(StubBackend(), "postcard", limits)
    app = create_app(engine, options or ServerOptions())
    return TestClient(app, base_url="http://localhost:7860", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def plain() -> Iterator[TestClient]:
    with client() as found:
        yield found


@pytest.fixture(scope="module")
def locked() -> Iterator[TestClient]:
    with client(ServerOptions(api_key=KEY)) as found:
        yield found


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:7860", "127.0.0.1:7860", "[::1]:7860", "[::1]", "192.0.2.1:80"]
)
def test_this_machine_and_addresses_are_answered_to(plain: TestClient, host: str) -> None:
    assert plain.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["", "rebound.example", "localhost.example:7860", "[", "a/b", "me@localhost", "::::"]
)
@pytest.mark.parametrize("path", ["/", "/v1/models", "/metrics"])
def test_other_names_are_not_answered_to(plain: TestClient, path: str, host: str) -> None:
    answer = plain.get(path, headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "not_allowed"


def test_probes_need_neither_a_host_nor_its_body() -> None:
    with serving(StubBackend()) as server:
        for path in ("/healthz", "/readyz"):
            with connection(server.url) as probe:
                probe.sendall(f"HEAD {path} HTTP/1.0\r\n\r\n".encode())
                assert whole(probe).startswith(b"HTTP/1.1 200 ")
        with connection(server.url) as nameless:
            nameless.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
            answer = whole(nameless)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"names no host" in answer


@pytest.mark.parametrize("host", ["*", "example.org", "Images.example", "my_host", "10.0.0.1"])
def test_host_names_that_can_match(host: str) -> None:
    security.check_names([host], [])


@pytest.mark.parametrize(
    "host",
    ["", " ", "a b", "example.org:8443", "https://example.org", "*.example.org", "bücher.example"],
)
def test_a_host_that_can_never_match_is_refused(host: str) -> None:
    with pytest.raises(InputError, match="--allowed-host") as caught:
        security.check_names(["localhost", host], [])
    assert caught.value.field == "allowed_host"


@pytest.mark.parametrize(
    "origin",
    ["*", "https://example.org", "http://example.org:8080", "http://[::1]:1", "app-x://abc"],
)
def test_origins_that_can_match(origin: str) -> None:
    security.check_names([], [origin])


@pytest.mark.parametrize(
    "origin",
    [
        *("", "null", "example.org", "https://", "https://example.org/", "https://example.org/a"),
        *("https://example.org:443", "http://example.org:80", "https://example.org:", "//a"),
        *("https://Example.org", "https://me@example.org", "https://*.example.org"),
        *("https://example.org:x", "https://[", "https://bücher.example", "https://a b"),
    ],
)
def test_an_origin_that_can_never_match_is_refused(origin: str) -> None:
    with pytest.raises(InputError, match="--cors-origin") as caught:
        security.check_names([], ["https://example.org", origin])
    assert caught.value.field == "cors_origin"


def test_hosts_can_be_allowed() -> None:
    with client(ServerOptions(allowed_hosts=("Images.example",))) as named:
        assert named.get("/", headers={"Host": "images.example:443"}).status_code == 200
        assert named.get("/", headers={"Host": "other.example"}).status_code == 403
    with client(ServerOptions(allowed_hosts=("*",))) as any_host:
        assert any_host.get("/", headers={"Host": "other.example"}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
@pytest.mark.parametrize("path", POSTS)
def test_another_sites_page_cannot_post(plain: TestClient, path: str, origin: str) -> None:
    answer = plain.post(path, json=POSTS[path], headers={"Origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_the_own_page_can_post(plain: TestClient) -> None:
    headers = {"Origin": "http://localhost:7860"}
    answer = plain.post("/predict", json=POSTS["/predict"], headers=headers)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_named_sites_can_post_and_read() -> None:
    site = "https://gallery.example"
    with client(ServerOptions(api_key=KEY, cors_origins=(site,))) as named:
        wish = {"Origin": site, "Access-Control-Request-Method": "POST"}
        wish["Access-Control-Request-Headers"] = "authorization,content-type"
        assert named.options("/predict", headers=wish).status_code == 200
        assert named.options("/predict", headers=wish | {"Origin": "https://x.example"}).is_error
        headers = {"Origin": site, "Authorization": f"Bearer {KEY}"}
        answer = named.post("/predict", json=POSTS["/predict"], headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == site
        headers["Origin"] = "https://x.example"
        assert named.post("/predict", json=POSTS["/predict"], headers=headers).status_code == 403


@pytest.mark.parametrize("path", [*POSTS, *GETS])
@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, "Bearer é"])
def test_without_the_key_nothing_is_told(locked: TestClient, path: str, header: str) -> None:
    method = "POST" if path in POSTS else "GET"
    headers = {b"Authorization": header.encode()} if header else {}
    answer = locked.request(method, path, json=POSTS.get(path), headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.text


@pytest.mark.parametrize("path", [*POSTS, *GETS])
def test_with_the_key_everything_is_there(locked: TestClient, path: str) -> None:
    method = "POST" if path in POSTS else "GET"
    headers = {"Authorization": f"bearer {KEY}"}
    answer = locked.request(method, path, json=POSTS.get(path), headers=headers)
    assert answer.status_code == (404 if "none" in path else 200)


@pytest.mark.parametrize("path", OPEN)
def test_the_page_and_probes_need_no_key(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code == 200


def test_the_key_is_compared_in_constant_time(
    locked: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[object] = []

    def recorded(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return compare(given, key)

    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", recorded)
    assert locked.get("/v1/models", headers={"Authorization": "Bearer x"}).status_code == 401
    assert compared == [(b"x", KEY.encode())]


def test_what_vertex_calls_is_open_and_all_else_is_not() -> None:
    with client(ServerOptions(api_key=KEY, container=CONTAINER)) as vertex:
        headers = {"Host": "10.0.0.1.internal", "Origin": "https://console.example"}
        while vertex.get("/alive", headers=headers).status_code != 200:
            time.sleep(0.01)
        body = {"instances": [{"prompt": "a red house"}]}
        answer = vertex.post(CONTAINER.predict_route, json=body, headers=headers)
        assert answer.status_code == 200
        assert len(answer.json()["predictions"]) == 1
        assert vertex.get("/v1/models", headers=headers).status_code == 401


def test_a_container_without_a_key_has_nothing_else() -> None:
    with client(ServerOptions(container=CONTAINER)) as vertex:
        while vertex.get("/alive").status_code != 200:
            time.sleep(0.01)
        body = {"instances": [{"prompt": "a red house"}]}
        assert vertex.post(CONTAINER.predict_route, json=body).status_code == 200
        assert {vertex.get(path).status_code for path in OPEN} == {200}
        key = {"Authorization": f"Bearer {KEY}"}
        refused = [vertex.get(path, headers=key) for path in GETS]
        refused += [vertex.post(path, json=body, headers=key) for path, body in POSTS.items()]
        assert {answer.status_code for answer in refused} == {403}


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"]
)
@pytest.mark.parametrize("path", POSTS)
def test_a_post_that_is_not_json_is_refused(plain: TestClient, path: str, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = plain.post(path, content=json.dumps(POSTS[path]), headers=headers)
    assert answer.status_code == 415


def test_json_may_name_its_encoding(plain: TestClient) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    body = json.dumps(POSTS["/predict"])
    assert plain.post("/predict", content=body, headers=headers).status_code == 200


def test_a_body_that_is_too_large_is_refused() -> None:
    body = json.dumps(POSTS["/predict"]).encode()
    with client(ServerOptions(max_body=len(body))) as small:
        headers = {"Content-Type": "application/json"}
        assert small.post("/predict", content=body, headers=headers).status_code == 200
        answer = small.post("/predict", content=body + b" ", headers=headers)
        assert answer.status_code == 413
        pieces = iter([body, b" "])
        assert small.post("/predict", content=pieces, headers=headers).status_code == 413


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/nothing", {"message", "type", "param", "code", "hint"}),
        ("/nothing", {"code", "exit", "message", "hint"}),
        ("/t2i/v1/nothing", {"code", "exit", "message", "hint"}),
    ],
)
def test_errors_speak_the_dialect_of_their_path(
    plain: TestClient, locked: TestClient, path: str, shape: set[str]
) -> None:
    for answer, status in ((plain.get(path), 404), (locked.get(path), 401)):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == shape


def test_a_bug_shows_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(Engine, "resolve_requests", broken)
    with client() as server:
        for path in ("/predict", "/t2i/v1/generate", "/v1/images/generations"):
            answer = server.post(path, json=POSTS[path])
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "bug"
            assert "secret" not in answer.text
            assert "Traceback" not in answer.text


@pytest.mark.parametrize("path", [*GETS, "/healthz", "/nothing"])
def test_every_answer_says_how_it_may_be_used(plain: TestClient, path: str) -> None:
    headers = plain.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "no-store" in headers["cache-control"]


def test_the_docs_load_nothing(plain: TestClient) -> None:
    answer = plain.get("/docs")
    assert "POST /v1/images/generations" in answer.text
    assert "negative_prompt" in answer.text
    assert not re.search(r"<script|src=|url\(|//", answer.text)
    assert "script" not in answer.headers["content-security-policy"]


def test_figures_are_told(plain: TestClient) -> None:
    plain.post("/predict", json=POSTS["/predict"])
    text = plain.get("/metrics").text
    assert re.search(r'^t2i_images_total\{outcome="made"\} [1-9]', text, re.MULTILINE)
    assert "\nt2i_ready 1.0\n" in text
    assert "\nt2i_jobs_waiting 0.0\n" in text
    assert "red house" not in text


class WithWorkers(StubBackend):
    """A stub of two workers, of which one was lost."""

    def worker_reports(self) -> list[WorkerReport]:
        """What is told of them."""
        return [
            WorkerReport(number=0, state="busy", node="first", images=3, seconds=1.5),
            WorkerReport(number=1, state="gone", failures=2, losses=1),
        ]


def test_figures_of_workers_have_their_numbers_as_labels() -> None:
    with serving(WithWorkers()) as server:
        text, ready, listed = (
            httpx2.get(f"{server.url}{path}") for path in ("/metrics", "/readyz", "/t2i/v1/workers")
        )
    found = set(re.findall(r"^(t2i_worker_\w+\{.*)$", text.text, re.MULTILINE))
    assert found == {
        *('t2i_worker_images_total{worker="0"} 3.0', 't2i_worker_images_total{worker="1"} 0.0'),
        *('t2i_worker_seconds_total{worker="0"} 1.5', 't2i_worker_seconds_total{worker="1"} 0.0'),
        *('t2i_worker_failures_total{worker="0"} 0.0', 't2i_worker_failures_total{worker="1"} 2.0'),
        *('t2i_worker_losses_total{worker="0"} 0.0', 't2i_worker_losses_total{worker="1"} 1.0'),
        *('t2i_worker_up{worker="0"} 1.0', 't2i_worker_up{worker="1"} 0.0'),
    }
    assert ready.json() == {"status": "ready", "workers": {"busy": 1, "gone": 1}}
    assert [one["node"] for one in listed.json()["workers"]] == ["first", None]


def test_without_workers_none_are_told(plain: TestClient) -> None:
    assert "t2i_worker" not in plain.get("/metrics").text
    assert plain.get("/readyz").json() == {"status": "ready"}
    assert plain.get("/t2i/v1/workers").json() == {"workers": []}


_opened: list[str] = []
sys.addaudithook(lambda event, args: _opened.append(f"{args[0]}") if event == "open" else None)


@pytest.mark.parametrize("field", ["model", "revision", "scheduler"])
def test_no_path_from_a_request_reaches_the_file_system(
    plain: TestClient, tmp_path: Path, field: str
) -> None:
    folder = tiny_models.copy_postcard(tmp_path / "marked")
    _opened.clear()
    for value in (str(folder), f"{folder}/model_index.json", "../../../etc/passwd", "~root"):
        for path, body in POSTS.items():
            if "cancel" in path:
                continue
            asked = {"prompt": "x", field: value}
            answer = plain.post(path, json={"requests": [asked]} if "requests" in body else asked)
            assert answer.status_code in (400, 404), answer.text
    for path in ("/static/", "/v1/images/", "/v1/models/", "/t2i/v1/jobs/"):
        for value in (str(folder), "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..\\x"):
            assert plain.get(f"{path}{value}").status_code in (404, 405)
    assert not [name for name in _opened if "marked" in name or "passwd" in name or "root" in name]


def test_prompts_are_logged_only_where_that_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console()
    for prompts in (False, True):
        console.configure(verbose=True)
        engine = Engine(StubBackend(), "postcard")
        log = ServerLog(console, prompts)
        engine.batcher.observers.append(log)
        log.on_event(MemoryMeasure(name="vae-tiling", reason="to test"))
        with TestClient(create_app(engine, ServerOptions()), base_url="http://localhost") as server:
            assert server.post("/predict", json={"prompt": "a\x1b red house"}).status_code == 400
            assert server.post("/predict", json={"prompt": "a\nred house"}).status_code == 200
        said = capsys.readouterr().err
        assert ("red house" in said) is prompts
        assert re.search(r"^job \S+: 1 made in [\d.]+ s$", said, re.MULTILINE)
        assert "to test: vae-tiling" in said
        assert said.count("\n") == (3 if prompts else 2)


def connection(url: str) -> socket.socket:
    host, _, port = url.rpartition("/")[2].partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def whole(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    return b"".join(iter(lambda: connection.recv(2**16), b""))


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Host": "other.example"}, 403), ({"Authorization": "Bearer wrong"}, 401), ({}, 401)],
)
def test_the_body_of_a_refused_request_is_read_and_not_held(
    headers: dict[str, str], status: int
) -> None:
    """Or whoever may not ask could fill the memory, by bodies that never end."""
    pieces, size = 32, 2**18
    held, statuses = 0, []
    asked = {"Host": "localhost", "Content-Type": "application/json"} | headers
    scope = {
        **{"type": "http", "method": "POST", "path": "/predict", "query_string": b""},
        "headers": [(name.lower().encode(), value.encode()) for name, value in asked.items()],
    }

    async def receive() -> Message:
        nonlocal pieces, held
        held = max(held, tracemalloc.get_traced_memory()[0])
        pieces -= 1
        return {"type": "http.request", "body": bytes(size), "more_body": pieces > 0}

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    engine = Engine(StubBackend(), "postcard")
    app = create_app(engine, ServerOptions(api_key=KEY, max_body=pieces * size))
    tracemalloc.start()
    try:
        asyncio.run(app(scope, receive, send))
    finally:
        tracemalloc.stop()
    assert (statuses[0], pieces) == (status, 0)
    assert held < 4 * size


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.2)
    with serving(StubBackend()) as server, connection(server.url) as slow:
        slow.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"prompt": '
        )
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
        answer = httpx2.post(f"{server.url}/predict", json=POSTS["/predict"], timeout=30)
        assert answer.status_code == 200
