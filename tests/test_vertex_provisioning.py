"""How a deployment gets its machines: on demand, spot, by flex-start, out of a reservation."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from google.cloud import aiplatform_v1, aiplatform_v1beta1
from google.protobuf.json_format import ParseDict, ParseError

from t2i_cli.errors import InputError, TimedOutError
from t2i_cli.settings import store
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.vertex import (
    deploy,
    inventory,
    machine_types,
    operations,
    provisioning,
    region_fallback,
    status,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.labels import Labels
from t2i_cli.vertex.location import Location
from t2i_cli.vertex.machine_types import PriceTable, ReplicaHardware
from t2i_cli.vertex.operations import OperationRunner
from t2i_cli.vertex.plan import DeploymentPlan
from t2i_cli.vertex.provisioning import Provisioning
from tests.conftest import T2I, Terminal
from tests.fakes.oauth import AUTHORIZED
from tests.fakes.vertex import FakeVertex, overloaded

ASKED = DeploymentSpec(model="sd15")
FLEX = replace(ASKED, flex_start=True, ttl="2h")
L4 = ReplicaHardware(machine="g2-standard-4", accelerator="NVIDIA_L4", count=1)
A100 = ReplicaHardware(machine="a2-highgpu-1g", accelerator="NVIDIA_TESLA_A100", count=1)
G4 = ReplicaHardware(machine="g4-standard-48", accelerator="NVIDIA_RTX_PRO_6000", count=1)
T4 = ReplicaHardware(machine="n1-standard-4", accelerator="NVIDIA_TESLA_T4", count=1)
RESERVATION = "projects/gallery/zones/us-central1-a/reservations/gpus"
DEPLOY = ("remote", "deploy", "-m", "sd15", "--yes")


@pytest.fixture
def cloud(
    vertex: FakeVertex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GoogleClient]:
    """A connection to the fake, with no settings and no memory of the developer's."""
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for setting in store.SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    here = Location(project="gallery", region="us-central1", api_endpoint=vertex.url)
    with GoogleClient(here, lambda: AUTHORIZED) as connection:
        yield connection


def planned(cloud: GoogleClient, spec: DeploymentSpec) -> DeploymentPlan:
    """The plan as `t2i remote deploy --yes` settles it."""
    plans = region_fallback.plan_regions(spec, [cloud], "ann", lambda _: None)
    return region_fallback.continue_earlier_run(spec, plans, lambda _: None).first


def deployed(cloud: GoogleClient, spec: DeploymentSpec) -> DeploymentPlan:
    """A deployment as `t2i remote deploy --yes` makes it; its plan."""
    settled = planned(cloud, spec)
    runner = OperationRunner(cloud, lambda _: None)
    there = deploy.find_existing(settled, cloud)
    deploy.run_deployment(settled, there, runner, lambda *_: None)
    return settled


@pytest.mark.parametrize(
    ("had", "in_v1"),
    [
        (Provisioning(), True),
        (Provisioning(spot=True), True),
        (Provisioning(flex_start=True), False),
        (Provisioning(reservation="any"), True),
        (Provisioning(reservation="none"), True),
        (Provisioning(spot=True, reservation="none"), True),
        (Provisioning(reservation=RESERVATION), True),
    ],
)
def test_the_fields_are_google_s_own(had: Provisioning, in_v1: bool) -> None:
    resources = {"machineSpec": L4.spec() | had.machine_fields(), "minReplicaCount": 1}
    resources |= had.resource_fields(7199.6)
    beta = aiplatform_v1beta1.DedicatedResources.pb(aiplatform_v1beta1.DedicatedResources())
    message = ParseDict(resources, beta)
    assert message.flex_start.max_runtime_duration.seconds == (7200 if had.flex_start else 0)
    released = aiplatform_v1.DedicatedResources.pb(aiplatform_v1.DedicatedResources())
    if in_v1:
        ParseDict(resources, released)
    else:
        with pytest.raises(ParseError):
            ParseDict(resources, released)
    assert had.needs_preview_api != in_v1
    assert provisioning.provisioning_from_api(resources).name == had.name


@pytest.mark.parametrize("project", ["gallery", "123456789", "example.com:gallery"])
def test_google_may_answer_with_the_project_s_number(project: str) -> None:
    had = Provisioning(reservation=RESERVATION.replace("gallery", project))
    assert had.name == "reservation us-central1-a/gpus"


def test_what_google_answers_is_not_believed_blindly() -> None:
    unsound: list[object] = [
        "x",
        1,
        [],
        {"values": 3},
        {"reservationAffinityType": 7, "values": [None]},
    ]
    for odd in unsound:
        resources = {"machineSpec": {"reservationAffinity": odd}, "spot": "yes"}
        assert not provisioning.provisioning_from_api(resources).spot
    assert provisioning.status_notes({"status": 5, "dedicatedResources": {}}) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"spot": True}, "--flex-start and --spot exclude each other"),
        ({"reservation": "any"}, "--flex-start and --reservation exclude each other"),
        ({"accelerator": "t4"}, "G2, A2, A3, A4, not for n1-standard-"),
        ({"machine_type": "n1-standard-4"}, "not for n1-standard-4"),
        ({"ttl": "8d"}, "it ends after 7d at most, and --ttl is 8d"),
        ({"ttl": "604801s"}, "it ends after 7d at most"),
        ({"scale_to_zero": "15m"}, "--scale-to-zero"),
    ],
)
def test_where_flex_start_cannot_be_had(
    cloud: GoogleClient, more: dict[str, object], message: str
) -> None:
    spec = replace(FLEX, **more)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        planned(cloud, spec)
    assert message in str(caught.value)
    if {"spot", "reservation"}.isdisjoint(more):
        # Without the flag it is machines on demand.
        assert planned(cloud, replace(spec, flex_start=None)).provisioning == Provisioning()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("gpus", "not of the form ZONE/NAME"),
        ("us-central1/gpus", "not of the form ZONE/NAME"),
        ("us-central1-a/GPUs", "not of the form ZONE/NAME"),
        ("", "not of the form ZONE/NAME"),
        ("projects/p/zones/us-central1-a/gpus", "not of the form ZONE/NAME"),
        ("europe-west4-a/gpus", "lies in europe-west4, not in us-central1"),
    ],
)
def test_a_reservation_is_named_with_its_zone(
    cloud: GoogleClient, named: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        planned(cloud, replace(ASKED, reservation=named))
    assert message in str(caught.value)


def test_spot_machines_and_reservations_exclude_each_other(cloud: GoogleClient) -> None:
    with pytest.raises(InputError, match="--spot and --reservation exclude each other"):
        planned(cloud, replace(ASKED, spot=True, reservation="us-central1-a/gpus"))


@pytest.mark.parametrize("named", ["us-central1-a/gpus", RESERVATION])
def test_a_reservation_is_asked_for(vertex: FakeVertex, cloud: GoogleClient, named: str) -> None:
    made = deployed(cloud, replace(ASKED, reservation=named))
    (endpoint,) = vertex.endpoints.values()
    machine = endpoint["deployedModels"][0]["dedicatedResources"]["machineSpec"]
    assert machine["reservationAffinity"] == {
        "reservationAffinityType": "SPECIFIC_RESERVATION",
        "key": "compute.googleapis.com/reservation-name",
        "values": [RESERVATION],
    }
    assert "provisioning reservation us-central1-a/gpus" in made.text()
    assert "is paid for at about this rate until it is deleted" in made.text()


def test_google_ends_a_flex_start_deployment(vertex: FakeVertex, cloud: GoogleClient) -> None:
    made = deployed(cloud, FLEX)
    assert "enforced by  Google, by flex-start, which undeploys it" in made.text()
    assert made.to_json()["enforced_by"] == "flex-start"
    assert any(
        path.startswith("/v1beta1/") and ":deployModel" in path for _, path in vertex.requests
    )
    (found,) = inventory.list_deployments(cloud).deployments.values()
    line = status.endpoint_status(found, cloud, machine_types.load_prices())
    assert (line.state, line.provisioning) == ("deployed", "flex-start")
    vertex.advance(2 * 3600 + 60)
    (found,) = inventory.list_deployments(cloud).deployments.values()
    assert found.deployed() == []
    assert vertex.replica_hours == pytest.approx(2, abs=0.05)
    assert inventory.list_deployments(cloud).overdue(vertex.now()) == [found]


def test_a_scheduler_job_stands_beside_flex_start(vertex: FakeVertex, cloud: GoogleClient) -> None:
    keeper = "keeper@gallery.iam.gserviceaccount.com"
    made = deployed(cloud, replace(FLEX, scheduler_account=keeper))
    assert len(vertex.jobs) == 1
    assert "Google, by flex-start, which undeploys it, and a Cloud Scheduler job" in made.text()


def test_google_s_end_cannot_be_moved(vertex: FakeVertex, cloud: GoogleClient) -> None:
    first = deployed(cloud, FLEX)
    vertex.advance(600)
    # The same command, with the flag and without, and one that asks for more time.
    for spec in (FLEX, replace(FLEX, flex_start=None), replace(FLEX, ttl="9h")):
        again = deployed(cloud, spec)
        assert again.provisioning.flex_start
        assert again.labels.expires == again.labels.google_end == first.labels.google_end
        assert again.ttl == pytest.approx(7200 - 600, abs=5)
    sooner = deployed(cloud, replace(FLEX, ttl="30m"))
    assert sooner.labels.expires == pytest.approx(vertex.now() + 1800, abs=5)
    assert sooner.labels.google_end == first.labels.google_end
    assert len(vertex.spans) == 1


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (FLEX, replace(FLEX, flex_start=False), "flex-start, not on demand"),
        (ASKED, FLEX, "on demand, not flex-start"),
        (ASKED, replace(ASKED, spot=True), "on demand, not spot"),
        (replace(ASKED, spot=True), ASKED, "spot, not on demand"),
        (FLEX, replace(ASKED, spot=True), "flex-start, not spot"),
        (replace(ASKED, reservation="any"), ASKED, "any reservation, not on demand"),
    ],
)
def test_another_way_under_the_same_name_is_refused(
    cloud: GoogleClient, first: DeploymentSpec, second: DeploymentSpec, message: str
) -> None:
    deployed(cloud, first)
    deployed(cloud, first)
    with pytest.raises(InputError, match=f"another way to get machines: {message}"):
        deployed(cloud, second)


def test_an_interrupted_deployment_goes_on_by_flex_start(
    vertex: FakeVertex, cloud: GoogleClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    vertex.slow = {"deployModel": 1.0}
    monkeypatch.setattr(operations, "DEPLOYMENT_TIMEOUT", 0.1)
    with pytest.raises(TimedOutError):
        deployed(cloud, replace(ASKED, ttl="1h"))
    # By flex-start a machine is waited for until the TTL; here what another run began.
    with pytest.raises(InputError, match="another way to get machines: on demand, not flex-start"):
        deployed(cloud, FLEX)
    vertex.endpoints.clear()
    vertex.models.clear()
    vertex.operations.clear()
    settled = planned(cloud, FLEX)
    deploy.run_deployment(settled, None, OperationRunner(cloud, lambda _: None), lambda *_: None)
    assert len(vertex.spans) == 2
    # Killed while it was in the queue: no flag says how it was to have been had.
    (endpoint,) = vertex.endpoints.values()
    endpoint["deployedModels"].clear()
    again = deployed(cloud, ASKED)
    assert again.provisioning.flex_start
    assert endpoint["deployedModels"][0]["dedicatedResources"]["flexStart"]


def test_after_google_s_end_it_is_deployed_anew(vertex: FakeVertex, cloud: GoogleClient) -> None:
    deployed(cloud, FLEX)
    vertex.advance(3 * 3600)
    again = deployed(cloud, replace(ASKED, flex_start=None))
    assert again.provisioning == Provisioning()
    assert again.labels.google_end is None
    (endpoint,) = vertex.endpoints.values()
    assert "t2i-google-end" not in endpoint["labels"]


def test_labels_without_a_sound_end() -> None:
    labels = Labels(name="x", expires=5, model="m", serving="t2i", by="ann", google_end=7)
    assert Labels.parse(labels.encoded()) == labels
    for odd in ("", "soon", "-1", "9" * 12):
        found = Labels.parse(labels.encoded() | {"t2i-google-end": odd})
        assert found is not None
        assert found.google_end is None


PRICES = PriceTable(
    date="today",
    machines={"g2-standard-4": 0.8, "a2-highgpu-1g": 4.0, "n1-standard-4": 0.2},
    accelerators={"NVIDIA_TESLA_T4": 0.4},
)
KNOWN = replace(
    PRICES,
    spot={"g2-standard-4": 0.3, "n1-standard-4": 0.1, "NVIDIA_TESLA_T4": 0.1},
    flex_start={"a2-highgpu-1g": 2.5},
)
G4_PRICES = replace(PRICES, machines={"g4-standard-48": 4.0})


@pytest.mark.parametrize(
    ("had", "hardware", "prices", "price", "bound"),
    [
        (Provisioning(), L4, PRICES, 0.8, False),
        (Provisioning(spot=True), L4, PRICES, L4.spot_price(), False),
        (Provisioning(spot=True), L4, KNOWN, 0.3, False),
        (Provisioning(spot=True), T4, KNOWN, 0.2, False),
        (Provisioning(spot=True), A100, KNOWN, A100.spot_price(), False),
        # The built-in table has no price of G4 by spot.
        (Provisioning(spot=True), G4, G4_PRICES, 4.0, True),
        # Flex-start has a discount for A2, A3 and A4 only.
        (Provisioning(flex_start=True), L4, PRICES, 0.8, False),
        (Provisioning(flex_start=True), A100, PRICES, 4.0, True),
        (Provisioning(flex_start=True), A100, KNOWN, 2.5, False),
        (Provisioning(reservation="any"), L4, KNOWN, 0.8, False),
        (Provisioning(spot=True), G4, PRICES, None, True),
    ],
)
def test_prices(
    had: Provisioning,
    hardware: ReplicaHardware,
    prices: PriceTable,
    price: float | None,
    bound: bool,
) -> None:
    found = had.hourly_price(hardware, prices)
    assert found == (price if price is None else pytest.approx(price))
    assert had.price_is_bound(hardware, prices) == bound
    assert ("price on demand" in str(had.price_note(hardware, prices))) == bound


def test_the_plan_says_which_price_it_is(
    cloud: GoogleClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spot = replace(ASKED, spot=True)
    built_in = planned(cloud, spot)
    assert "price        0.32 USD per hour" in built_in.text()
    asked = replace(ASKED, machine_type="a2-highgpu-1g", flex_start=True, ttl="2h")
    unknown = planned(cloud, asked)
    assert "up to 4.22 USD per hour" in unknown.text()
    assert "what flex-start takes off is not known here" in unknown.text()
    assert unknown.question() == "Deploy t2i-sd15 for at most 4.22 USD per hour?"
    estimate = unknown.to_json()["estimate"]
    assert isinstance(estimate, dict)
    assert estimate["at_most"] is True
    file = tmp_path / "prices.toml"
    file.write_text("[spot]\ng2-standard-4 = 0.25\n[flex-start]\ng2-standard-4 = 0.5\n")
    monkeypatch.setenv("T2I_VERTEX_PRICES", str(file))
    known = planned(cloud, replace(spot, max_cost=0.5, ttl="1h"))
    assert "price        0.25 USD per hour" in known.text()
    assert "price        0.50 USD per hour" in planned(cloud, FLEX).text()
    with pytest.raises(InputError, match="more than --max-cost"):
        planned(cloud, replace(spot, max_cost=0.5, ttl="3h"))


def test_flex_start_is_waited_for_until_the_ttl(
    vertex: FakeVertex, cloud: GoogleClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    vertex.slow = {"deployModel": 1.0}
    monkeypatch.setattr(operations, "DEPLOYMENT_TIMEOUT", 0.1)
    said: list[str] = []
    settled = planned(cloud, FLEX)
    deploy.run_deployment(settled, None, OperationRunner(cloud, said.append), lambda *_: None)
    assert len(vertex.spans) == 1
    assert "deployment t2i-sd15: starts; it takes 5 to 30 minutes once there is a machine" in said


def test_flex_start_is_offered_first_on_a_terminal(
    t2i_terminal: Terminal, vertex: FakeVertex
) -> None:
    command = ("remote", "deploy", "-m", "sd15", "--ttl", "1h")
    done = t2i_terminal(*command, prompt="by flex-start", answer="\ny", env=vertex.environment)
    assert done.returncode == 0, done.stderr
    assert "nothing but `t2i remote reap`" in done.stderr.partition("by flex-start")[0]
    assert "enforced by  Google, by flex-start" in done.stderr
    assert "Cloud Scheduler" not in done.stderr.partition("by flex-start")[2]
    (endpoint,) = vertex.endpoints.values()
    (model,) = endpoint["deployedModels"]
    assert float(model["dedicatedResources"]["flexStart"]["maxRuntimeDuration"][:-1]) > 3500
    # What is deployed is asked about no more.
    again = t2i_terminal(*command, prompt="[y/N]", answer="y", env=vertex.environment)
    assert again.returncode == 0, again.stderr
    assert "Have Google itself" not in again.stderr
    assert len(vertex.spans) == 1


def test_a_spot_machine_that_is_taken_back(t2i: T2I, vertex: FakeVertex) -> None:
    assert t2i(*DEPLOY, "--spot", env=vertex.environment).returncode == 0
    (endpoint,) = vertex.endpoints.values()
    (model,) = endpoint["deployedModels"]
    assert model["dedicatedResources"]["spot"] is True
    model["status"] = {"message": "STOCKOUT", "lastUpdateTime": "2026-11-23T18:00:00Z"}
    done = t2i("remote", "status", "--json", env=vertex.environment)
    told = json.loads(done.stdout)
    assert told["provisioning"] == "spot"
    assert told["notes"][0] == "Google says: STOCKOUT"
    assert "Google may have taken the spot machine back" in told["notes"][1]
    vertex.faults = [overloaded(times=9)]
    call = ("remote", "generate", "a kite", "--retries", "0")
    failed = t2i(*call, env=vertex.environment)
    assert failed.returncode == 6
    assert "It runs on spot machines, which Google may have taken back" in failed.stderr
    model["status"] |= {"availableReplicaCount": 1, "message": ""}
    assert (
        json.loads(t2i("remote", "status", "--json", env=vertex.environment).stdout)["notes"] == []
    )
