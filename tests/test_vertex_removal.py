"""Removals that may not look at everything: what is billed goes all the same."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from t2i_cli.errors import AccessError, RemoteError, T2IError
from t2i_cli.net import retry
from t2i_cli.settings import store
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import (
    deployment_planning,
    inventory,
    lifecycle,
    operations,
    permissions,
    removal,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.cloud_session import CloudSession
from t2i_cli.vertex.location import Location
from tests.conftest import T2I
from tests.fakes.google import refusal
from tests.fakes.oauth import AUTHORIZED
from tests.fakes.vertex import FakeVertex, Fault, counted

ASKED = DeploymentSpec(model="sd15", name="short", ttl="1h")
PLAIN = {"Content-Type": "text/plain"}
READS = {
    "list of endpoints": r"GET .*/endpoints$",
    "endpoint": r"GET .*/endpoints/\d+$",
    "list of operations": r"GET .*/operations$",
    "operation": r"GET .*/endpoints/\d+/operations/\d+$",
    "list of models": r"GET .*/models$",
    "list of jobs": r"GET .*/jobs$",
    "list of objects": r"GET /storage/v1/b/[^/]+/o$",
    "bucket": r"GET /storage/v1/b/[^/]+$",
    "cancel": r"POST .*:cancel$",
}
"""What a removal asks, beside that it undeploys and deletes."""
ANSWERS = {
    "403": Fault(status=403, body=refusal(403, "PERMISSION_DENIED", "You may not see this.")),
    "500": Fault(status=500, body=refusal(500, "INTERNAL", "Internal error.")),
    "501": Fault(status=501, body=refusal(501, "UNIMPLEMENTED", "Method not found.")),
    "503 in text": Fault(status=503, body=b"no healthy upstream", headers=PLAIN),
    "200 in text": Fault(status=200, body=b"Sign in to the network", headers=PLAIN),
}


@pytest.fixture
def cloud(
    vertex: FakeVertex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CloudSession]:
    """A connection to the fake, of little patience, with no settings of the developer's."""
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for setting in store.SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setattr(retry, "_pause", lambda *_: 0.01)
    monkeypatch.setattr(operations, "OPERATION_TIMEOUT", 0.1)
    monkeypatch.setattr(lifecycle, "REMOVAL_TIMEOUT", 0.2)
    monkeypatch.setattr(lifecycle, "REMOVAL_PAUSE", 0.01)
    here = Location(project="gallery", region="us-central1", api_endpoint=vertex.url)
    with GoogleClient(here, lambda: AUTHORIZED) as connection:
        yield CloudSession(connection, "ann")


def deploy(cloud: CloudSession) -> None:
    """What `t2i remote deploy` does once its plan is agreed to."""
    settled = deployment_planning.plan_deployment(ASKED, cloud.client, cloud.account)
    lifecycle.deploy_plan(settled, cloud, Console())


def break_read(vertex: FakeVertex, read: str, answer: str) -> None:
    """Have a read fail from now on, each time; undeployments take a while."""
    vertex.slow = {"undeployModel": 0.05}
    vertex.faults = [replace(ANSWERS[answer], where=READS[read], times=10_000)]


def billed(vertex: FakeVertex) -> dict[str, list[str]]:
    """What is left that costs something."""
    return {kind: names for kind, names in vertex.left().items() if kind in {"deployed", "objects"}}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("read", READS)
def test_an_ephemeral_endpoint_goes_without_a_look(
    vertex: FakeVertex,
    cloud: CloudSession,
    capsys: pytest.CaptureFixture[str],
    read: str,
    answer: str,
) -> None:
    error = None
    try:
        with lifecycle.ephemeral_deployment(ASKED, cloud, Console(), yes=True):
            break_read(vertex, read, answer)
            before = len(vertex.requests)
            capsys.readouterr()
    except T2IError as raised:
        error = raised
    tries = 10_000 - vertex.faults[0].times
    vertex.faults = []
    assert billed(vertex) == {}
    assert "endpoints" not in vertex.left()
    assert len(vertex.requests) > before
    said = capsys.readouterr().err + (error.message if error else "")
    if not tries:
        assert read == "cancel"  # nothing is under way
        return
    if read == "list of objects":
        return  # of a bucket that this deployment does not use
    assert "look" in said or "could not be told" in said, said


@pytest.mark.parametrize("answer", ["403", "500", "501"])
@pytest.mark.parametrize("read", READS)
def test_reap_needs_no_look_to_end_what_is_billed(
    vertex: FakeVertex,
    cloud: CloudSession,
    capsys: pytest.CaptureFixture[str],
    read: str,
    answer: str,
) -> None:
    deploy(cloud)
    vertex.advance(2 * 3600)
    break_read(vertex, read, answer)
    capsys.readouterr()
    error = None
    try:
        found = inventory.list_deployments(cloud.client, partial=True)
        overdue = found.overdue(cloud.client.server_time())
        removal.remove_deployments(
            cloud.client, found, overdue, Console(), artifacts=True, bucket=None, all_=True
        )
    except T2IError as raised:
        error = raised
    vertex.faults = []
    assert billed(vertex) == {}
    assert "endpoints" not in vertex.left()
    said = capsys.readouterr().err
    if read != "cancel":
        assert "look" in said or "may still be there" in said or "could not be told" in said, said
    # That endpoints of others may be left is an error, too: nobody reads what cron prints.
    assert (error is not None) == (read == "list of endpoints")


@pytest.mark.parametrize("answer", ["403", "501"])
def test_a_deployment_under_way_that_cannot_be_seen_is_waited_for(
    vertex: FakeVertex, cloud: CloudSession, answer: str
) -> None:
    deploy(cloud)
    (number,) = vertex.endpoints
    (model,) = vertex.models.values()
    vertex.slow = {"deployModel": 0.5}
    resources = {"machineSpec": {"machineType": "n1-standard-4"}, "minReplicaCount": 1}
    with vertex.lock:
        body = {"deployedModel": {"model": model["name"], "dedicatedResources": resources}}
        vertex.begin_deployment(number, body)
    break_read(vertex, "list of operations", answer)
    found = inventory.list_deployments(cloud.client, partial=True)
    removal.remove_deployments(
        cloud.client,
        found,
        [*found.deployments.values()],
        Console(),
        artifacts=True,
        bucket=None,
        all_=True,
    )
    assert vertex.left() == {}
    assert len(vertex.spans) == 2


def test_what_a_run_made_is_removed_without_any_look(
    vertex: FakeVertex, cloud: CloudSession, capsys: pytest.CaptureFixture[str]
) -> None:
    with lifecycle.ephemeral_deployment(ASKED, cloud, Console(), yes=True):
        vertex.slow = {"undeployModel": 0.05}
        vertex.faults = [replace(ANSWERS["403"], where="GET .*aiplatform|GET /v1/", times=10_000)]
    assert vertex.spans[0].end is not None
    assert vertex.endpoints == {}
    assert "paid for any more" not in capsys.readouterr().err


def test_what_is_undeployed_already_is_deleted(vertex: FakeVertex, cloud: CloudSession) -> None:
    deploy(cloud)
    break_read(vertex, "endpoint", "403")
    found = inventory.list_deployments(cloud.client, partial=True)
    for endpoint in vertex.endpoints.values():
        endpoint["deployedModels"].clear()  # by the scheduler job, say
    removal.remove_deployments(
        cloud.client, found, [found.deployments["short"]], Console(), artifacts=True,
        bucket=None, all_=False,
    )  # fmt: skip
    assert vertex.left() == {}


def test_down_and_reap_as_commands(t2i: T2I, vertex: FakeVertex) -> None:
    env = vertex.environment
    deploy = ("remote", "deploy", "-m", "sd15", "--ttl", "1h", "--yes", "--name")
    assert t2i(*deploy, "short", env=env).returncode == 0
    assert t2i(*deploy, "brief", env=env).returncode == 0
    break_read(vertex, "list of endpoints", "403")
    done = t2i("remote", "down", "brief", env=env)
    assert done.returncode == 0, done.stderr
    assert "warning: Something may be left: endpoints cannot be looked at" in done.stderr
    vertex.advance(2 * 3600)
    done = t2i("remote", "reap", "--quiet", env=env)
    assert done.returncode == AccessError.exit_code
    assert "The endpoints could not be listed, and some may still be paid for" in done.stderr
    assert t2i("remote", "down", "other", env=env).returncode == AccessError.exit_code
    vertex.faults = []
    assert vertex.left() == {}


def test_a_deployment_without_a_list_of_operations(vertex: FakeVertex, cloud: CloudSession) -> None:
    break_read(vertex, "list of operations", "501")
    deploy(cloud)
    assert len(billed(vertex)["deployed"]) == 1
    assert counted(vertex)["POST deployModel"] == 1


def test_a_failed_deployment_tells_what_it_cannot_look_at(
    vertex: FakeVertex, cloud: CloudSession, capsys: pytest.CaptureFixture[str]
) -> None:
    vertex.operation_errors["deployModel"] = {"code": 13, "message": "Try later."}
    break_read(vertex, "list of operations", "501")
    with pytest.raises(RemoteError, match="Try later"):
        deploy(cloud)
    said = capsys.readouterr().err
    assert "perhaps a deployment under way, which cannot be looked at" in said


def test_removing_needs_what_a_deployment_s_cancellation_needs() -> None:
    assert "aiplatform.endpoints.deploy" in permissions.STEPS["remove"]
