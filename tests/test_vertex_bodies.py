"""Bodies of the requests that create resources: Google's own types, and their cost in imports."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.cloud import aiplatform_v1

from t2i_cli.errors import InputError, QuotaError
from t2i_cli.settings import store
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import deployment_planning, lifecycle, resource_bodies
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.cloud_session import CloudSession
from t2i_cli.vertex.labels import Labels
from t2i_cli.vertex.location import Location
from tests.fakes.vertex import FakeVertex, operations_unimplemented, stock_out

MACHINE = {"machineType": "g2-standard-4", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
RESOURCES = {"machineSpec": MACHINE, "minReplicaCount": 1, "maxReplicaCount": 1}
DEPLOYED = {"id": "1", "model": "projects/p/locations/l/models/1", "dedicatedResources": RESOURCES}


def test_a_body_is_what_google_s_type_holds() -> None:
    body = resource_bodies.deployment_body("v1", DEPLOYED)
    assert body == {"deployedModel": DEPLOYED, "trafficSplit": {"0": 100}}
    machine = aiplatform_v1.MachineSpec.from_json(
        json.dumps(body["deployedModel"]["dedicatedResources"]["machineSpec"])
    )
    assert machine.accelerator_type is aiplatform_v1.AcceleratorType.NVIDIA_L4


def test_output_of_the_container_is_logged_by_either_version() -> None:
    # v1 logs unless told not to, and does not know the other field; v1beta1 logs if told to.
    plain = resource_bodies.deployment_body("v1", DEPLOYED)["deployedModel"]
    assert not plain.keys() & {"enableContainerLogging", "disableContainerLogging"}
    beta = resource_bodies.deployment_body("v1beta1", DEPLOYED)["deployedModel"]
    assert beta["enableContainerLogging"] is True
    assert "disableContainerLogging" not in beta


@pytest.mark.parametrize(
    "build",
    [
        lambda: resource_bodies.endpoint_body({"displayNames": "x"}),
        lambda: resource_bodies.endpoint_body({"labels": {"a": 1}}),
        lambda: resource_bodies.upload_body({"displayName": 3}),
        lambda: resource_bodies.upload_body({"containerSpec": {"image": "x"}}),
        lambda: resource_bodies.deployment_body("v1", DEPLOYED | {"enableContainerLogging": True}),
        lambda: resource_bodies.deployment_body(
            "v1", DEPLOYED | {"dedicatedResources": RESOURCES | {"scaleToZeroSpec": {}}}
        ),
        lambda: resource_bodies.deployment_body(
            "v1",
            DEPLOYED
            | {
                "dedicatedResources": RESOURCES
                | {"machineSpec": MACHINE | {"acceleratorType": "L4"}}
            },
        ),
    ],
)
def test_a_wrong_field_or_value_cannot_be_written(build: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"^Vertex AI's v1 has no such value: .*[^.]\.$"):
        build()


@pytest.fixture
def session(
    vertex: FakeVertex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CloudSession]:
    """A connection to the fake, with no settings and no memory of the developer's."""
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for setting in store.SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    here = Location(project="gallery", region="us-central1", api_endpoint=vertex.url)
    with GoogleClient(here, lambda: {"Authorization": "Bearer ya29.test"}) as connection:
        yield CloudSession(connection, "ann")


def deploy(session: CloudSession, asked: DeploymentSpec) -> None:
    """What `t2i remote deploy` does once its plan is agreed to."""
    settled = deployment_planning.plan_deployment(asked, session.client, session.account)
    lifecycle.deploy_plan(settled, session, Console())


@pytest.mark.parametrize("idle", [None, "15m"])
def test_a_deployed_container_s_output_is_logged(
    vertex: FakeVertex, session: CloudSession, idle: str | None
) -> None:
    deploy(session, DeploymentSpec(model="sd15", scale_to_zero=idle))
    (endpoint,) = vertex.endpoints.values()
    (deployed,) = endpoint["deployedModels"]
    assert deployed.get("enableContainerLogging") is (True if idle else None)
    assert not deployed.get("disableContainerLogging")


def test_a_deployment_needs_no_list_of_operations(
    vertex: FakeVertex, session: CloudSession, capsys: pytest.CaptureFixture[str]
) -> None:
    vertex.faults.append(operations_unimplemented())
    deploy(session, DeploymentSpec(model="sd15"))
    assert len(vertex.left()["deployed"]) == 1
    assert "whether one is under way cannot be told: Google says: " in capsys.readouterr().err


def test_a_region_without_machines_is_a_quota_error(
    vertex: FakeVertex, session: CloudSession
) -> None:
    vertex.operation_errors["deployModel"] = stock_out()
    with pytest.raises(QuotaError, match="insufficient"):
        deploy(session, DeploymentSpec(model="sd15"))


@pytest.mark.parametrize(
    ("arguments", "google"),
    [
        (("remote", "--help"), False),
        (("remote", "list"), False),
        (("remote", "status"), False),
        (("remote", "cost"), False),
        (("remote", "generate", "a star", "-o", "star.png"), False),
        (("remote", "deploy", "-m", "sd15", "--yes"), True),
    ],
)
def test_only_what_creates_imports_google_s_package(
    vertex: FakeVertex,
    t2i_env: dict[str, str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    google: bool,
) -> None:
    ours = Labels(name="x", expires=1_990_000_000, model="sd15", serving="t2i", by="ann")
    named = {"T2I_VERTEX_ENDPOINT": vertex.make_endpoint(labels=ours.encoded())}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "t2i_cli", *arguments],
        env=t2i_env | vertex.environment | named,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0, done.stderr[-2000:]
    assert "t2i_cli.cli" in imported
    assert any(name.startswith(("google.cloud", "grpc")) for name in imported) == google
