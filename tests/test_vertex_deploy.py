"""Deployments in this process: what a run finds of an earlier one, and what it refuses."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from t2i_cli import hub
from t2i_cli.errors import AccessError, InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.settings import store
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import (
    containers,
    deploy,
    deployment_planning,
    endpoint_store,
    inventory,
    lifecycle,
    permissions,
    removal,
    wake_up,
    weights_bucket,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.cloud_session import CloudSession
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.labels import Labels
from t2i_cli.vertex.location import Location
from t2i_cli.vertex.model_source import ModelSource
from t2i_cli.vertex.operations import OperationRunner
from tests.fakes.oauth import AUTHORIZED
from tests.fakes.vertex import FakeVertex

KEEPER = "keeper@gallery.iam.gserviceaccount.com"
ASKED = DeploymentSpec(model="sd15")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings and no memory of the developer's."""
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for setting in store.SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)


@pytest.fixture
def cloud(vertex: FakeVertex) -> Iterator[GoogleClient]:
    """A connection to the fake."""
    here = Location(project="gallery", region="us-central1", api_endpoint=vertex.url)
    with GoogleClient(here, lambda: AUTHORIZED) as connection:
        yield connection


def deployed(cloud: GoogleClient, wanted: DeploymentSpec = ASKED) -> EndpointRecord:
    """An endpoint as `t2i remote deploy` makes it."""
    settled = deployment_planning.plan_deployment(wanted, cloud, "ann")
    there = deploy.find_existing(settled, cloud)
    return deploy.run_deployment(
        settled, there, OperationRunner(cloud, lambda _: None), lambda *_: None
    )


def removed(cloud: GoogleClient, name: str) -> None:
    """That deployment and its weights, taken down."""
    found = inventory.list_deployments(cloud).deployments[name]
    removal.remove_deployment(cloud, found, lambda _: None, artifacts=True)


def weights(tmp_path: Path) -> str:
    """A folder to upload."""
    folder = tmp_path / "weights"
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text("{}")
    return str(folder)


def put(vertex: FakeVertex, bucket: str, *names: str) -> None:
    """A bucket with files that t2i did not write."""
    vertex.buckets[bucket] = {"name": bucket, "labels": {}}
    for name in names:
        vertex.objects[bucket, name] = ({"bucket": bucket, "name": name, "size": "1"}, b"x")


def test_files_without_t2i_s_marker_in_their_bucket_are_somebody_else_s(
    vertex: FakeVertex, cloud: GoogleClient
) -> None:
    deployed(cloud)
    put(vertex, "pail", "t2i/sd15/mine.png", "t2i/sd15.labels", "t2i/sd15.labels/x")
    found = inventory.list_deployments(cloud, "pail").deployments["sd15"]
    assert found.files == []
    removal.remove_deployment(cloud, found, lambda _: None, artifacts=True, bucket="pail")
    assert len(vertex.left()["objects"]) == 3
    weights_bucket.write_marker(cloud, "pail", found.labels)
    names = [
        file.name for _, file in inventory.list_deployments(cloud, "pail").deployments["sd15"].files
    ]
    assert sorted(names) == ["t2i/sd15.labels", "t2i/sd15/mine.png"]


def test_labels_alone_claim_no_weights(vertex: FakeVertex, cloud: GoogleClient) -> None:
    # A copy of a marker carries its labels, and so may any object that people label like t2i's.
    deployed(cloud)
    put(vertex, "pail", "t2i/sd15/mine.png", "t2i/other/mine.png")
    labels = inventory.list_deployments(cloud).deployments["sd15"].labels.encoded()
    for name in ("t2i/copy.labels", "t2i/sd15/labelled.png", "t2i/sd15.labels.bak"):
        weights_bucket.storage(cloud).put("pail", name, b"", labels)
    found = inventory.list_deployments(cloud, "pail").deployments["sd15"]
    assert found.files == []
    removal.remove_deployment(cloud, found, lambda _: None, artifacts=True, bucket="pail")
    assert len(vertex.left()["objects"]) == 5


def test_a_ttl_can_be_shortened(vertex: FakeVertex, cloud: GoogleClient) -> None:
    deployed(cloud, replace(ASKED, ttl="9h"))
    deployed(cloud, replace(ASKED, ttl="1h"))
    (found,) = inventory.list_deployments(cloud).deployments.values()
    assert found.expires == pytest.approx(vertex.now() + 3600, abs=60)
    vertex.advance(2 * 3600)
    assert inventory.list_deployments(cloud).overdue(vertex.now())
    vertex.endpoints.clear()
    (left,) = inventory.list_deployments(cloud).deployments.values()
    assert left.expires == Labels.parse(left.models[0]["labels"]).expires  # type: ignore[union-attr]


def test_a_scheduler_job_goes_with_the_ttl(vertex: FakeVertex, cloud: GoogleClient) -> None:
    deployed(cloud, replace(ASKED, ttl="1h", scheduler_account=KEEPER))
    deployed(cloud, replace(ASKED, ttl="5h", scheduler_account=KEEPER))
    vertex.advance(2 * 3600)
    assert vertex.fire_jobs() == []
    deployed(cloud, replace(ASKED, ttl="9h"))
    assert vertex.jobs == {}


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (DeploymentSpec(machine_type="g2-standard-8"), "machine"),
        (DeploymentSpec(accelerator="t4"), "machine"),
        (DeploymentSpec(max_replicas=2), "number of replicas"),
        (DeploymentSpec(min_replicas=2, max_replicas=2), "number of replicas"),
        (DeploymentSpec(scale_to_zero="15m"), "number of replicas"),
        (DeploymentSpec(service_account=KEEPER), "service account"),
    ],
)
def test_other_options_under_the_same_name_are_refused(
    vertex: FakeVertex, cloud: GoogleClient, other: DeploymentSpec, what: str
) -> None:
    deployed(cloud)
    with pytest.raises(InputError, match=f"sd15 is there already with another {what}: ") as caught:
        deployed(cloud, replace(other, model="sd15"))
    assert "t2i remote down sd15" in str(caught.value.hint)
    (endpoint,) = vertex.endpoints.values()
    deployed(cloud)
    assert len(endpoint["deployedModels"]) == 1


def test_another_image_idle_time_or_bucket_is_refused(
    vertex: FakeVertex, cloud: GoogleClient, tmp_path: Path
) -> None:
    ours = DeploymentSpec(model="sd15", image="r-docker.pkg.dev/p/t2i/t2i:1", scale_to_zero="15m")
    deployed(cloud, ours)
    deployed(cloud, ours)
    with pytest.raises(InputError, match="another image: "):
        deployed(cloud, replace(ours, image="r-docker.pkg.dev/p/t2i/t2i:2"))
    with pytest.raises(InputError, match="another idle time: 900s, not 1200s"):
        deployed(cloud, replace(ours, scale_to_zero="20m"))
    mine = DeploymentSpec(model=weights(tmp_path), service_account=KEEPER, bucket="pail")
    deployed(cloud, mine)
    deployed(cloud, mine)
    with pytest.raises(InputError, match="another weights: gs://pail/t2i/weights"):
        deployed(cloud, replace(mine, bucket=None))


@pytest.mark.parametrize("image", [None, "r-docker.pkg.dev/p/t2i/t2i:1"])
def test_weights_in_a_bucket_of_the_user_s_are_found_by_their_model(
    vertex: FakeVertex, cloud: GoogleClient, tmp_path: Path, image: str | None
) -> None:
    put(vertex, "pail", "t2i/other/file", "mine")
    deployed(
        cloud,
        DeploymentSpec(model=weights(tmp_path), service_account=KEEPER, bucket="pail", image=image),
    )
    removed(cloud, "weights")
    assert vertex.left() == {"buckets": ["pail"], "objects": ["t2i/other/file", "mine"]}


def test_weights_that_stay_in_a_bucket_of_the_user_s_are_told_of(
    vertex: FakeVertex, cloud: GoogleClient, tmp_path: Path
) -> None:
    deployed(cloud, DeploymentSpec(model=weights(tmp_path), service_account=KEEPER, bucket="pail"))
    vertex.granted = {
        *("aiplatform.endpoints.list", "aiplatform.endpoints.get", "aiplatform.endpoints.undeploy"),
        *("aiplatform.endpoints.delete", "aiplatform.models.list", "aiplatform.models.delete"),
        *("storage.objects.list", "storage.buckets.get", "aiplatform.operations.list"),
    }
    with pytest.raises(Exception, match="still: 2 files in gs://pail/t2i/weights/"):
        removed(cloud, "weights")


def test_a_bucket_of_another_project_gets_no_weights(
    vertex: FakeVertex, cloud: GoogleClient, tmp_path: Path
) -> None:
    deployed(cloud, DeploymentSpec(model=weights(tmp_path), service_account=KEEPER))
    deployed(cloud, DeploymentSpec(model=weights(tmp_path), service_account=KEEPER))
    put(vertex, "t2i-gallery-us-central1")
    vertex.buckets["t2i-gallery-us-central1"]["projectNumber"] = "666"
    before = len(vertex.uploads)
    with pytest.raises(AccessError, match="is not of the project gallery"):
        deployed(cloud, DeploymentSpec(model=weights(tmp_path), service_account=KEEPER))
    assert len(vertex.uploads) == before


def test_a_ttl_that_ends_before_the_deployment(vertex: FakeVertex, cloud: GoogleClient) -> None:
    settled = deployment_planning.plan_deployment(
        replace(ASKED, ttl="1h", scheduler_account=KEEPER), cloud, "ann"
    )
    vertex.advance(2 * 3600)
    with pytest.raises(InputError, match="TTL of sd15 ended before"):
        deploy.run_deployment(
            settled, None, OperationRunner(cloud, lambda _: None), lambda *_: None
        )
    assert set(vertex.left()) == {"endpoints", "models"}


def test_the_permissions_of_the_steps_are_enough_for_them(
    vertex: FakeVertex, cloud: GoogleClient, tmp_path: Path
) -> None:
    steps = permissions.STEPS
    vertex.granted = {*steps["deploy"]}
    deployed(cloud)
    vertex.granted = {*steps["remove"]}
    removed(cloud, "sd15")
    assert vertex.left() == {}
    vertex.granted = {*steps["deploy"], *steps["upload"], *steps["scheduler"]}
    vertex.granted |= {*steps["service account"]}
    deployed(
        cloud,
        DeploymentSpec(model=weights(tmp_path), service_account=KEEPER, scheduler_account=KEEPER),
    )
    deployed(cloud, DeploymentSpec(model=weights(tmp_path), service_account=KEEPER))
    vertex.granted = {*steps["remove"], *steps["upload"]}
    found = inventory.list_deployments(cloud)
    removed(cloud, "weights")
    removal.empty_buckets(cloud, found, lambda _: None)
    assert vertex.left() == {}


def test_a_home_that_cannot_be_written_to_costs_no_endpoint(
    vertex: FakeVertex, cloud: GoogleClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    account = CloudSession(cloud, "ann")
    with lifecycle.ephemeral_deployment(ASKED, account, Console(), yes=True) as found:
        assert found.name.endswith(tuple(vertex.endpoints))
    assert vertex.left() == {}
    settled = deployment_planning.plan_deployment(ASKED, cloud, "ann")
    assert lifecycle.deploy_plan(settled, account, Console()).name.endswith(tuple(vertex.endpoints))


@pytest.mark.parametrize(("kind", "dtype"), [("model-garden", "float32"), ("t2i", "float16")])
def test_only_our_own_server_gets_fp16_weights(
    vertex: FakeVertex,
    cloud: GoogleClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    dtype: str,
) -> None:
    asked: list[object] = []

    def fetch(repo: str, **options: object) -> Path:
        asked.append(options["dtype"])
        return Path(weights(tmp_path))

    monkeypatch.setattr(hub, "download_model", fetch)
    image = "r-docker.pkg.dev/p/t2i/t2i:1" if kind == "t2i" else None
    spec = DeploymentSpec(model="flux-schnell", serving=kind, image=image, service_account=KEEPER)
    deployed(cloud, spec)
    assert asked == [dtype]
    assert endpoint_store.current_endpoint() is None
    assert containers.find_source("flux-schnell", kind).needs_upload


@pytest.mark.parametrize(
    ("tag", "idle", "machine", "driver"),
    [
        ("1.0.0", None, "g2-standard-4", None),
        ("1.0.0", "15m", "g2-standard-4", "525.60.13"),
        ("1.0.0-cu130", None, "g2-standard-4", "580.65.06"),
        ("1.0.0-cu130", "15m", "g2-standard-4", "580.65.06"),
        ("1.0.0-cu130", "15m", "n1-standard-4", None),
    ],
)
def test_a_machine_has_the_driver_that_the_image_needs(
    vertex: FakeVertex,
    cloud: GoogleClient,
    tag: str,
    idle: str | None,
    machine: str,
    driver: str | None,
) -> None:
    """The field is only in v1beta1; what all machines' drivers do for needs no other version."""
    image = f"us-central1-docker.pkg.dev/gallery/t2i/t2i:{tag}"
    ours = DeploymentSpec(model="sd15", image=image, scale_to_zero=idle, machine_type=machine)
    deployed(cloud, ours)
    (endpoint,) = vertex.endpoints.values()
    resources = endpoint["deployedModels"][0]["dedicatedResources"]
    assert resources["machineSpec"].get("minGpuDriverVersion") == driver
    (call,) = (path for _, path in vertex.requests if path.endswith(":deployModel"))
    assert call.startswith("/v1beta1/" if idle or driver else "/v1/")
    deployed(cloud, ours)  # the same again is no other machine


@pytest.mark.parametrize(
    ("source", "serving", "uploaded", "text"),
    [
        (ModelSource(spec=catalog.MODELS["postcard"]), "t2i", 0, "about 5 minutes; 0.20 USD by"),
        (
            ModelSource(spec=ModelSpec(name="x", download_bytes=90 * 10**9)),
            "model-garden",
            0,
            "about 20 minutes, most of it downloading 90.0 GB anew; 0.80 USD by the estimate",
        ),
        (
            ModelSource(spec=ModelSpec(name="x"), folder=Path("x")),
            "t2i",
            3 * 10**9,
            "about 6 minutes, part of it downloading 3.0 GB anew; 0.22 USD by the estimate",
        ),
        (
            ModelSource(spec=ModelSpec(name="x", download_bytes=1), uri="gs://pail/x"),
            "t2i",
            0,
            "more than 5 minutes: it downloads the weights anew, whose size is not known",
        ),
        (
            ModelSource(spec=ModelSpec(name="a/b", repo="a/b")),
            "t2i",
            0,
            "more than 5 minutes: it downloads the weights anew, whose size is not known",
        ),
    ],
)
def test_what_a_wake_up_costs(source: ModelSource, serving: str, uploaded: int, text: str) -> None:
    found = wake_up.estimate_wake_up(source, serving, uploaded, 2.4)
    assert found.text().startswith(text)
    unpriced = wake_up.estimate_wake_up(source, serving, uploaded, None)
    assert "USD" not in unpriced.text()
    assert unpriced.usd is None
