"""Pauses and resumptions whose end Google enforces, or whose operations cannot be looked at."""

import json
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from t2i_cli.vertex import operations
from tests.conftest import T2I
from tests.fakes.vertex import FakeVertex, operations_unimplemented
from tests.in_process import run_in_process

FLEX_START = ("remote", "deploy", "-m", "sd15", "--yes", "--flex-start", "--ttl", "2h")
RESUME = ("remote", "resume", "--yes")
HOUR = 3600


@pytest.fixture
def command(t2i_env: dict[str, str], vertex: FakeVertex) -> T2I:
    """`t2i` in this process, with the fake cloud."""

    def run(
        *args: str | Path, env: Mapping[str, str] | None = None, **_: object
    ) -> CompletedProcess[str]:
        return run_in_process(*args, env=t2i_env | vertex.environment | dict(env or {}))

    return run


def ends(vertex: FakeVertex) -> tuple[float, float]:
    """Hours from now to the TTL's end and to Google's, by the labels."""
    (endpoint,) = vertex.endpoints.values()
    expires, google = (int(endpoint["labels"][f"t2i-{one}"]) for one in ("expires", "google-end"))
    return round((expires - vertex.now()) / HOUR, 1), round((google - vertex.now()) / HOUR, 1)


def deployed(vertex: FakeVertex) -> list[dict[str, Any]]:
    return [one for endpoint in vertex.endpoints.values() for one in endpoint["deployedModels"]]


def test_a_resumed_flex_start_has_its_end_anew(command: T2I, vertex: FakeVertex) -> None:
    assert command(*FLEX_START).returncode == 0
    assert command("remote", "pause").returncode == 0
    vertex.advance(HOUR)
    resumed = command(*RESUME, "--ttl", "5h")
    assert resumed.returncode == 0, resumed.stderr
    (model,) = deployed(vertex)
    duration = model["dedicatedResources"]["flexStart"]["maxRuntimeDuration"]
    assert int(duration.rstrip("s")) == pytest.approx(5 * HOUR, abs=60)
    assert ends(vertex) == (5, 5)
    vertex.advance(5 * HOUR + 60)
    assert "deployed" not in vertex.left()


def test_a_ttl_that_flex_start_does_not_have_is_refused_before_anything_changes(
    command: T2I, vertex: FakeVertex
) -> None:
    assert command(*FLEX_START).returncode == 0
    assert command("remote", "pause").returncode == 0
    (before,) = vertex.endpoints.values()
    labels = dict(before["labels"])
    refused = command(*RESUME, "--ttl", "8d")
    assert refused.returncode == 2
    assert "deployed by flex-start, which ends after 7d at most, and --ttl is 8d" in refused.stderr
    assert "may be deployed" not in refused.stderr
    (after,) = vertex.endpoints.values()
    assert after["labels"] == labels


def test_the_end_that_google_enforces_is_not_moved_by_resuming_what_is_deployed(
    command: T2I, vertex: FakeVertex
) -> None:
    assert command(*FLEX_START).returncode == 0
    later = command(*RESUME, "--ttl", "6h", "--json")
    assert later.returncode == 0, later.stderr
    assert json.loads(later.stdout)["ttl_seconds"] == pytest.approx(2 * HOUR, abs=60)
    assert ends(vertex) == (2, 2)
    assert command(*RESUME, "--ttl", "1h").returncode == 0
    assert ends(vertex) == (1, 2)
    (endpoint,) = vertex.endpoints.values()
    endpoint["labels"]["t2i-google-end"] = str(int(vertex.now()) - 5)
    over = command(*RESUME, "--ttl", "1h")
    assert over.returncode == 2
    assert "The time of sd15 by flex-start is over" in over.stderr


def test_a_resumption_by_flex_start_waits_for_a_machine_until_its_ttl(
    command: T2I, vertex: FakeVertex, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(*FLEX_START).returncode == 0
    assert command("remote", "pause").returncode == 0
    monkeypatch.setattr(operations, "DEPLOYMENT_TIMEOUT", 0.1)
    vertex.slow["deployModel"] = 1
    resumed = command(*RESUME, "--ttl", "5h")
    assert resumed.returncode == 0, resumed.stderr
    assert len(deployed(vertex)) == 1


@pytest.mark.parametrize("unseen", ["list", "end"])
def test_what_may_be_deployed_still_is_not_called_paused(
    command: T2I, vertex: FakeVertex, monkeypatch: pytest.MonkeyPatch, unseen: str
) -> None:
    vertex.slow["deployModel"] = HOUR
    for name in ("DEPLOYMENT_TIMEOUT", "OPERATION_TIMEOUT"):
        monkeypatch.setattr(operations, name, 0.5)
    assert command("remote", "deploy", "-m", "sd15", "--yes").returncode == 5
    if unseen == "list":
        vertex.faults.append(operations_unimplemented("list"))
    else:
        vertex.cancellable = False
    paused = command("remote", "pause", "sd15")
    assert paused.returncode == 6
    assert "Whether sd15 is being deployed, and will be paid for, cannot be told" in paused.stderr
    assert "is paused" not in paused.stderr
    vertex.faults.clear()
    vertex.cancellable = True
    assert command("remote", "pause", "sd15").returncode == 0


def test_a_pause_needs_no_list_of_operations(command: T2I, vertex: FakeVertex) -> None:
    assert command("remote", "deploy", "-m", "sd15", "--yes").returncode == 0
    vertex.faults.append(operations_unimplemented("list"))
    assert command("remote", "pause").returncode == 0
    assert "deployed" not in vertex.left()


def test_the_status_needs_no_list_of_operations(command: T2I, vertex: FakeVertex) -> None:
    assert command("remote", "deploy", "-m", "sd15", "--yes").returncode == 0
    vertex.faults.append(operations_unimplemented("list"))
    shown = command("remote", "status")
    assert shown.returncode == 0, shown.stderr
    assert "state: deployed" in shown.stdout
    assert "under way: not known" in shown.stdout
    assert "What is under way cannot be looked at: Google says:" in shown.stdout
    assert json.loads(command("remote", "status", "--json").stdout)["under_way"] is None


def test_what_two_runs_at_once_made_is_priced_whole_and_not_paused_by_half(
    command: T2I, vertex: FakeVertex
) -> None:
    assert command("remote", "deploy", "-m", "sd15", "--yes").returncode == 0
    (first,) = vertex.endpoints.values()
    second = dict(first) | {"name": vertex.name("endpoints", "77"), "deployedModels": []}
    vertex.endpoints["77"] = second
    vertex.begin("deployModel", second["name"], dict)
    for operation in vertex.operations.values():
        operation.due += 0 if operation.done else HOUR
    line = json.loads(command("remote", "list", "--json").stdout)
    assert (line["state"], line["replicas"], line["usd_per_hour"]) == ("deployed", 2, 1.62)
    paused = command("remote", "pause", "sd15")
    assert paused.returncode == 2
    assert "sd15 has several endpoints, as two runs at once make them" in paused.stderr
    assert command("remote", "down", "sd15").returncode == 0
    assert vertex.left() == {}
