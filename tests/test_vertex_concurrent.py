"""Two deployments of one name at once, and `t2i remote deploy` that is interrupted at each step."""

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.vertex import FakeVertex, Fault
from tests.in_process import run_in_process
from tests.processes import running, until

DEPLOY = ("remote", "deploy", "-m", "sd15", "--yes")
KEEPER = "keeper@gallery.iam.gserviceaccount.com"


@pytest.fixture
def command(t2i_env: dict[str, str], vertex: FakeVertex) -> Callable[..., Any]:
    """`t2i` in this process, with the fake cloud."""
    return lambda *args: run_in_process(*args, env=t2i_env | vertex.environment)


def test_two_deployments_of_one_name_at_once(
    t2i_env: dict[str, str], vertex: FakeVertex, command: Callable[..., Any]
) -> None:
    vertex.slow["upload"] = 10_000.0
    with running(t2i_env, vertex, *DEPLOY) as one, running(t2i_env, vertex, *DEPLOY) as two:
        # Neither saw anything of the other when it looked.
        until(lambda: len(vertex.operations) == 2 or two.poll() is not None, one)
        vertex.slow = {"createEndpoint": 0.5}
        for operation in list(vertex.operations.values()):
            operation.due = 0.0
        ends = [(process, *process.communicate(timeout=120)) for process in (one, two)]
    assert sorted(process.returncode for process, *_ in ends) == [0, 2], ends
    (told,) = [errors for process, _, errors in ends if process.returncode == 2]
    (endpoint,) = vertex.endpoints.values()
    assert f"Another run deploys sd15 at the same time, as {endpoint['name']}" in told
    assert "this one stops before it costs anything." in told
    assert len(vertex.spans) == 1
    listed = json.loads(command("remote", "list", "--json").stdout)
    assert (listed["name"], listed["replicas"]) == ("sd15", 1)
    assert command("remote", "down", "sd15").returncode == 0
    assert vertex.left() == {}


@pytest.mark.parametrize("begun", [True, False])
def test_the_earlier_endpoint_stops_only_where_the_later_one_is_being_deployed(
    vertex: FakeVertex,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    begun: bool,
) -> None:
    make = vertex.create_endpoint

    def two(match: re.Match[str], body: Any, query: dict[str, str]) -> Any:  # noqa: ANN401
        other = dict(body) | ({"description": "Deployed by t2i as: {}"} if begun else {})
        vertex._add_endpoint(other, "9999")
        vertex.endpoints["9999"]["createTime"] = "2100-01-01T00:00:00Z"
        return make(match, body, query)

    monkeypatch.setattr(vertex, "create_endpoint", two)
    done = command(*DEPLOY)
    assert done.returncode == (2 if begun else 0), done.stderr
    assert len(vertex.spans) == (0 if begun else 1)
    assert len(vertex.endpoints) == (1 if begun else 2)
    assert ("it is to stop, and this one goes on" in done.stderr) is not begun


def test_a_run_that_stops_for_another_does_not_remove_it(
    vertex: FakeVertex, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = vertex.create_endpoint

    def two(match: re.Match[str], body: Any, query: dict[str, str]) -> Any:  # noqa: ANN401
        vertex._add_endpoint(dict(body), "1000")
        return make(match, body, query)

    monkeypatch.setattr(vertex, "create_endpoint", two)
    done = command("remote", "run", "--yes", "-m", "sd15", "--name", "same", "--", "true")
    assert done.returncode == 2
    assert "Another run deploys same at the same time" in done.stderr
    assert list(vertex.endpoints) == ["1000"]
    assert vertex.spans == []


@pytest.mark.parametrize(("by", "cancellable"), [("deploy", False), ("resume", True)])
def test_two_deployments_to_one_endpoint(
    vertex: FakeVertex,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    by: str,
    cancellable: bool,
) -> None:
    if by == "resume":
        assert command(*DEPLOY).returncode == 0
        assert command("remote", "pause", "sd15").returncode == 0
    before = len(vertex.spans)
    deploy = vertex.deploy

    def two(match: re.Match[str], body: Any, query: dict[str, str]) -> Any:  # noqa: ANN401
        vertex.begin_deployment(
            match["id"], {**body, "deployedModel": body["deployedModel"] | {"id": "1"}}
        )
        return deploy(match, body, query)

    monkeypatch.setattr(vertex, "deploy", two)
    vertex.cancellable = cancellable
    vertex.slow["deployModel"] = 0.4
    done = command(*(DEPLOY if by == "deploy" else ("remote", "resume", "--yes")))
    assert done.returncode == 2, done.stderr
    assert "Another run deploys sd15 to the same endpoint" in done.stderr
    assert ("could not be cancelled and is paid for, too" in done.stderr) is not cancellable
    time.sleep(0.4)
    vertex.settle()
    assert len(vertex.spans) - before == (1 if cancellable else 2)
    listed = json.loads(command("remote", "list", "--json").stdout)
    assert listed["replicas"] == (1 if cancellable else 2)
    assert command("remote", "down", "sd15").returncode == 0
    assert vertex.left() == {}


@pytest.mark.parametrize(
    ("where", "after", "kinds"),
    [
        ("POST /storage/v1/b$", 0, set()),
        ("PUT /upload", 1, {"buckets", "objects"}),
        ("POST .*/endpoints$", 0, {"buckets", "objects", "models"}),
        ("PATCH .*/endpoints/", 0, {"buckets", "objects", "models", "endpoints"}),
        ("deployModel", 0, {"buckets", "objects", "models", "endpoints"}),
    ],
)
def test_ctrl_c_at_each_step_tells_what_is_left(
    t2i_env: dict[str, str],
    vertex: FakeVertex,
    command: Callable[..., Any],
    tmp_path: Path,
    where: str,
    after: int,
    kinds: set[str],
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    deploy = ("remote", "deploy", "-m", str(weights), "--service-account", KEEPER, "--yes")
    fault = Fault(where=where, stall=1.0, after=after)
    if where == "deployModel":
        vertex.slow[where] = 10_000.0
    else:
        vertex.faults.append(fault)
    with running(t2i_env, vertex, *deploy) as process:
        if where == "deployModel":
            until(lambda: any(o.kind == where for o in vertex.operations.values()), process)
        else:
            until(lambda: fault.times == 0, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    left = vertex.left()
    assert left.keys() == kinds, errors
    for kind in ("endpoints", "models"):
        assert all(f"{kind[:-1]} projects/123456789/locations/us-central1/{kind}/{name}" in errors
                   for name in left.get(kind, []))  # fmt: skip
    files = len(left.get("objects", []))
    assert (f"{files} files in gs://t2i-gallery-us-central1/t2i/weights/" in errors) is bool(files)
    under_way = "a deployment under way (it will be paid for)" in errors
    assert under_way is (where == "deployModel")
    assert ("Nothing of weights is there." in errors) is (not kinds)
    if kinds:
        assert "or `t2i remote down weights --bucket`." in errors
        assert command("remote", "down", "weights", "--bucket").returncode == 0
        assert vertex.left() == {}


def test_a_second_ctrl_c_says_that_something_may_be_left(
    t2i_env: dict[str, str], vertex: FakeVertex
) -> None:
    vertex.slow["upload"] = 10_000.0
    with running(t2i_env, vertex, *DEPLOY, "--quiet") as process:
        until(lambda: vertex.operations, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "warning: What is left of sd15 may be paid for: `t2i remote list` shows it." in errors
