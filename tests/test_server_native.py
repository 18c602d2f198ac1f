"""t2i's own dialect: whole requests in, events out, and what the statuses mean."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from t2i_cli.errors import ContentFilteredError, ModelError, OutOfMemoryError, T2IError
from t2i_cli.models.schedulers import usable_scheduler_names
from t2i_cli.output import metadata
from t2i_cli.postcard.vocabulary import EXAMPLES
from t2i_cli.request import ResolvedRequest
from t2i_cli.server import responses
from t2i_cli.server.options import ServerLimits, ServerOptions
from tests.fakes.serving import Running, serving
from tests.fakes.stub_backend import Held, StubBackend

Event = tuple[str, dict[str, Any]]


@contextmanager
def client(server: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as found:
        yield found


def events(answer: httpx2.Response) -> Iterator[Event]:
    """What the stream tells, and ("ping", {}) for its comments."""
    name = ""
    for line in answer.iter_lines():
        if line == ":":
            yield "ping", {}
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def told(server: Running, **body: object) -> list[Event]:
    with (
        client(server) as http,
        http.stream("POST", "/t2i/v1/generate", json=body) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(events(answer))


def test_an_event_is_three_lines_whatever_it_holds() -> None:
    sent = responses.format_sse("image", {"note": "a\r\nb"}, image=responses.RawJson("[1]"))
    assert sent == b'event: image\ndata: {"note": "a\\r\\nb", "image": [1]}\n\n'


def asked(*prompts: str, **fields: object) -> list[Mapping[str, object]]:
    return [{"prompt": prompt, **fields} for prompt in prompts]


def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_the_model_is_described() -> None:
    limits = ServerLimits(images=3, steps=77)
    with serving(StubBackend(), limits=limits, options=ServerOptions(api_key="k")) as server:
        with client(server) as http:
            found = http.get("/t2i/v1/model", headers={"Authorization": "Bearer k"}).json()
    assert found["name"] == "postcard"
    assert (found["steps"], found["guidance_scale"], found["multiple"]) == (20, 2.0, 8)
    assert (found["width"], found["height"]) == (128, 128)
    assert found["schedulers"] == list(usable_scheduler_names(False))
    assert found["formats"] == ["png", "jpeg", "webp"]
    assert found["examples"] == list(EXAMPLES)
    assert found["limits"]["images"] == 3
    assert found["limits"]["steps"] == 77
    assert found["auth"] is found["guidance"] is found["negative_prompt"] is True


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_images_come_whole_with_what_made_them(format: str) -> None:
    with serving(StubBackend(side=48)) as server:
        wish = asked("one", "two", steps=5, seed=7, negative_prompt="rain", scheduler="euler")
        found = told(server, requests=wish, format=format)
    names = [name for name, _ in found]
    assert names == ["accepted", "image", "image", "done"]
    accepted, images, done = found[0][1], [data for _, data in found[1:3]], found[-1][1]
    assert [request["prompt"] for request in accepted["requests"]] == ["one", "two"]
    assert accepted["requests"][0] == images[0]["request"]
    assert done == {"images": 2, "failures": 0}
    for index, data in enumerate(images):
        assert data["index"] == index
        assert data["format"] == format
        assert data["lock"]["libraries"]["t2i"]
        assert data["seconds"] == 0.5
        file = base64.b64decode(data["image"])
        with Image.open(io.BytesIO(file)) as image:
            assert image.size == (48, 48)
            assert image.format == format.upper()
    assert {"seed": 7, "steps": 5, "negative_prompt": "rain", "guidance_scale": 2.0}.items() <= (
        images[0]["request"].items()
    )


def test_an_image_can_be_inspected(tmp_path: Path) -> None:
    with serving(StubBackend()) as server:
        [*_, (_, data), _] = told(server, requests=asked("a red house", seed=3))
    file = tmp_path / "image.png"
    file.write_bytes(base64.b64decode(data["image"]))
    record = metadata.read_metadata(file)
    assert record.request == data["request"]
    assert record.lock["model"] == "postcard"


def test_progress_and_previews_are_told_as_asked() -> None:
    held = Held()
    with serving(held) as server, client(server) as http:
        body = {"requests": asked("a", "b"), "previews": 2}
        with http.stream("POST", "/t2i/v1/generate", json=body) as answer:
            stream = events(answer)
            seen = [next(stream) for _ in range(7)]
            held.go.set()
            rest = list(stream)
    assert seen[1] == ("step", {"indices": [0, 1], "step": 1, "steps": 1000})
    shown = [data for name, data in seen if name == "preview"]
    assert [(data["index"], data["step"]) for data in shown] == [(0, 1), (1, 1), (0, 2), (1, 2)]
    for data in shown:
        head, _, picture = data["image"].partition(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (16, 16)
    assert rest[-1] == ("done", {"images": 2, "failures": 0})
    assert "preview" not in [name for name, _ in rest]


def test_a_failure_is_told_and_the_others_are_made() -> None:
    def fails(request: ResolvedRequest) -> T2IError | None:
        return ContentFilteredError("Withheld.", hint="Try.") if request.prompt == "bad" else None

    with serving(StubBackend(fails=fails)) as server:
        found = told(server, requests=asked("good", "bad"))
    [failure] = [data for name, data in found if name == "failure"]
    assert failure["index"] == 1
    assert failure["request"]["prompt"] == "bad"
    assert failure["error"] == {
        "code": "withheld", "exit": 10, "message": "Withheld.", "hint": "Try."
    }  # fmt: skip
    assert found[-1] == ("done", {"images": 1, "failures": 1})


def test_what_cannot_be_honoured_is_an_error_or_a_note() -> None:
    wish = asked("a", guidance_scale=1.0, negative_prompt="x")
    with serving(StubBackend()) as server:
        with client(server) as http:
            answer = http.post("/t2i/v1/generate", json={"requests": wish})
            assert answer.status_code == 400
            assert answer.json()["error"]["field"] == "negative_prompt"
        found = told(server, requests=wish, lenient=True)
    assert [name for name, _ in found] == ["accepted", "note", "image", "done"]
    assert "negative prompt" in found[1][1]["message"]
    assert found[0][1]["requests"][0]["negative_prompt"] is None


def test_a_seed_of_minus_one_is_none(bodies: httpx2.Client, tmp_path: Path) -> None:
    seeds: set[Any] = set()
    for _ in range(2):
        answer = bodies.post("/t2i/v1/generate", json={"requests": [{"prompt": "a", "seed": -1}]})
        _, accepted = next(events(answer))
        seeds.add(accepted["requests"][0]["seed"])
        image = bodies.post("/predict", json={"prompt": "a", "seed": -1, "format": "png"})
        assert image.status_code == 200
        file = tmp_path / "image.png"
        file.write_bytes(image.content)
        seeds.add(metadata.read_metadata(file).request["seed"])
    assert len(seeds) == 4, "they are drawn at random"
    assert min(seeds) >= 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"requests": [{"prompt": "a", "stepz": 3}]}, "requests.0.stepz"),
        ({"requests": [{"prompt": "a"}], "formt": "png"}, "formt"),
        ({"requests": [{"prompt": "a"}], "format": "gif"}, "format"),
        ({"requests": [{"prompt": "a", "steps": "5"}]}, "requests.0.steps"),
        ({"requests": [{"prompt": "a", "seed": -2}]}, "seed"),
        ({"requests": [{"prompt": " "}]}, "prompt"),
        ({"requests": [{"prompt": "x" * 5001}]}, "prompt"),
        ({"requests": [{"prompt": "a", "width": 100}]}, "width"),
        ({"requests": [{"prompt": "a", "width": 16384, "height": 16384}]}, "width"),
        ({"requests": [{"prompt": "a", "steps": 201}]}, "steps"),
        ({"requests": [{"prompt": "a"}] * 11}, "requests"),
        ({"requests": [{}]}, "requests.0.prompt"),
        ({"requests": []}, "requests"),
        ({}, "requests"),
        ([], None),
        ("{", None),
        ('{"requests": [{"prompt": "a", "guidance_scale": NaN}]}', "guidance_scale"),
        ("[" * 100_000, None),
        (b"\xff", None),
    ],
)
def test_a_wrong_body_is_named(bodies: httpx2.Client, body: object, field: str | None) -> None:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    headers = {"Content-Type": "application/json"}
    answer = bodies.post("/t2i/v1/generate", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.get("field") == field
    assert error["code"] == "bad_input"
    assert error["exit"] == 2


@pytest.fixture(scope="module")
def bodies() -> Iterator[httpx2.Client]:
    with serving(StubBackend()) as server, client(server) as http:
        yield http


def test_another_model_is_not_served(bodies: httpx2.Client) -> None:
    wish = {"requests": asked("a", model="sdxl")}
    answer = bodies.post("/t2i/v1/generate", json=wish)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model"


def test_a_job_can_be_cancelled_by_its_name() -> None:
    held = Held()
    with serving(held) as server, client(server) as http, client(server) as other:
        with http.stream("POST", "/t2i/v1/generate", json={"requests": asked("a")}) as answer:
            stream = events(answer)
            _, accepted = next(stream)
            place = f"/t2i/v1/jobs/{accepted['job']}/cancel"
            assert other.post(place, json={}).status_code == 204
            rest = [event for event in stream if event[0] != "step"]
        assert [name for name, _ in rest] == ["failure", "done"]
        assert rest[0][1]["error"]["code"] == "interrupted"
        assert other.post(place, json={}).status_code == 404
        until(lambda: held.cancelled == 1)
        held.go.set()
        assert told(server, requests=asked("b"))[-1][0] == "done"


def test_a_full_queue_is_429_in_every_dialect() -> None:
    held = Held()
    with serving(held, limits=ServerLimits(queue=0)) as server, client(server) as http:
        body = {"requests": asked("a")}
        with http.stream("POST", "/t2i/v1/generate", json=body) as answer:
            stream = events(answer)
            next(stream)
            with client(server) as other:
                for path, wish in (
                    ("/t2i/v1/generate", body),
                    ("/predict", {"prompt": "a"}),
                    ("/v1/images/generations", {"prompt": "a"}),
                ):
                    refused = other.post(path, json=wish)
                    assert refused.status_code == 429
                    assert int(refused.headers["retry-after"]) >= 1
                    assert refused.json()["error"]["code"] == "quota"
            held.go.set()
            assert list(stream)[-1][0] == "done"


def test_who_waits_long_is_kept_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "KEEPALIVE_INTERVAL", 0.05)
    held = Held()
    with serving(held) as server, client(server) as first, client(server) as second:
        with first.stream("POST", "/t2i/v1/generate", json={"requests": asked("a")}) as running:
            running_events = events(running)
            next(running_events)
            body = {"requests": asked("b")}
            with second.stream("POST", "/t2i/v1/generate", json=body) as waiting:
                stream = events(waiting)
                assert next(stream)[1]["waiting"] == 1
                assert [next(stream)[0] for _ in range(3)] == ["ping"] * 3
                held.go.set()
                assert list(stream)[-1][0] == "done"
            list(running_events)


@dataclass
class Trouble:
    """Fails by what the prompt says."""

    def __call__(self, request: ResolvedRequest) -> T2IError | None:
        match request.prompt:
            case "large":
                return OutOfMemoryError("No memory.")
            case "torn":
                return ModelError("The weights are torn.")
            case "bug":
                raise ZeroDivisionError("secret detail")
        return None


@pytest.mark.parametrize(
    ("prompt", "status"), [("large", 503), ("torn", 500), ("bug", 500), ("fine", 200)]
)
def test_what_fails_has_its_status_and_the_server_goes_on(prompt: str, status: int) -> None:
    with serving(StubBackend(fails=Trouble())) as server, client(server) as http:
        for path in ("/predict", "/v1/images/generations"):
            answer = http.post(path, json={"prompt": prompt})
            assert answer.status_code == status
            assert "secret" not in answer.text
            if status == 503:
                assert answer.headers["retry-after"]
        assert http.post("/predict", json={"prompt": "fine"}).status_code == 200
        assert http.get("/readyz").status_code == 200


def test_what_takes_too_long_is_504_and_cancelled() -> None:
    held = Held()
    with serving(held, limits=ServerLimits(timeout=0.2)) as server, client(server) as http:
        for path in ("/predict", "/v1/images/generations"):
            assert http.post(path, json={"prompt": "slow"}).status_code == 504
        [*_, (name, failure), _] = told(server, requests=asked("slow"))
        assert name == "failure"
        assert failure["error"]["code"] == "timed_out"
        until(lambda: held.cancelled == 3)


def test_ready_means_that_the_model_can_serve() -> None:
    class Slow(StubBackend):
        def __init__(self) -> None:
            super().__init__()
            self.go = threading.Event()

        def load(self, *_: object) -> None:
            assert self.go.wait(60)

    slow = Slow()
    from starlette.testclient import TestClient

    from t2i_cli.server.app import create_app
    from t2i_cli.server.engine import Engine

    app = create_app(Engine(slow, "postcard"), ServerOptions())
    with TestClient(app, base_url="http://localhost") as http:
        assert http.get("/healthz").status_code == 200
        assert http.get("/readyz").status_code == 503
        assert http.get("/readyz").json() == {"status": "loading"}
        slow.go.set()
        assert http.post("/predict", json={"prompt": "a"}).status_code == 200
        assert http.get("/readyz").json() == {"status": "ready"}
