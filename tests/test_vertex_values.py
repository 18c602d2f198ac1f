"""Values that are wrong before any credential is looked for, and the plan without an account."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2i_cli.errors import InputError, ModelError, T2IError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.net import google_credentials
from t2i_cli.settings import store
from t2i_cli.settings.options import DeploymentSpec, EndpointOptions, LocationOptions
from t2i_cli.vertex import (
    accelerator_quota,
    cloud_session,
    containers,
    deploy,
    deployment_options,
    deployment_planning,
    endpoint_store,
    garden_containers,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.location import Location
from t2i_cli.vertex.machine_types import ReplicaHardware
from t2i_cli.vertex.model_source import ModelSource
from tests.conftest import T2I
from tests.fakes.vertex import FakeVertex

KEEPER = "keeper@gallery.iam.gserviceaccount.com"
NO_ACCOUNT = {"GOOGLE_APPLICATION_CREDENTIALS": "", "NO_GCE_CHECK": "true"}
WRONG = [
    (("--ttl", "2x"), "--ttl 2x is no duration"),
    (("--ttl", "0s"), "--ttl 0s is no duration"),
    (("--max-cost", "-5"), "--max-cost must be USD"),
    (("--max-cost", "nan"), "--max-cost"),
    (("--accelerator", "foo"), "no machine of Vertex AI's with an accelerator foo"),
    (("--accelerator", "T4:x"), "--accelerator T4:x is not of the form"),
    (("--machine-type", "huge"), "huge is no machine type"),
    (("--machine-type", "n1-standard-8", "--accelerator", "L4"), "takes no NVIDIA_L4"),
    (("--region", "europe-north1", "--machine-type", "g2-standard-4"), "europe-north1 has no g2"),
    (("--region", "nowhere"), "region"),
    (("-m", "BAD"), "The model 'BAD' is unknown"),
    (("-m", "gs://x"), "gs://x is not of the form"),
    (("-m", "gs://pail/x"), "may not read the weights"),
    (("-m", "qwen-image", "--accelerator", "L4"), "qwen-image needs 65.3 GB"),
    (("-m", "z-image-turbo"), "None of Google's ready-made containers is known to serve"),
    (("--name", "Bad_Name"), "--name Bad_Name must be"),
    (("--min-replicas", "0"), "--min-replicas must be at least 1"),
    (("--min-replicas", "3"), "--min-replicas must be at least 1"),
    (("--max-replicas", "99999"), "--max-replicas must be at most"),
    (("--scale-to-zero", "1m"), "--scale-to-zero must be from 5m"),
    (("--serving", "bad"), "--serving must be"),
    (("--serving", "t2i"), "There is no image of t2i's server"),
    (("--service-account", "ann@example.com"), "no service account"),
    (("--max-cost", "1", "--ttl", "9h"), "would cost up to 7.29 USD"),
]


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
    with GoogleClient(here, lambda: {"Authorization": "Bearer ya29.test"}) as connection:
        yield connection


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that nobody may look for."""

    def find(*_: object) -> None:
        raise AssertionError("Credentials were looked for.")

    monkeypatch.setattr(google_credentials, "find_credentials", find)


def spec_of(options: tuple[str, ...]) -> tuple[DeploymentSpec, LocationOptions]:
    """The deployment of options as the command line gives them."""
    names = {"-m": "model"}
    numbers = {"max_cost": float, "min_replicas": int, "max_replicas": int}
    given: dict[str, object] = {}
    for option, value in zip(options[::2], options[1::2], strict=True):
        name = names.get(option, option.removeprefix("--").replace("-", "_"))
        given[name] = numbers.get(name, str)(value)
    region = given.pop("region", None)
    spec = DeploymentSpec(**{"model": "sd15", **given})  # type: ignore[arg-type]
    return spec, LocationOptions(region=region if isinstance(region, str) else None)


@pytest.mark.parametrize(("options", "sentence"), WRONG)
@pytest.mark.usefixtures("no_login")
def test_a_wrong_value_needs_no_credentials(options: tuple[str, ...], sentence: str) -> None:
    spec, where = spec_of(options)
    if "would cost" not in sentence:  # which is said with the plan
        with (
            pytest.raises(T2IError, match=sentence.replace("(", r"\(")),
            cloud_session.connect_to_deploy(spec, where),
        ):
            pass


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("deploy", "-m", "sd15", "--ttl", "2x"), "--ttl 2x is no duration"),
        (("deploy", "-m", "BAD", "--dry-run"), "The model 'BAD' is unknown"),
        (("deploy", "--max-cost", "1", "--ttl", "9h", "--dry-run"), "would cost up to 7.29 USD"),
        (("deploy", "--max-cost", "3.2399", "--dry-run"), "3.24 USD by the estimate, more than "),
        (("deploy", "--max-cost", "0.0669999", "--dry-run"), "than --max-cost 0.0669999."),
        (("run", "--accelerator", "foo", "--", "true"), "an accelerator foo"),
        (("run", "-m", "sd15", "--", "no-such-command"), "Cannot run no-such-command"),
        (("generate", "a star", "--endpoint", "1", "--serving", "bad"), "--serving must be"),
        (("generate", "a star", "--endpoint", "1", "--region", "9"), "region"),
        (("generate", "a star"), "There is no endpoint to call"),
    ],
)
def test_the_commands_say_it_without_an_account(
    t2i: T2I, command: tuple[str, ...], sentence: str
) -> None:
    done = t2i("remote", *command, env=NO_ACCOUNT)
    assert done.returncode in {2, 9}, done.stderr
    assert sentence in done.stderr
    assert "credentials" not in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--cuda", "cu99"), "--cuda must be"),
        (("--base-image", "python:3"), "has no digest"),
        (("--with", "podman"), "--with must be"),
        (("--bake", "BAD"), "cannot be put into an image"),
    ],
)
def test_a_build_says_it_without_an_account(
    t2i: T2I, options: tuple[str, ...], sentence: str
) -> None:
    done = t2i("remote", "build", *options, env=NO_ACCOUNT)
    assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--ttl", "2x"), "--ttl 2x is no duration"),
        (("--max-cost", "-5"), "--max-cost must be a number of at least 0"),
        (("--max-cost", "1"), "would cost up to"),
        (("--service-account", "x"), "x is no service account"),
    ],
)
def test_an_ephemeral_batch_says_it_without_an_account(
    t2i: T2I, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    batch = ("batch", "-", "-o", str(tmp_path / "out"), "-m", "sd15", "--ephemeral", *options)
    done = t2i(*batch, input="a red star\n", env=NO_ACCOUNT)
    assert done.returncode == 2
    assert sentence in done.stderr


@pytest.mark.usefixtures("no_login")
def test_another_model_than_the_endpoint_s_needs_no_credentials() -> None:
    from t2i_cli.backends.vertex import VertexBackend, VertexOptions
    from t2i_cli.net.retry import RetryPolicy
    from t2i_cli.request import GenerateRequest

    name = "projects/gallery/locations/us-central1/endpoints/1"
    record = EndpointRecord(name=name, model="stable-diffusion-v1-5/stable-diffusion-v1-5")
    endpoint_store.remember_endpoint(record, current=True)
    options = VertexOptions(endpoint=EndpointOptions(), retry_policy=RetryPolicy(retries=0))
    with pytest.raises(ModelError, match="not BAD"):
        VertexBackend(options).describe(GenerateRequest(prompt="x", model="BAD"))


def test_the_plan_and_its_price_without_an_account(t2i: T2I) -> None:
    done = t2i("remote", "deploy", "-m", "qwen-image", "--dry-run", env=NO_ACCOUNT)
    assert done.returncode == 0, done.stderr
    assert "project      not known, us-central1" in done.stdout
    assert "a2-ultragpu-1g with 1 NVIDIA_A100_80GB" in done.stdout
    assert "price        5.78 USD per hour" in done.stdout
    assert "memory       65.3 GB for its weights" in done.stdout
    assert "quota        unknown: There are no Google credentials." in done.stdout
    as_json = t2i("remote", "deploy", "--dry-run", "--json", "--project", "gallery", env=NO_ACCOUNT)
    told = json.loads(as_json.stdout)
    assert told["parent"] == "projects/gallery/locations/us-central1"
    assert told["estimate"]["usd_per_hour"] == 0.81
    assert told["permissions_unknown"] == told["quota_unknown"] != ""
    assert told["memory"]["needed_bytes"] < told["memory"]["accelerator_bytes"]
    refused = t2i("remote", "deploy", "--yes", env=NO_ACCOUNT)
    assert refused.returncode == 3


@pytest.mark.parametrize(
    ("model", "image", "task"),
    [
        ("sd15", "pytorch-inference", "text-to-image"),
        ("sdxl", "pytorch-inference", "text-to-image"),
        ("qwen-image", "pytorch-inference", "text-to-image-qwen"),
        ("flux-schnell", "xdit-serve", "text-to-image"),
        ("owner/unknown", "pytorch-inference", "text-to-image"),
    ],
)
def test_the_ready_made_container_of_a_family(model: str, image: str, task: str) -> None:
    spec = catalog.MODELS.get(model, ModelSpec(name=model, repo=model))
    resource = containers.model_resource(
        "model-garden", ModelSource(spec=spec), None, None, gpu=True
    )
    container = resource["containerSpec"]
    assert isinstance(container, dict)
    assert f"/{image}." in container["imageUri"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert variables["TASK"] == task
    assert ("N_GPUS" in variables) == (image == "xdit-serve")


def test_a_family_that_no_ready_made_container_serves(tmp_path: Path) -> None:
    for name, spec in catalog.MODELS.items():
        source = ModelSource(spec=spec)
        if spec.pipeline in garden_containers.BY_PIPELINE:
            garden_containers.find_container(source)
            continue
        with pytest.raises(InputError, match=f"serve .*{spec.pipeline}") as caught:
            garden_containers.find_container(source)
        assert "--serving t2i" in str(caught.value.hint), name
    (tmp_path / "model_index.json").write_text('{"_class_name": "SanaPipeline"}')
    mine = DeploymentSpec(model=str(tmp_path), service_account=KEEPER)
    with pytest.raises(InputError, match="SanaPipeline"):
        deployment_options.check_options(mine, "us-central1")
    image = "r-docker.pkg.dev/p/t2i/t2i:1"
    checked = deployment_options.check_options(
        DeploymentSpec(model="z-image-turbo", image=image), "us-central1"
    )
    assert checked.image == image


def test_who_reads_the_weights_is_in_the_plan(cloud: GoogleClient) -> None:
    image = "r-docker.pkg.dev/p/t2i/t2i:1"

    def reader(**options: str) -> str:
        planned = deployment_planning.plan_deployment(DeploymentSpec(**options), cloud, "ann")  # type: ignore[arg-type]
        assert planned.reader in planned.text()
        assert planned.to_json()["weights_read_by"] == planned.reader
        return planned.reader

    assert reader(model="sd15") == "the container, from the Hub"
    copied = "Vertex AI's service agent, which copies them; the container reads the copy"
    assert reader(model="gs://pail/x", image=image) == copied
    assert reader(model="gs://pail/x", image=image, service_account=KEEPER) == (
        f"{copied}, as {KEEPER}"
    )
    garden = reader(model="gs://pail/x", serving="model-garden", service_account=KEEPER)
    assert garden == f"the container as {KEEPER}; it needs roles/storage.objectViewer on gs://pail"
    assert reader(model="postcard", image=image) == "nobody: they are in the image"


@pytest.mark.parametrize("weights", ["gs://pail/x", "folder", "flux-schnell"])
def test_weights_that_the_container_may_not_read_are_refused(weights: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    model = str(tmp_path) if weights == "folder" else weights
    with pytest.raises(InputError, match="may not read the weights") as caught:
        deployment_options.check_options(DeploymentSpec(model=model), "us-central1")
    assert "--service-account ACCOUNT" in str(caught.value.hint)


def test_our_own_server_gets_its_weights_by_vertex_ai_s_copy(tmp_path: Path) -> None:
    source = containers.find_source("gs://pail/x", "t2i")
    ours = containers.model_resource("t2i", source, "i", "gs://pail/x", gpu=True)
    assert ours["artifactUri"] == "gs://pail/x"
    garden = containers.model_resource("model-garden", source, None, "gs://pail/x", gpu=True)
    assert "artifactUri" not in garden


def test_a_quota_of_zero_is_told_and_refused_before_anything_is_made(
    t2i: T2I, vertex: FakeVertex
) -> None:
    vertex.quotas["us-central1"] = 0
    env = vertex.environment
    told = t2i("remote", "deploy", "-m", "sd15", "--dry-run", env=env)
    assert told.returncode == 0, told.stderr
    assert "quota        0 NVIDIA_L4 in us-central1, 1 needed" in told.stdout
    done = t2i("remote", "deploy", "-m", "sd15", "--yes", env=env)
    assert done.returncode == 4
    assert (
        "The quota of gallery for NVIDIA_L4 in us-central1 is 0, and 1 are needed." in done.stderr
    )
    assert "https://console.cloud.google.com/iam-admin/quotas?project=gallery" in done.stderr
    assert vertex.left() == {}


def test_the_quota_of_hardware(vertex: FakeVertex, cloud: GoogleClient) -> None:
    def asked(
        accelerator: str | None, count: int = 1, replicas: int = 1, spot: bool = False
    ) -> str:
        hardware = ReplicaHardware(machine="m", accelerator=accelerator, count=count)
        found = accelerator_quota.ask_quota(cloud, hardware, replicas, spot=spot)
        assert found.lacking == (found.limit is not None and 0 <= found.limit < found.needed)
        return found.text()

    assert asked(None) == ""
    assert asked("NVIDIA_L4", 4, 2) == "8 NVIDIA_L4 in us-central1, 8 needed"
    vertex.quotas["us-central1"] = -1
    assert asked("NVIDIA_L4", 4, 3) == "no limit of NVIDIA_L4 in us-central1, 12 needed"
    assert asked("NVIDIA_B200", 8) == "unknown: t2i does not know the quota's name"
    assert asked("NVIDIA_L4", spot=True).startswith("unknown: t2i does not know the name of the")
    del vertex.quotas["us-central1"]
    vertex.granted = set()
    assert "cloudquotas.quotas.get" in asked("NVIDIA_L4")
    planned = deployment_planning.plan_deployment(DeploymentSpec(model="sd15"), cloud, "ann")
    assert planned.quota.limit is None
    vertex.granted = None
    assert deploy.find_existing(planned, cloud) is None


@pytest.mark.parametrize(
    ("rows", "limit"),
    [
        (None, None),
        ([], None),
        ([7, {}, {"applicableLocations": "us-central1"}], None),
        ([{"applicableLocations": ["asia-east1"], "details": {"value": "4"}}], None),
        ([{"applicableLocations": ["us-central1"], "details": {}}], 0),
        ([{"applicableLocations": ["us-central1"]}], 0),
        ([{"applicableLocations": ["asia-east1", "us-central1"], "details": {"value": "4"}}], 4),
        ([{"applicableLocations": ["us-central1"], "details": {"value": "x"}}], None),
        ([{"applicableLocations": ["us-central1"], "details": {"value": 4.5}}], None),
        (
            [
                {"applicableLocations": ["us-central1"], "dimensions": {"zone": "a"}},
                {
                    "applicableLocations": ["us-central1"],
                    "dimensions": {"region": "us-central1"},
                    "details": {"value": "2"},
                },
            ],
            2,
        ),
    ],
)
def test_what_is_believed_of_a_quota(rows: object, limit: int | None) -> None:
    assert accelerator_quota._limit(rows, "us-central1") == limit
