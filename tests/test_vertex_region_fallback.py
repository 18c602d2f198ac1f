"""`--region A,B`: a deployment goes to the first region with machines, and to one only."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from t2i_cli.errors import InputError
from t2i_cli.net.google_http import CapacityError, error_from_status
from t2i_cli.settings import store
from t2i_cli.settings.options import DeploymentSpec, LocationOptions
from t2i_cli.vertex import endpoint_store, location, region_fallback
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.location import Location
from t2i_cli.vertex.region_fallback import RegionPlans
from tests.conftest import T2I
from tests.fakes.google import refusal
from tests.fakes.oauth import AUTHORIZED
from tests.fakes.vertex import FakeVertex, Fault, quota_metric, stock_out
from tests.processes import running, until

US, EU, ASIA = "us-central1", "europe-west4", "asia-east1"
READER = "reader@gallery.iam.gserviceaccount.com"
DEPLOY = ("remote", "deploy", "-m", "sd15", "--yes", "--region", f"{US},{EU}")
ASKED = DeploymentSpec(model="sd15")


@pytest.fixture
def world(vertex: FakeVertex) -> FakeVertex:
    """The fake with three regions, the first of which has no machine."""
    vertex.regions = {US, EU, ASIA}
    vertex.short_regions = {US: stock_out(US)}
    return vertex


@pytest.fixture
def clients(
    world: FakeVertex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[GoogleClient]]:
    """A connection to each region, with no settings and no memory of the developer's."""
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for setting in store.SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    here = [Location(project="gallery", region=one, api_endpoint=world.url) for one in (US, EU)]
    first, second = (GoogleClient(one, lambda: AUTHORIZED) for one in here)
    with first, second:
        yield [first, second]


def planned(clients: list[GoogleClient], spec: DeploymentSpec = ASKED) -> RegionPlans:
    """The plans as a dry run shows them."""
    return region_fallback.plan_regions(spec, clients, "ann", lambda _: None)


def regions_of(vertex: FakeVertex) -> set[str]:
    """Where anything of Vertex AI's is left."""
    found = [*vertex.endpoints.values(), *vertex.models.values()]
    return {one["name"].split("/")[3] for one in found}


def weights(tmp_path: Path) -> Path:
    """A folder to upload."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("error", "status", "falls_through"),
    [
        (stock_out(US), 0, True),
        (stock_out(US) | {"code": 14}, 0, True),
        (quota_metric(), 0, True),
        (quota_metric("custom_model_serving_preemptible_nvidia_l4_gpus"), 0, True),
        (quota_metric("custom_model_serving_nvidia_l4_gpus"), 429, True),
        (quota_metric("online_prediction_requests_per_base_model"), 0, False),
        ({"code": 8, "message": "Quota exceeded for aiplatform.googleapis.com."}, 0, False),
        ({"code": 13, "message": "Internal error."}, 0, False),
        ({"code": 3, "message": "Model server never became ready."}, 0, False),
        ({"code": 7, "message": "Permission 'x.y' denied: custom_model_serving_"}, 0, False),
    ],
)
def test_which_errors_another_region_may_help(
    error: dict[str, object], status: int, falls_through: bool
) -> None:
    names = {3: "INVALID_ARGUMENT", 7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED"}
    name = names.get(int(str(error["code"])), "")
    found = error_from_status(status, name, str(error["message"]))
    assert isinstance(found, CapacityError) == falls_through
    assert found.exit_code == 4 or not falls_through


def test_the_next_region_is_tried(t2i: T2I, world: FakeVertex, tmp_path: Path) -> None:
    env, folder = world.environment, weights(tmp_path)
    done = t2i(
        *DEPLOY[:2], "-m", folder, "--service-account", READER, *DEPLOY[4:], "--json", env=env
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert f"/locations/{EU}/" in told["endpoint"]
    assert told["parent"] == f"projects/gallery/locations/{EU}"
    # Nothing is left, nor paid for, where there was no machine.
    assert regions_of(world) == {EU}
    assert list(world.buckets) == [f"t2i-gallery-{EU}"]
    assert len(world.spans) == 1
    priced = rf"regions      {US} \([\d.]+ USD per hour\), then {EU} \([\d.]+ USD per hour\)"
    assert re.search(priced, done.stderr)
    assert f"warning: {US}: " in done.stderr
    assert f"{EU} is tried next." in done.stderr
    assert done.stderr.index("weights is removed") < done.stderr.index("is tried next")
    # The endpoint in use is the one that worked, whatever the regions' order.
    env = env | {"T2I_VERTEX_REGION": f"{US},{EU}"}
    called = t2i("remote", "generate", "a kite", env=env)
    assert called.returncode == 0, called.stderr
    assert len(world.predictions) == 1
    # The same command finds it, though the first region has machines by now.
    world.short_regions = {}
    again = t2i(*DEPLOY[:2], "-m", folder, "--service-account", READER, *DEPLOY[4:], env=env)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == told["endpoint"]
    assert len(world.spans) == 1
    down = t2i("remote", "down", "--bucket", env=env)
    assert down.returncode == 0, down.stderr
    assert world.left() == {}


@pytest.mark.parametrize(
    "error",
    [
        {"code": 13, "message": "Internal error."},
        {"code": 8, "message": "Quota exceeded for aiplatform.googleapis.com."},
    ],
)
def test_other_errors_end_it(t2i: T2I, world: FakeVertex, error: dict[str, object]) -> None:
    world.short_regions = {US: error}
    done = t2i(*DEPLOY, env=world.environment)
    assert done.returncode in {4, 6}
    assert regions_of(world) == {US}
    assert "Of sd15 there is: endpoint" in done.stderr
    assert "is tried next" not in done.stderr


def test_no_region_has_machines(t2i: T2I, world: FakeVertex) -> None:
    world.short_regions = {US: quota_metric(), EU: stock_out(EU)}
    done = t2i(*DEPLOY, env=world.environment)
    assert done.returncode == 4
    assert "Resources are insufficient" in done.stderr or EU in done.stderr
    # What the last one has is told of, as with a single region.
    assert regions_of(world) == {EU}
    assert "Of sd15 there is: endpoint" in done.stderr
    assert world.spans == []


def test_what_cannot_be_removed_ends_it(
    t2i: T2I, t2i_env: dict[str, str], world: FakeVertex
) -> None:
    body = refusal(403, "PERMISSION_DENIED", "Permission 'aiplatform.endpoints.delete' denied.")
    where = f"DELETE .*/{US}/endpoints"
    world.faults = [Fault(where=where, status=403, body=body, times=99)]
    done = t2i(*DEPLOY, env=world.environment)
    assert done.returncode == 3, done.stderr
    assert "Of sd15 there is still: endpoint" in done.stderr
    assert regions_of(world) == {US}
    assert world.spans == []


@pytest.mark.parametrize("moment", ["deploying", "removed", "next"])
def test_killed_in_between(
    t2i: T2I, t2i_env: dict[str, str], world: FakeVertex, moment: str
) -> None:
    world.slow = {"deployModel": 0.6} if moment != "deploying" else {"deployModel": 2.0}

    def reached() -> bool:
        kinds = [one.kind for one in world.operations.values()]
        count = {"deploying": kinds.count("deployModel"), "removed": kinds.count("deleteModel")}
        return count.get(moment, kinds.count("deployModel") - 1) > 0

    with running(t2i_env, world, *DEPLOY) as process:
        until(reached, process)
        process.kill()
        process.communicate()
    world.slow = {}
    if moment == "next":
        # It goes on where it was: in the first region it would be a second one.
        world.short_regions = {}
    done = t2i(*DEPLOY, env=world.environment)
    assert done.returncode == 0, done.stderr
    assert regions_of(world) == {EU}
    assert len(world.left()["deployed"]) == 1


def test_reap_looks_into_every_region(t2i: T2I, t2i_env: dict[str, str], world: FakeVertex) -> None:
    env = world.environment
    assert t2i(*DEPLOY, "--ttl", "1h", env=env).returncode == 0
    world.advance(2 * 3600)
    listed = t2i("remote", "list", "--region", f"{US},{EU}", env=env)
    assert listed.returncode == 2
    assert "names 2 regions, and this takes one" in listed.stderr
    # A region that cannot be looked into does not keep the next one from it.
    body = refusal(500, "INTERNAL", "Internal error.")
    world.faults = [Fault(where=f"GET .*/{US}/endpoints", status=500, body=body, times=9)]
    done = t2i("remote", "reap", env=env | {"T2I_VERTEX_REGION": f"{US}, {EU}"})
    assert done.returncode == 6, done.stderr
    assert f"warning: {US}: " in done.stderr
    assert world.left() == {}


@pytest.mark.parametrize("signalled", [False, True])
def test_run_uses_the_region_that_worked(
    t2i: T2I, t2i_env: dict[str, str], world: FakeVertex, signalled: bool
) -> None:
    run = ("remote", "run", "--yes", "-m", "sd15", "--region", f"{US},{EU}", "--")
    if not signalled:
        script = "import os; print(os.environ['T2I_VERTEX_REGION'])"
        done = t2i(*run, sys.executable, "-c", script, env=world.environment)
        assert (done.returncode, done.stdout) == (0, f"{EU}\n"), done.stderr
        assert len(world.spans) == 1
    else:
        world.slow = {"deleteEndpoint": 0.5}
        with running(t2i_env, world, *run, "sleep", "60") as process:
            # Ctrl-C while what the first region made is being removed.
            until(
                lambda: any(o.kind == "deleteEndpoint" for o in world.operations.values()), process
            )
            process.send_signal(signal.SIGINT)
            until(lambda: world.spans, process)
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 130, errors
        assert "The endpoint is being removed; please wait." in errors
    assert world.left() == {}


def test_an_ephemeral_batch(t2i: T2I, world: FakeVertex, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a kite\n")
    batch = ("batch", "prompts.txt", "-o", "out", "-m", "sd15", "--ephemeral", "--yes", "--spot")
    done = t2i(*batch, "--region", f"{US},{EU}", env=world.environment)
    assert done.returncode == 0, done.stderr
    assert len(world.predictions) == 1
    assert "machines     1 replica" in done.stderr
    assert "provisioning spot" in done.stderr
    assert world.left() == {}


def test_regions_that_cannot_have_it_are_left_out(
    world: FakeVertex, clients: list[GoogleClient], tmp_path: Path
) -> None:
    image = replace(ASKED, image=f"{EU}-docker.pkg.dev/gallery/t2i/t2i:1")
    plans = planned(clients, image)
    assert [one.region for one in plans.plans] == [EU]
    assert f"left out     {US}: the image {image.image} lies in {EU}" in plans.text()
    assert plans.to_json()["regions"] == [{"region": EU, "usd_per_hour": 0.81}]
    both = planned(clients, replace(ASKED, image="us-docker.pkg.dev/gallery/t2i/t2i:1"))
    assert [one.region for one in both.plans] == [US]
    with pytest.raises(InputError, match="lies in asia-east1"):
        planned(clients, replace(ASKED, image=f"{ASIA}-docker.pkg.dev/gallery/t2i/t2i:1"))
    elsewhere = planned(clients, replace(ASKED, image="registry.example.org/t2i:1"))
    assert len(elsewhere.plans) == 2
    reserved = planned(clients, replace(ASKED, reservation=f"{EU}-b/gpus"))
    assert [one.region for one in reserved.plans] == [EU]
    # One region alone is Google's to refuse, as ever.
    assert len(planned(clients[:1], image).plans) == 1


@pytest.mark.parametrize(
    ("place", "regions"),
    [(EU.upper(), [EU]), ("US", [US]), ("EU", [EU]), ("NAM4", [US, EU]), (None, [US])],
)
def test_a_bucket_lies_in_one_region(
    world: FakeVertex,
    clients: list[GoogleClient],
    tmp_path: Path,
    place: str | None,
    regions: list[str],
) -> None:
    if place:
        world.buckets["pail"] = {"name": "pail", "location": place, "labels": {}}
        there = planned(clients, DeploymentSpec(model="gs://pail/weights", service_account=READER))
        assert [one.region for one in there.plans] == regions
    spec = DeploymentSpec(model=str(weights(tmp_path)), bucket="pail", service_account=READER)
    assert [one.region for one in planned(clients, spec).plans] == regions
    # Without a name each region has its own.
    assert len(planned(clients, replace(spec, bucket=None)).plans) == 2


def test_every_region_has_the_same_end_and_the_dearest_price_is_agreed_to(
    world: FakeVertex, clients: list[GoogleClient]
) -> None:
    plans = planned(clients, replace(ASKED, flex_start=True))
    assert len({one.plan.labels.expires for one in plans.plans}) == 1
    assert plans.question() == (
        "Deploy t2i-sd15 in the first of 2 regions that has machines, for at most 0.81 USD per "
        "hour?"
    )
    dear = replace(plans.plans[1], plan=replace(plans.plans[1].plan, hourly=2.0))
    assert "at most 2.00 USD" in replace(plans, plans=[plans.plans[0], dear]).question()
    odd = replace(plans.plans[1], plan=replace(plans.plans[1].plan, hourly=None))
    unknown = replace(plans, plans=[plans.plans[0], odd])
    assert "a price that is not known everywhere" in unknown.question()
    assert f"{EU} (price unknown)" in unknown.text()


def test_a_setting_of_several_regions(
    clients: list[GoogleClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2I_VERTEX_PROJECT", "gallery")
    monkeypatch.setenv("T2I_VERTEX_REGION", f"{US},{EU}, {US}")
    assert location.find_location().region == US
    assert [one.region for one in location.find_locations()] == [US, EU]
    name = "projects/gallery/locations/{}/endpoints/5"
    assert location.find_location(endpoint=name.format(EU)).region == EU
    endpoint_store.remember_endpoint(EndpointRecord(name=name.format(EU)), current=True)
    assert location.find_location().region == EU
    endpoint_store.remember_endpoint(EndpointRecord(name=name.format(ASIA)), current=True)
    assert location.find_location().region == US
    options = LocationOptions(region=f"{US},{EU}")
    with pytest.raises(InputError, match="names 2 regions, and this takes one"):
        location.find_location(options)
    assert location.find_location(options, endpoint=name.format(EU)).region == EU
    for bad in ("us-central1,", ",us-central1", "us-central1;europe-west4", "us-central1,,x-y1"):
        with pytest.raises(InputError, match="must be a region of Google Cloud"):
            location.find_locations(LocationOptions(region=bad))
