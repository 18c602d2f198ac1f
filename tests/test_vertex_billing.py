"""What is paid for: other people's endpoints, all regions, replicas that run, deleted weights."""

import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from t2i_cli.errors import AccessError, InputError
from t2i_cli.net.google_http import NotFoundError
from t2i_cli.settings import store
from t2i_cli.vertex import (
    inventory,
    machine_types,
    regions,
    replica_costs,
    status,
    stored_deployment,
    weights_bucket,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.location import Location
from tests.conftest import T2I, Terminal
from tests.fakes.google import refusal
from tests.fakes.vertex import FakeVertex, Fault
from tests.in_process import run_in_process

L4 = {"machineType": "g2-standard-4", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
CREATED = "2026-08-01T10:00:00Z"
CREATED_SECONDS = 1785578400.0
TWO_HOURS_LATER = CREATED_SECONDS + 7200


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


@pytest.fixture
def client(
    vertex: FakeVertex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GoogleClient]:
    """A connection to the fake, with no settings and no memory of the developer's."""
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for setting in store.SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    here = Location(project="gallery", region="us-central1", api_endpoint=vertex.url)
    with GoogleClient(here, lambda: {"Authorization": "Bearer ya29.test"}) as connection:
        yield connection


def report(client: GoogleClient) -> status.CostReport:
    """What `t2i remote cost` prints of one region."""
    return status.cost_report(
        inventory.list_deployments(client), client, machine_types.load_prices()
    )


def test_a_forgotten_endpoint_of_another_s_is_listed_and_priced(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    name = vertex.make_endpoint(labels={"made-by": "console"})
    number = name.split("/")[-1]
    vertex.advance(24 * 3600)
    listed = t2i("remote", "list", env=env)
    assert f"an endpoint ({number}), not t2i's" in listed.stdout
    assert "nothing of t2i's here" in listed.stderr
    assert "--all-regions looks into every one" in listed.stderr
    line = json.loads(t2i("remote", "list", "--json", env=env).stdout)
    assert (line["made_by_t2i"], line["endpoint"], line["name"]) == (False, name, "an endpoint")
    assert (line["machine"], line["replicas"], line["expires"]) == ("n1-standard-4", 1, None)
    assert (line["model"], line["usd_per_hour"], line["region"]) == (
        vertex.endpoints[number]["deployedModels"][0]["model"].split("/")[-1],
        0.22,
        "us-central1",
    )
    assert line["usd_so_far"] == pytest.approx(5.28, abs=0.02)
    bill = t2i("remote", "cost", env=env).stdout
    assert f"an endpoint ({number}), not t2i's: 0.22 USD per hour, 5.28 so far" in bill
    assert "all: 0.22 USD per hour, 5.28 per day, 5.28 so far" in bill


def test_down_takes_another_s_endpoint_only_by_its_number_and_with_consent(
    command: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    kept, gone = vertex.make_endpoint(), vertex.make_endpoint()
    number = gone.split("/")[-1]
    by_title = command("remote", "down", "an endpoint", "--yes", env=env)
    assert by_title.returncode == 2
    assert f"by its number: {kept.split('/')[-1]}, {number}." in by_title.stderr
    unasked = command("remote", "down", number, env=env)
    assert unasked.returncode == 2
    assert "t2i did not make this endpoint" in unasked.stderr
    assert "n1-standard-4, deployed" in unasked.stderr
    assert command("remote", "down", number, "--bucket", "--yes", env=env).returncode == 2
    assert command("remote", "down", "--all", "--yes", env=env).returncode == 0
    assert command("remote", "reap", env=env).returncode == 0
    assert len(vertex.endpoints) == 2
    done = command("remote", "down", number, "--yes", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"removed": [gone]}
    assert list(vertex.endpoints) == [kept.split("/")[-1]]
    assert len(vertex.models) == 2  # only the endpoint was named


def test_down_of_another_s_endpoint_that_stays_is_an_error(
    command: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    name = vertex.make_endpoint()
    vertex.granted = {f"aiplatform.endpoints.{one}" for one in ("list", "get", "undeploy")}
    vertex.granted |= {"aiplatform.models.list", "storage.buckets.get", "storage.objects.list"}
    done = command("remote", "down", name, "--yes", env=env)
    assert done.returncode == 3
    assert "aiplatform.endpoints.delete is missing" in done.stderr
    assert vertex.left()["endpoints"]


def test_down_of_another_s_endpoint_needs_no_further_look_at_it(
    command: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    name = vertex.make_endpoint()
    vertex.granted = {f"aiplatform.endpoints.{one}" for one in ("list", "undeploy", "delete")}
    vertex.granted |= {"aiplatform.models.list", "storage.buckets.get", "storage.objects.list"}
    done = command("remote", "down", name, "--yes", env=env)
    assert done.returncode == 0, done.stderr
    assert "is gone cannot be looked at: The permission aiplatform.endpoints.get" in done.stderr
    assert not vertex.endpoints
    name = vertex.make_endpoint()
    vertex.granted ^= {"aiplatform.endpoints.list", "aiplatform.endpoints.get"}
    done = command("remote", "down", name, "--yes", env=env)
    assert done.returncode == 0, done.stderr
    assert not vertex.endpoints


def test_consent_on_a_terminal(
    t2i_terminal: Terminal, vertex: FakeVertex, env: dict[str, str]
) -> None:
    number = vertex.make_endpoint().split("/")[-1]
    done = t2i_terminal("remote", "down", number, prompt="[y/N]", answer="n", env=env)
    assert done.returncode == 2
    assert number in vertex.endpoints


def test_every_region_is_asked_and_what_cannot_be_is_said(
    command: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    vertex.regions = {"us-central1", "europe-west4", "asia-east1", "us-east5"}
    vertex.make_endpoint()
    far = vertex.make_endpoint(region="europe-west4")
    labels = {"managed-by": "t2i", "t2i-name": "old", "t2i-expires": "5"}
    vertex.make_endpoint(region="us-east5", labels=labels)
    body = refusal(403, "PERMISSION_DENIED", "The location is against your organisation's policy")
    vertex.faults.append(Fault(where="asia-east1/endpoints", status=403, body=body, times=9))
    here = [
        json.loads(line) for line in command("remote", "ls", "--json", env=env).stdout.splitlines()
    ]
    assert [one["region"] for one in here] == ["us-central1"]
    done = command("remote", "list", "--all-regions", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "REGION"
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} == {
        "us-central1",
        "europe-west4",
        "us-east5",
    }
    assert f"an endpoint ({far.split('/')[-1]}), not t2i's" in done.stdout
    assert (
        "could not be asked, and may have endpoints that are paid for: asia-east1." in done.stderr
    )
    assert "organisation's policy" in done.stderr
    assert "`t2i remote reap --region us-east5` removes it" in done.stderr
    bill = json.loads(command("remote", "cost", "--all-regions", "--json", env=env).stdout)
    assert bill["usd_per_hour"] == 0.66
    assert bill["regions_not_asked"] == ["asia-east1"]
    assert [one["made_by_t2i"] for one in bill["endpoints"]] == [False, False, True]
    # Google lists the regions: no others are asked.
    assert not any("africa-south1" in path for _, path in vertex.requests)


def test_regions_that_refuse_for_the_same_reason_are_named_once() -> None:
    failures = {
        name: AccessError(f"Google says: {name} is not for you.")
        for name in ("us-east5", "us-west1")
    }
    (text,) = regions.RegionAnswers[str](answers={}, failures=failures).failure_texts()
    assert "us-east5, us-west1. Google says: us-east5 is not for you." in text


def test_without_the_api_s_list_every_known_region_is_asked(
    vertex: FakeVertex, client: GoogleClient
) -> None:
    # Read, not imported, which takes seconds.
    package = distribution("google-cloud-aiplatform")
    source = Path(str(package.locate_file("google/cloud/aiplatform/constants/base.py"))).read_text()
    listed = source.partition("SUPPORTED_REGIONS = frozenset(")[2].partition(")")[0]
    assert {"global", *regions.KNOWN_REGIONS} == set(re.findall(r'"([a-z0-9-]+)"', listed))
    # A host that knows of its own region only hides none.
    assert regions.list_regions(client) == sorted(regions.KNOWN_REGIONS)
    vertex.granted = set()
    assert regions.list_regions(client) == sorted(regions.KNOWN_REGIONS)
    vertex.granted, vertex.regions = None, {"us-central1", "moon-base1"}
    assert regions.list_regions(client) == ["moon-base1", "us-central1"]


@pytest.mark.parametrize(
    ("deployed", "machine"),
    [
        ({"automaticResources": {"minReplicaCount": 1, "maxReplicaCount": 2}}, "automatic res"),
        ({"sharedResources": "projects/1/locations/x/deploymentResourcePools/p"}, "resources p"),
        ({"dedicatedResources": {"machineSpec": {"machineType": "z9-a-1"}}}, "z9-a-1"),
        ({}, "automatic resources"),
    ],
)
def test_an_unknown_price_is_said_and_is_not_zero(
    vertex: FakeVertex, client: GoogleClient, deployed: dict[str, Any], machine: str
) -> None:
    vertex.make_endpoint()
    name = vertex.make_endpoint(deployed=deployed)
    told = report(client)
    assert told.to_json()["usd_per_hour"] is None
    _, second, together, _ = told.text()
    assert "an endpoint" in second
    assert "is unknown, ? so far" in second
    assert machine in second
    assert together.startswith("all: 0.22 USD per hour")
    assert together.endswith(f"unknown price for an endpoint ({name.split('/')[-1]}), not t2i's")


@pytest.mark.parametrize(
    ("fewest", "most", "state", "running"),
    [
        (0, 1, {"availableReplicaCount": 1, "lastUpdateTime": CREATED}, 1),
        # The API leaves a count of 0 out.
        (0, 1, {"lastUpdateTime": CREATED}, 0),
        (0, 3, {"availableReplicaCount": 2, "lastUpdateTime": CREATED}, 2),
        # Nothing is told: rather too much than too little.
        (0, 1, None, 1),
        (0, 1, {"message": "Starts."}, 1),
        (1, 3, None, 1),
        (1, 3, {"availableReplicaCount": 2, "lastUpdateTime": CREATED}, 2),
        # What starts anew is paid for as well.
        (2, 3, {"lastUpdateTime": CREATED}, 2),
        (1, 1, {"availableReplicaCount": 9, "lastUpdateTime": CREATED}, 1),
    ],
)
def test_replicas_that_run_now(
    fewest: int, most: int, state: dict[str, Any] | None, running: int
) -> None:
    resources = {"machineSpec": L4, "maxReplicaCount": most}
    resources |= {"minReplicaCount": fewest} if fewest else {}
    deployed = {"dedicatedResources": resources, "createTime": CREATED}
    deployed |= {"status": state} if state is not None else {}
    costs = replica_costs.replica_costs(deployed, TWO_HOURS_LATER, machine_types.BUILT_IN)
    assert (costs.replicas, costs.max_replicas) == (running, most)
    assert costs.hourly == pytest.approx(0.81 * running)
    assert costs.hourly_at_most == pytest.approx(0.81 * most)
    assert costs.so_far == pytest.approx(1.62 * fewest)
    assert costs.so_far_at_most == pytest.approx(1.62 * most)


def test_scale_to_zero_tells_what_is_paid_now_and_at_most(
    command: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    deploy = ("remote", "deploy", "-m", "sd15", "--scale-to-zero", "15m", "--yes")
    assert command(*deploy, env=env).returncode == 0
    (endpoint,) = vertex.endpoints.values()
    endpoint["deployedModels"][0]["status"] = {"lastUpdateTime": CREATED}
    vertex.advance(7200)
    line = json.loads(command("remote", "list", "--json", env=env).stdout)
    assert (line["replicas"], line["max_replicas"]) == (0, 1)
    assert (line["usd_per_hour"], line["usd_per_hour_at_most"]) == (0, 0.81)
    assert line["usd_so_far"] == 0
    bill = command("remote", "cost", env=env).stdout
    assert "sd15: 0.00 USD per hour now, 0.81 at most, at most 1.62 so far" in bill


def test_a_deployment_whose_state_cannot_be_asked_costs_no_nothing(
    vertex: FakeVertex, client: GoogleClient
) -> None:
    number = vertex.make_endpoint().split("/")[-1]
    vertex.endpoints[number]["deployedModels"].clear()
    (line,) = report(client).endpoints
    assert (line.state, line.usd_per_hour) == ("nothing deployed", 0)
    body = refusal(501, "UNIMPLEMENTED", "Operation is not implemented.")
    vertex.faults.append(Fault(where="GET .*/operations$", status=501, body=body, times=9))
    (line,) = report(client).endpoints
    assert (line.state, line.usd_per_hour) == ("not known", None)


def test_a_sum_of_what_is_not_known_is_not_zero(
    command: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    vertex.make_endpoint(deployed={"automaticResources": {"minReplicaCount": 1}})
    told = command("remote", "cost", env=env).stdout
    assert "all: an unknown price for an endpoint" in told
    assert "0.00" not in told
    assert json.loads(command("remote", "cost", "--json", env=env).stdout)["usd_per_hour"] is None


@pytest.mark.parametrize("point", [{}, {"value": 3}, {"value": {"int64Value": "x"}}])
def test_a_count_of_requests_that_makes_no_sense_hides_no_endpoint(
    command: T2I, vertex: FakeVertex, env: dict[str, str], point: dict[str, Any]
) -> None:
    vertex.make_endpoint()
    body = {"timeSeries": [{"points": [point]}]}
    vertex.faults.append(Fault(where="timeSeries", status=200, body=body))
    listed = command("remote", "list", env=env)
    assert listed.returncode == 0, listed.stderr
    assert "an endpoint" in listed.stdout


def test_another_s_deployment_under_way_has_an_unknown_price(
    vertex: FakeVertex, client: GoogleClient
) -> None:
    number = vertex.make_endpoint().split("/")[-1]
    vertex.endpoints[number]["deployedModels"].clear()
    (model,) = vertex.models.values()
    vertex.operation_seconds = 10_000
    resources = {"machineSpec": L4, "minReplicaCount": 1}
    body = {"deployedModel": {"model": model["name"], "dedicatedResources": resources}}
    vertex.begin_deployment(number, body)
    (line,) = report(client).endpoints
    assert (line.state, line.usd_per_hour) == ("deploying", None)


def test_a_new_bucket_keeps_nothing_of_what_is_deleted(
    vertex: FakeVertex, client: GoogleClient
) -> None:
    weights_bucket.make_bucket(client, "pail", {"managed-by": "t2i"})
    assert vertex.buckets["pail"]["softDeletePolicy"] == {"retentionDurationSeconds": "0"}
    weights_bucket.storage(client).put("pail", "t2i/x/a", b"a", {})
    weights_bucket.storage(client).delete("pail", "t2i/x/a")
    assert vertex.google_left()["soft-deleted"] == []


@pytest.mark.parametrize(
    ("bucket", "said"),
    [
        ({"softDeletePolicy": {"retentionDurationSeconds": "604800"}}, "for 7d (soft delete)"),
        ({"versioning": {"enabled": True}}, "earlier versions of deleted files"),
        ({"softDeletePolicy": {"retentionDurationSeconds": "0"}}, None),
        ({}, None),
    ],
)
def test_what_a_bucket_keeps_is_told(bucket: dict[str, Any], said: str | None) -> None:
    told = weights_bucket.retention_text(bucket)
    assert told is None if said is None else said in str(told)


def test_weights_that_a_bucket_keeps_after_their_deletion_are_told_of(
    command: T2I, vertex: FakeVertex, env: dict[str, str], tmp_path: Path
) -> None:
    policy = {"retentionDurationSeconds": "604800"}
    vertex.buckets["pail"] = {"name": "pail", "labels": {}, "softDeletePolicy": policy}
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model_index.json").write_text("{}")
    reader = ("--service-account", "reader@gallery.iam.gserviceaccount.com")
    spec = ("-m", weights, *reader, "--bucket", "pail", "--yes")
    assert command("remote", "deploy", *spec, env=env).returncode == 0
    sentence = "gs://pail keeps deleted files for 7d (soft delete); what it keeps of "
    done = command("remote", "down", "--bucket", env=env)
    assert done.returncode == 0, done.stderr
    assert sentence in done.stderr
    assert vertex.left()["soft-deleted"]
    once = command("remote", "run", *spec, "--", "true", env=env)
    assert once.returncode == 0, once.stderr
    assert sentence in once.stderr
    assert "paid for any more" not in once.stderr
    own = command("remote", "run", "-m", weights, *reader, "--yes", "--", "true", env=env)
    assert "nothing of it is paid for any more" in own.stderr


def test_another_s_description_is_no_configuration() -> None:
    good = {
        "schema": 1,
        "version": "v1",
        "deployedModel": {
            "model": "projects/1/locations/x/models/5",
            "dedicatedResources": {"machineSpec": L4, "minReplicaCount": 1},
        },
    }

    def read(record: object) -> object:
        return stored_deployment.stored_deployment(
            {"description": f"Deployed by t2i as: {json.dumps(record)}"}
        )

    assert read(good) is not None
    wrongs: list[dict[str, Any]] = [
        {"schema": 2},
        {"version": "v9"},
        {"deployedModel": []},
        {"deployedModel": {"model": 5, "dedicatedResources": {}}},
        {"deployedModel": {"model": "m", "dedicatedResources": {"machineSpec": {}}}},
        {"schedulerAccount": 5},
    ]
    for wrong in wrongs:
        assert read(good | wrong) is None
    for text in ("", "An endpoint for cats", "Deployed by t2i as: {", "Deployed by t2i as: []"):
        assert stored_deployment.stored_deployment({"description": text}) is None
    assert stored_deployment.stored_deployment({}) is None


def test_other_endpoints_are_told_apart(vertex: FakeVertex, client: GoogleClient) -> None:
    name = vertex.make_endpoint()
    found = inventory.list_endpoints(client)
    assert found.deployments == {}
    for wanted in (name, name.split("/")[-1]):
        other = found.find_other(wanted)
        assert other is not None
        assert other["name"] == name
    assert found.find_other("nothing") is None
    with pytest.raises(InputError, match="somebody else has"):
        found.find_other("an endpoint")
    with pytest.raises(NotFoundError):
        client.in_region("europe-west4").call("GET", "aiplatform", name.replace("us-central1", "x"))


@pytest.mark.parametrize("text", ["", "[]", '"x"', "null", '{"error": {"code": 403}}'])
def test_an_empty_list_that_google_would_not_give_is_not_taken_for_nothing(
    command: T2I, vertex: FakeVertex, env: dict[str, str], text: str
) -> None:
    vertex.make_endpoint()
    vertex.faults.append(Fault(where="GET .*/endpoints$", status=200, text=text, times=9))
    for asked in ("list", "cost", "reap"):
        done = command("remote", asked, env=env)
        assert done.returncode == 6, asked
        assert "The answer makes no sense: it" in done.stderr
        assert "0.00" not in done.stdout
