"""`t2i remote generate` and the http backend against a real `t2i serve` with the postcard model."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image, ImageChops

from t2i_cli.output import metadata
from tests.conftest import T2I
from tests.fakes.vertex import FakeVertex
from training.grade import grade_image

KEY = "the-key-of-this-test-alone-0123456789"
PROMPT = "a red star on a white background"


@pytest.fixture
def container(t2i_env: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """Our container's process as Vertex AI runs it; the address it listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {
        "AIP_HTTP_PORT": str(port),
        "AIP_HEALTH_ROUTE": "/health",
        "AIP_PREDICT_ROUTE": "/vertex/predict",
        "T2I_API_KEY": KEY,
        "T2I_MODEL": "postcard",
    }
    command = [sys.executable, "-m", "t2i_cli", "serve"]
    with subprocess.Popen(command, env=t2i_env | variables, cwd=tmp_path) as process:
        url = f"http://127.0.0.1:{port}"
        status = 0
        try:
            while status != 200:
                assert process.poll() is None
                time.sleep(0.2)
                with suppress(httpx2.HTTPError):
                    status = httpx2.get(f"{url}/health", timeout=60).status_code
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


def test_a_picture_over_real_sockets(
    vertex: FakeVertex, container: str, t2i: T2I, tmp_path: Path
) -> None:
    def forward(body: dict[str, Any]) -> tuple[int, Any]:
        answer = httpx2.post(f"{container}/vertex/predict", json=body, timeout=600)
        return answer.status_code, answer.json()

    vertex.predictor = forward
    labels = {"managed-by": "t2i", "t2i-serving": "t2i", "t2i-model": "postcard"}
    env = vertex.environment | {"T2I_VERTEX_ENDPOINT": vertex.make_endpoint(labels=labels)}
    done = t2i("remote", "generate", PROMPT, "-s", "3", "--json", env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["seed_confirmed"] is True
    assert made["device"] == "cpu"
    assert made["libraries"].keys() >= {"t2i", "torch", "diffusers"}
    assert 0 < made["seconds"] <= made["round_trip_seconds"]
    with Image.open(tmp_path / made["path"]) as image:
        grade = grade_image(image.convert("RGB"), PROMPT)
    assert grade.checks["colour"], grade.seen
    assert grade.checks["background"], grade.seen
    # The same server, asked as any server of OpenAI's API is: the same request, the same image.
    url = ("--backend", "http", "--url", f"{container}/v1")
    key = {"T2I_HTTP_API_KEY": KEY}
    other = t2i("generate", PROMPT, "-s", "3", *url, "-o", "http.png", env=key, timeout=600)
    assert other.returncode == 0, other.stderr
    first, second = (metadata.read_metadata(tmp_path / file) for file in (made["path"], "http.png"))
    assert first.request == second.request
    assert (first.lock["backend"], second.lock["backend"]) == ("vertex", "http")
    with Image.open(tmp_path / made["path"]) as one, Image.open(tmp_path / "http.png") as two:
        assert ImageChops.difference(one.convert("RGB"), two.convert("RGB")).getbbox() is None
    # What the model cannot do comes back as the sentence that it is here.
    wrong = t2i("remote", "generate", "x", "--width", "100", "--json", env=env)
    assert json.loads(wrong.stderr)["error"]["field"] == "width"
