"""The vertex backend against Vertex AI on loopback: what is sent, read, retried and told."""

import base64
import io
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from t2i_cli.backend import Backend, Failure, GeneratedImage
from t2i_cli.backends.vertex import errors, payload
from t2i_cli.backends.vertex.endpoint import Endpoint
from t2i_cli.batch import session
from t2i_cli.batch.manifest import MAIN_MANIFEST
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.plan import SelectionOptions
from t2i_cli.batch.session import BatchConfig
from t2i_cli.errors import (
    AccessError,
    ContentFilteredError,
    InputError,
    ModelError,
    QuotaError,
    RemoteError,
    T2IError,
    TimedOutError,
)
from t2i_cli.events import Notice
from t2i_cli.models import catalog
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.net import retry
from t2i_cli.output import metadata
from t2i_cli.request import GenerateRequest
from t2i_cli.request_fields import FIELDS, OPTIONAL_FIELDS
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.vertex_container import VertexContainer
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import endpoint_store
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.labels import encode_label
from t2i_cli.vertex.location import Location
from tests import backends
from tests.amounts import full
from tests.conftest import T2I
from tests.factories import request
from tests.fakes import vertex as fake
from tests.fakes.serving import serving
from tests.fakes.stub_backend import StubBackend, painted
from tests.fakes.vertex import FakeVertex, Fault, counted, running_vertex
from tests.google_tokens import count_an_old_token
from tests.parallel_runs import check_parallel_runs

HERE = "projects/gallery/locations/us-central1/endpoints/5"
TOKEN = "ya29.secret"  # noqa: S105 - what the fake issues
OPEN: list[Backend] = []
"""The backends of the test that runs."""

Body = dict[str, Any]


def labels(serving: str, model: str = "postcard") -> dict[str, str]:
    """The labels of an endpoint that t2i deployed."""
    return {"managed-by": "t2i", "t2i-serving": serving, "t2i-model": model}


@pytest.fixture
def vertex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVertex]:
    """The cloud, and a home of the test's own that knows the way there."""
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    for name in list(os.environ):
        if name.startswith(("T2I_", "GOOGLE_", "CLOUDSDK_")):
            monkeypatch.delenv(name)
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "t2i.toml"))
    with running_vertex(tmp_path) as state:
        for name, value in state.environment.items():
            monkeypatch.setenv(name, value)
        yield state
    while OPEN:
        OPEN.pop().close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses a thousand times as short."""
    pause = retry._pause
    monkeypatch.setattr(retry, "_pause", lambda *told: pause(*told) / 1000)


def backend(endpoint: str | None = None, **options: Any) -> Backend:  # noqa: ANN401
    """The backend as the command line chooses it."""
    OPEN.append(backends.chosen("vertex", endpoint=endpoint, **options))
    return OPEN[-1]


def make(
    backend: Backend,
    notes: list[str] | None = None,
    *,
    lenient: bool = False,
    **fields: Any,  # noqa: ANN401 - any field
) -> GeneratedImage:
    """One image by the backend; raises its failure."""
    told = [] if notes is None else notes
    asked = GenerateRequest(**{"prompt": "a red star", **fields})
    settled = resolve_request(asked, backend.describe(asked), lenient=lenient, on_note=told.append)
    backend.check(settled)

    def hear(event: object) -> None:
        if isinstance(event, Notice):
            told.append(event.message)

    (outcome,) = backend.run([settled], hear, threading.Event())
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def picture(format: str = "PNG", size: tuple[int, int] = (16, 16), noise: bool = False) -> str:
    """A picture in base64: red, or one that cannot be made smaller."""
    image = Image.new("RGB", size, (200, 30, 30))
    if noise:
        image = Image.frombytes("RGB", size, random.Random(1).randbytes(3 * size[0] * size[1]))  # noqa: S311
    stream = io.BytesIO()
    image.save(stream, format)
    return base64.b64encode(stream.getvalue()).decode()


def predicting(*predictions: object) -> Callable[[Body], tuple[int, Any]]:
    """A container that always predicts the same."""
    return lambda body: (200, {"predictions": list(predictions)})


def as_t2i(body: Body) -> tuple[int, Any]:
    """Our own container: paints at once and says what made the image."""
    (instance,) = body["instances"]
    made = {
        "prompt": instance["prompt"],
        "negative_prompt": instance.get("negative_prompt"),
        "seed": int(instance["seed"]),
        "steps": int(instance["num_inference_steps"]),
        "guidance_scale": instance["guidance_scale"],
        "width": int(instance["width"]),
        "height": int(instance["height"]),
        "scheduler": instance.get("scheduler"),
    }
    size = (made["width"], made["height"])
    image = Image.new("RGB", size, (made["seed"] % 256, made["seed"] // 256 % 256, 0))
    stream = io.BytesIO()
    image.save(stream, instance["format"])
    lock = {"backend": "local", "model": "postcard", "device": "cuda:0", "measures": []}
    entry = {
        "image": base64.b64encode(stream.getvalue()).decode(),
        "format": instance["format"],
        "t2i": {"request": made, "lock": lock, "seconds": 0.25},
    }
    return 200, {"predictions": [entry]}


@pytest.mark.parametrize("looked_up", [False, True])
@pytest.mark.parametrize("fault", [Fault(status=503), Fault(status=429), Fault(stall=0.05)])
@pytest.mark.usefixtures("hasty")
def test_a_token_that_is_not_issued_for_the_moment(
    vertex: FakeVertex, fault: Fault, looked_up: bool
) -> None:
    name = vertex.make_endpoint()
    if looked_up:
        endpoint_store.remember_endpoint(EndpointRecord(name=name, dns=""))
    vertex.faults = [replace(fault, where="/token", times=2)]
    make(backend(name, retries=2))
    # Each try is one request: google-auth's own would not know of --retries.
    assert counted(vertex)["POST token"] == 3
    vertex.faults = [replace(fault, where="/token", times=9)]
    with pytest.raises(RemoteError) as caught:
        make(backend(name, retries=1))
    assert "tried 2 times" in str(caught.value.hint)
    assert counted(vertex)["POST token"] == 5


@pytest.mark.parametrize("times", [1, 9])
@pytest.mark.usefixtures("hasty")
def test_a_token_that_is_refused_is_renewed_once(
    vertex: FakeVertex, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    name = vertex.make_endpoint(labels=labels("t2i"))
    count_an_old_token(monkeypatch)
    vertex.faults = [Fault(where="predict", status=401, body={}, times=times)]
    if times == 1:
        make(backend(name, retries=5))
    else:
        with pytest.raises(AccessError, match="refuses these credentials"):
            make(backend(name, retries=5))
    assert counted(vertex)["POST predict"] == 2
    assert counted(vertex)["POST token"] == 2


def test_a_token_within_the_timeout(vertex: FakeVertex) -> None:
    vertex.faults = [Fault(where="/token", stall=30, times=9)]
    for looked_up in (False, True):
        if looked_up:
            endpoint_store.remember_endpoint(EndpointRecord(name=HERE, dns=""))
        with pytest.raises(TimedOutError, match="Google did not answer in time"):
            make(backend(HERE, timeout=0.5))


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refused_credential_is_not_tried_again(vertex: FakeVertex, status: int) -> None:
    body = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
    vertex.faults = [Fault(where="/token", status=status, body=body, times=9)]
    for looked_up in (False, True):
        if looked_up:
            endpoint_store.remember_endpoint(EndpointRecord(name=HERE, dns=""))
        with pytest.raises(AccessError, match=r"refuses these credentials \(invalid_grant\)\.$"):
            make(backend(HERE))
    assert counted(vertex) == {"POST token": 2}


def test_our_own_container(vertex: FakeVertex) -> None:
    vertex.predictor = as_t2i
    name = vertex.make_endpoint(labels=labels("t2i"))
    made = make(backend(name), seed=4_294_967_295, negative_prompt="rain", scheduler="euler")
    settings = {
        "negative_prompt": "rain",
        "seed": 4294967295.0,
        "num_inference_steps": 20.0,
        "guidance_scale": catalog.MODELS["postcard"].guidance_scale,
        "width": 128.0,
        "height": 128.0,
        "scheduler": "euler",
    }
    instance = {"prompt": "a red star", "text": "a red star", **settings, "format": "png"}
    assert vertex.predictions == [{"instances": [instance], "parameters": settings}]
    local = resolve_request(
        GenerateRequest(
            **{"prompt": "a red star", "model": "postcard", "seed": 4_294_967_295},  # type: ignore[arg-type]
            negative_prompt="rain",
            scheduler="euler",
        ),
        backends.chosen().describe(GenerateRequest(prompt="x", model="postcard")),
    )
    assert made.request.to_json() == local.to_json()
    assert made.info.backend == "vertex"
    assert (made.info.endpoint, made.info.deployed_model) == (name, "77")
    assert (made.info.device, made.info.seed_confirmed) == ("cuda:0", True)
    assert made.seconds == 0.25
    assert made.round_trip
    assert made.image.size == (128, 128)


def test_our_own_container_as_it_is(vertex: FakeVertex) -> None:
    variables = {"AIP_HTTP_PORT": "80", "AIP_PREDICT_ROUTE": "/go", "AIP_HEALTH_ROUTE": "/up"}
    fails = {"gone": ContentFilteredError("The checker withheld it.", hint="Reword.")}
    stub = StubBackend(fails=lambda request: fails.get(request.prompt))
    options = ServerOptions(container=VertexContainer.from_environment(variables))
    with serving(stub, options=options) as server:

        def forward(body: Body) -> tuple[int, Any]:
            answer = httpx2.post(f"{server.url}/go", json=body, timeout=60)
            return answer.status_code, answer.json()

        vertex.predictor = forward
        name = vertex.make_endpoint(labels=labels("t2i"))
        fields: Any = {"negative_prompt": "rain", "seed": 9, "steps": 5, "guidance_scale": 2.5}
        made = make(backend(name), **fields, width=16, height=16, scheduler="euler")
        (arrived,) = stub.made
        assert arrived.to_json() == made.request.to_json()
        assert made.info.seed_confirmed is True
        assert made.image.tobytes() == painted(0, arrived).image.tobytes()
        with pytest.raises(ContentFilteredError, match="The checker withheld it") as caught:
            make(backend(name), prompt="gone")
        assert caught.value.hint == "Reword."
        with pytest.raises(ModelError):
            make(backend(vertex.make_endpoint(), serving="t2i"), model="sd15")


@pytest.mark.parametrize(
    ("serving", "refused"),
    [
        ("t2i", {"revision"}),
        ("torchserve", {"revision", "scheduler", "quantize"}),
        ("model-garden", {"revision", "seed", "scheduler", "quantize"}),
        (None, set(OPTIONAL_FIELDS)),
    ],
)
@pytest.mark.parametrize("by", ["label", "option"])
def test_what_each_serving_honours(
    vertex: FakeVertex, serving: str | None, refused: set[str], by: str
) -> None:
    labelled = labels(serving) if serving and by == "label" else None
    name = vertex.make_endpoint(labels=labelled)
    options = {"serving": serving} if by == "option" else {}
    fields: dict[str, Any] = {
        **{"negative_prompt": "x", "seed": 1, "steps": 9, "guidance_scale": 4.0, "width": 64},
        **{"height": 32, "scheduler": "euler", "revision": "main"},
        "quantize": "int8",
    }
    for field, value in fields.items():
        if field not in refused:
            continue
        with pytest.raises(InputError, match=f"takes no {field.replace('_', ' ')}: ") as caught:
            make(backend(name, **options), **{field: value})
        assert caught.value.field == field
        assert ("--serving t2i, model-garden" in caught.value.message) == (serving is None)
    notes: list[str] = []
    vertex.predictor = predicting(picture(size=(64, 32)))
    made = make(backend(name, **options), notes, lenient=True, **fields)
    (sent,) = vertex.predictions
    honoured = {FIELDS[field].vertex or field for field in fields.keys() - refused}
    assert set(sent.get("parameters", {})) == honoured
    assert set(sent["instances"][0]) - {"format"} == honoured | {"prompt", "text"}
    assert sum(note.endswith("It is left out.") for note in notes) == len(refused & fields.keys())
    assert made.info.seed_confirmed is False
    for field in ("steps", "guidance_scale", "width", "height", "scheduler"):
        assert (getattr(made.request, field) is None) == (field in refused)


def test_an_image_of_another_size_is_not_recorded_as_asked(vertex: FakeVertex) -> None:
    vertex.predictor = predicting(picture(size=(48, 32)))
    name = vertex.make_endpoint(labels=labels("t2i"))
    with pytest.raises(RemoteError, match="makes 48x32 where 64x32 is asked for") as caught:
        make(backend(name), width=64, height=32)
    assert caught.value.hint == "Ask for 48x32, or leave the size out."


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "form",
    [
        lambda text: text,
        lambda text: {"output": text},
        lambda text: {"image": text},
        lambda text: {"b64_json": text},
        lambda text: {"bytesBase64Encoded": text, "mimeType": "image/png"},
        lambda text: {"images": [text, text]},
        lambda text: [text, text],
    ],
)
def test_every_known_form_of_a_prediction(
    vertex: FakeVertex, format: str, form: Callable[[str], object]
) -> None:
    vertex.predictor = predicting(form(picture(format)), form(picture(format)))
    image = make(backend(vertex.make_endpoint())).image
    assert (image.mode, image.size) == ("RGB", (16, 16))
    red, green, _ = image.getpixel((8, 8))  # type: ignore[misc]
    assert red > 150 > green


@pytest.mark.parametrize(
    ("predictions", "more"),
    [
        ([picture()], 0),
        ([{"image": picture(), "output": picture()}], 0),
        ([picture(), picture()], 1),
        ([{"images": [picture(), picture(), picture()]}], 2),
        ([[picture(), picture()], {"output": picture()}], 2),
        ([picture(), {"error": ContentFilteredError("No!").to_json()}], 0),
    ],
)
def test_images_that_nobody_asked_for_are_told_of(
    vertex: FakeVertex, predictions: list[object], more: int
) -> None:
    vertex.predictor = predicting(*predictions)
    notes: list[str] = []
    make(backend(vertex.make_endpoint()), notes)
    sentence = f"with {more + 1} images where one is asked for: the first is kept, {more} not."
    assert notes == [f"The endpoint answers {sentence}"] * bool(more)


def test_each_image_that_is_asked_for_is_an_instance_of_its_own(
    vertex: FakeVertex, t2i: T2I, tmp_path: Path
) -> None:
    vertex.predictor = as_t2i
    name = vertex.make_endpoint(labels=labels("t2i"))
    env = vertex.environment | {"T2I_VERTEX_ENDPOINT": name}
    done = t2i("remote", "generate", "a star", "-s", "7", "-n", "3", "--size", "16x16", env=env)
    assert done.returncode == 0, done.stderr
    asked = [len(body["instances"]) for body in vertex.predictions]
    assert asked == [1, 1, 1]
    colours = set()
    for line in done.stdout.splitlines():
        with Image.open(tmp_path / line) as image:
            colours.add(image.getpixel((0, 0)))
    assert colours == {(7, 0, 0), (8, 0, 0), (9, 0, 0)}
    assert "where one is asked for" not in done.stderr


def test_an_endpoint_of_the_article_s_notebook(vertex: FakeVertex) -> None:
    def handler(body: Body) -> tuple[int, Any]:
        # ts.context hands the handler each instance alone; parameters never arrive.
        prompts = [instance["prompt"] for instance in body["instances"]]
        return 200, {"predictions": [picture("JPEG", (512, 512)) for _ in prompts]}

    vertex.predictor = handler
    made = make(backend(vertex.make_endpoint(dedicated=False)))
    assert vertex.predictions == [
        {"instances": [{"prompt": "a red star", "text": "a red star"}]},
    ]
    assert made.image.size == (512, 512)
    assert made.request.model == "endpoints/1001"
    assert made.request.steps is made.request.width is None


@pytest.mark.parametrize(
    ("predictions", "kind", "sentence"),
    [
        ([], RemoteError, "no image: neither"),
        ([{"label": 1}], RemoteError, "no image: neither"),
        ([None], RemoteError, "no image: neither"),
        ([picture()[:40]], RemoteError, "cut off"),
        (["aGVsbG8="], RemoteError, "no PNG, JPEG or WebP"),
        (
            [{"error": ContentFilteredError("The checker withheld it.", hint="Reword.").to_json()}],
            ContentFilteredError,
            r"The checker withheld it\.",
        ),
    ],
)
def test_predictions_that_are_no_image(
    vertex: FakeVertex, predictions: list[object], kind: type[T2IError], sentence: str
) -> None:
    vertex.predictor = predicting(*predictions)
    with pytest.raises(kind, match=sentence) as caught:
        make(backend(vertex.make_endpoint()))
    assert caught.value.hint
    assert len(vertex.predictions) == 1


def test_where_the_endpoint_comes_from(
    vertex: FakeVertex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no endpoint to call") as none:
        make(backend())
    assert "t2i remote deploy" in str(none.value.hint)
    names = [vertex.make_endpoint() for _ in range(4)]
    numbers = [name.split("/")[-1] for name in names]

    def called(**options: str) -> str:
        return str(make(backend(**options)).info.endpoint).split("/")[-1]

    endpoint_store.remember_endpoint(EndpointRecord(name=names[0], dns=""), current=True)
    assert called() == numbers[0]
    (tmp_path / "t2i.toml").write_text(f'vertex_endpoint = "{numbers[1]}"\n')
    assert called() == numbers[1]
    monkeypatch.setenv("T2I_VERTEX_ENDPOINT", names[2])
    assert called() == numbers[2]
    assert called(endpoint=numbers[3]) == numbers[3]
    assert called(endpoint=names[3]) == numbers[3]
    with pytest.raises(AccessError):
        called(endpoint=numbers[3], project="another")
    with pytest.raises(RemoteError):
        called(endpoint=numbers[3], region="europe-west4")


def test_the_host_of_each_kind_of_endpoint() -> None:
    place = Location(project="p", region="r-east1")
    name = "projects/p/locations/r-east1/endpoints/9"

    def url(dns: str | None, api_endpoint: str | None = None) -> str:
        where = Location(project="p", region="r-east1", api_endpoint=api_endpoint)
        return Endpoint(location=where, record=EndpointRecord(name=name, dns=dns), serving=None).url

    assert url("") == f"https://r-east1-aiplatform.googleapis.com/v1/{name}:predict"
    assert url("9.r-1.prediction.vertexai.goog") == (
        f"https://9.r-1.prediction.vertexai.goog/v1/{name}:predict"
    )
    assert url("9.r-1.prediction.vertexai.goog", "https://gateway.example/") == (
        f"https://gateway.example/v1/{name}:predict"
    )
    assert place.host("aiplatform") == "https://r-east1-aiplatform.googleapis.com"


def test_the_host_of_a_dedicated_endpoint_is_given_by_hand(vertex: FakeVertex) -> None:
    host = "1234567890.us-central1-987654321.prediction.vertexai.goog"
    name = "projects/gallery/locations/us-central1/endpoints/1234567890"
    chosen = backend(name, api_endpoint=f"https://{host}", serving="t2i")
    settled = resolve_request(
        GenerateRequest(prompt="x"), chosen.describe(GenerateRequest(prompt="x"))
    )
    assert chosen.estimate(settled)["url"] == f"https://{host}/v1/{name}:predict"
    assert endpoint_store.find_record(name) is None
    assert not counted(vertex)


def test_plain_http_is_for_loopback_only(vertex: FakeVertex) -> None:
    with pytest.raises(InputError, match="--api-endpoint must be a URL with https://"):
        make(backend("1", api_endpoint="http://8.8.8.8:80"))
    make(backend(vertex.make_endpoint(), api_endpoint=vertex.url.replace("127.0.0.1", "localhost")))


def test_the_dns_name_is_looked_up_once(vertex: FakeVertex) -> None:
    name = vertex.make_endpoint(labels=labels("t2i"))
    number = name.split("/")[-1]
    vertex.predictor = as_t2i
    for _ in range(3):
        make(backend(number))
    assert counted(vertex) == {f"GET {number}": 1, "POST predict": 3, "POST token": 3}
    (entry,) = endpoint_store.list_records()
    assert entry.dns == f"{number}.us-central1-123456789.prediction.vertexai.goog"
    assert (entry.serving, entry.model, entry.replicas) == ("t2i", "postcard", 1)


def test_predict_permission_alone_is_enough_where_the_rest_is_known(vertex: FakeVertex) -> None:
    name = vertex.make_endpoint()
    vertex.granted = {"aiplatform.endpoints.predict"}
    endpoint_store.remember_endpoint(EndpointRecord(name=name, dns="x.prediction.vertexai.goog"))
    make(backend(name))
    assert counted(vertex) == {"POST predict": 1, "POST token": 1}
    # Nothing is known of this one: it may be a shared endpoint, and then the call goes through.
    other = vertex.make_endpoint(dedicated=False)
    make(backend(other))
    assert endpoint_store.find_record(other) is None
    vertex.faults = [Fault(status=400, body={"error": {"message": "Use the dedicated domain."}})]
    with pytest.raises(InputError, match=r"refuses the request: Use the dedicated") as caught:
        make(backend(other))
    assert "aiplatform.endpoints.get" in str(caught.value.hint)
    assert "--api-endpoint https://ITS-DNS-NAME" in str(caught.value.hint)


def test_a_home_that_cannot_be_written_to_is_no_failure(
    vertex: FakeVertex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert make(backend(vertex.make_endpoint())).image.size


def test_the_model_of_the_endpoint(vertex: FakeVertex) -> None:
    vertex.predictor = as_t2i
    sdxl = encode_label("stabilityai/stable-diffusion-xl-base-1.0")
    ours = vertex.make_endpoint(labels=labels("t2i", sdxl))
    with pytest.raises(ModelError, match="has stabilityai/stable-diffusion-xl-base-1.0, not sd15"):
        make(backend(ours), model="sd15")
    made = make(backend(ours), model="sdxl", width=64, height=64)
    assert made.request.model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert made.request.steps == 30
    # It was compared here: what the container calls weights from a bucket is its own affair.
    assert "model" not in vertex.predictions[-1]["instances"][0]
    make(backend(vertex.make_endpoint(), serving="t2i"), model="sdxl", width=64, height=64)
    assert vertex.predictions[-1]["instances"][0]["model"] == made.request.model
    cut = vertex.make_endpoint(labels=labels("t2i", "stabilityai_2fstable_xabcdef01"))
    assert make(backend(cut), model="sdxl", width=64, height=64).request.steps == 30
    with pytest.raises(ModelError, match="has stabilityai/stable…, not sd15"):
        make(backend(cut), model="sd15")
    vertex.predictor = predicting(picture())
    other = vertex.make_endpoint()
    made = make(backend(other, serving="model-garden"), model="sd15")
    assert made.request.steps == 30
    assert vertex.predictions[-1]["parameters"]["num_inference_steps"] == 30


def test_an_endpoint_that_is_not_there(vertex: FakeVertex) -> None:
    first = vertex.make_endpoint().split("/")[-1]
    for _ in range(2):
        vertex.make_endpoint()
    expected = f"There is no endpoint 999 in gallery, us-central1; there is {first} (an endpoint)"
    with pytest.raises(RemoteError) as caught:
        make(backend("999"))
    assert caught.value.message.startswith(expected)
    assert caught.value.message.count("(an endpoint)") == 3
    # One that was remembered, and is gone now.
    name = "projects/gallery/locations/us-central1/endpoints/998"
    endpoint_store.remember_endpoint(EndpointRecord(name=name, dns=""))
    with pytest.raises(RemoteError, match="There is no endpoint 998"):
        make(backend(name))
    assert endpoint_store.find_record(name) is None
    # A 404 that says nothing about the endpoint.
    here = "projects/gallery/locations/us-central1/endpoints/" + first
    endpoint_store.remember_endpoint(EndpointRecord(name=here, dns=""), current=True)
    vertex.faults = [fake.not_found()]
    with pytest.raises(RemoteError, match=f"endpoint {first} is in .* does not know it") as odd:
        make(backend(here))
    assert "`t2i remote use" in str(odd.value.hint)
    vertex.granted = {"aiplatform.endpoints.predict"}
    vertex.faults = [fake.not_found()]
    with pytest.raises(RemoteError):
        make(backend(here))
    assert endpoint_store.current_endpoint() == EndpointRecord(name=here, dns="")
    with pytest.raises(RemoteError, match=r"no endpoint 998 in gallery, us-central1\.$") as blind:
        make(backend(name))
    assert "t2i remote list" in str(blind.value.hint)


T2I_ERROR = {"error": {"code": 422, "message": "No.", "t2i": ContentFilteredError("No!").to_json()}}
WRAPPED = {"error": {"code": 400, "message": json.dumps(T2I_ERROR), "status": "INVALID_ARGUMENT"}}


@pytest.mark.parametrize(
    ("fault", "kind", "sentence", "tries"),
    [
        (fake.bad_request(), InputError, r"refuses the request: steps must be a number\.", 1),
        (Fault(status=422, body=T2I_ERROR), ContentFilteredError, "No!", 1),
        (Fault(status=400, body=WRAPPED), ContentFilteredError, "No!", 1),
        (
            Fault(status=504, body={"error": {"t2i": TimedOutError("Over.", hint="x").to_json()}}),
            TimedOutError,
            r"^Over\.$",
            1,
        ),
        (fake.forbidden(), AccessError, r"permission aiplatform\.endpoints\.predict is", 1),
        (Fault(status=401, body={}), AccessError, "refuses these credentials", 1),
        (fake.not_found(), RemoteError, "The endpoint 1001 is in .* does not know it", 1),
        (fake.handler_exception(), RemoteError, "handler failed: Prediction failed", 1),
        (Fault(status=500, body={"error": {"message": "Oh"}}), RemoteError, "status 500. Oh", 1),
        (fake.truncated_base64(), RemoteError, "cut off", 1),
        (fake.not_an_image(), RemoteError, "no PNG, JPEG or WebP", 1),
        (fake.quota(), QuotaError, "no room for the call. Quota exceeded for aiplatform", 3),
        (fake.quota(retry_after=1), QuotaError, "no room for the call", 3),
        (fake.overloaded(), RemoteError, "overloaded. The service is currently", 3),
        (Fault(status=502, body="x"), RemoteError, "cannot be reached", 3),
        (fake.cut_off(), RemoteError, r"connection to 127.0.0.1:\d+ broke", 3),
        (Fault(stall=0.05), RemoteError, r"connection to 127.0.0.1:\d+ broke", 3),
    ],
)
@pytest.mark.usefixtures("hasty")
def test_each_failure_is_one_sentence_and_tried_again_if_that_helps(
    vertex: FakeVertex, fault: Fault, kind: type[T2IError], sentence: str, tries: int
) -> None:
    name = vertex.make_endpoint(labels=labels("t2i"))
    fault.times = 9
    vertex.faults = [fault]
    with pytest.raises(kind, match=sentence) as caught:
        make(backend(name, retries=2))
    assert "\n" not in caught.value.message
    assert TOKEN not in f"{caught.value.message}{caught.value.hint}"
    assert counted(vertex)["POST predict"] == tries
    assert 9 - fault.times == tries
    if tries > 1:
        assert "tried 3 times" in str(caught.value.hint)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "faults", [[fake.quota(times=2)], [fake.overloaded(2)], [fake.asleep(2)], [fake.cut_off()]]
)
def test_what_passes_is_got_over(vertex: FakeVertex, faults: list[Fault]) -> None:
    vertex.faults, notes = faults, list[str]()
    times = faults[0].times
    make(backend(vertex.make_endpoint()), notes)
    assert counted(vertex)["POST predict"] == times + 1
    assert notes == [errors.WAKING] * (faults[0].body == fake.asleep().body)


@pytest.mark.usefixtures("hasty")
def test_an_endpoint_that_wakes_is_given_time(vertex: FakeVertex) -> None:
    vertex.faults = [fake.asleep(7)]
    make(backend(vertex.make_endpoint(), retries=0))
    assert counted(vertex)["POST predict"] == 8


NOT_READY = "Model is not yet ready for inference. Please wait and then try your request again."


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (429, "text/plain", NOT_READY.encode()),
        (429, "text/plain; charset=utf-8", f"  {NOT_READY.upper()}\n".encode()),
        (429, "application/json", json.dumps(NOT_READY).encode()),
        (429, "application/json", json.dumps({"error": NOT_READY}).encode()),
        (429, "application/json", NOT_READY.encode()),
        (429, "", f"{'x ' * 200}{NOT_READY}".encode()),
        (429, "text/html", f"<html><title>429</title><p>{NOT_READY}</p></html>".encode()),
        (503, "text/plain", NOT_READY.encode()),
    ],
)
def test_a_waking_endpoint_may_say_so_in_any_form(
    vertex: FakeVertex, status: int, kind: str, body: bytes
) -> None:
    vertex.faults = [Fault(status=status, headers={"Content-Type": kind}, body=body, times=7)]
    notes: list[str] = []
    make(backend(vertex.make_endpoint(), retries=0), notes)
    assert counted(vertex)["POST predict"] == 8
    assert notes == [errors.WAKING]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (503, b"no healthy upstream", "The endpoint is overloaded. no healthy upstream."),
        (503, b"", "The endpoint is overloaded."),
        (429, b"", "The endpoint or its quota has no room for the call."),
        (502, b"<html><h1>Bad gateway</h1></html>", "cannot be reached. Bad gateway."),
        (502, b"", "The endpoint cannot be reached."),
        (500, b'"It burns"', "The endpoint failed with status 500. It burns."),
        (500, b"", "The endpoint failed with status 500."),
        (400, b"", "The endpoint refuses the request: status 400."),
        (403, b"Forbidden by the gateway", "Google says: Forbidden by the gateway."),
    ],
)
def test_a_text_in_place_of_json_is_told(
    vertex: FakeVertex, status: int, body: bytes, sentence: str
) -> None:
    headers = {"Content-Type": "text/plain"}
    vertex.faults = [Fault(status=status, headers=headers, body=body, times=9)]
    with pytest.raises(T2IError) as caught:
        make(backend(vertex.make_endpoint(), retries=0))
    assert caught.value.message.endswith(sentence)


@pytest.mark.parametrize("dedicated", [False, True])
def test_an_image_that_is_too_large(vertex: FakeVertex, dedicated: bool) -> None:
    # Noise is the worst there is: three bytes a pixel in a PNG.
    size = (1700, 1700) if dedicated else (700, 700)
    asked: dict[str, Any] = {"width": size[0] // 8 * 8, "height": size[1] // 8 * 8}
    vertex.predictor = predicting(picture(size=size, noise=True))
    name = vertex.make_endpoint(dedicated=dedicated, labels=labels("t2i"))
    with pytest.raises(InputError) as caught:
        make(backend(name), **asked)
    limit = "10 MB" if dedicated else "1.5 MB"
    assert caught.value.message == (
        f"The image is larger, in base64 of png, than the {limit} that the endpoint may answer "
        "with."
    )
    assert str(caught.value.hint).startswith("--format jpeg fits.")
    assert ("makes a dedicated endpoint" in str(caught.value.hint)) == (not dedicated)
    garden = vertex.make_endpoint(dedicated=dedicated, labels=labels("model-garden"))
    with pytest.raises(InputError) as other:
        make(backend(garden), **asked)
    assert str(other.value.hint).startswith("A smaller --size fits.")


def test_the_format_for_the_way(vertex: FakeVertex) -> None:
    small, large = request(width=512, height=512), request(width=1024, height=1024)
    shared, dedicated = payload.SHARED_LIMIT, payload.DEDICATED_LIMIT
    assert payload.choose_transfer_format(small, "jpeg", shared) == "png"
    assert payload.choose_transfer_format(large, "png", shared) == "png"
    assert payload.choose_transfer_format(large, "jpeg", shared) == "jpeg"
    assert payload.choose_transfer_format(large, "jpeg", dedicated) == "png"
    assert payload.smaller_format(large, "png", shared) == "jpeg"
    assert payload.smaller_format(request(width=1328, height=1328), "png", shared) == "webp"
    assert payload.smaller_format(request(width=2048, height=2048), "png", shared) is None
    vertex.predictor = as_t2i
    name = vertex.make_endpoint(dedicated=False, labels=labels("t2i"))
    make(backend(name, format="webp"), width=1024, height=1024)
    assert vertex.predictions[-1]["instances"][0]["format"] == "webp"


@pytest.mark.parametrize("fault", [Fault(status=504), Fault(stall=0.4)])
def test_the_cut_of_a_shared_endpoint(
    vertex: FakeVertex, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "SHARED_TIMEOUT", 1.2)
    fault.times, vertex.faults = 1, [fault]
    with pytest.raises(TimedOutError, match="ends calls of shared endpoints after 1 s") as caught:
        make(backend(vertex.make_endpoint(dedicated=False)))
    assert "`t2i remote deploy` makes a dedicated endpoint" in str(caught.value.hint)
    assert counted(vertex)["POST predict"] == 1


def test_the_timeout_ends_a_stall(vertex: FakeVertex) -> None:
    vertex.faults = [Fault(stall=60)]
    with pytest.raises(TimedOutError, match="did not answer within"):
        make(backend(vertex.make_endpoint(), timeout=0.5))
    vertex.faults = [Fault(status=504)]
    with pytest.raises(TimedOutError, match=r"cut the call after 0 s\.$"):
        make(backend(vertex.make_endpoint()))


def test_concurrency_comes_from_the_replicas(vertex: FakeVertex) -> None:
    name = vertex.make_endpoint()
    number = name.split("/")[-1]
    resources = vertex.endpoints[number]["deployedModels"][0]["dedicatedResources"]
    resources["maxReplicaCount"] = 3
    chosen = backend(name)
    asked = GenerateRequest(prompt="x")
    settled = resolve_request(asked, chosen.describe(asked))
    estimate = chosen.estimate(settled)
    assert str(estimate.pop("prices_of")).startswith("November 2026, us-central1")
    assert estimate == {
        "backend": "vertex",
        "endpoint": name,
        "url": f"{vertex.url}/v1/{name}:predict",
        "serving": None,
        "sends": ["prompt"],
        "concurrency": 6,
        "usd_per_hour_at_most": 0.66,
    }
    assert chosen.parallelism() == 6
    vertex.predictor = lambda body: (threading.Event().wait(0.1), predicting(picture())(body))[1]
    list(chosen.run([settled] * 20, lambda event: None, threading.Event()))
    assert vertex.most_in_flight == 6
    assert backend(name, concurrency=2).estimate(settled)["concurrency"] == 2


def test_runs_beside_each_other_end_by_themselves(vertex: FakeVertex) -> None:
    chosen, go = backend(vertex.make_endpoint(), concurrency=3), threading.Event()
    asked = GenerateRequest(prompt="x")
    settled = resolve_request(asked, chosen.describe(asked))
    vertex.predictor = lambda body: (go.wait(60), predicting(picture())(body))[1]
    check_parallel_runs(chosen, [settled] * 5, lambda: vertex.in_flight, go.set)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("rows", [100, full(500)])
def test_rows_of_an_endpoint_that_fails_at_random(
    vertex: FakeVertex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(7)  # noqa: S311 - a test
    ways: list[Callable[[], Fault]] = [fake.quota, fake.overloaded, fake.cut_off, fake.asleep]
    ways.append(lambda: fake.quota(retry_after=0))

    class Some(list[Fault]):
        """A fifth of the requests fail."""

        def __iter__(self) -> Iterator[Fault]:
            return iter([draw.choice(ways)()] if draw.random() < 0.2 else [])

    vertex.predictor, vertex.faults = as_t2i, Some()
    name = vertex.make_endpoint(labels=labels("t2i"))
    (tmp_path / "prompts.txt").write_text("".join(f"a star number {n}\n" for n in range(rows)))
    console = Console()
    console.configure(json=True, quiet=True)
    task = BatchConfig(
        source="prompts.txt",
        input_format=None,
        folder=tmp_path / "out",
        options=BatchOptions(seed=1, defaults={"width": 16, "height": 16}),
        selection=SelectionOptions(),
    )
    chosen = backend(name, concurrency=8, retries=12)
    session.run_batch(task, chosen, console)
    lines = [
        json.loads(line) for line in (tmp_path / "out" / MAIN_MANIFEST).read_text().splitlines()[1:]
    ]
    assert Counter(line["status"] for line in lines) == {"done": rows}
    assert sorted(line["index"] for line in lines) == list(range(1, rows + 1))
    assert len({line["id"] for line in lines}) == rows
    assert len(list((tmp_path / "out").glob("*.png"))) == rows
    assert 2 <= vertex.most_in_flight <= 8
    assert counted(vertex)["POST predict"] > rows * 1.05
    for line in lines[::20]:
        assert line["lock"]["seed_confirmed"] is True
        assert (line["lock"]["endpoint"], line["lock"]["deployed_model"]) == (name, "77")
        assert line["round_trip_seconds"] > 0
        with Image.open(tmp_path / "out" / line["file"]) as image:
            seed = line["request"]["seed"]
            assert image.getpixel((0, 0)) == (seed % 256, seed // 256 % 256, 0)
        record = metadata.read_metadata(tmp_path / "out" / line["file"])
        assert (record.request, record.lock) == (line["request"], line["lock"])
    whole = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert TOKEN.encode() not in whole


def test_as_processes(vertex: FakeVertex, t2i: T2I, tmp_path: Path) -> None:
    vertex.predictor = as_t2i
    name = vertex.make_endpoint(labels=labels("t2i"))
    env = vertex.environment | {"T2I_VERTEX_ENDPOINT": name}
    done = t2i("remote", "generate", "a red star", "-s", "7", "--json", "-v", env=env)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["backend"], made["endpoint"], made["deployed_model"]) == ("vertex", name, "77")
    assert made["seed_confirmed"] is True
    assert made["round_trip_seconds"] > 0
    other = t2i("generate", "a red star", "-s", "7", "--backend", "vertex", "-o", "b.png", env=env)
    assert other.returncode == 0, other.stderr
    first, second = (metadata.read_metadata(tmp_path / file) for file in (made["path"], "b.png"))
    assert first == second
    vertex.faults = [fake.forbidden()]
    refused = t2i("remote", "generate", "x", "--json", "-v", env=env)
    assert refused.returncode == 3
    vertex.faults = [fake.bad_request()]
    key = json.loads(vertex.key.read_text())["private_key"]
    for text in (done.stdout, done.stderr, other.stderr, refused.stderr):
        assert TOKEN not in text
        assert key[40:80] not in text


def test_no_heavy_import(vertex: FakeVertex, t2i_env: dict[str, str], tmp_path: Path) -> None:
    name = vertex.make_endpoint()
    code = (
        "import sys; from t2i_cli.cli.main import _run;"
        f"code = _run(['remote', 'generate', 'x', '-q', '--endpoint', {name!r}]);"
        "heavy = {'torch', 'diffusers', 'transformers', 'huggingface_hub', 'google.cloud.storage',"
        "'google.cloud.aiplatform', 'google.cloud.aiplatform_v1', 'grpc', 'fastapi'};"
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=t2i_env | vertex.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_the_plan_of_a_batch_tells_the_price(vertex: FakeVertex, t2i: T2I, tmp_path: Path) -> None:
    name = vertex.make_endpoint(labels=labels("t2i"))
    env = vertex.environment | {"T2I_VERTEX_ENDPOINT": name, "T2I_BACKEND": "vertex"}
    (tmp_path / "two.txt").write_text("a star\na moon\n")
    told = t2i("batch", "two.txt", "--dry-run", env=env)
    line = "  price: at most 0.22 USD per hour, while the endpoint is up (table: November 2026, "
    assert line + "us-central1)\n" in told.stdout, told.stderr
    (tmp_path / "prices.toml").write_text('date = "May"\n[machines]\nn1-standard-4 = 0.5\n')
    env["T2I_VERTEX_PRICES"] = "prices.toml"
    told = t2i("batch", "two.txt", "--dry-run", "--json", env=env)
    (planned,) = json.loads(told.stdout)["models"]
    assert (planned["usd_per_hour_at_most"], planned["prices_of"]) == (0.5, "May, prices.toml")
    other = vertex.make_endpoint(labels=labels("t2i"))
    (deployed,) = vertex.endpoints[other.split("/")[-1]]["deployedModels"]
    deployed["dedicatedResources"]["machineSpec"] = {"machineType": "z9-giant-1"}
    unknown = t2i("batch", "two.txt", "--dry-run", "--endpoint", other, env=env)
    assert "  price: not known, while the endpoint is up (table: May" in unknown.stdout
