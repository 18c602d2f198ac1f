"""The container contract of Vertex AI: its variables, its routes, its predictions."""

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from PIL import Image

from t2i_cli import postcard
from t2i_cli.errors import ContentFilteredError, InputError, OutOfMemoryError, T2IError
from t2i_cli.events import OnEvent
from t2i_cli.output import metadata
from t2i_cli.request import ResolvedRequest
from t2i_cli.server.options import ServerLimits, ServerOptions
from t2i_cli.server.vertex_container import VertexContainer
from tests.fakes.serving import Running, serving
from tests.fakes.stub_backend import StubBackend
from tests.fakes.vertex import running_vertex

HEALTH = "/v1/endpoints/12/deployedModels/34"
PREDICT = f"{HEALTH}:predict"
"""Vertex's own routes, where none are chosen."""
VARIABLES = {
    "AIP_HTTP_PORT": "8080",
    "AIP_HEALTH_ROUTE": HEALTH,
    "AIP_PREDICT_ROUTE": PREDICT,
    "AIP_STORAGE_URI": "gs://bucket/model",
}
FAILURES: dict[str, T2IError] = {
    "withheld": ContentFilteredError("The safety checker withheld the image."),
    "memory": OutOfMemoryError("The device has too little memory."),
}
"""What happens to a prompt."""


def fails(request: ResolvedRequest) -> T2IError | None:
    return FAILURES.get(request.prompt)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    options = ServerOptions(container=VertexContainer.from_environment(VARIABLES))
    with serving(StubBackend(fails=fails), options=options) as running:
        yield running


def predict(
    server: Running, *instances: Mapping[str, object], route: str = PREDICT, **parameters: object
) -> httpx2.Response:
    body = {"instances": instances} | ({"parameters": parameters} if parameters else {})
    # As Vertex calls it: without a key, by a host of its own.
    return httpx2.post(server.url + route, json=body, headers={"Host": "model-server.local"})


def predictions(answer: httpx2.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"predictions"}
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


def echoed(prediction: dict[str, Any]) -> dict[str, Any]:
    """The resolved request that came with an image."""
    request: dict[str, Any] = prediction["t2i"]["request"]
    return request


def refused(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """t2i's own error in the one that was answered, checked for its kind."""
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == status
    own: dict[str, Any] = error["t2i"]
    assert (own["code"], own["message"]) == (code, error["message"])
    return own


def test_the_contract_is_read_from_the_environment() -> None:
    assert VertexContainer.from_environment(VARIABLES) == VertexContainer(
        port=8080, health_route=HEALTH, predict_route=PREDICT, storage_uri="gs://bucket/model"
    )


def test_without_a_word_of_vertex_there_is_no_container() -> None:
    assert VertexContainer.from_environment({"PATH": "/bin", "AIP_STORAGE_URI": ""}) is None


def test_what_vertex_leaves_empty_is_not_set() -> None:
    found = VertexContainer.from_environment({"AIP_HTTP_PORT": "9000", "AIP_STORAGE_URI": ""})
    assert found == VertexContainer(
        port=9000, health_route="/health", predict_route="/predict", storage_uri=None
    )
    assert VertexContainer.from_environment({"AIP_PREDICT_ROUTE": "/go"}) == VertexContainer(
        port=8080, health_route="/health", predict_route="/go", storage_uri=None
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AIP_HTTP_PORT", "http"),
        ("AIP_HTTP_PORT", "0"),
        ("AIP_HTTP_PORT", "65536"),
        ("AIP_HEALTH_ROUTE", "health"),
        ("AIP_PREDICT_ROUTE", "/{predict}"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str) -> None:
    with pytest.raises(InputError, match=variable):
        VertexContainer.from_environment(VARIABLES | {variable: value})


def test_health_is_good_while_the_model_can_serve(server: Running) -> None:
    assert httpx2.get(server.url + HEALTH).status_code == 200
    server.engine.ready = False
    try:
        assert httpx2.get(server.url + HEALTH).status_code == 503
    finally:
        server.engine.ready = True


def test_a_prediction_is_a_jpeg_that_tells_what_made_it(server: Running, tmp_path: Path) -> None:
    (prediction,) = predictions(predict(server, {"prompt": "a red star"}))
    assert prediction.keys() == {"image", "format", "t2i"}
    file = tmp_path / "image.jpg"
    file.write_bytes(base64.b64decode(prediction["image"], validate=True))
    found = metadata.read_metadata(file)
    assert (prediction["format"], found.format) == ("jpeg", "jpeg")
    assert prediction["t2i"] == {"request": found.request, "lock": found.lock, "seconds": 0.5}


def test_several_instances_are_several_images_in_their_order(server: Running) -> None:
    prompts = ["a star", "a circle", "a heart"]
    found = predictions(predict(server, *({"prompt": prompt} for prompt in prompts)))
    assert [echoed(one)["prompt"] for one in found] == prompts
    assert len({one["image"] for one in found}) == 3


def test_numbers_arrive_as_doubles(server: Running) -> None:
    settings: dict[str, object] = {
        "seed": 7.0,
        "num_inference_steps": 3.0,
        "width": 64.0,
        "height": 128.0,
    }
    (prediction,) = predictions(predict(server, {"prompt": "a"} | settings))
    found = echoed(prediction)
    assert [found[name] for name in ("seed", "steps", "width", "height")] == [7, 3, 64, 128]
    assert not any(isinstance(value, float) for value in (found["seed"], found["steps"]))


def test_a_seed_may_be_text(server: Running) -> None:
    found = predictions(predict(server, {"prompt": "a", "seed": str(2**32 - 1)}, seed="7"))
    assert echoed(found[0])["seed"] == 2**32 - 1


def test_parameters_hold_where_an_instance_says_nothing(server: Running) -> None:
    answer = predict(
        server,
        {"prompt": "a"},
        {"prompt": "b", "num_inference_steps": 5, "format": "webp", "negative_prompt": None},
        steps=3,
        guidance_scale=2,
        negative_prompt="c",
        scheduler="ddim",
        format="png",
    )
    first, second = predictions(answer)
    assert [echoed(one)["steps"] for one in (first, second)] == [3, 5]
    assert [echoed(one)["negative_prompt"] for one in (first, second)] == ["c", "c"]
    assert [echoed(one)["scheduler"] for one in (first, second)] == ["ddim", "ddim"]
    for one, format in ((first, "png"), (second, "webp")):
        image = Image.open(io.BytesIO(base64.b64decode(one["image"])))
        assert (one["format"], image.format) == (format, format.upper())


def test_what_a_client_of_any_container_sends(server: Running) -> None:
    both: dict[str, Any] = {"num_inference_steps": 3, "steps": 3, "seed": 1, "guidance_scale": 2.5}
    instance = {"prompt": "a", "text": "a", **both}
    (prediction,) = predictions(predict(server, instance, **both))
    assert echoed(prediction).items() >= {"prompt": "a", "steps": 3, "guidance_scale": 2.5}.items()
    (prediction,) = predictions(predict(server, {"text": "b"}))
    assert echoed(prediction)["prompt"] == "b"


@pytest.mark.parametrize("seed", [-1, -1.0, "-1"])
def test_a_seed_of_minus_one_is_none(server: Running, seed: object) -> None:
    instance = {"prompt": "a", "seed": seed}
    drawn = [echoed(found)["seed"] for found in predictions(predict(server, instance, instance))]
    assert len(set(drawn)) == 2
    assert min(drawn) >= 0


@pytest.mark.parametrize(
    ("instance", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a", "text": "b"}, "prompt"),
        ({"prompt": "a", "steps": 3, "num_inference_steps": 4}, "steps"),
        ({"prompt": "a", "steps": 2.5}, "instances.1.steps"),
        ({"prompt": "a", "seed": "-2"}, "instances.1.seed"),
        ({"prompt": "a", "seed": -2}, "seed"),
        ({"prompt": "a", "seed": 2.0**32}, "seed"),
        ({"prompt": "a", "sampler": "ddim"}, "instances.1.sampler"),
        ({"prompt": "a", "format": "gif"}, "instances.1.format"),
        ({"prompt": "a", "negative_prompt": "b", "guidance_scale": 1}, "negative_prompt"),
    ],
)
def test_a_wrong_field_is_named(server: Running, instance: dict[str, object], field: str) -> None:
    answer = predict(server, {"prompt": "the first one is good"}, instance)
    assert refused(answer, 400, "bad_input")["field"] == field


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"instances": []}', b'{"instances": {"prompt": "a"}}']
)
def test_a_body_that_is_none(server: Running, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx2.post(server.url + PREDICT, content=content, headers=headers)
    refused(answer, 400, "bad_input")


def test_too_many_instances(server: Running) -> None:
    error = refused(predict(server, *[{"prompt": "a"}] * 11), 400, "bad_input")
    assert error["field"] == "instances"


def test_lenient_leaves_out_what_cannot_be_honoured(server: Running) -> None:
    instance: dict[str, object] = {"prompt": "a", "negative_prompt": "b", "guidance_scale": 1}
    (prediction,) = predictions(predict(server, instance, lenient=True))
    assert echoed(prediction)["negative_prompt"] is None


def test_one_that_fails_leaves_its_neighbours(server: Running) -> None:
    found = predictions(predict(server, {"prompt": "a"}, {"prompt": "withheld"}, {"prompt": "b"}))
    assert found[1] == {"error": FAILURES["withheld"].to_json()}
    assert [echoed(one)["prompt"] for one in (found[0], found[2])] == ["a", "b"]


@pytest.mark.parametrize(("prompt", "status"), [("withheld", 422), ("memory", 503)])
def test_where_all_fail_so_does_the_answer(server: Running, prompt: str, status: int) -> None:
    answer = predict(server, {"prompt": prompt}, {"prompt": prompt})
    refused(answer, status, FAILURES[prompt].code)
    assert ("Retry-After" in answer.headers) == (status == 503)


def test_errors_from_outside_a_route_have_the_same_form(server: Running) -> None:
    big = httpx2.post(
        server.url + PREDICT, content=b"x" * 2**21, headers={"Content-Type": "application/json"}
    )
    assert big.json()["error"]["code"] == big.status_code == 413
    form = httpx2.post(server.url + PREDICT, content=b"prompt=a")
    assert form.json()["error"]["code"] == form.status_code == 415


def test_its_routes_win_over_those_of_the_same_name() -> None:
    variables = VARIABLES | {"AIP_PREDICT_ROUTE": "/predict", "AIP_HEALTH_ROUTE": "/healthz"}
    options = ServerOptions(container=VertexContainer.from_environment(variables))
    with serving(StubBackend(), options=options) as server:
        assert predictions(predict(server, {"prompt": "a"}, route="/predict"))
        assert httpx2.get(f"{server.url}/healthz").content == b""


def test_while_the_model_is_fetched_few_wait_and_not_for_ever() -> None:
    fetched = threading.Event()

    def fetch(on_event: OnEvent) -> str:
        fetched.wait(60)
        return "postcard"

    options = ServerOptions(container=VertexContainer.from_environment(VARIABLES))
    limits = ServerLimits(queue=2, timeout=0.5)
    with serving(StubBackend(), model=fetch, options=options, limits=limits, ready=False) as server:
        try:
            with ThreadPoolExecutor(8) as clients:
                answers = list(clients.map(lambda _: predict(server, {"prompt": "a"}), range(8)))
            late = predict(server, {"prompt": "a"})
        finally:
            fetched.set()
    statuses = sorted(answer.status_code for answer in answers)
    assert (statuses[:2], set(statuses[2:])) == ([429, 429], {429, 504})
    assert {refused(one, 429, "quota")["message"] for one in answers if one.status_code == 429}
    assert all(one.headers["Retry-After"] for one in answers if one.status_code == 429)
    refused(late, 504, "timed_out")


def test_a_key_is_not_vertexs_business() -> None:
    options = ServerOptions(
        container=VertexContainer.from_environment(VARIABLES), api_key="a secret key"
    )
    with serving(StubBackend(), options=options) as server:
        assert predictions(predict(server, {"prompt": "a"}))
        assert httpx2.get(server.url + HEALTH).status_code == 200
        assert httpx2.get(f"{server.url}/v1/models").status_code == 401


def test_the_container_as_vertex_runs_it(t2i_env: dict[str, str], tmp_path: Path) -> None:
    """A process that fetches its model from a bucket while it already listens, and then serves."""
    with running_vertex(tmp_path) as cloud, socket.create_server(("", 0)) as free:
        cloud.require_token = False
        cloud.buckets["models"] = {"name": "models"}
        for path in (path for path in postcard.FOLDER.rglob("*") if path.is_file()):
            name, data = f"here/{path.relative_to(postcard.FOLDER).as_posix()}", path.read_bytes()
            cloud.objects["models", name] = ({"name": name, "size": str(len(data))}, data)
        port = free.getsockname()[1]
        free.close()
        variables = VARIABLES | {
            "AIP_HTTP_PORT": str(port),
            "AIP_STORAGE_URI": "gs://models/here",
            "STORAGE_EMULATOR_HOST": cloud.url,
            "TMPDIR": str(tmp_path),
            "T2I_API_KEY": "key",
        }
        command = [sys.executable, "-m", "t2i_cli", "serve"]
        with (
            (tmp_path / "log").open("w") as log,
            subprocess.Popen(
                command, env=t2i_env | variables, stdout=subprocess.PIPE, stderr=log
            ) as process,
        ):
            try:
                seen = health(f"http://127.0.0.1:{port}{HEALTH}", process)
                sockets = psutil.Process(process.pid).net_connections("inet")
                (place,) = [one.laddr for one in sockets if one.status == psutil.CONN_LISTEN]
                instance = {"prompt": "a red star on a white background", "seed": 1.0, "steps": 2.0}
                with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
                    client.headers["Authorization"] = "Bearer key"
                    answer = client.post(PREDICT, json={"instances": [instance]})
                    wrong = client.post(PREDICT, json={"instances": [instance | {"width": 7}]})
                    told = [client.get(f"/{path}").text for path in ("v1/models", "t2i/v1/model")]
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
    assert seen[-1] == 200
    assert 503 in seen
    # A line that is no such entry is an error to Google's Cloud Logging.
    entries = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert "loading gs://models/here on cpu" in [entry["message"] for entry in entries]
    assert entries[0]["severity"] == "WARNING"
    assert "T2I_API_KEY has fewer than" in entries[0]["message"]
    assert {entry["severity"] for entry in entries[1:]} == {"INFO"}
    assert place == ("0.0.0.0", port)  # noqa: S104 - Vertex's demand
    (prediction,) = predictions(answer)
    assert Image.open(io.BytesIO(base64.b64decode(prediction["image"]))).size == (128, 128)
    assert echoed(prediction)["seed"] == 1
    # The copy's own place is nobody's business, and would differ from replica to replica.
    uri = variables["AIP_STORAGE_URI"]
    assert echoed(prediction)["model"] == prediction["t2i"]["lock"]["model"] == uri
    assert f"which {uri} needs" in refused(wrong, 400, "bad_input")["message"]
    file = tmp_path / "image.jpg"
    file.write_bytes(base64.b64decode(prediction["image"]))
    assert metadata.read_metadata(file).request["model"] == uri
    for text in (answer.text, wrong.text, *told):
        assert str(tmp_path) not in text
    assert all(f'"{uri}"' in text for text in told)
    assert process.returncode == 0
    assert not list(tmp_path.glob("t2i-model-*"))


def health(url: str, process: subprocess.Popen[bytes]) -> list[int]:
    """The statuses that were answered until the first good one."""
    seen = [0]
    while seen[-1] != 200:
        assert process.poll() is None
        time.sleep(0.2)
        with suppress(httpx2.ConnectError):
            seen.append(httpx2.get(url, timeout=60).status_code)
    return seen
