"""The server as the process of a container: its log for Google's, and a machine without its GPU."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from t2i_cli.cli.commands import serve
from tests.conftest import T2I

SEVERITIES = {"INFO", "WARNING", "ERROR", "CRITICAL"}


@pytest.fixture
def port() -> int:
    with socket.create_server(("", 0)) as free:
        number: int = free.getsockname()[1]
    return number


@contextmanager
def container(env: dict[str, str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`t2i serve` as the entry point of an image, with what Vertex AI sets."""
    variables = {
        "AIP_HTTP_PORT": str(port),
        "AIP_HEALTH_ROUTE": "/up",
        "AIP_PREDICT_ROUTE": "/predict",
        "T2I_MODEL": "postcard",
    }
    command = [sys.executable, "-m", "t2i_cli", "serve"]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command, env=variables | env, stdout=subprocess.PIPE, stderr=stderr
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def entries(log: str) -> list[dict[str, str]]:
    """The entries of a log, each line of which must be one."""
    found = [json.loads(line) for line in log.splitlines()]
    assert all(entry["severity"] in SEVERITIES and entry["message"] for entry in found)
    return found


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"AIP_ACCELERATOR_TYPE": "NVIDIA_L4"}, "AIP_ACCELERATOR_TYPE is 'NVIDIA_L4', and torch"),
        (
            {"T2I_DEVICE": "cuda", "T2I_MODEL": "", "AIP_STORAGE_URI": "gs://nowhere/model"},
            "There is no device 'cuda' here; there is cpu (CPU), since",
        ),
    ],
)
def test_without_its_gpu_it_is_never_healthy_and_says_why(
    t2i_env: dict[str, str], tmp_path: Path, port: int, variables: dict[str, str], says: str
) -> None:
    """It asks no bucket first, and answers on: so Vertex sees a reason, not a process that ends."""
    log = tmp_path / "log"
    with container(t2i_env | variables, port, log) as process:
        body = b""
        ends = time.monotonic() + 100
        while not body and time.monotonic() < ends and process.poll() is None:
            time.sleep(0.2)
            with suppress(httpx2.ConnectError):
                answer = httpx2.get(f"http://127.0.0.1:{port}/up", timeout=60)
                assert answer.status_code == 503
                body = answer.content
        error = json.loads(body)["error"]
        assert says in error["message"]
        assert "T2I_DEVICE=cpu" in error["t2i"]["hint"]
        ready = httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=60)
        assert (ready.status_code, ready.json()) == (503, {"status": "failed"})
        refused = httpx2.post(
            f"http://127.0.0.1:{port}/predict", json={"instances": [{"prompt": "a"}]}, timeout=60
        )
        assert refused.json()["error"]["message"] == error["message"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 2
        assert process.stdout
        assert process.stdout.read() == b""
    told = [(entry["severity"], entry["message"]) for entry in entries(log.read_text())]
    assert [severity for severity, _ in told] == ["ERROR", "INFO"]
    assert says in told[0][1]
    assert f"/up answers 503 with this for {serve.UNHEALTHY_SECONDS:.0f} s" in told[1][1]


def test_an_error_before_it_listens_is_an_entry(t2i: T2I, port: int) -> None:
    env = {"AIP_HTTP_PORT": str(port), "T2I_DEVICE": "quark"}
    done = t2i("serve", env=env)
    (entry,) = entries(done.stderr)
    assert done.returncode == 2
    assert entry["severity"] == "ERROR"
    assert "T2I_DEVICE must be" in entry["message"]
    # Elsewhere it is a sentence for people, and events are what they are.
    assert t2i("serve", env=env | {"AIP_HTTP_PORT": ""}).stderr.startswith("error: T2I_DEVICE")
    assert json.loads(t2i("serve", "--events", env=env).stderr)["event"] == "error"


_SPEAKING = """
import logging, sys, threading, warnings
from t2i_cli.errors import InputError
from t2i_cli.terminal.console import console
console.use_structured_log()
console.note("a note"); console.warn("a warning")
console.error(InputError("an error.", hint="and its hint."))
warnings.warn("deprecated")
print("of a library\\nin two lines", file=sys.stderr)
with console.redirect_stdout():
    print("printed")
logging.getLogger("uvicorn.error").info("not told")
def fail():
    raise ValueError("with a-secret-token in it")
def log():
    try:
        fail()
    except ValueError as raised:
        logging.getLogger("t2i").error("An image %s.", "failed", exc_info=True)
        console.bug(raised)
log()
thread = threading.Thread(target=fail); thread.start(); thread.join()
console.note("x" * 100_000 + "\\u2026" * 10_000 + "the end")
console.result("the result")
fail()
"""


def test_all_that_python_says_is_entries_with_a_severity(t2i_env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SPEAKING],
        env=t2i_env | {"SOME_TOKEN": "a-secret-token"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "the result\n"
    assert "a-secret-token" not in done.stderr
    assert max(map(len, done.stderr.splitlines())) < 2**14  # where container runtimes cut a line
    found = [(entry["severity"], entry["message"]) for entry in entries(done.stderr)]
    assert found[:3] == [
        ("INFO", "a note"),
        ("WARNING", "a warning"),
        ("ERROR", "an error. and its hint."),
    ]
    assert [severity for severity, _ in found[3:]] == [
        *("WARNING", "WARNING", "INFO", "ERROR", "ERROR", "ERROR", "INFO", "CRITICAL")
    ]
    texts = [text for _, text in found[3:]]
    assert "UserWarning: deprecated" in texts[0]
    assert texts[1:3] == ["of a library\nin two lines", "printed"]
    assert texts[3].startswith("An image failed.\nTraceback")
    for traceback in (*texts[3:6], texts[7]):
        assert traceback.endswith("ValueError: with … in it")
        assert "in fail" in traceback
    assert texts[6].endswith("…the end")
