"""The article's dialect: POST /predict, by its own curl line and with every field."""

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from t2i_cli.errors import (
    ContentFilteredError,
    ModelError,
    OutOfMemoryError,
    StorageError,
    T2IError,
    TimedOutError,
)
from t2i_cli.output import metadata
from t2i_cli.request import ResolvedRequest
from tests.fakes.serving import Running, serving
from tests.fakes.stub_backend import StubBackend

FAILURES: dict[str, T2IError] = {
    "withheld": ContentFilteredError("The safety checker withheld the image."),
    "memory": OutOfMemoryError("The device has too little memory."),
    "slow": TimedOutError("It took too long."),
    "disk": StorageError("The disk is full."),
}
"""What happens to a prompt."""


def fails(request: ResolvedRequest) -> T2IError | None:
    return FAILURES.get(request.prompt)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(StubBackend(fails=fails)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as found:
        yield found


def predict(client: httpx2.Client, **body: object) -> httpx2.Response:
    return client.post("/predict", json=body)


def record(answer: httpx2.Response, tmp_path: Path) -> metadata.ImageMetadata:
    """What the image that was answered says of itself."""
    assert answer.status_code == 200, answer.text
    file = tmp_path / "image"
    file.write_bytes(answer.content)
    return metadata.read_metadata(file)


def refused(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The error that was answered, checked for its kind."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/json")
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code
    assert error["message"]
    return error


def test_the_articles_curl_line(server: Running, tmp_path: Path) -> None:
    line = (
        "curl -X POST -H 'Content-Type: application/json' -d "
        f"""'{{"prompt": "a red star on a white background"}}' {server.url}/predict -o image.jpg"""
    )
    subprocess.run(line, shell=True, cwd=tmp_path, check=True, timeout=60)  # noqa: S602
    with Image.open(tmp_path / "image.jpg") as image:
        assert image.format == "JPEG"
    found = metadata.read_metadata(tmp_path / "image.jpg").request
    assert found["prompt"] == "a red star on a white background"


def test_every_other_field_is_optional(client: httpx2.Client, tmp_path: Path) -> None:
    settings = {
        "negative_prompt": "a circle",
        "model": "postcard",
        "seed": 7,
        "steps": 3,
        "guidance_scale": 2.5,
        "width": 64,
        "height": 128,
        "scheduler": "ddim",
    }
    answer = predict(client, prompt="a star", format="png", **settings)
    assert answer.headers["Content-Type"] == "image/png"
    assert record(answer, tmp_path).request == settings | {"prompt": "a star", "revision": None}


@pytest.mark.parametrize(("format", "kind"), [("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_formats(client: httpx2.Client, format: str, kind: str) -> None:
    answer = predict(client, prompt="a star", format=format)
    assert answer.headers["Content-Type"] == f"image/{format}"
    assert Image.open(io.BytesIO(answer.content)).format == kind


def test_null_is_not_set(client: httpx2.Client, tmp_path: Path) -> None:
    found = record(predict(client, prompt="a star", seed=None, steps=None), tmp_path).request
    assert found["steps"] == 20


def test_whole_numbers_may_be_written_with_a_point(client: httpx2.Client, tmp_path: Path) -> None:
    found = record(predict(client, prompt="a star", seed=7.0, steps=3.0), tmp_path).request
    assert (found["seed"], found["steps"]) == (7, 3)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "a" * 5001}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": "a", "promt": "b"}, "promt"),
        ({"prompt": "a", "format": "gif"}, "format"),
        ({"prompt": "a", "steps": "3"}, "steps"),
        ({"prompt": "a", "steps": True}, "steps"),
        ({"prompt": "a", "steps": 2.5}, "steps"),
        ({"prompt": "a", "steps": 0}, "steps"),
        ({"prompt": "a", "steps": 999}, "steps"),
        ({"prompt": "a", "seed": 2**32}, "seed"),
        ({"prompt": "a", "width": 100}, "width"),
        ({"prompt": "a", "width": 8192, "height": 8192}, "width"),
        ({"prompt": "a", "scheduler": "none"}, "scheduler"),
        ({"prompt": "a", "negative_prompt": "b", "guidance_scale": 1}, "negative_prompt"),
    ],
)
def test_a_wrong_field_is_named(client: httpx2.Client, body: dict[str, object], field: str) -> None:
    assert refused(predict(client, **body), 400, "bad_input")["field"] == field


def test_lenient_leaves_out_what_cannot_be_honoured(client: httpx2.Client, tmp_path: Path) -> None:
    asked = {"prompt": "a", "negative_prompt": "b", "guidance_scale": 1}
    found = record(predict(client, lenient=True, **asked), tmp_path).request
    assert found["negative_prompt"] is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"[" * 100_000,
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "guidance_scale": NaN}',
        b'{"prompt": "a", "guidance_scale": 1e999}',
        b'{"prompt": "a", "guidance_scale": ' + b"9" * 400 + b"}",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "\\ud800": 1}',
        b'{"prompt": "a", "scheduler": "\\ud800"}',
        b"\xff\xfe",
    ],
)
def test_a_body_that_is_none(client: httpx2.Client, body: bytes) -> None:
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    refused(answer, 400, "bad_input")
    # What is answered must be JSON that any reader takes.
    json.loads(answer.content.decode("ascii"))


@pytest.mark.parametrize("field", ["model", "revision"])
def test_only_the_served_model(client: httpx2.Client, field: str) -> None:
    error = refused(predict(client, prompt="a", **{field: "/etc/passwd"}), 404, ModelError.code)
    assert "does not serve" in error["message"]


@pytest.mark.parametrize(
    ("prompt", "status"), [("withheld", 422), ("memory", 503), ("slow", 504), ("disk", 500)]
)
def test_a_failure_has_its_status(client: httpx2.Client, prompt: str, status: int) -> None:
    answer = predict(client, prompt=prompt)
    assert refused(answer, status, FAILURES[prompt].code)["message"] == FAILURES[prompt].message
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert predict(client, prompt="the next one").status_code == 200


def test_only_post(client: httpx2.Client) -> None:
    refused(client.get("/predict"), 405, "bad_input")
