"""The fake of Vertex AI, proved by Google's own client: it drives a whole life against it."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.conftest import T2I
from tests.fakes.google import PERSON
from tests.fakes.vertex import NUMBER, PROJECT, REGION, FakeVertex, running_vertex

LIFE = """
import logging, sys
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform

logging.disable(logging.INFO)
aiplatform.init(
    project="{project}", location="{region}", credentials=AnonymousCredentials(),
    api_transport="rest", api_endpoint=sys.argv[1],
)
model = aiplatform.Model.upload(
    display_name="painter", serving_container_image_uri="europe-docker.pkg.dev/x/y/z",
    serving_container_predict_route="/predict", serving_container_health_route="/health",
    serving_container_ports=[8080], labels={{"managed-by": "test"}},
)
endpoint = aiplatform.Endpoint.create(display_name="easel", labels={{"managed-by": "test"}})
endpoint.deploy(
    model, machine_type="g2-standard-4", accelerator_type="NVIDIA_L4", accelerator_count=1,
    min_replica_count=1, max_replica_count=2,
)
(deployed,) = endpoint.list_models()
assert deployed.dedicated_resources.machine_spec.accelerator_count == 1, deployed
answer = endpoint.predict(instances=[{{"prompt": "a star", "seed": 1}}, {{"prompt": "a moon"}}])
print(*answer.predictions, answer.deployed_model_id == deployed.id, file=sys.stdout)
(listed,) = aiplatform.Endpoint.list(filter='labels.managed-by="test"')
assert listed.name == endpoint.name
assert not aiplatform.Endpoint.list(filter='labels.managed-by="other"')
endpoint.update(labels={{"managed-by": "nobody"}})
endpoint.undeploy_all()
endpoint.delete()
model.delete()
"""


def test_google_s_own_client_lives_a_whole_life(tmp_path: Path, t2i_env: dict[str, str]) -> None:
    pytest.importorskip("google.cloud.aiplatform_v1", exc_type=ImportError)
    with running_vertex(tmp_path) as vertex:
        vertex.require_token = False
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                LIFE.format(project=PROJECT, region=REGION),
                vertex.url,
            ],
            env=t2i_env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        star, moon, told = done.stdout.split()
        assert base64.b64decode(star).startswith(b"\x89PNG")
        assert star != moon
        assert told == "True"
        assert vertex.predictions[0]["instances"][0] == {"prompt": "a star", "seed": 1.0}
        assert vertex.left() == {}
        assert len(vertex.spans) == 1
        assert vertex.spans[0].replicas == 1


PARENT = f"/projects/{PROJECT}/locations/{REGION}"
MACHINE = {"machineType": "g2-standard-4", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
CONTAINER = {"imageUri": "us-docker.pkg.dev/x/y/z", "ports": [{"containerPort": 8080}]}
MODEL = {"displayName": "painter", "containerSpec": CONTAINER}
JOB = {
    "name": f"{PARENT[1:]}/jobs/end",
    "schedule": "1 2 3 4 *",
    "httpTarget": {"uri": "https://example.org/", "httpMethod": "POST", "body": ""},
}

Change = Mapping[str, object]
"""Keys with dots → values that replace the good body's."""


def changed(body: Mapping[str, object], change: Change) -> dict[str, Any]:
    """A copy of the body with these changes; None takes a key away."""
    copy: dict[str, Any] = deepcopy(dict(body))
    for key, value in change.items():
        *above, last = key.split("/")
        place = copy
        for part in above:
            place = place.setdefault(part, {})
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    return copy


class Asked(NamedTuple):
    """One request, and what the fake answers."""

    status: int
    message: str


@pytest.fixture
def ask(vertex: FakeVertex) -> Callable[..., Asked]:
    """Send one request with a token."""

    def send(
        method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Asked:
        data = None if body is None else json.dumps(body).encode()
        all_headers = {"Authorization": "Bearer ya29.key"} | dict(headers or {})
        request = Request(vertex.url + path, method=method, data=data, headers=all_headers)  # noqa: S310
        try:
            with urlopen(request) as answer:  # noqa: S310 - loopback
                return Asked(answer.status, answer.read().decode())
        except HTTPError as error:
            with error:
                return Asked(error.code, json.loads(error.read())["error"]["message"])

    return send


def deployment(vertex: FakeVertex) -> tuple[str, dict[str, Any]]:
    """An endpoint's path, and a body that deploys another model there."""
    endpoint = vertex.make_endpoint()
    (model,) = vertex.models.values()
    resources = {"machineSpec": MACHINE, "minReplicaCount": 1, "maxReplicaCount": 2}
    deployed = {"model": model["name"], "id": "12345", "dedicatedResources": resources}
    return f"/{endpoint}", {"deployedModel": deployed, "trafficSplit": {"0": 100}}


ZERO = "deployedModel/dedicatedResources/"
SPEC = ZERO + "machineSpec/"


@pytest.mark.parametrize(
    ("version", "change", "message"),
    [
        ("v1", {}, ""),
        ("v1beta1", {"deployedModel/enableContainerLogging": True}, ""),
        ("v1", {"deployedModel/enableContainerLogging": True}, 'Unknown name "enableContainer'),
        ("v1", {ZERO + "scaleToZeroSpec": {}}, 'Unknown name "scaleToZeroSpec"'),
        ("v1", {ZERO + "flexStart": {}}, 'Unknown name "flexStart"'),
        ("v1", {"deployedModel/sparkles": 1}, 'Unknown name "sparkles"'),
        ("v1", {"sparkles": 1}, 'Unknown name "sparkles"'),
        ("v1", {"deployedModel": None}, "deployed_model is required"),
        ("v1", {"deployedModel/model": None}, "model is required"),
        ("v1", {"deployedModel/model": "painter"}, "is not of the form"),
        ("v1", {"deployedModel/id": "12345678901"}, "id of a DeployedModel"),
        ("v1", {"deployedModel/id": "77"}, "exists"),
        ("v1", {"deployedModel/createTime": "2026-01-01T00:00:00Z"}, "output only"),
        ("v1", {"deployedModel/displayName": "x" * 129}, "128 characters"),
        ("v1", {"deployedModel/serviceAccount": "ann@example.org"}, "service_account"),
        ("v1", {"deployedModel/dedicatedResources": None}, "prediction_resources is required"),
        ("v1", {ZERO + "minReplicaCount": 0}, "min_replica_count is required"),
        ("v1", {ZERO + "minReplicaCount": -1}, "greater than or equal to 1"),
        ("v1", {ZERO + "minReplicaCount": 1.5}, "Invalid value"),
        ("v1", {ZERO + "minReplicaCount": 3}, "max_replica_count"),
        ("v1", {ZERO + "machineSpec": None}, "machine_spec is required"),
        ("v1", {SPEC + "acceleratorType": "L4"}, "google.cloud.aiplatform.v1.AcceleratorType"),
        ("v1", {SPEC + "acceleratorType": None}, "set together"),
        ("v1", {SPEC + "acceleratorCount": 2}, "must be used with 1 NVIDIA_L4"),
        ("v1", {SPEC + "machineType": "n1-standard-4"}, "cannot be attached"),
        ("v1", {SPEC + "machineType": "g2-standard-5"}, "not supported"),
        ("v1", {SPEC + "machineType": "a2-highgpu-1g"}, "must be used with 1 NVIDIA_TESLA_A100"),
        ("v1", {SPEC + "machineType": "a4x-highgpu-4g"}, "must be used with 4 NVIDIA_GB200"),
        ("v1", {"trafficSplit": {"0": 50}}, "add up to 100"),
        ("v1", {"trafficSplit": {"0": 50, "78": 50}}, "78 of the traffic split is not deployed"),
        ("v1", {"trafficSplit": {"0": 50, "77": 50}}, ""),
        ("v1beta1", {ZERO + "scaleToZeroSpec": {}}, "must be 0"),
        ("v1beta1", {ZERO + "flexStart": {"maxRuntimeDuration": "604801s"}}, "604800s"),
        (
            "v1beta1",
            {
                ZERO + "minReplicaCount": 0,
                ZERO + "scaleToZeroSpec": {"idleScaledownPeriod": "300s"},
            },
            "",
        ),
        (
            "v1beta1",
            {
                ZERO + "minReplicaCount": 0,
                ZERO + "scaleToZeroSpec": {"idleScaledownPeriod": "299s"},
            },
            "from 300s to 28800s",
        ),
        (
            "v1",
            {SPEC + "reservationAffinity": {"reservationAffinityType": "SPECIFIC_RESERVATION"}},
            "has a key and values",
        ),
    ],
)
def test_a_wrong_deployment_is_refused(
    vertex: FakeVertex, ask: Callable[..., Asked], version: str, change: Change, message: str
) -> None:
    path, body = deployment(vertex)
    answer = ask("POST", f"/{version}{path}:deployModel", changed(body, change))
    assert (answer.status == 200) == (not message)
    assert message in answer.message


@pytest.mark.parametrize(
    ("method", "path", "body", "change", "message"),
    [
        ("POST", "/models:upload", {"model": MODEL}, {}, ""),
        ("POST", "/models:upload", {"model": MODEL}, {"model/displayName": None}, "display_name"),
        ("POST", "/models:upload", {"model": MODEL}, {"model/versionId": "1"}, "output only"),
        ("POST", "/models:upload", {"model": MODEL}, {"modelId": "1x"}, "model_id"),
        ("POST", "/models:upload", {"model": MODEL}, {"model/artifactUri": "/tmp"}, "artifact_uri"),  # noqa: S108
        (
            "POST",
            "/models:upload",
            {"model": MODEL},
            {"model/containerSpec/imageUri": "docker.io/x"},
            "Artifact",
        ),
        (
            "POST",
            "/models:upload",
            {"model": MODEL},
            {"model/containerSpec/deploymentTimeout": "7201s"},
            "from 1s to 7200s",
        ),
        (
            "POST",
            "/models:upload",
            {"model": MODEL},
            {"model/containerSpec/env": [{"name": "A-B", "value": "x"}]},
            "environment variable",
        ),
        (
            "POST",
            "/models:upload",
            {"model": MODEL},
            {"model/containerSpec/ports": [{"containerPort": 70000}]},
            "no port",
        ),
        ("POST", "/endpoints", {"displayName": "e"}, {}, ""),
        ("POST", "/endpoints?endpointId=0123", {"displayName": "e"}, {}, "endpoint_id"),
        ("POST", "/endpoints?number=1", {"displayName": "e"}, {}, 'Unknown name "number"'),
        ("POST", "/endpoints", {"displayName": "e"}, {"name": "mine"}, "output only"),
        ("POST", "/endpoints", {"displayName": "e"}, {"labels/A": "b"}, "Label A=b"),
        ("POST", "/endpoints", {"displayName": "e"}, {"labels/a": "x" * 65}, "Label a="),
        (
            "POST",
            "/endpoints",
            {"displayName": "e"},
            {"labels": {f"l{n}": "" for n in range(65)}},
            "64",
        ),
        (
            "POST",
            "/endpoints",
            {"displayName": "e"},
            {"clientConnectionConfig/inferenceTimeout": "3601s"},
            "from 1s to 3600s",
        ),
        ("GET", "/endpoints?pagesize=1", None, {}, 'Unknown name "pagesize"'),
        ("GET", "/endpoints?pageSize=1", None, {}, ""),
    ],
)
def test_a_wrong_model_or_endpoint_is_refused(
    ask: Callable[..., Asked],
    method: str,
    path: str,
    body: Change | None,
    change: Change,
    message: str,
) -> None:
    answer = ask(method, f"/v1{PARENT}{path}", None if body is None else changed(body, change))
    assert (answer.status == 200) == (not message)
    assert message in answer.message


@pytest.mark.parametrize(
    ("action", "query", "body", "message"),
    [
        ("predict", "", {"instances": [{}]}, ""),
        ("predict", "", {"instances": []}, "instances is required"),
        ("predict", "", {"instances": [{}], "seed": 1}, 'Unknown name "seed"'),
        ("undeployModel", "", {"deployedModelId": "77"}, ""),
        ("undeployModel", "", {"deployedModel": "77"}, 'Unknown name "deployedModel"'),
        ("", "?updateMask=labels", {"labels": {"a": "b"}}, ""),
        ("", "", {"labels": {"a": "b"}}, "update_mask is required"),
        ("", "?updateMask=sparkles", {"labels": {"a": "b"}}, "sparkles cannot be updated"),
        ("", "?updateMask=createTime", {"labels": {"a": "b"}}, "create_time cannot be updated"),
        ("", "?updateMask=trafficSplit", {"trafficSplit": {"77": 99}}, "add up to 100"),
    ],
)
def test_a_wrong_call_of_an_endpoint_is_refused(
    vertex: FakeVertex,
    ask: Callable[..., Asked],
    action: str,
    query: str,
    body: Change,
    message: str,
) -> None:
    name = vertex.make_endpoint()
    path = f"/v1/{name}:{action}" if action else f"/v1/{name}{query}"
    answer = ask("POST" if action else "PATCH", path, body)
    assert (answer.status == 200) == (not message)
    assert message in answer.message


def test_traffic_decides_who_serves_and_who_may_go(
    vertex: FakeVertex, ask: Callable[..., Asked]
) -> None:
    path, body = deployment(vertex)
    silent = changed(body, {"trafficSplit": None})
    assert ask("POST", f"/v1{path}:deployModel", silent).status == 200
    # The new one gets nothing; the one with all traffic cannot go while another is there.
    refused = ask("POST", f"/v1{path}:undeployModel", {"deployedModelId": "77"})
    assert (refused.status, "has traffic" in refused.message) == (400, True)
    moved = {"deployedModelId": "77", "trafficSplit": {"12345": 100}}
    assert ask("POST", f"/v1{path}:undeployModel", moved).status == 200
    assert json.loads(ask("GET", f"/v1{path}").message)["trafficSplit"] == {"12345": 100}
    assert ask("PATCH", f"/v1{path}?updateMask=trafficSplit", {}).status == 200
    unserved = ask("POST", f"/v1{path}:predict", {"instances": [{}]})
    assert (unserved.status, "no traffic split" in unserved.message) == (400, True)


def test_v1_leaves_out_what_is_v1beta1_s(vertex: FakeVertex, ask: Callable[..., Asked]) -> None:
    path, body = deployment(vertex)
    idle = {"idleScaledownPeriod": "300s"}
    zero = changed(body, {ZERO + "minReplicaCount": 0, ZERO + "scaleToZeroSpec": idle})
    assert ask("POST", f"/v1beta1{path}:deployModel", zero).status == 200
    shown = {}
    for version in ("v1", "v1beta1"):
        found = json.loads(ask("GET", f"/{version}{path}").message)
        shown[version] = found["deployedModels"][-1]["dedicatedResources"]
    assert "scaleToZeroSpec" not in shown["v1"]
    assert shown["v1beta1"]["scaleToZeroSpec"] == idle
    assert "minReplicaCount" not in shown["v1beta1"]


@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("POST", "/storage/v1/b?project=gallery", {"name": "pail", "location": "x"}, ""),
        ("POST", "/storage/v1/b?project=gallery", {"name": "Pail"}, "Invalid bucket name"),
        ("POST", "/storage/v1/b?project=gallery", {"name": "pail", "public": 1}, '"public"'),
        ("POST", "/storage/v1/b", {"name": "pail"}, "Required parameter: project"),
        (
            "POST",
            "/storage/v1/b?project=gallery",
            {"name": "pail", "softDeletePolicy": {"retentionDurationSeconds": "60"}},
            "7 to 90 days",
        ),
        ("GET", "/storage/v1/b?project=gallery&size=3", None, 'Unknown name "size"'),
        ("POST", f"/v1{PARENT}/jobs", JOB, ""),
        ("POST", f"/v1{PARENT}/jobs", JOB | {"state": "ENABLED"}, '"state"'),
        ("POST", f"/v1{PARENT}/jobs", JOB | {"retryConfig": {"retryCount": 6}}, "0 to 5"),
        ("POST", f"/v1{PARENT}/jobs", JOB | {"description": "x" * 501}, "500 characters"),
        ("PATCH", f"/v1/{JOB['name']}", JOB, "Required parameter: updateMask"),
        ("GET", "/v3/projects/gallery/timeSeries?filter=x", None, "interval.endTime"),
        ("POST", "/v3/projects/gallery:testIamPermissions", {"permission": []}, '"permission"'),
        (
            "POST",
            "/v3/projects/gallery:testIamPermissions",
            {"permissions": ["aiplatform.*"]},
            "not valid",
        ),
    ],
)
def test_wrong_keys_of_other_services_are_refused(
    ask: Callable[..., Asked], method: str, path: str, body: object, message: str
) -> None:
    answer = ask(method, path, body)
    assert (answer.status == 200) == (not message)
    assert message in answer.message


def test_operations_have_permissions_too(vertex: FakeVertex, ask: Callable[..., Asked]) -> None:
    vertex.slow = {"deployModel": 1000.0}
    path, body = deployment(vertex)
    started = json.loads(ask("POST", f"/v1{path}:deployModel", body).message)["name"]
    for granted, get, cancel, listed in (
        ("aiplatform.endpoints.predict", 403, 403, 403),
        ("aiplatform.endpoints.get", 200, 403, 403),
        ("aiplatform.operations.list", 403, 403, 200),
        ("aiplatform.endpoints.deploy", 200, 200, 403),
    ):
        vertex.granted = {granted}
        assert ask("GET", f"/v1/{started}").status == get
        assert ask("POST", f"/v1/{started}:cancel", {}).status == cancel
        assert ask("GET", f"/v1{path}/operations").status == listed


@pytest.mark.parametrize(
    ("token", "payer", "status", "message"),
    [
        ("ya29.key", None, 200, ""),
        ("ya29.key", "gallery", 200, ""),
        (PERSON, None, 403, "requires a quota project"),
        (PERSON, "gallery", 200, ""),
        (PERSON, "somebody-else", 403, "permission to use project somebody-else"),
        ("ya30.key", "gallery", 401, "invalid credentials"),
    ],
)
def test_a_person_names_the_project_that_pays_the_quota(
    ask: Callable[..., Asked], token: str, payer: str | None, status: int, message: str
) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    if payer:
        headers["x-goog-user-project"] = payer
    answer = ask("GET", f"/v1{PARENT}/endpoints", headers=headers)
    assert answer.status == status
    assert message in answer.message


def test_an_endpoint_with_a_host_of_its_own_is_served_there_only(
    vertex: FakeVertex, ask: Callable[..., Asked], t2i: T2I
) -> None:
    name, shared = vertex.make_endpoint(), vertex.make_endpoint(dedicated=False)
    own = f"{name.split('/')[-1]}.{REGION}-{NUMBER}.prediction.vertexai.goog"
    all_s = f"{REGION}-aiplatform.googleapis.com"
    for host, endpoint, status in (
        (all_s, name, 404),
        (own, name, 200),
        (own, shared, 404),
        (all_s, shared, 200),
    ):
        body: dict[str, object] = {"instances": [{}]}
        answer = ask("POST", f"/v1/{endpoint}:predict", body, headers={"Host": host})
        assert answer.status == status
    assert ask("GET", f"/v1/{name}", headers={"Host": own}).status == 404
    # t2i itself, by Google's own names: it looks the host up, and calls it.
    for endpoint in (name, shared):
        done = t2i(
            *("remote", "generate", "a star", "-o", f"{endpoint[-4:]}.png", "--endpoint", endpoint),
            env=vertex.real_hosts(),
        )
        assert done.returncode == 0, done.stderr
