"""Everything of t2i that reads what others may have written, each with valid inputs to change."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx2
from pydantic import BaseModel, ValidationError

from t2i_cli import postcard
from t2i_cli.backend import Failure
from t2i_cli.backends.http import HttpBackend, HttpOptions
from t2i_cli.backends.local import memory
from t2i_cli.backends.vertex import payload
from t2i_cli.batch import manifest, manifest_lines, manifest_merge, timings
from t2i_cli.errors import T2IError
from t2i_cli.events import Event
from t2i_cli.files import state_files, weight_files
from t2i_cli.models import diffusers_folder, safetensors_header, sources
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.net import (
    error_body,
    gcs,
    google_answers,
    google_credentials,
    google_http,
    http_client,
    image_decoding,
    response_metadata,
    retry,
)
from t2i_cli.net.http_client import HttpResponse
from t2i_cli.net.retry import RetryableError, RetryPolicy
from t2i_cli.output import infotext, metadata
from t2i_cli.prompts import read_prompts
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.server import key_file, responses
from t2i_cli.server.api import openai, predict, t2i, vertex
from t2i_cli.server.schemas import ImageRequest, parse_fields
from t2i_cli.server.vertex_container import VertexContainer
from t2i_cli.settings import store
from t2i_cli.vertex import (
    endpoint_store,
    inventory,
    labels,
    machine_types,
    operations,
    request_counts,
    status,
    weights_bucket,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.location import Location
from t2i_cli.worker import answers as worker_answers
from t2i_cli.worker.control import WorkerStatus
from t2i_cli.worker.state import RuntimeDir, WorkerState, WorkerUnavailableError
from tests import factories
from tests.factories import written_gallery
from tests.fakes.stub_backend import StubBackend
from tests.mutation import Mutate, mutate_bytes, mutate_json, mutate_lines, mutate_text

Read = Callable[[bytes, Path], object]
"""Reads an input; the folder is its own, and stays between inputs."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A reader, its valid inputs, and how these are changed; `raises` are errors inside of t2i."""

    valid: Sequence[bytes]
    read: Read
    mutate: Mutate = mutate_json
    raises: tuple[type[Exception], ...] = ()


def _json(*values: object) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def _written(folder: Path, name: str, data: bytes) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


# Batches.

ROW = {
    "id": f"{1:016x}",
    "status": "done",
    "file": "0001-a-red-star.png",
    "bytes": 100,
    "sha256": "0" * 64,
    "index": 1,
    "line": 1,
    "seconds": 1.5,
    "request": factories.REQUEST.to_json(),
    "error": {"code": "model", "message": "m"},
    "lock": asdict(factories.LOCK),
    "time": "2026-01-01T00:00:00+00:00",
}
PIN = {"model": "a/b", "revision": None, "pin": "c" * 40}
INVALID = {"status": "invalid", "line": 7, "field": "steps", "message": "bad"}


def read_manifest(data: bytes, folder: Path) -> None:
    """As a batch, its resume, its gallery, and a merge read it."""
    with suppress(FileNotFoundError):
        (folder / manifest.MAIN_MANIFEST).unlink()
    _written(folder, manifest.shard_manifest_name(1, 2), data)
    for read in (
        lambda: manifest.load_manifests(folder),
        lambda: written_gallery(folder, folder),
        lambda: manifest_merge.merge_manifests(folder, folder),
        lambda: manifest.load_manifests(folder),
    ):
        with suppress(T2IError):
            read()
    manifest.Manifest(_written(folder, manifest.MAIN_MANIFEST, data), durable=False).close()


def read_manifest_line(data: bytes, _folder: Path) -> None:
    """One line alone."""
    manifest_lines.read_line(data)


def read_prompts_file(name: str) -> Read:
    """A prompts file of a format."""

    def read(data: bytes, folder: Path) -> None:
        file = _written(folder, name, data)
        read_prompts(str(file), name.partition(".")[2])  # type: ignore[arg-type]

    return read


# Files of t2i's own.


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    with patch.dict(os.environ, variables):
        yield


def read_settings_file(data: bytes, folder: Path) -> None:
    """The settings file, for its values and for an edit."""
    file = _written(folder, "config.toml", data)
    with _environment(T2I_CONFIG=str(file)):
        store.read_settings()
        store.set_setting("model", "postcard")


def read_price_file(data: bytes, folder: Path) -> None:
    """The table of prices that a setting names."""
    with _environment(T2I_VERTEX_PRICES=str(_written(folder, "prices.toml", data))):
        prices = machine_types.load_prices()
    machine_types.ReplicaHardware(machine="g2-standard-4").price(prices)


def read_timings(data: bytes, folder: Path) -> None:
    """Times of earlier runs."""
    _written(folder, "t2i/timings.json", data)
    with _environment(XDG_CACHE_HOME=str(folder)):
        timings.estimate_seconds([factories.REQUEST], {factories.REQUEST.model: "cpu"})
        timings.record_timing("m", "cpu", 1.0)


ENDPOINT_NAME = "projects/p/locations/us-central1/endpoints/1"
RECORD = {
    "name": ENDPOINT_NAME,
    "dns": "1.us-central1-1.prediction.vertexai.goog",
    "serving": "t2i",
    "model": "postcard",
    "deployed_model": "7",
    "replicas": 2,
    "machine": {"machineType": "g2-standard-4", "acceleratorCount": 1},
    "expires": 1e9,
}


def read_endpoints(data: bytes, folder: Path) -> None:
    """The endpoints that `remote` remembers."""
    _written(folder, "t2i/vertex.json", data)
    with _environment(XDG_STATE_HOME=str(folder)):
        endpoint_store.current_endpoint()
        for record in endpoint_store.list_records():
            assert record.machine is None or machine_types.hardware_from_api(
                {"machineSpec": record.machine}
            )


STATE = WorkerState(pid=2**22 + 1, identity="x", version="1", model="m", port=5, started=1.0)


def read_worker_state(data: bytes, folder: Path) -> None:
    """What a warm worker says of itself."""
    place = RuntimeDir(folder)
    _written(folder, "worker.json", data)
    if found := place.state():
        WorkerStatus(state="hung", pid=found.pid, model=found.model).sentence()


def read_key_file(data: bytes, folder: Path) -> None:
    """The API key of `t2i serve`."""
    key_file.read_key_file(_written(folder, "key.txt", data), insecure=True)


# Models.


@cache
def _model(folder: Path) -> Path:
    shutil.copytree(postcard.FOLDER, folder / "model")
    return folder / "model"


def read_model_index(data: bytes, folder: Path) -> None:
    """A model's list of components."""
    model = _model(folder)
    (model / "model_index.json").write_bytes(data)
    sources.list_parts(model)
    sources.absent_parts(model)
    diffusers_folder.float32_decoder(model, "float16")


def read_component_config(name: str) -> Read:
    """The config of a component, by all who compute with it."""

    def read(data: bytes, folder: Path) -> None:
        model = _model(folder)
        (model / name).write_bytes(data)
        diffusers_folder.component_config(model, name.split("/")[0])
        memory.estimate_memory(model, {"unet": 10}, 512, 512, 4)
        diffusers_folder.float32_decoder(model, "float16")

    return read


def read_header(data: bytes, folder: Path) -> None:
    """The header of a file of weights."""
    safetensors_header.read_tensor_sizes(_written(folder, "x.safetensors", data))


def mutate_header(chance: Random, valid: Sequence[bytes]) -> bytes:
    """A file of weights with another header, and at times another length or data."""
    header = mutate_json(chance, valid)
    length = len(header) + chance.choice((0, 0, 0, 0, 1, -1, 2**40))
    return max(0, length).to_bytes(8, "little") + header + bytes(chance.choice((24, 24, 0, 25)))


def read_shard_index(data: bytes, folder: Path) -> None:
    """The index of weights in shards."""
    sources.shard_paths(_written(folder, "unet/x.index.json", data))


def read_repository_names(data: bytes, _folder: Path) -> None:
    """The names of a repository's files, and its model_index.json."""
    from t2i_cli.hub import files

    try:
        parsed = state_files.parse_json(data)
    except ValueError:
        return
    names = parsed if isinstance(parsed, list) else []
    texts = [name for name in names if isinstance(name, str)]
    index = {"unet": ["diffusers", "UNet2DConditionModel"], "_class_name": parsed}
    weight_files.choose_weights(texts, "float16")
    files.config_files(index, texts)
    files.needed_files("a/b", index, texts, "float16")


# The Hub.


def _transport(body: bytes) -> httpx2.MockTransport:
    return httpx2.MockTransport(lambda _request: httpx2.Response(200, content=body))


@contextmanager
def _hub(body: bytes) -> Iterator[Any]:
    """The Hub's client, whose every answer has this body."""
    import huggingface_hub
    from huggingface_hub import HfApi

    from t2i_cli.hub import answers

    hooks: dict[str, list[Callable[..., Any]]] = {"response": [answers.check_response]}
    client = httpx2.Client(transport=_transport(body), event_hooks=hooks)
    with (
        patch("huggingface_hub.hf_api.get_session", return_value=client),
        patch("huggingface_hub.utils._pagination.http_backoff", _backoff(client)),
        patch("t2i_cli.hub.answers.get_session", return_value=client),
    ):
        assert huggingface_hub.constants.ENDPOINT
        yield HfApi(token="hf_" + "x" * 20, endpoint="http://127.0.0.1:9")


def _backoff(client: httpx2.Client) -> Callable[..., httpx2.Response]:
    def send(method: str, url: str, **options: Any) -> httpx2.Response:  # noqa: ANN401 - of the library
        return client.request(method, url, params=options.get("params"))

    return send


def read_hub_facts(data: bytes, _folder: Path) -> None:
    """What the Hub says of a repository."""
    from t2i_cli.hub import answers

    with _hub(data) as api:
        answers.repository_facts(api, "a/b", "main")


def read_hub_account(data: bytes, _folder: Path) -> None:
    """What the Hub says of a token."""
    from t2i_cli.hub import account

    with _hub(data) as api:
        account._account(api.whoami(), "here")


def read_hub_tree(data: bytes, _folder: Path) -> None:
    """The list of a repository's files, by huggingface_hub's own code."""
    with _hub(data) as api:
        sizes = {file.path: getattr(file, "size", 0) for file in api.list_repo_tree("a/b")}
        assert all(isinstance(size, int) for size in sizes.values())


def read_hub_index(data: bytes, folder: Path) -> None:
    """A model_index.json in the Hub's cache."""
    from t2i_cli.hub.snapshot import Snapshot

    _written(folder, "model_index.json", data)
    sizes = {"unet/config.json": 1, "unet/diffusion_pytorch_model.safetensors": 5}
    Snapshot(repo="a/b", commit="c", folder=folder, sizes=sizes, obstacle=None).needed("float32")


# Google.


@contextmanager
def _google(body: bytes) -> Iterator[GoogleClient]:
    """A client of Google's APIs, whose every answer has this body."""
    with _clients(body):
        with GoogleClient(Location(project="p", region="us-central1"), dict) as client:
            yield client


@contextmanager
def _clients(body: bytes) -> Iterator[None]:
    """Every HTTP client gets this body as its answer."""

    def new(**settings: Any) -> httpx2.Client:  # noqa: ANN401 - as of the function it replaces
        del settings["trust_env"]
        return httpx2.Client(transport=_transport(body), **settings)

    with patch.object(http_client, "_new_client", new):
        yield


LABELS = {
    "managed-by": "t2i",
    "t2i-name": "one",
    "t2i-expires": "1900000000",
    "t2i-model": "postcard",
    "t2i-serving": "t2i",
    "t2i-by": "bob",
}
RESOURCES = {
    "machineSpec": {"machineType": "g2-standard-4", "acceleratorCount": 1},
    "minReplicaCount": 1,
    "maxReplicaCount": 2,
}
STORED = {
    "schema": 1,
    "version": "v1",
    "deployedModel": {"model": "m", "dedicatedResources": RESOURCES},
    "schedulerAccount": None,
}
ENDPOINT = {
    "name": ENDPOINT_NAME,
    "displayName": "one",
    "labels": LABELS,
    "createTime": "2026-11-20T10:00:00.123456Z",
    "dedicatedEndpointEnabled": True,
    "dedicatedEndpointDns": "1.prediction.vertexai.goog",
    "deployedModels": [
        {
            "id": "7",
            "model": "projects/p/locations/us-central1/models/2",
            "createTime": "2026-11-20T10:00:00Z",
            "dedicatedResources": RESOURCES,
            "status": {"availableReplicaCount": 1, "lastUpdateTime": "2026-11-20T10:00:00Z"},
        }
    ],
    "description": f"Deployed by t2i as: {json.dumps(STORED)}",
}
SERIES = {"timeSeries": [{"points": [{"value": {"int64Value": "5"}}]}]}
MODEL = {
    "name": "projects/p/locations/us-central1/models/2",
    "labels": LABELS,
    "artifactUri": "gs://b/t2i/one",
    "containerSpec": {"env": [{"name": "AIP", "value": "gs://b/t2i/one"}]},
}
DEPLOYING = ENDPOINT | {"deployedModels": [], "labels": LABELS | {"t2i-name": "two"}}
OTHER = {
    "name": ENDPOINT_NAME,
    "displayName": "theirs",
    "createTime": "2026-11-20T10:00:00Z",
    "deployedModels": [
        {"id": "8", "model": "m", "automaticResources": {"minReplicaCount": 1}},
        {"id": "9", "model": "m", "sharedResources": "projects/p/deploymentResourcePools/x"},
    ],
}
PENDING = {
    "name": f"{ENDPOINT_NAME}/operations/4",
    "metadata": {
        "@type": "type.googleapis.com/google.cloud.aiplatform.v1.DeployModelOperationMetadata",
        "genericMetadata": {"createTime": "2026-11-20T10:00:00Z"},
    },
}
OPERATION = {"name": f"{ENDPOINT_NAME}/operations/3", "done": True, "response": {"name": "x"}}


def read_endpoint(data: bytes, _folder: Path) -> None:
    """An endpoint that is looked up."""
    with _google(data) as client:
        found = client.call("GET", "aiplatform", ENDPOINT_NAME)
        record = endpoint_store.record_from_api(ENDPOINT_NAME, found)
        assert record.machine is None or isinstance(record.machine, dict)


def read_inventory(data: bytes, _folder: Path) -> None:
    """The list of endpoints, and the state and the price of each."""
    with _google(data) as client:
        found = inventory.list_endpoints(client)
        for one in found.deployments.values():
            one.parts_text()
        with patch.object(status, "count_requests", return_value=1):
            states = status.all_statuses(found, client, machine_types.BUILT_IN)
        for state in states:
            status.status_facts(state, {})
        status.status_table(states, regions=True)
        status.CostReport(endpoints=states, prices=machine_types.BUILT_IN, project="p").text()


def read_resources(data: bytes, _folder: Path) -> None:
    """Models, operations and numbers of requests."""
    with _google(data) as client:
        request_counts.count_requests(client, ENDPOINT_NAME, time.time() - 100)
        for model in client.list_all("aiplatform", "models", "models"):
            inventory.weight_addresses(model)


def read_operation(data: bytes, _folder: Path) -> None:
    """An operation that is waited for."""
    with _google(data) as client:
        found = client.call("POST", "aiplatform", "x", json={})
        found["done"] = True
        operations.wait_for_operation(client, found, "it", lambda _: None)


def read_blobs(data: bytes, _folder: Path) -> None:
    """The objects of a bucket."""
    with _google(data) as client:
        storage = gcs.GcsClient(client)
        weights_bucket.retention_text(storage.bucket("b") or {})
        for blob in storage.list_blobs("b", "t2i/"):
            labels.Labels.parse(blob.labels)


def read_google_error(data: bytes, _folder: Path) -> None:
    """An answer of status 403."""
    raise google_http.error_from_google(403, data)


def read_token(data: bytes, _folder: Path) -> None:
    """A token, and the account in it."""
    from google.oauth2.credentials import Credentials

    credentials = Credentials(  # type: ignore[no-untyped-call]
        None,
        refresh_token="r",  # noqa: S106 - nobody's
        client_id="c",
        client_secret="s",  # noqa: S106 - nobody's
        token_uri="https://oauth2.googleapis.com/token",  # noqa: S106 - an address
    )
    answer = HttpResponse(
        status=200, headers={"content-type": "application/json"}, body=data, seconds=0
    )
    client = SimpleNamespace(request=lambda *_, **__: answer, close=lambda: None)
    with patch.object(http_client, "HttpClient", lambda *_, **__: client):
        google_credentials.refresh_token(credentials, 1)
    assert credentials.expiry is None or credentials.expired in (True, False)
    google_credentials.account_name(credentials)
    str(credentials.token).encode("ascii")


# Servers of images.


@cache
def _image() -> str:
    file = metadata.image_file_bytes(factories.generated(), "png")
    import base64

    return base64.b64encode(file).decode()


def _generation() -> dict[str, object]:
    return {
        "request": {"prompt": "a", "seed": 42, "width": 64, "height": 48},
        "lock": asdict(factories.LOCK),
        "seconds": 1.5,
    }


MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "t2i"}]}
FACTS = {
    "name": "m",
    "repo": "a/b",
    "revision": None,
    "steps": 4,
    "guidance_scale": 7.5,
    "width": 64,
    "height": 48,
    "multiple": 8,
    "negative_prompt": True,
    "guidance": True,
    "refuses": ["scheduler"],
}


def read_server(path: str) -> Read:
    """A server's answers: the one of `path` as given, the others sound."""

    def read(data: bytes, _folder: Path) -> None:
        sound = {"/v1/models": MODELS, "/t2i/v1/model": FACTS} | {
            "/v1/images/generations": {"data": [{"b64_json": _image(), "t2i": _generation()}]}
        }

        def answer(request: httpx2.Request) -> httpx2.Response:
            if request.url.path == "/image.png":
                return httpx2.Response(200, content=_pictures()[0])
            body = sound.get(request.url.path, "x")
            return httpx2.Response(
                200, content=data if request.url.path == path else json.dumps(body)
            )

        def new(**settings: Any) -> httpx2.Client:  # noqa: ANN401 - as of the function it replaces
            del settings["trust_env"]
            return httpx2.Client(transport=httpx2.MockTransport(answer), **settings)

        with patch.object(http_client, "_new_client", new):
            policy = RetryPolicy(retries=0)
            backend = HttpBackend(HttpOptions(url="http://127.0.0.1:9/v1", retry_policy=policy))
            spec = backend.describe(GenerateRequest(prompt="a"))
            request = replace(
                resolve_request(GenerateRequest(prompt="a", seed=42), spec), model="m"
            )
            backend.check(request)
            json.dumps(backend.estimate(request))
            timings.relative_cost(request)
            if path == "/v1/images/generations":
                _read_image(backend, request)
            backend.close()

    return read


def _read_image(backend: HttpBackend, request: ResolvedRequest) -> None:
    noted: list[str] = []
    call = SimpleNamespace(
        request=request, index=0, stop=None, note=noted.append, note_request=noted.append
    )
    with backend._clients.borrow() as client:
        made = backend._generate(call, client)  # type: ignore[arg-type]
    json.dumps(asdict(made.info))
    metadata.image_file_bytes(made, "png")


def read_error_body(data: bytes, _folder: Path) -> None:
    """The body of a refusal, of any dialect."""
    response = HttpResponse(status=400, headers={}, body=data, seconds=0)
    found = error_body.parse_error_body(response, "secret")
    assert len(found.message) <= error_body.MAX_MESSAGE + 1
    from t2i_cli.backends.http.errors import error_from_response

    error_from_response(response, "http://x", None)


PREDICTIONS = (
    {"predictions": [_image()], "deployedModelId": "7"},
    {"predictions": [{"image": _image(), "t2i": {"request": {"seed": 42}, "lock": {}}}]},
)


def read_prediction(data: bytes, _folder: Path) -> None:
    """The answer of an endpoint."""
    response = HttpResponse(status=200, headers={}, body=data, seconds=0)
    found = payload.parse_prediction(response.json())
    known = response_metadata.parse_response_metadata(found.entry)
    known.check_request(factories.REQUEST)
    info = known.generation_info(factories.REQUEST, backend="vertex", endpoint="e")
    json.dumps(asdict(info))
    image_decoding.decode_base64_image(found.base64)


def read_image_bytes(data: bytes, _folder: Path) -> None:
    """An image that a server sent."""
    image_decoding.decode_image(data)


def read_retry_after(data: bytes, _folder: Path) -> None:
    """The headers Retry-After and Date."""
    text = data.decode("latin-1")
    assert (retry.parse_retry_after({"retry-after": text}) or 0) >= 0
    google_answers.clock_offset({"date": text}, 0.0)


# The warm worker.

REQUEST = replace(factories.REQUEST, width=64, height=48)
EVENTS: tuple[tuple[str, dict[str, object]], ...] = (
    ("downloading", {"model": "m", "done": 5, "total": 10}),
    ("loading", {"model": "m", "device": "cpu"}),
    ("measure", {"name": "vae-tiling", "reason": "r"}),
    ("note", {"message": "m", "indices": [0]}),
    ("step", {"indices": [0], "step": 1, "steps": 4}),
    ("failure", {"index": 0, "error": {"code": "model", "message": "m", "hint": None}}),
)


class NotJsonError(Exception):
    """The connection refuses what is no JSON object."""


class _Exchange:
    """What a worker answered, in place of the connection."""

    ok = True

    def __init__(self, body: bytes, name: str = "") -> None:
        self._body = body
        self._name = name
        self.runtime_dir = RuntimeDir(Path("nowhere"))

    def json(self) -> dict[str, Any]:
        """The answer as an object, as WorkerExchange checks it."""
        try:
            value = state_files.parse_json(self._body)
        except ValueError as error:
            raise NotJsonError from error
        if not isinstance(value, dict):
            raise NotJsonError
        return value

    def events(self, longest: int) -> Iterator[tuple[str, str]]:
        """The event, and the end."""
        assert len(self._body) < longest
        yield self._name, self._body.decode(errors="replace")
        yield "done", "{}"


def read_worker_event(name: str) -> Read:
    """One event of a worker."""

    def read(data: bytes, _folder: Path) -> None:
        exchange: Any = _Exchange(data, name)
        seen: list[Event] = []
        for outcome in worker_answers.read_outcomes(exchange, [(3, REQUEST)], seen.append):
            assert outcome.index == 3
            if not isinstance(outcome, Failure):
                json.dumps(asdict(outcome.info))
                metadata.image_file_bytes(outcome, "jpeg")
        for event in seen:
            json.dumps(asdict(event))

    return read


def read_worker_answer(data: bytes, _folder: Path) -> None:
    """A worker's status, and the description of its model."""
    exchange: Any = _Exchange(data)
    if b'"idle"' in data:
        found = worker_answers.worker_activity(exchange)
        WorkerStatus(state="idle", idle=found.idle, keep_alive=found.keep_alive).sentence()
        return
    spec = worker_answers.worker_model(exchange)
    if spec.multiple == 8:
        with suppress(T2IError):
            timings.relative_cost(resolve_request(GenerateRequest(prompt="a"), spec))


# Pictures.


@cache
def _pictures() -> list[bytes]:
    made = factories.generated()
    return [metadata.image_file_bytes(made, format) for format in ("png", "jpeg", "webp")]


def read_picture(data: bytes, folder: Path) -> None:
    """As `inspect` reads it."""
    metadata.read_metadata(_written(folder, "x.png", data))


def read_infotext(data: bytes, _folder: Path) -> None:
    """AUTOMATIC1111's text."""
    infotext.parse_infotext(data.decode(errors="replace"))


# Bodies of the server's clients.


def read_body(*bodies: type[BaseModel]) -> Read:
    """A request's body, in one dialect."""

    def read(data: bytes, _folder: Path) -> None:
        for body in bodies:
            try:
                found: Any = body.model_validate_json(data)
                requests = getattr(found, "requests", [found])
                for each in requests:
                    if isinstance(each, ImageRequest):
                        _resolve(each.request())
                if isinstance(found, vertex.PredictionsBody):
                    for request in vertex._parse_body(found)[0]:
                        _resolve(request)
                if isinstance(found, openai.GenerationBody):
                    parse_fields({})
            except ValidationError as invalid:
                errors: Any = invalid.errors(include_url=False)
                assert responses.validation_error(errors).message
            except T2IError as error:
                assert error.message

    return read


def _resolve(request: GenerateRequest) -> None:
    spec = StubBackend().describe(GenerateRequest(prompt="a"))
    timings.relative_cost(resolve_request(request, spec))


def read_container_environment(data: bytes, _folder: Path) -> None:
    """What Vertex AI sets in its container."""
    text = data.decode("latin-1")
    for name in ("AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE", "AIP_STORAGE_URI"):
        with suppress(T2IError):
            VertexContainer.from_environment({name: text})


def _body(**more: object) -> dict[str, object]:
    return {"prompt": "a", "seed": 1, "steps": 4, "guidance_scale": 2.5} | more


SETTINGS = b'model = "postcard"\nbackend = "local"\ntimeout = "600"\nhttp_url = "http://a/v1"\n'
PRICES = b'date = "May"\n[machines]\n"g2-standard-4" = 0.5\n[accelerators]\nNVIDIA_L4 = 0.3\n'
TENSORS = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "F16", "shape": [4], "data_offsets": [16, 24]},
}
TREE = [
    {"type": "file", "path": "unet/config.json", "size": 5, "oid": "a" * 40},
    {
        "type": "file",
        "path": "unet/model.safetensors",
        "size": 5,
        "oid": "a" * 40,
        "lfs": {"oid": "b" * 64, "size": 5, "pointerSize": 130},
    },
    {"type": "directory", "path": "unet", "oid": "a" * 40, "size": 0},
]
TOKEN = {
    "access_token": "ya29.x",
    "expires_in": 3599,
    "token_type": "Bearer",
    "scope": "s",
    "id_token": "e30.eyJlbWFpbCI6ICJhQGIifQ.x",
}
WHOAMI = {"name": "bob", "auth": {"accessToken": {"displayName": "t", "role": "read"}}}
SPEC = asdict(StubBackend().describe(GenerateRequest(prompt="a"))) | {
    "folder": "/x",
    "refuses": [["scheduler", "no"]],
}
INFOTEXT = infotext.format_infotext(factories.REQUEST, factories.LOCK, (64, 48)).encode()
T2I_ERROR = {"code": "model", "message": "m", "hint": "h", "field": "steps"}
VISION = {"index": 0, "format": "png", "seconds": 1.5, "width": 64, "height": 48}

READERS: dict[str, Reader] = {
    "manifest": Reader(
        valid=[manifest.MANIFEST_HEADER.rstrip(), *_json(ROW, PIN, INVALID)],
        mutate=mutate_lines,
        read=read_manifest,
    ),
    "line of a manifest": Reader(valid=_json(ROW, PIN, INVALID), read=read_manifest_line),
    "prompts as text": Reader(
        valid=[b"a red star\n# no\n\na {blue|green} house\n"],
        mutate=mutate_bytes,
        read=read_prompts_file("p.txt"),
    ),
    "prompts as JSON Lines": Reader(
        valid=[b"", *_json(_body(), _body(model="postcard", size="64x64"))],
        mutate=mutate_lines,
        read=read_prompts_file("p.jsonl"),
    ),
    "prompts as CSV": Reader(
        valid=[b'prompt,seed,steps,guidance_scale\na,1,2,3.5\n"b, ""c""",4,5,6\n'],
        mutate=mutate_text,
        read=read_prompts_file("p.csv"),
    ),
    "settings": Reader(valid=[SETTINGS], mutate=mutate_text, read=read_settings_file),
    "prices": Reader(valid=[PRICES], mutate=mutate_text, read=read_price_file),
    "timings": Reader(valid=_json({"postcard on cpu": 1.5, "m on cpu": 2}), read=read_timings),
    "endpoints": Reader(
        valid=_json({"current": ENDPOINT_NAME, "endpoints": [RECORD]}), read=read_endpoints
    ),
    "worker's state": Reader(valid=_json(asdict(STATE)), read=read_worker_state),
    "key file": Reader(valid=[b"0123456789abcdef\n"], mutate=mutate_bytes, read=read_key_file),
    "model index": Reader(
        valid=[(postcard.FOLDER / "model_index.json").read_bytes()], read=read_model_index
    ),
    **{
        f"config of {name.split('/')[0]}": Reader(
            valid=[(postcard.FOLDER / name).read_bytes()], read=read_component_config(name)
        )
        for name in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    },
    "safetensors header": Reader(valid=_json(TENSORS), mutate=mutate_header, read=read_header),
    "index of shards": Reader(
        valid=_json({"metadata": {}, "weight_map": {"a": "x.safetensors"}}), read=read_shard_index
    ),
    "names in a repository": Reader(
        valid=_json(["unet/config.json", "unet/model.fp16-00001-of-00001.safetensors", "a.py"]),
        read=read_repository_names,
    ),
    "Hub: repository": Reader(
        valid=_json({"id": "a/b", "sha": "a" * 40, "gated": False, "private": False}),
        read=read_hub_facts,
    ),
    "Hub: account": Reader(valid=_json(WHOAMI), read=read_hub_account),
    "Hub: files": Reader(valid=_json(TREE), read=read_hub_tree),
    "Hub: model index": Reader(
        valid=[(postcard.FOLDER / "model_index.json").read_bytes()], read=read_hub_index
    ),
    "Google: token": Reader(valid=_json(TOKEN), read=read_token),
    "Google: error": Reader(
        valid=_json({"error": {"code": 403, "message": "no", "status": "PERMISSION_DENIED"}}),
        read=read_google_error,
    ),
    "Vertex AI: endpoint": Reader(valid=_json(ENDPOINT), read=read_endpoint),
    "Vertex AI: endpoints": Reader(
        valid=_json({"endpoints": [ENDPOINT, OTHER, DEPLOYING], "operations": [PENDING]}),
        read=read_inventory,
    ),
    "Vertex AI: resources": Reader(
        valid=_json(SERIES | {"models": [MODEL]}, {"operations": [OPERATION]}), read=read_resources
    ),
    "Vertex AI: operation": Reader(valid=_json(OPERATION), read=read_operation),
    "Vertex AI: prediction": Reader(valid=_json(*PREDICTIONS), read=read_prediction),
    "Cloud Storage: objects": Reader(
        valid=_json({"items": [{"name": "a", "size": "5", "crc32c": "x", "metadata": LABELS}]}),
        read=read_blobs,
    ),
    "server: models": Reader(valid=_json(MODELS), read=read_server("/v1/models")),
    "server: model": Reader(valid=_json(FACTS), read=read_server("/t2i/v1/model")),
    "server: image": Reader(
        valid=_json(
            {"created": 1, "data": [{"b64_json": _image(), "t2i": _generation(), "notes": ["n"]}]},
            {"data": [{"url": "http://127.0.0.1:9/image.png"}]},
        ),
        read=read_server("/v1/images/generations"),
        raises=(RetryableError,),
    ),
    "server: error": Reader(
        valid=_json(
            {"error": {"message": "m", "code": "c", "type": "t", "param": "steps"}},
            {"detail": [{"loc": ["body", "steps"], "msg": "m"}]},
            [{"error": {"message": "m", "status": "x"}}],
            {"error": {"message": json.dumps({"error": "x"}), "t2i": T2I_ERROR}},
        ),
        read=read_error_body,
    ),
    "server: image file": Reader(valid=_pictures(), mutate=mutate_bytes, read=read_image_bytes),
    "server: Retry-After": Reader(
        valid=[b"120", b"Fri, 31 Dec 1999 23:59:59 GMT"], mutate=mutate_bytes, read=read_retry_after
    ),
    **{
        f"worker: {name}": Reader(
            valid=_json(value), read=read_worker_event(name), raises=(WorkerUnavailableError,)
        )
        for name, value in EVENTS
    },
    "worker: image": Reader(
        valid=_json(VISION | {"image": _image(), "lock": asdict(factories.LOCK)}),
        read=read_worker_event("image"),
        raises=(WorkerUnavailableError,),
    ),
    "worker: status and model": Reader(
        valid=_json({"idle": 1.5, "keep_alive": 10, "waiting": 0}, SPEC),
        read=read_worker_answer,
        raises=(WorkerUnavailableError, NotJsonError),
    ),
    "picture": Reader(valid=_pictures(), mutate=mutate_bytes, read=read_picture),
    "infotext": Reader(valid=[INFOTEXT], mutate=mutate_text, read=read_infotext),
    "body of t2i": Reader(
        valid=_json({"requests": [_body()], "previews": 1}), read=read_body(t2i.GenerateBody)
    ),
    "body of predict": Reader(valid=_json(_body()), read=read_body(predict.PredictBody)),
    "body of OpenAI": Reader(
        valid=_json({"prompt": "a", "n": 1, "size": "64x64"}), read=read_body(openai.GenerationBody)
    ),
    "body of Vertex AI": Reader(
        valid=_json({"instances": [_body()], "parameters": {"steps": 4}}),
        read=read_body(vertex.PredictionsBody),
    ),
    "environment of the container": Reader(
        valid=[b"8080", b"/predict", b"gs://b/x"],
        mutate=mutate_bytes,
        read=read_container_environment,
    ),
}
"""All readers by name; only a T2IError may leave one."""
