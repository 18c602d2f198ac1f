"""`t2i remote pause` and `resume`, as processes, against the fake of Google Cloud."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from t2i_cli.cli.commands import remote
from t2i_cli.vertex.permissions import STEPS
from t2i_cli.vertex.stored_deployment import stored_from_api
from tests.conftest import T2I, Terminal
from tests.fakes.google import refusal
from tests.fakes.vertex import FakeVertex, Fault, counted
from tests.in_process import run_in_process
from tests.processes import running, until

DEPLOY = ("remote", "deploy", "-m", "sd15", "--yes")
RESUME = ("remote", "resume", "--yes")
KEEPER = "keeper@gallery.iam.gserviceaccount.com"


@pytest.fixture
def command(t2i_env: dict[str, str]) -> T2I:
    """`t2i` in this process."""

    def run(
        *args: str | Path, env: Mapping[str, str] | None = None, **_: object
    ) -> CompletedProcess[str]:
        return run_in_process(*args, env=t2i_env | dict(env or {}))

    return run


@pytest.fixture
def env(vertex: FakeVertex) -> dict[str, str]:
    """A process's way to the fake cloud."""
    return vertex.environment


def deployed(vertex: FakeVertex) -> dict[str, Any]:
    """What a request asked for of the one deployed model."""
    (endpoint,) = vertex.endpoints.values()
    (model,) = endpoint["deployedModels"]
    left_out = {"id", "createTime", "_span"}
    return {name: value for name, value in model.items() if name not in left_out}


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--scale-to-zero", "15m", "--service-account", KEEPER),
        ("--max-replicas", "3", "--scheduler-account", KEEPER),
    ],
)
def test_pause_ends_the_bill_and_resume_deploys_as_it_was(
    command: T2I, vertex: FakeVertex, env: dict[str, str], options: tuple[str, ...]
) -> None:
    assert command(*DEPLOY, *options, env=env).returncode == 0
    before, jobs = deployed(vertex), len(vertex.jobs)
    paused = command("remote", "pause", env=env)
    assert paused.returncode == 0, paused.stderr
    assert paused.stdout == "sd15\n"
    assert "`t2i remote resume sd15` deploys it again" in paused.stderr
    assert {kind: len(names) for kind, names in vertex.left().items()} == {
        "endpoints": 1,
        "models": 1,
    }
    line = json.loads(command("remote", "list", "--json", env=env).stdout)
    assert (line["state"], line["usd_per_hour"], line["usd_per_hour_at_most"]) == ("paused", 0, 0)
    # Nothing of this machine is needed.
    elsewhere = env | {"XDG_STATE_HOME": "/nowhere"}
    planned = command("remote", "resume", "--ttl", "2h", "--dry-run", "--json", env=elsewhere)
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert (plan["machine_type"], plan["ttl_seconds"]) == ("g2-standard-4", 7200)
    assert plan["memory"]["needed_bytes"]  # as of `deploy`
    assert plan["max_replicas"] == (3 if "--max-replicas" in options else 1)
    assert plan["scale_to_zero_seconds"] == (900 if "--scale-to-zero" in options else None)
    assert plan["enforced_by"] == ("scheduler" if jobs else None)
    assert "deployed" not in vertex.left()
    resumed = command(*RESUME, "--ttl", "2h", env=env)
    assert resumed.returncode == 0, resumed.stderr
    assert deployed(vertex) == before
    assert len(vertex.jobs) == jobs
    assert ("runs as" in resumed.stderr) == ("--service-account" in options)
    (endpoint,) = vertex.endpoints.values()
    expires = int(endpoint["labels"]["t2i-expires"])
    assert expires == pytest.approx(vertex.now() + 7200, abs=120)
    line = json.loads(command("remote", "list", "--json", env=env).stdout)
    assert line["state"] == "deployed"
    assert command("remote", "down", env=env).returncode == 0
    assert vertex.left() == {}


def test_a_call_to_a_paused_endpoint_names_the_command(
    command: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    assert command(*DEPLOY, env=env).returncode == 0
    assert command("remote", "pause", "sd15", env=env).returncode == 0
    call = ("remote", "generate", "a red star", "-o", "-", "--retries", "0")
    told = "The endpoint sd15 is paused: no model is deployed."
    done = command(*call, env=env)
    assert done.returncode == 6
    assert told in done.stderr
    assert "`t2i remote resume sd15` deploys it again" in done.stderr
    body = refusal(404, "NOT_FOUND", "The endpoint is not found.")
    vertex.faults.append(Fault(status=404, body=body))
    assert told in command(*call, env=env).stderr
    # Who may only predict is told what Google says.
    vertex.granted = {"aiplatform.endpoints.predict"}
    assert "The Endpoint has no deployed model." in command(*call, env=env).stderr


def test_a_call_to_an_endpoint_of_another_s_without_a_model(
    command: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    name = vertex.make_endpoint()
    number = name.split("/")[-1]
    vertex.endpoints[number]["deployedModels"].clear()
    call = ("generate", "a red star", "--backend", "vertex", "--endpoint", name, "-o", "-")
    done = command(*call, env=env)
    assert f"No model is deployed on the endpoint {number}." in done.stderr
    assert "Google says" not in done.stderr


def test_reap_removes_what_is_paused_past_its_ttl(
    command: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    assert command(*DEPLOY, "--ttl", "1h", env=env).returncode == 0
    assert command("remote", "pause", "--ttl", "3d", env=env).returncode == 0
    vertex.advance(2 * 86_400)
    assert command("remote", "reap", env=env).returncode == 0
    assert vertex.left()["endpoints"]
    vertex.advance(2 * 86_400)
    assert command("remote", "reap", env=env).returncode == 0
    assert vertex.left() == {}


def test_resume_asks_and_keeps_the_limit(
    command: T2I, t2i_terminal: Terminal, vertex: FakeVertex, env: dict[str, str]
) -> None:
    assert command(*DEPLOY, env=env).returncode == 0
    assert command("remote", "pause", env=env).returncode == 0
    unasked = command("remote", "resume", env=env)
    assert unasked.returncode == 2
    assert "0.81 USD per hour, 19.44 per day, 3.24 until the TTL" in unasked.stderr
    assert "Deploy t2i-sd15 for about 0.81 USD per hour?" in unasked.stderr
    dear = command(*RESUME, "--ttl", "10h", "--max-cost", "5", env=env)
    assert dear.returncode == 2
    assert "more than --max-cost 5.00" in dear.stderr
    vertex.granted = {one for names in STEPS.values() for one in names}
    vertex.granted.remove("aiplatform.endpoints.deploy")
    denied = command(*RESUME, env=env)
    assert denied.returncode == 3
    assert "permissions are missing in gallery: aiplatform.endpoints.deploy" in denied.stderr
    assert "deployed" not in vertex.left()
    vertex.granted = None
    done = t2i_terminal("remote", "resume", prompt="[y/N]", answer="y", env=env)
    assert done.returncode == 0, done.stderr
    assert vertex.left()["deployed"]


@pytest.mark.parametrize(
    "wrong",
    [
        ("resume", "--ttl", "2x"),
        ("resume", "--max-cost", "-5"),
        ("resume", "--max-cost", "nan"),
        ("resume", "--max-cost", "inf"),
        ("resume", "--scheduler-account", "ann"),
        ("pause", "--ttl", "0"),
    ],
)
def test_wrong_options_are_wrong_before_credentials(
    wrong: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from typer.testing import CliRunner

    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    done = CliRunner().invoke(remote.app, wrong)
    assert getattr(done.exception, "exit_code", 0) == 2
    assert "credentials" not in str(done.exception)


def test_both_can_be_repeated(command: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    assert command(*DEPLOY, env=env).returncode == 0
    dry = command("remote", "pause", "--dry-run", env=env)
    assert "sd15: deployed, 0.81 USD per hour; paused it would cost 0.00" in dry.stdout
    assert vertex.left()["deployed"]
    for _ in range(2):
        done = command("remote", "pause", "--json", env=env)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["paused"] is True
    assert counted(vertex)["POST undeployModel"] == 1
    for _ in range(2):
        assert command(*RESUME, env=env).returncode == 0
    assert counted(vertex)["POST deployModel"] == 2
    assert len(vertex.left()["deployed"]) == 1


def test_a_killed_pause_and_a_killed_resume_go_on(
    command: T2I, t2i_env: dict[str, str], vertex: FakeVertex, env: dict[str, str]
) -> None:
    assert command(*DEPLOY, env=env).returncode == 0
    vertex.slow = {"undeployModel": 1.0}

    def under_way(kind: str) -> bool:
        return any(o.kind == kind and not o.done for o in list(vertex.operations.values()))

    with running(t2i_env, vertex, "remote", "pause", "sd15") as process:
        until(lambda: under_way("undeployModel"), process)
        process.kill()
    again = command("remote", "pause", "sd15", env=env)
    assert again.returncode == 0, again.stderr
    assert "deployed" not in vertex.left()
    vertex.slow = {"deployModel": 10_000.0}
    with running(t2i_env, vertex, *RESUME) as process:
        until(lambda: under_way("deployModel"), process)
        process.kill()
    line = json.loads(command("remote", "list", "--json", env=env).stdout)
    assert (line["state"], line["usd_per_hour"]) == ("deploying", 0.81)
    for operation in vertex.operations.values():
        operation.due = 0.0
    resumed = command(*RESUME, env=env)
    assert resumed.returncode == 0, resumed.stderr
    assert len(vertex.left()["deployed"]) == 1
    assert command("remote", "pause", env=env).returncode == 0
    with running(t2i_env, vertex, *RESUME) as process:
        until(lambda: under_way("deployModel"), process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "`t2i remote pause sd15` ends it" in errors
    # What is being deployed is cancelled.
    assert command("remote", "pause", "sd15", env=env).returncode == 0
    vertex.slow = {}
    assert command(*RESUME, env=env).returncode == 0
    assert len(vertex.left()["deployed"]) == 1


def test_what_an_earlier_version_deployed_can_be_paused(
    command: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    assert command(*DEPLOY, "--scale-to-zero", "15m", env=env).returncode == 0
    (endpoint,) = vertex.endpoints.values()
    endpoint["description"] = "Our cats."
    before = deployed(vertex)
    assert command("remote", "pause", env=env).returncode == 0
    assert command(*RESUME, env=env).returncode == 0
    assert deployed(vertex) == before | {"enableContainerLogging": True}


def test_changed_replicas_are_kept(command: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    assert command(*DEPLOY, env=env).returncode == 0
    (endpoint,) = vertex.endpoints.values()
    endpoint["deployedModels"][0]["dedicatedResources"]["maxReplicaCount"] = 4
    assert command("remote", "pause", env=env).returncode == 0
    planned = command("remote", "resume", "--dry-run", env=env)
    assert "1 to 4 replicas of g2-standard-4 with 1 NVIDIA_L4" in planned.stdout


def test_what_cannot_be_paused_or_resumed_is_said(
    command: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    other = vertex.make_endpoint().split("/")[-1]
    refused = command("remote", "pause", other, env=env)
    assert refused.returncode == 2
    assert "t2i has made no endpoint" in refused.stderr
    assert vertex.left()["deployed"]
    vertex.endpoints.clear()
    assert command(*DEPLOY, env=env).returncode == 0
    (endpoint,) = vertex.endpoints.values()
    second = dict(endpoint["deployedModels"][0]) | {"id": "99", "displayName": "cats"}
    endpoint["deployedModels"].append(second)
    two = command("remote", "pause", env=env)
    assert two.returncode == 2
    assert "has what t2i did not deploy, and could not deploy again: t2i-sd15, cats." in two.stderr
    endpoint["deployedModels"].pop()
    # A permission that is missing changes nothing.
    vertex.granted = {one for names in STEPS.values() for one in names}
    vertex.granted.remove("aiplatform.endpoints.update")
    denied = command("remote", "pause", env=env)
    assert denied.returncode == 3
    assert len(endpoint["deployedModels"]) == 1
    vertex.granted = None
    assert command("remote", "pause", env=env).returncode == 0
    models, vertex.models = vertex.models, {}
    gone = command(*RESUME, env=env)
    assert gone.returncode == 2
    assert "The model that sd15 had is not there any more." in gone.stderr
    vertex.models = models
    endpoint["description"] = ""
    unknown = command(*RESUME, env=env)
    assert unknown.returncode == 2
    assert "How sd15 was deployed is not stored in its endpoint." in unknown.stderr
    # `deploy` needs no such memory, and ends the pause.
    assert command(*DEPLOY, env=env).returncode == 0
    line = json.loads(command("remote", "list", "--json", env=env).stdout.splitlines()[0])
    assert line["state"] == "deployed"
    assert "t2i-paused" not in endpoint["labels"]


def test_the_fields_that_a_version_of_the_api_lacks_are_not_sent() -> None:
    machine = {"machineSpec": {"machineType": "n1-standard-4"}}
    shown = {"model": "m", "id": "7", "createTime": "x", "enableContainerLogging": True}
    plain = stored_from_api(shown | {"dedicatedResources": machine | {"minReplicaCount": 1}})
    assert (plain.version, set(plain.deployed_model)) == ("v1", {"model", "dedicatedResources"})
    flexible = machine | {"minReplicaCount": 1, "flexStart": {"maxRuntimeDuration": "3600s"}}
    beta = stored_from_api(
        {"model": "m", "disableContainerLogging": True, "dedicatedResources": flexible}
    )
    assert (beta.version, beta.deployed_model["enableContainerLogging"]) == ("v1beta1", False)
