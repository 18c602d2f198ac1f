"""`t2i serve` as a process, with the embedded model: what clients meet, and how it ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from t2i_cli import postcard
from t2i_cli.output import metadata
from t2i_cli.server.options import MAX_BODY_BYTES
from tests.conftest import T2I
from tests.fakes.images_server import running_images
from tests.fakes.serving import serving
from tests.fakes.stub_backend import StubBackend

KEY = "kept-by-the-tests"
LONG = {"requests": [{"prompt": "a red house", "steps": 200, "width": 256, "height": 256}]}


@dataclass
class Server:
    """A running `t2i serve`; `said` is its stderr so far."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=120)

    def connect(self) -> socket.socket:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return socket.create_connection((host, int(port)), timeout=120)

    def figure(self, name: str) -> float:
        text = httpx2.get(f"{self.url}/metrics", timeout=120).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextmanager
def running(
    folder: Path, env: Mapping[str, str], *arguments: str, device: str | None = "cpu"
) -> Iterator[Server]:
    log = folder / "serve.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "t2i_cli", "serve", *arguments),
                *(("--device", device) if device else ()),
            ],
            env=dict(env),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url, log.read_text()
        yield Server(process, url, log)
    finally:
        process.kill()
        process.communicate()


def until(true: Callable[[], object]) -> None:
    limit = time.monotonic() + 120
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    env = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    env |= {"HOME": str(folder), "T2I_CONFIG": str(folder / "t2i.toml")}
    env |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    with running(folder, env, "-m", "postcard", "--port", "0", "-v") as found:
        yield found


def test_it_says_where_it_is_once_it_can_serve(server: Server) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
    with server.client() as http:
        assert http.get("/healthz").status_code == http.get("/readyz").status_code == 200
        assert http.get("/").headers["content-type"].startswith("text/html")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_articles_curl_line_works(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    line = (
        "curl -sS -X POST -H 'Content-Type: application/json' "
        f"""-d '{{"prompt": "a red house on green hills"}}' {server.url}/predict -o {file}"""
    )
    subprocess.run(line, shell=True, check=True, timeout=120)  # noqa: S602 - as a person types it
    with Image.open(file) as image:
        assert image.format == "JPEG"
        assert image.size == (128, 128)
    assert metadata.read_metadata(file).request["prompt"] == "a red house on green hills"
    assert "red house" not in server.said


def test_previews_come_from_the_latents(server: Server) -> None:
    body = {"requests": [{"prompt": "a red house", "steps": 6}], "previews": 2}
    with server.client() as http:
        text = http.post("/t2i/v1/generate", json=body).text
    assert text.count("event: preview\n") == 2
    assert text.count("event: step\n") == 6
    assert text.endswith('event: done\ndata: {"images": 1, "failures": 0}\n\n')
    assert re.search(r'"memory": ?\{"weights_mib": ?\d+, ?"working_mib": ?\d+\}', text)


@pytest.mark.parametrize("how", ["close", "half-close"])
def test_a_client_that_goes_away_frees_the_device(server: Server, how: str) -> None:
    body = json.dumps(LONG).encode()
    passes = server.figure("t2i_pass_seconds_count")
    with server.connect() as gone:
        gone.sendall(
            b"POST /t2i/v1/generate HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        received = b""
        while b'"step": 2,' not in received:
            received += gone.recv(2**16)
        assert server.figure("t2i_images_running") == 1
        if how == "half-close":
            gone.shutdown(socket.SHUT_WR)
            until(lambda: server.figure("t2i_pass_seconds_count") == passes + 1)
    until(lambda: server.figure("t2i_pass_seconds_count") == passes + 1)
    assert server.figure("t2i_images_running") == 0
    with server.client() as http:
        assert http.post("/predict", json={"prompt": "next", "steps": 2}).status_code == 200


def test_a_body_without_end_is_refused(server: Server) -> None:
    with server.connect() as large:
        large.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0
        piece = b"10000\r\n" + b" " * 2**16 + b"\r\n"
        try:
            while sent < 64 * MAX_BODY_BYTES:
                large.sendall(piece)
                sent += 2**16
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 64 * MAX_BODY_BYTES
    with server.client() as http:
        assert http.post("/predict", json={"prompt": "next", "steps": 2}).status_code == 200


def test_sigterm_finishes_what_runs_and_refuses_the_rest(server: Server) -> None:
    with server.client() as http, server.client() as other:
        began = time.monotonic()
        assert other.post("/predict", json={"prompt": "measured", "steps": 10}).status_code == 200
        # About eight seconds on any machine: some work is left to finish, and in time.
        steps = min(200, max(10, int(80 / (time.monotonic() - began))))
        body = {"requests": [{"prompt": "a red house", "steps": steps}]}
        with http.stream("POST", "/t2i/v1/generate", json=body) as answer:
            lines = answer.iter_lines()
            while '"step": 1,' not in next(lines):
                pass
            server.process.send_signal(signal.SIGTERM)
            until(lambda: other.get("/readyz").json() == {"status": "stopping"})
            refused = other.post("/predict", json={"prompt": "too late"})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "terminated"
            assert refused.headers["retry-after"]
            rest = "\n".join(lines)
    assert 'event: done\ndata: {"images": 1, "failures": 0}' in rest
    assert server.process.wait(120) == 0
    assert "Traceback" not in server.said


def test_vertex_runs_it_and_two_signals_end_it_at_once(
    t2i_env: dict[str, str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = t2i_env | {
        "AIP_HTTP_PORT": str(port),
        "AIP_PREDICT_ROUTE": "/v1/endpoints/1:predict",
        "AIP_HEALTH_ROUTE": "/ping",
        "AIP_STORAGE_URI": str(postcard.FOLDER),
        "T2I_API_KEY": "key",
    }
    with running(tmp_path, env) as server:
        assert server.url == f"http://0.0.0.0:{port}"
        with server.client() as http, server.client() as other:
            assert other.get("/ping").status_code == 200
            body = {"instances": [{"prompt": "a red house", "num_inference_steps": 2.0}]}
            answer = other.post("/v1/endpoints/1:predict", json=body)
            assert len(answer.json()["predictions"]) == 1
            with http.stream(
                "POST",
                "/t2i/v1/generate",
                json=LONG,
                headers={"Authorization": "Bearer key"},
            ) as stream:
                lines = stream.iter_lines()
                while '"step": 1,' not in next(lines):
                    pass
                server.process.send_signal(signal.SIGTERM)
                until(lambda: other.get("/ping").status_code == 503)
                server.process.send_signal(signal.SIGTERM)
                rest = "\n".join(lines)
        assert '"code": "terminated"' in rest
        assert server.process.wait(60) == 143


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "needs a key"),  # noqa: S104
        (["--uds", "s", "--port", "1"], "--uds, or --host and --port"),
        (["--api-key-file", "nothing"], "Cannot read the key"),
        (["--api-key-file", "empty"], "holds no key"),
        (["--api-key-file", "open"], "Others can read or change the key in 'open'."),
        (["--api-key-file", "short"], "has fewer than 16 characters"),
        (["--insecure-key-file"], "is for --api-key-file"),
        (["--backend", "http"], "url"),
        (["--cors-origin", "example.org"], "--cors-origin takes a site as browsers name it"),
        (["--allowed-host", "https://example.org"], "without scheme and port"),
    ],
)
def test_what_is_not_safe_or_sound_is_refused_at_once(
    t2i: T2I, tmp_path: Path, arguments: list[str], said: str
) -> None:
    for name, content, mode in (
        ("empty", "\n", 0o600),
        ("open", KEY, 0o604),
        ("short", "k", 0o600),
    ):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(mode)
    result = t2i("serve", "-m", "postcard", *arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert not result.stdout


def test_a_file_in_the_place_of_the_socket_stays(t2i: T2I, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o700)
    (folder / "notes.txt").write_text("precious")
    result = t2i("serve", "-m", "postcard", "--uds", folder / "notes.txt")
    assert result.returncode == 2
    assert "notes.txt' is there, and no socket that t2i left." in result.stderr
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [
        ("notes.txt", "precious")
    ]


def test_another_servers_model_is_its_own(t2i_env: dict[str, str], tmp_path: Path) -> None:
    with serving(StubBackend()) as behind:
        env = t2i_env | {"T2I_MODEL": "sd15"}
        arguments = ["--backend", "http", "--url", f"{behind.url}/v1", "--port", "0"]
        with running(tmp_path, env, *arguments, device=None) as server, server.client() as http:
            assert http.get("/t2i/v1/model").json()["name"] != "sd15"
            assert http.post("/predict", json={"prompt": "a red house"}).status_code == 200
    assert isinstance(behind.backend, StubBackend)
    assert [request.model for request in behind.backend.made] == ["postcard"]


def test_calls_of_another_server_run_beside_each_other_and_end_with_their_client(
    t2i_env: dict[str, str], tmp_path: Path
) -> None:
    body = b'{"prompt": "a star"}'
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with running_images() as other, ExitStack() as clients:
        other.pause = 60
        asked = ("--backend", "http", "--url", other.url, "--concurrency", "2", "--port", "0")
        with running(tmp_path, t2i_env, *asked, device=None) as server:
            waiting = [clients.enter_context(server.connect()) for _ in range(4)]
            waiting[0].sendall(head + body)
            until(lambda: other.in_flight == 1)
            for client in waiting[1:]:
                client.sendall(head + body)
            until(lambda: server.figure("t2i_jobs_waiting") == 2)
            # A job leaves the queue a moment before its call reaches the other server.
            until(lambda: other.in_flight == 2)
            assert server.figure("t2i_images_running") == 2
            waiting[0].close()
            # The other server does not notice who leaves: with the next call it has three.
            until(lambda: other.in_flight == 3)
            assert server.figure("t2i_images_running") == 2
            other.closing.set()
            for client in waiting[1:]:
                with client.makefile("rb") as answer:
                    assert answer.readline().split()[1] == b"200"
    assert len(other.asked) == 4


def test_a_key_file_that_changes_is_read_again(t2i_env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o600)
    with serving(StubBackend()) as behind:
        arguments = ["--backend", "http", "--url", f"{behind.url}/v1", "--port", "0"]
        with (
            running(
                tmp_path, t2i_env, *arguments, "--api-key-file", str(file), device=None
            ) as server,
            server.client() as http,
        ):

            def status(key: str) -> int:
                headers = {"Authorization": f"Bearer {key}"}
                return http.get("/v1/models", headers=headers).status_code

            assert (status(KEY), status("another" * 3)) == (200, 401)
            file.write_text("another" * 3)
            assert status(KEY) == 200
            server.process.send_signal(signal.SIGHUP)
            until(lambda: status("another" * 3) == 200)
            assert status(KEY) == 401
            file.write_text("short")
            server.process.send_signal(signal.SIGHUP)
            until(lambda: "The key stays as it was." in server.said)
            assert status("another" * 3) == 200
            assert "another" not in server.said


def test_vertex_says_where_to_listen(t2i: T2I) -> None:
    result = t2i("serve", "--port", "0", env={"AIP_HTTP_PORT": "8080"})
    assert result.returncode == 2
    assert "AIP_HTTP_PORT" in result.stderr


def test_a_container_answers_to_every_host(t2i: T2I) -> None:
    result = t2i("serve", "--allowed-host", "a.b", env={"AIP_HTTP_PORT": "8080"})
    assert result.returncode == 2
    assert "answers to every host" in result.stderr


def test_no_option_is_advised_that_it_has_not(t2i: T2I) -> None:
    elsewhere = ("--backend", "http", "--url", "http://127.0.0.1:9/v1")
    result = t2i("serve", "-m", "postcard", *elsewhere, "--device", "cpu")
    assert result.returncode == 2
    assert "hint: It is for --backend local or ray." in result.stderr
    assert "--lenient" not in t2i("serve", "--help").stdout


def test_the_key_is_no_argument(t2i: T2I) -> None:
    result = t2i("serve", "--api-key", "secret")
    assert result.returncode == 2
    assert "secret" not in result.stderr.replace("--api-key", "")


def test_a_model_that_is_none_ends_it(t2i: T2I) -> None:
    result = t2i("serve", "-m", "postcart", "--port", "0")
    assert result.returncode == 9
    assert "postcard" in result.stderr
    assert not result.stdout


def test_a_model_that_is_none_is_refused_with_a_hint(t2i: T2I) -> None:
    for options, env in ((("-m", "sd14"), {}), ((), {"T2I_MODEL": "sd14"})):
        done = t2i("serve", "--port", "0", *options, env=env)
        assert done.returncode == 9
        assert "error: The model 'sd14' is unknown." in done.stderr
        assert "hint: Did you mean sd15?" in done.stderr
        assert "Traceback" not in done.stderr
