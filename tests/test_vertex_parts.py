"""Parts of the endpoint's life in this process: labels, storage, places, errors, hardware."""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.auth import compute_engine
from hypothesis import given
from hypothesis import strategies as st

from t2i_cli.errors import (
    AccessError,
    InputError,
    ModelError,
    QuotaError,
    RemoteError,
    T2IError,
    TimedOutError,
)
from t2i_cli.models import catalog
from t2i_cli.net import gcs, google_credentials, google_http, retry
from t2i_cli.settings import store
from t2i_cli.settings.options import LocationOptions
from t2i_cli.vertex import (
    client,
    cloud_session,
    containers,
    endpoint_store,
    labels,
    location,
    machine_types,
    permissions,
    weights_bucket,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.labels import Labels
from t2i_cli.vertex.location import Location
from t2i_cli.vertex.torchserve import container
from tests.fakes.google import refusal
from tests.fakes.oauth import ACCOUNT, AUTHORIZED
from tests.fakes.vertex import FakeVertex, Fault, counted, denied, session_expired


@pytest.fixture
def cloud(vertex: FakeVertex) -> Iterator[GoogleClient]:
    """A connection to the fake."""
    here = Location(project="gallery", region="us-central1", api_endpoint=vertex.url)
    with GoogleClient(here, lambda: AUTHORIZED) as connection:
        yield connection


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings and no memory of the developer's."""
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for setting in store.SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)


@given(st.text(max_size=80))
def test_labels_keep_any_text_in_what_labels_allow(text: str) -> None:
    text = text.encode(errors="ignore").decode()
    value = labels.encode_label(text)
    assert len(value) <= 63
    assert set(value) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
    back = labels.decode_label(value)
    assert back == text or (back.endswith("…") and text.startswith(back[:-1].rstrip("\ufffd")))


def test_long_texts_with_one_beginning_differ() -> None:
    one, other = "a" * 100 + "b", "a" * 100 + "c"
    assert labels.encode_label(one) != labels.encode_label(other)


def test_labels_of_others_are_not_ours() -> None:
    mine = Labels(name="x", expires=5, model="Qwen/Qwen-Image", serving="t2i", by="ann@example.org")
    assert Labels.parse(mine.encoded()) == mine
    assert Labels.parse({"managed-by": "terraform"}) is None
    assert Labels.parse({}) is None
    found = Labels.parse({"managed-by": "t2i", "t2i-by": labels.encode_label("\x1b[2J")})
    assert found is not None
    assert found.by == "\\u001b[2J"


def _weights(folder: Path) -> Path:
    for name, size in (("model_index.json", 2), ("unet/a.safetensors", 700_000), ("vae/empty", 0)):
        path = folder / "weights" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(range(256)) * (size // 256 + 1) if size else b"")
    (folder / "weights" / "model_index.json").write_text("{}".ljust(256))
    return folder / "weights"


def test_upload_goes_on_after_a_break_and_skips_what_is_there(
    vertex: FakeVertex, cloud: GoogleClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs, "CHUNK_BYTES", 256 * 1024)
    weights = _weights(tmp_path)
    weights_bucket.make_bucket(cloud, "pail", {"managed-by": "t2i"})
    assert vertex.buckets["pail"]["iamConfiguration"]["publicAccessPrevention"] == "enforced"
    vertex.cut_uploads = 2
    told: list[tuple[int, int]] = []
    weights_bucket.upload_folder(cloud, weights, "pail", "t2i/x/", lambda *now: told.append(now))
    for path in weights.rglob("*.*"):
        metadata, data = vertex.objects["pail", f"t2i/x/{path.relative_to(weights).as_posix()}"]
        assert data == path.read_bytes()
    total = sum(path.stat().st_size for path in weights.rglob("*") if path.is_file())
    assert told == sorted(told)
    assert told[-1] == (total, total)
    assert vertex.cut_uploads == 0
    before = len(vertex.uploads)
    (weights / "model_index.json").write_text("{ }")
    weights_bucket.upload_folder(cloud, weights, "pail", "t2i/x/", lambda *_: None)
    assert len(vertex.uploads) == before + 1
    assert vertex.objects["pail", "t2i/x/model_index.json"][1] == b"{ }"


@pytest.mark.parametrize("after", [0, 2, 3])
@pytest.mark.parametrize("status", [410, 404])
def test_an_upload_whose_session_expires_begins_again(
    vertex: FakeVertex,
    cloud: GoogleClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    after: int,
) -> None:
    monkeypatch.setattr(gcs, "CHUNK_BYTES", 256 * 1024)
    weights = _weights(tmp_path)
    weights_bucket.make_bucket(cloud, "pail", {})
    vertex.faults.append(session_expired(times=2, after=after, status=status))
    weights_bucket.upload_folder(cloud, weights, "pail", "t2i/x/", lambda *_: None)
    assert not any(fault.times for fault in vertex.faults)
    for path in weights.rglob("*.*"):
        name = path.relative_to(weights).as_posix()
        assert vertex.objects["pail", f"t2i/x/{name}"][1] == path.read_bytes()


def test_small_objects_survive_a_session_that_expires(
    vertex: FakeVertex, cloud: GoogleClient
) -> None:
    weights_bucket.make_bucket(cloud, "pail", {})
    vertex.faults.append(session_expired())
    marker = Labels(name="x", expires=5, model="sd15", serving="t2i", by="ann")
    weights_bucket.write_marker(cloud, "pail", marker)
    assert vertex.objects["pail", "t2i/x.labels"][0]["metadata"]["t2i-by"] == "ann"
    # A session that never lives is an error, not a loop without an end.
    vertex.faults.append(session_expired(times=99))
    with pytest.raises(RemoteError):
        weights_bucket.write_marker(cloud, "pail", marker)
    assert vertex.faults[-1].times > 90


def test_an_upload_that_arrives_damaged_is_an_error(
    vertex: FakeVertex, cloud: GoogleClient, tmp_path: Path
) -> None:
    weights_bucket.make_bucket(cloud, "pail", {})
    weights, name = _weights(tmp_path), "t2i/x/model_index.json"
    content = (weights / "model_index.json").read_bytes()
    vertex.damaged_uploads = 1
    with pytest.raises(RemoteError, match="arrived damaged"):
        weights_bucket.upload_folder(cloud, weights, "pail", "t2i/x/", lambda *_: None)
    assert vertex.objects["pail", name][1] != content
    # Run again, it is seen to be another file, and sent again.
    weights_bucket.upload_folder(cloud, weights, "pail", "t2i/x/", lambda *_: None)
    assert vertex.objects["pail", name][1] == content


def test_an_upload_that_never_succeeds_gives_up(
    vertex: FakeVertex, cloud: GoogleClient, tmp_path: Path
) -> None:
    weights_bucket.make_bucket(cloud, "pail", {})
    body = refusal(503, "UNAVAILABLE", "Not now.")
    vertex.faults.append(Fault(where="PUT /upload", status=503, body=body, times=99))
    with pytest.raises(RemoteError, match="Not now"):
        weights_bucket.upload_folder(cloud, _weights(tmp_path), "pail", "t2i/x/", lambda *_: None)


@pytest.mark.parametrize(
    ("status", "name", "message", "kind", "said"),
    [
        (401, "UNAUTHENTICATED", "x", AccessError, "refuses these credentials"),
        (
            403,
            "PERMISSION_DENIED",
            denied("aiplatform.endpoints.create", "//x"),
            AccessError,
            "permission aiplatform.endpoints.create is missing",
        ),
        (
            403,
            "PERMISSION_DENIED",
            "Vertex AI API has not been used in project 1 before or it is disabled. Enable it by "
            "visiting https://console.developers.google.com/apis/api/aiplatform.googleapis.com/",
            AccessError,
            "aiplatform.googleapis.com is not enabled",
        ),
        (
            429,
            "RESOURCE_EXHAUSTED",
            "The following quotas are exceeded: CustomModelServingT4GPUsPerProjectPerRegion",
            QuotaError,
            "quota CustomModelServingT4GPUsPerProjectPerRegion is exceeded",
        ),
        (
            429,
            "RESOURCE_EXHAUSTED",
            "Quota exceeded for quota metric 'Online prediction requests' and limit 'x a minute'.",
            QuotaError,
            "quota Online prediction requests is exceeded",
        ),
        (404, "NOT_FOUND", "No endpoint.", ModelError, "No endpoint."),
        (409, "ALREADY_EXISTS", "There.", RemoteError, "There."),
        (400, "INVALID_ARGUMENT", "Machine type z9.", InputError, "Machine type z9."),
        (504, "DEADLINE_EXCEEDED", "Slow.", TimedOutError, "Slow."),
        (500, "INTERNAL", "Oh.", RemoteError, "Oh."),
    ],
)
def test_each_refusal_is_one_sentence(
    status: int, name: str, message: str, kind: type[T2IError], said: str
) -> None:
    error = google_http.error_from_google(
        status, json.dumps(refusal(status, name, message)).encode()
    )
    assert isinstance(error, kind)
    assert said in error.message
    as_list = google_http.error_from_google(
        status, json.dumps([refusal(status, name, message)]).encode()
    )
    assert as_list.message == error.message


def test_a_refusal_without_a_body() -> None:
    assert google_http.error_from_google(502, b"<html>").message == "Google says: HTTP status 502."


def test_no_connection() -> None:
    here = Location(project="p", region="us-central1", api_endpoint="http://127.0.0.1:9")
    with (
        GoogleClient(here, lambda: AUTHORIZED) as cloud,
        pytest.raises(RemoteError, match="reached"),
    ):
        cloud.call("POST", "aiplatform", "projects/p")


def test_a_stall_is_a_time_out(vertex: FakeVertex) -> None:
    vertex.faults.append(Fault(where="GET", stall=30))
    here = Location(project="gallery", region="us-central1", api_endpoint=vertex.url)
    with GoogleClient(here, lambda: AUTHORIZED, seconds=0.2) as cloud:
        with pytest.raises(TimedOutError):
            cloud.send("GET", vertex.url, tries=1)


@pytest.mark.parametrize(
    "url", ["http://example.org", "ftp://127.0.0.1", "https://u:p@host", "http://127.0.0.1:x", "x"]
)
def test_no_token_goes_out_in_the_open(url: str) -> None:
    with pytest.raises(InputError, match="--api-endpoint must be a URL with https://"):
        location.find_location(LocationOptions(project="p", api_endpoint=url))


def test_where_the_place_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no Google Cloud project"):
        location.find_location()
    assert location.find_location(login_project="archive") == Location(
        project="archive", region="us-central1"
    )
    made = "projects/bridge/locations/europe-west4/endpoints/5"
    endpoint_store.remember_endpoint(endpoint_store.EndpointRecord(name=made), current=True)
    assert location.find_location(login_project="archive") == Location(
        project="bridge", region="europe-west4"
    )
    monkeypatch.setenv("T2I_VERTEX_PROJECT", "canvas")
    assert location.find_location().project == "canvas"
    assert location.find_location(
        LocationOptions(project="drawing", region="us-east1")
    ) == Location(project="drawing", region="us-east1")
    named = location.find_location(endpoint="projects/easels/locations/asia-east1/endpoints/1")
    assert named == Location(project="easels", region="asia-east1")
    assert named.host("aiplatform") == "https://asia-east1-aiplatform.googleapis.com"
    assert named.host("storage") == "https://storage.googleapis.com"
    endpoint_store.forget_endpoint("5")
    assert endpoint_store.current_endpoint() is None


def test_permissions_are_asked_for_in_the_project_that_is_used(
    vertex: FakeVertex, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in vertex.environment.items():
        monkeypatch.setenv(name, value)
    login, _ = permissions.check_capabilities()
    assert login.project == "gallery"
    monkeypatch.setenv("T2I_VERTEX_PROJECT", "workshop")
    login, able = permissions.check_capabilities()
    assert login.project == "workshop"
    assert able is not None
    asked = [path for _, path in vertex.requests if "testIam" in path]
    assert asked[-1] == "/v3/projects/workshop:testIamPermissions"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the tries after which a pause was due; there is none."""
    seen: list[int] = []

    def none(_again: object, tried: int, _policy: object) -> float:
        seen.append(tried)
        return 0.0

    monkeypatch.setattr(retry, "_pause", none)
    return seen


def test_a_connection_gets_its_token_in_the_end(
    vertex: FakeVertex, monkeypatch: pytest.MonkeyPatch, waits: list[int]
) -> None:
    for name, value in vertex.environment.items():
        monkeypatch.setenv(name, value)
    vertex.faults = [Fault(where="/token", status=500, times=2)]
    with cloud_session.connect() as there:
        assert there.account == ACCOUNT
        assert waits == [1, 2]
        models = f"{there.client.location.parent}/models"
        assert list(there.client.list_all("aiplatform", models, "m")) == []
    assert counted(vertex)["POST token"] == 3
    body = {"error": "invalid_grant"}
    vertex.faults = [Fault(where="/token", status=400, body=body, times=9)]
    with pytest.raises(AccessError, match=r"\(invalid_grant\)"), cloud_session.connect():
        raise AssertionError
    assert counted(vertex)["POST token"] == 4


def test_the_metadata_server_is_asked_again(
    vertex: FakeVertex, monkeypatch: pytest.MonkeyPatch, waits: list[int]
) -> None:
    host = vertex.url.removeprefix("http://")
    monkeypatch.setattr("google.auth.compute_engine._metadata._GCE_METADATA_HOST", host)
    tokens = google_credentials.TokenProvider(compute_engine.Credentials())  # type: ignore[no-untyped-call]
    place = Location(project="gallery", region="us-central1", api_endpoint=vertex.url)
    with client.GoogleClient(place, tokens) as connection:
        vertex.faults = [Fault(where="computeMetadata", status=503, times=9)]
        with pytest.raises(RemoteError, match="answers with status 503"):
            connection.auth_headers(tries=3)
        # Not google-auth's five tries in each of ours.
        assert len(vertex.requests) == 3
        vertex.faults = [Fault(where="computeMetadata", stall=0.05, times=2)]
        assert connection.auth_headers(tries=3) == {"authorization": "Bearer ya29.secret"}
    assert waits == [1, 2, 1, 2]


def test_an_answer_that_is_no_json(vertex: FakeVertex, cloud: GoogleClient) -> None:
    vertex.objects["pail", "x"] = ({}, b"<html>")
    with pytest.raises(RemoteError, match="it is no JSON"):
        cloud.call("GET", "storage", "/storage/v1/b/pail/o/x", params={"alt": "media"})


def test_several_runs_at_once_lose_no_endpoint(tmp_path: Path) -> None:
    def name(number: int) -> str:
        return f"projects/p/locations/l/endpoints/{number}"

    for number in range(100, 104):
        endpoint_store.remember_endpoint(endpoint_store.EndpointRecord(name=name(number)))

    def work(first: int) -> None:
        for number in range(first, first + 10):
            endpoint_store.remember_endpoint(
                endpoint_store.EndpointRecord(name=name(number)), current=number == 31
            )
        endpoint_store.forget_endpoint(name(100 + first // 10))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [0, 10, 20, 30]))
    assert {one.name for one in endpoint_store.list_records()} == {
        name(number) for number in range(40)
    }
    assert (current := endpoint_store.current_endpoint()) and current.name == name(31)
    assert sorted(path.name for path in endpoint_store.store_path().parent.iterdir()) == [
        "vertex.json",
        "vertex.json.lock",
    ]


def test_a_run_waits_for_another_one_s_writing(t2i_env: dict[str, str]) -> None:
    endpoint_store.remember_endpoint(
        endpoint_store.EndpointRecord(name="projects/p/locations/l/endpoints/1")
    )
    code = (
        "from t2i_cli.vertex.endpoint_store import EndpointRecord, remember_endpoint;"
        "print('on', flush=True);"
        "remember_endpoint(EndpointRecord(name='projects/p/locations/l/endpoints/2'));"
        "print('done')"
    )
    env = t2i_env | {"XDG_STATE_HOME": os.environ["XDG_STATE_HOME"]}
    with open(f"{endpoint_store.store_path()}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-c", code]
        other = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "on\n"
        time.sleep(0.3)
        assert len(endpoint_store.list_records()) == 1
    assert other.communicate(timeout=60)[0] == "done\n"
    assert len(endpoint_store.list_records()) == 2


def test_a_broken_memory_is_none(tmp_path: Path) -> None:
    endpoint_store.remember_endpoint(
        endpoint_store.EndpointRecord(name="projects/p/locations/l/endpoints/1"), current=True
    )
    assert endpoint_store.store_path().stat().st_mode & 0o077 == 0
    endpoint_store.store_path().write_text('{"current": 5, "endpoints": [7]}')
    assert endpoint_store.current_endpoint() is None
    assert endpoint_store.list_records() == []


@pytest.mark.parametrize(
    ("machine", "accelerator", "model", "text"),
    [
        (None, None, "sd15", "g2-standard-4 with 1 NVIDIA_L4"),
        (None, None, "flux2-klein", "g2-standard-8 with 1 NVIDIA_L4"),
        (None, None, "flux-schnell", "a2-highgpu-1g with 1 NVIDIA_TESLA_A100"),
        (None, None, "qwen-image", "a2-ultragpu-1g with 1 NVIDIA_A100_80GB"),
        (None, None, "postcard", "n1-standard-4"),
        (None, "t4", "sd15", "n1-standard-8 with 1 NVIDIA_TESLA_T4"),
        (None, "L4", "sd15", "g2-standard-4 with 1 NVIDIA_L4"),
        ("n1-standard-4", "NVIDIA_TESLA_T4:1", "sd15", "n1-standard-4 with 1 NVIDIA_TESLA_T4"),
        ("n1-standard-8", "none", "sd15", "n1-standard-8"),
    ],
)
def test_hardware(machine: str | None, accelerator: str | None, model: str, text: str) -> None:
    chosen = machine_types.choose_hardware(machine, accelerator, catalog.MODELS[model])
    assert chosen.text() == text
    assert chosen.price(machine_types.BUILT_IN) is not None


@pytest.mark.parametrize(
    ("machine", "accelerator"),
    [
        ("huge", None),
        ("g2-standard-12", "none"),
        ("g2-standard-4", "t4"),
        (None, "t4:many"),
        (None, "t4:0"),
        (None, "t 4"),
    ],
)
def test_hardware_that_is_none(machine: str | None, accelerator: str | None) -> None:
    with pytest.raises(InputError):
        machine_types.choose_hardware(machine, accelerator, catalog.MODELS["sd15"])


def test_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = _weights(tmp_path)
    assert containers.find_source(str(weights), "t2i").folder == weights
    assert containers.find_source("gs://pail/x/", "t2i").uri == "gs://pail/x"
    gated = containers.find_source("flux-schnell", "model-garden")
    assert gated.fetch
    assert gated.needs_upload
    assert not containers.find_source("sd15", "model-garden").needs_upload
    assert not containers.find_source("postcard", "t2i").needs_upload
    assert (
        containers.find_source("postcard", "model-garden").folder
        == catalog.MODELS["postcard"].folder
    )
    for wrong in ("gs://pail", "gs://pail/a b", "a/b/c", "nothing"):
        with pytest.raises((InputError, ModelError)):
            containers.find_source(wrong, "t2i")
    with pytest.raises(InputError, match=r"model\.mar"):
        containers.find_source(str(weights), "torchserve")
    assert containers.find_source("gs://pail/mar", "torchserve").uri == "gs://pail/mar"


def test_the_way_of_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    assert containers.choose_container(None, None) == ("model-garden", None)
    image = "us-central1-docker.pkg.dev/gallery/t2i/t2i:1"
    monkeypatch.setenv("T2I_VERTEX_IMAGE", image)
    assert containers.choose_container(None, None) == ("t2i", image)
    monkeypatch.delenv("T2I_VERTEX_IMAGE")
    with pytest.raises(InputError, match="no image"):
        containers.choose_container("t2i", None)
    with pytest.raises(InputError, match="--serving"):
        containers.choose_container("flask", None)
    source = containers.find_source("sd15", "t2i")
    resource = containers.model_resource("t2i", source, image, None, gpu=True)
    spec = resource["containerSpec"]
    assert isinstance(spec, dict)
    assert spec["imageUri"] == image
    assert spec["env"] == [
        {"name": "T2I_MODEL", "value": source.spec.repo},
        {"name": "T2I_DEVICE", "value": "cuda"},
    ]
    for model, artifacts in ((source, None), (source, "gs://pail/sd15")):
        on_cpu = containers.model_resource("t2i", model, image, artifacts, gpu=False)
        assert "T2I_DEVICE" not in str(on_cpu)
        on_gpu = containers.model_resource("t2i", model, image, artifacts, gpu=True)
        assert {"name": "T2I_DEVICE", "value": "cuda"} in on_gpu["containerSpec"]["env"]  # type: ignore[index]
    mar = containers.model_resource("torchserve", source, None, "gs://pail/mar", gpu=True)
    assert "'T2I_DEVICE', 'value': 'cuda'" in str(mar["containerSpec"])
    mar = containers.model_resource("torchserve", source, None, "gs://pail/mar", gpu=False)
    assert mar["artifactUri"] == "gs://pail/mar"
    assert "pytorch-cpu" in str(mar["containerSpec"])


def test_the_documentation_names_every_permission() -> None:
    text = (Path(__file__).parent.parent / "docs/remote.md").read_text()
    for step, names in permissions.STEPS.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {step} "))
        assert set(re.findall(r"`((?:\w+\.){2}\w+)`", row)) == set(names), step
    date = container.WARNING.partition(" on ")[2]
    assert date.rstrip(".") in text
