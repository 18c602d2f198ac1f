"""Notes on a request reach whoever sent it, in every dialect and by every backend that asks."""

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from t2i_cli.backend import Backend
from t2i_cli.events import Event, Notice
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.net import response_metadata
from t2i_cli.request import GenerateRequest
from t2i_cli.server.api.predict import LONGEST_NOTE, NOTES_HEADER
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.vertex_container import VertexContainer
from tests import backends
from tests.conftest import T2I
from tests.fakes.serving import Running, serving
from tests.fakes.stub_backend import Noting
from tests.fakes.vertex import FakeVertex, running_vertex

CONTAINER = VertexContainer.from_environment(
    {"AIP_PREDICT_ROUTE": "/go", "AIP_HEALTH_ROUTE": "/up"}
)
ALL = "It is for all."
UNFIT: dict[str, Any] = {"guidance_scale": 1.0, "negative_prompt": "x"}
LEFT_OUT = "The negative prompt cannot act at guidance 1: it needs more than 1. It is left out."


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server whose backend has something to note."""
    with serving(Noting(side=128)) as running:
        yield running


@pytest.fixture(scope="module")
def container() -> Iterator[Running]:
    with serving(Noting(side=128), options=ServerOptions(container=CONTAINER)) as running:
        yield running


def post(server: Running, path: str, body: Mapping[str, object]) -> httpx2.Response:
    answer = httpx2.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def test_openais_dialect_tells_them_beside_each_image(server: Running) -> None:
    body: dict[str, object] = {"prompt": "a star", "n": 2}
    data = post(server, "/v1/images/generations", body).json()["data"]
    assert [image["notes"] for image in data] == [[ALL, "It is: a star"]] * 2
    text = post(server, "/v1/images/generations", body | {"stream": True}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["notes"] for event in events] == [[ALL, "It is: a star"]] * 2


def test_vertexs_dialect_tells_each_instance_its_own(container: Running) -> None:
    instances = [{"prompt": "a star"}, {"prompt": "a moon"} | UNFIT]
    body = {"instances": instances, "parameters": {"lenient": True}}
    predictions = post(container, "/go", body).json()["predictions"]
    # What is left out differs from the start; two passes, each with its note for all.
    assert [sorted(one["notes"]) for one in predictions] == [
        sorted([ALL, "It is: a star"]),
        sorted([ALL, "It is: a moon", LEFT_OUT]),
    ]


def test_predict_tells_them_in_a_header_of_plain_ascii(server: Running) -> None:
    prompt = "héllo ☃ " + "x" * 1000
    answer = post(server, "/predict", {"prompt": prompt, "lenient": True} | UNFIT)
    assert answer.headers[NOTES_HEADER].isascii()
    told = json.loads(answer.headers[NOTES_HEADER])
    assert told == [LEFT_OUT, ALL, f"It is: {prompt}"[:LONGEST_NOTE] + "…"]
    quiet = httpx2.get(f"{server.url}/healthz")
    assert NOTES_HEADER not in quiet.headers


def test_t2is_own_dialect_says_whom_they_are_for(server: Running) -> None:
    asked = {"requests": [{"prompt": "a"}, {"prompt": "b"} | UNFIT], "lenient": True}
    text = post(server, "/t2i/v1/generate", asked).text
    lines = iter(text.splitlines())
    told = [json.loads(next(lines)[6:]) for line in lines if line == "event: note"]
    assert {(note["message"], *note["indices"]) for note in told} == {
        (LEFT_OUT, 1),
        (ALL,),
        ("It is: a", 0),
        ("It is: b", 1),
    }


def told(backend: Backend, *prompts: str) -> list[Notice]:
    """What a run by a backend notes."""
    asked = [GenerateRequest(prompt=prompt) for prompt in prompts]
    spec = backend.describe(asked[0])
    events: list[Event] = []
    requests = [resolve_request(one, spec) for one in asked]
    list(backend.run(requests, events.append, threading.Event()))
    backend.close()
    return [event for event in events if isinstance(event, Notice)]


def test_the_http_backend_hands_them_on_once_to_all_that_they_are_about(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "t2i.toml"))
    notes = told(backends.chosen("http", url=f"{server.url}/v1"), "a", "b", "a")
    assert len(notes) == len(set(notes))
    assert {(note.message, note.indices) for note in notes} == {
        (ALL, (0, 2)),
        (ALL, (1,)),
        ("It is: a", (0, 2)),
        ("It is: b", (1,)),
    }


def test_only_a_t2i_servers_notes_are_told_and_none_draws_on_the_terminal() -> None:
    made: dict[str, object] = {"request": {}, "lock": {}, "seconds": 1}
    assert response_metadata.parse_response_metadata({"notes": ["Buy more."]}).notes == ()
    assert (
        response_metadata.parse_response_metadata({"t2i": made, "notes": "Buy more."}).notes == ()
    )
    [note] = response_metadata.parse_response_metadata(
        {"t2i": made, "notes": ["a\x1b[2J\nb" + "x" * 1000]}
    ).notes
    assert "\x1b" not in note
    assert "\n" not in note
    assert len(note) < 400


@pytest.fixture
def vertex(tmp_path: Path, container: Running) -> Iterator[FakeVertex]:
    """A cloud with our own container behind it."""

    def forward(body: Mapping[str, object]) -> tuple[int, object]:
        answer = httpx2.post(f"{container.url}/go", json=body, timeout=60)
        return answer.status_code, answer.json()

    with running_vertex(tmp_path) as state:
        state.predictor = forward
        yield state


@pytest.mark.parametrize("name", ["http", "vertex"])
def test_generate_shows_them_as_a_run_on_this_machine_does(
    name: str, server: Running, vertex: FakeVertex, t2i: T2I
) -> None:
    if name == "http":
        options: list[str] = ["--url", f"{server.url}/v1"]
    else:
        labels = {"managed-by": "t2i", "t2i-serving": "t2i", "t2i-model": "postcard"}
        options = ["--endpoint", vertex.make_endpoint(labels=labels)]
    run = ("generate", "a star", "-n", "2", "--backend", name, *options)
    done = t2i(*run, env=vertex.environment)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("2 images in ")]
    assert sorted(lines) == sorted(["waiting for the server", ALL, "It is: a star"])
