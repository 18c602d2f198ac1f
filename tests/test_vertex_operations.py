"""Long-running operations that do not end, or that nobody knows of any more."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from t2i_cli.errors import RemoteError, T2IError, TimedOutError
from t2i_cli.net import retry
from t2i_cli.settings import store
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import (
    deployment_planning,
    endpoint_store,
    inventory,
    lifecycle,
    machine_types,
    operations,
    status,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.cloud_session import CloudSession
from t2i_cli.vertex.location import Location
from tests.fakes.google import refusal
from tests.fakes.oauth import AUTHORIZED
from tests.fakes.vertex import FakeVertex, Fault, counted

ASKED = DeploymentSpec(model="sd15", name="slow")


@pytest.fixture
def cloud(
    vertex: FakeVertex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CloudSession]:
    """A connection to the fake, with no settings and no memory of the developer's."""
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for setting in store.SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    here = Location(project="gallery", region="us-central1", api_endpoint=vertex.url)
    with GoogleClient(here, lambda: AUTHORIZED) as connection:
        yield CloudSession(connection, "ann")


@pytest.fixture
def endless(vertex: FakeVertex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deployments that do not end by themselves, and little patience with them."""
    vertex.slow = {"deployModel": 10_000.0}
    monkeypatch.setattr(operations, "DEPLOYMENT_TIMEOUT", 0.3)


def deploy(cloud: CloudSession) -> endpoint_store.EndpointRecord:
    """What `t2i remote deploy` does once its plan is agreed to."""
    return lifecycle.deploy_plan(
        deployment_planning.plan_deployment(ASKED, cloud.client, cloud.account), cloud, Console()
    )


def gone(where: str = "GET .*/operations/[0-9]+$") -> Fault:
    """One look at an operation that Google knows nothing of."""
    return Fault(where=where, status=404, body=refusal(404, "NOT_FOUND", "Not found."))


def test_a_deployment_has_an_hour_and_a_half() -> None:
    assert operations.DEPLOYMENT_TIMEOUT == 90 * 60
    assert operations.OPERATION_TIMEOUT == 30 * 60


@pytest.mark.usefixtures("endless")
def test_a_deployment_that_does_not_end_can_be_gone_on_with(
    vertex: FakeVertex, cloud: CloudSession, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with pytest.raises(TimedOutError, match="^deployment t2i-slow: not done after") as caught:
            deploy(cloud)
        assert "run again" in str(caught.value.hint)
        said = capsys.readouterr().err
        assert "model projects/" in said
        assert "a deployment under way (it will be paid for)" in said
        assert "Run the same command again to go on, or `t2i remote down slow --bucket`" in said
    (operation,) = (o for o in vertex.operations.values() if o.kind == "deployModel")
    operation.due = 0.0
    assert deploy(cloud) == endpoint_store.current_endpoint()
    assert counted(vertex)["POST deployModel"] == 1
    assert len(vertex.left()["deployed"]) == 1


@pytest.mark.usefixtures("endless")
def test_what_is_being_deployed_is_told(vertex: FakeVertex, cloud: CloudSession) -> None:
    with pytest.raises(TimedOutError):
        deploy(cloud)
    prices = machine_types.load_prices()

    def bill() -> status.CostReport:
        return status.cost_report(inventory.list_deployments(cloud.client), cloud.client, prices)

    (line,) = bill().endpoints
    assert line.state == "deploying"
    assert [*status.status_table([line])[1]][:2] == ["slow", "deploying"]
    assert bill().text()[0] == "slow: deploying, 0.81 USD per hour, 0.00 so far"
    vertex.advance(3600)
    cloud.client.call("GET", "aiplatform", f"{cloud.client.location.parent}/models")
    assert bill().text()[0] == "slow: deploying, 0.81 USD per hour, 0.81 so far"
    (operation,) = (o for o in vertex.operations.values() if o.kind == "deployModel")
    operation.due = 0.0
    deploy(cloud)
    assert [one.state for one in bill().endpoints] == ["deployed"]


def test_replicas_that_may_grow_cost_a_range(vertex: FakeVertex, cloud: CloudSession) -> None:
    asked = DeploymentSpec(model="sd15", name="grows", max_replicas=3)
    made = deployment_planning.plan_deployment(asked, cloud.client, cloud.account)
    lifecycle.deploy_plan(made, cloud, Console())
    vertex.advance(2 * 3600)
    bill = status.cost_report(
        inventory.list_deployments(cloud.client), cloud.client, machine_types.load_prices()
    )
    (line,) = bill.endpoints
    assert (line.usd_per_hour, line.usd_per_hour_at_most) == (0.81, 2.43)
    told = bill.to_json()
    assert (told["usd_per_hour"], told["usd_per_hour_at_most"]) == (0.81, 2.43)
    assert "0.81-2.43" in status.status_table([line])[1]
    one, together, _ = bill.text()
    assert one == "grows: 0.81 USD per hour now, 2.43 at most, at least 1.62 so far"
    assert together == ("all: 0.81-2.43 USD per hour, 19.44-58.32 per day, at least 1.62 so far")

    facts = status.status_facts(line, {"under_way": False, "log": None, "parts": ["a", "b"]})
    assert {
        "age: 2h",
        "USD per hour: 0.81-2.43",
        "USD so far: at least 1.62",
        "overdue: no",
        "under way: no",
        "log: none",
        "parts: a",
        "parts: b",
    } <= {re.sub(r"^age: 2h\d+s$", "age: 2h", fact) for fact in facts}


@pytest.mark.usefixtures("endless")
def test_a_deployment_that_does_not_end_is_taken_down(
    vertex: FakeVertex, cloud: CloudSession
) -> None:
    with (
        pytest.raises(TimedOutError, match="not done after"),
        lifecycle.ephemeral_deployment(ASKED, cloud, Console(), yes=True),
    ):
        raise AssertionError
    assert counted(vertex)["POST cancel"] == 1
    assert vertex.left() == {}
    assert vertex.spans == []


def test_what_is_being_made_is_waited_for_no_longer_either(
    vertex: FakeVertex, cloud: CloudSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    vertex.slow = {"createEndpoint": 10_000.0}
    monkeypatch.setattr(operations, "OPERATION_TIMEOUT", 0.3)
    with pytest.raises(TimedOutError, match="^endpoint t2i-slow: not done after"):
        deploy(cloud)


def test_an_operation_that_vanished(
    vertex: FakeVertex, cloud: CloudSession, capsys: pytest.CaptureFixture[str]
) -> None:
    vertex.slow = {"deployModel": 0.5}
    vertex.faults = [gone("GET .*/endpoints/.*/operations/[0-9]+$")]
    with pytest.raises(RemoteError, match="Google knows nothing of this operation") as caught:
        deploy(cloud)
    assert type(caught.value) is RemoteError
    assert "run again" in str(caught.value.hint)
    assert "Of slow there is: endpoint projects/" in capsys.readouterr().err
    deploy(cloud)
    assert counted(vertex)["POST deployModel"] == 1
    assert len(vertex.left()["deployed"]) == 1


@pytest.mark.parametrize("kind", ["undeployModel", "deleteEndpoint", "deleteModel"])
def test_one_that_vanished_in_a_removal_is_looked_after(
    vertex: FakeVertex, cloud: CloudSession, kind: str
) -> None:
    with lifecycle.ephemeral_deployment(ASKED, cloud, Console(), yes=True):
        vertex.slow = {kind: 0.3}
        vertex.faults = [gone()]
    assert vertex.faults[0].times == 0
    assert vertex.left() == {}


PLAIN = {"Content-Type": "text/plain"}
TEMPORARY = {
    "500": Fault(status=500, body=refusal(500, "INTERNAL", "Internal error encountered.")),
    "502 in HTML": Fault(status=502, body=b"<html><title>502</title></html>", headers=PLAIN),
    "503 in text": Fault(status=503, body=b"upstream connect error", headers=PLAIN),
    "504": Fault(status=504, body=refusal(504, "DEADLINE_EXCEEDED", "Deadline expired.")),
    "408": Fault(status=408, body=b""),
    "429": Fault(status=429, body=refusal(429, "RESOURCE_EXHAUSTED", "Quota exceeded.")),
    "409": Fault(status=409, body=refusal(409, "ABORTED", "Another operation runs.")),
    "no answer": Fault(stall=0.01),
    "half an answer": Fault(cut=True),
    "no JSON": Fault(status=200, body=b"<html>Sign in</html>", headers=PLAIN),
    "no operation": Fault(status=200, body={"done": "maybe"}),
}
"""What a look at an operation may meet, and another look does not."""


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses a hundredth as long."""
    pause = retry._pause
    monkeypatch.setattr(retry, "_pause", lambda *told: pause(*told) / 100)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", TEMPORARY)
def test_a_look_that_fails_gives_up_nothing(
    vertex: FakeVertex, cloud: CloudSession, name: str
) -> None:
    vertex.slow = {"deployModel": 0.1, "undeployModel": 0.1}
    fault = replace(TEMPORARY[name], where="GET .*/operations/[0-9]+$", times=8)
    vertex.faults = [fault]
    with lifecycle.ephemeral_deployment(ASKED, cloud, Console(), yes=True):
        assert fault.times == 0
        assert len(vertex.left()["deployed"]) == 1
        fault.times = 8
    assert fault.times == 0
    assert vertex.left() == {}
    assert counted(vertex)["POST undeployModel"] == counted(vertex)["POST deployModel"] == 1


@pytest.mark.usefixtures("endless", "hasty")
def test_looks_that_fail_until_the_end_are_told(vertex: FakeVertex, cloud: CloudSession) -> None:
    vertex.faults = [
        replace(TEMPORARY["500"], where="GET .*/endpoints/.*/operations/[0-9]+$", times=10_000)
    ]
    text = "whether it is done could not be told after .*: Google says: Internal error"
    with pytest.raises(TimedOutError, match=text):
        deploy(cloud)


@pytest.mark.parametrize(
    "body",
    [refusal(403, "PERMISSION_DENIED", "No."), refusal(501, "UNIMPLEMENTED", "There is no such.")],
)
def test_a_look_that_is_refused_is_not_repeated(
    vertex: FakeVertex, cloud: CloudSession, body: dict[str, dict[str, int]]
) -> None:
    operation = vertex.begin("something", vertex.make_endpoint(), dict)
    vertex.faults = [Fault(where="GET", status=body["error"]["code"], body=body, times=9)]
    with pytest.raises(T2IError):
        operations.wait_for_operation(cloud.client, operation, "thing", print)
    assert vertex.faults[0].times == 8


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", [408, 500, 504])
def test_a_call_that_may_run_twice_is_repeated(
    vertex: FakeVertex, cloud: CloudSession, status: int
) -> None:
    client = cloud.client
    name = vertex.make_endpoint()
    vertex.faults = [Fault(where="(GET|PATCH) ", status=status, times=2)]
    assert client.call("GET", "aiplatform", name)["name"] == name
    vertex.faults[0].times = 2
    client.call("PATCH", "aiplatform", name, json={"labels": {}}, params={"updateMask": "labels"})
    vertex.faults = [Fault(where="POST", status=status, times=2)]
    with pytest.raises((RemoteError, TimedOutError)):
        client.call("POST", "aiplatform", f"{name}:undeployModel", json={"deployedModelId": "77"})
    assert vertex.faults[0].times == 1


def test_only_what_is_long_is_told_of_in_between(
    vertex: FakeVertex, cloud: CloudSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "REPORT_INTERVAL", 0.1)
    vertex.operation_seconds = 0.5
    said: list[str] = []
    name = vertex.make_endpoint()
    operation = vertex.begin("something", name, dict)
    assert operations.wait_for_operation(cloud.client, operation, "thing", said.append) == {}
    assert said
    assert all(re.fullmatch(r"thing: \ds so far", sentence) for sentence in said)
