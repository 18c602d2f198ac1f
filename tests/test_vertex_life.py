"""The life of an endpoint by `t2i remote`, as processes, against the fake of Google Cloud."""

import json
import signal
from pathlib import Path

import pytest

from t2i_cli.models import catalog
from t2i_cli.vertex.permissions import STEPS
from tests.conftest import T2I, Terminal
from tests.fakes.google import refusal
from tests.fakes.hub import FakeHub, Repo
from tests.fakes.oauth import ACCOUNT
from tests.fakes.vertex import FakeVertex, Fault, counted, quota
from tests.processes import running, until

KEEPER = "keeper@gallery.iam.gserviceaccount.com"
DEPLOY = ("remote", "deploy", "--model", "sd15", "--yes")


@pytest.fixture
def env(vertex: FakeVertex) -> dict[str, str]:
    """A process's way to the fake cloud."""
    return vertex.environment


def test_deploy_list_use_and_down(t2i: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    done = t2i(*DEPLOY, env=env)
    assert done.returncode == 0, done.stderr
    (number,) = vertex.endpoints
    name = f"projects/gallery/locations/us-central1/endpoints/{number}"
    assert done.stdout == f"{name}\n"
    endpoint = vertex.endpoints[number]
    labels = endpoint["labels"]
    assert labels["managed-by"] == "t2i"
    assert labels["t2i-model"] == "stable-diffusion-v1-5_2fstable-diffusion-v1-5"
    assert int(labels["t2i-expires"]) == pytest.approx(vertex.now() + 4 * 3600, abs=120)
    assert labels["t2i-by"] == "painter_40gallery_2eiam_2egserviceaccount_2ecom"
    assert endpoint["dedicatedEndpointEnabled"] is True
    (model,) = vertex.models.values()
    assert model["labels"] == labels
    variables = {v["name"]: v["value"] for v in model["containerSpec"]["env"]}
    assert variables["MODEL_ID"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    (deployed,) = endpoint["deployedModels"]
    assert deployed["dedicatedResources"]["machineSpec"] == {
        "machineType": "g2-standard-4",
        "acceleratorType": "NVIDIA_L4",
        "acceleratorCount": 1,
    }

    painted = t2i("remote", "generate", "a red star", "-o", "star.png", env=env)
    assert painted.returncode == 0, painted.stderr
    vertex.advance(2 * 3600)
    listed = json.loads(t2i("remote", "list", "--json", env=env).stdout)
    assert listed["name"] == "sd15"
    assert listed["by"] == ACCOUNT
    assert listed["state"] == "deployed"
    assert listed["age"] == pytest.approx(7200, abs=120)
    assert (listed["replicas"], listed["requests"], listed["overdue"]) == (1, 1, False)
    assert listed["usd_so_far"] == pytest.approx(1.62, abs=0.05)
    assert vertex.replica_hours == pytest.approx(2, abs=0.1)
    bill = t2i("remote", "cost", env=env)
    assert "sd15: 0.81 USD per hour, 1.6" in bill.stdout
    assert "19.44 per day" in bill.stdout
    assert "estimates" in bill.stdout

    assert t2i("remote", "status", "sd15", env=env).returncode == 0
    gone = t2i("remote", "down", "--json", env=env)  # the endpoint in use
    assert gone.returncode == 0, gone.stderr
    assert json.loads(gone.stdout) == {"removed": ["sd15"]}
    assert vertex.left() == {}
    assert "nothing of t2i's" in t2i("remote", "list", env=env).stderr


def test_the_plan_comes_first_and_is_refused_without_a_terminal(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    done = t2i("remote", "deploy", "-m", "sd15", "--ttl", "2h", env=env)
    assert done.returncode == 2
    assert "There is no terminal to ask on." in done.stderr
    for part in (
        "gallery, us-central1",
        "1 replica of g2-standard-4 with 1 NVIDIA_L4",
        "0.81 USD per hour, 19.44 per day, 1.62 until the TTL; an estimate",
        "table: November 2026",
        "nothing but `t2i remote reap`",
        "needed, all there",
    ):
        assert part in done.stderr
    assert vertex.left() == {}
    assert {method for method, path in vertex.requests} == {"GET", "POST"}
    posted = {path for method, path in vertex.requests if method == "POST"}
    assert posted == {"/token", "/v3/projects/gallery:testIamPermissions"}


def test_it_asks_on_a_terminal(
    t2i_terminal: Terminal, vertex: FakeVertex, env: dict[str, str]
) -> None:
    vertex.granted = {one for step, names in STEPS.items() if step != "scheduler" for one in names}
    no = t2i_terminal(
        "remote", "deploy", "-m", "sd15", "--no-flex-start", prompt="[y/N]", answer="n", env=env
    )
    assert no.returncode == 2
    assert vertex.left() == {}
    yes = t2i_terminal(
        "remote", "deploy", "-m", "sd15", "--no-flex-start", prompt="[y/N]", answer="y", env=env
    )
    assert yes.returncode == 0
    assert len(vertex.left()["deployed"]) == 1
    # No scheduler job is offered to who could not make it.
    assert "Have a Cloud Scheduler job" not in yes.stderr
    assert "nothing but `t2i remote reap`" in yes.stderr


@pytest.mark.parametrize(
    ("own", "answers", "account"),
    [
        # What the credentials may do is offered for the account that they are of.
        (True, "\ny", ACCOUNT),
        (True, "yes\ny", ACCOUNT),
        (True, "n\ny", None),
        (False, "keeper@gallery.iam.gserviceaccount.com\ny", KEEPER),
        (False, "\ny", None),
    ],
)
def test_a_scheduler_job_is_offered(
    t2i_terminal: Terminal,
    vertex: FakeVertex,
    env: dict[str, str],
    own: bool,
    answers: str,
    account: str | None,
) -> None:
    if not own:
        vertex.granted = {one for names in STEPS.values() for one in names} - {
            "iam.serviceAccounts.actAs"
        }
    prompt = f"after the TTL, as {ACCOUNT}? [Y/n]" if own else "The service account for it [none]:"
    done = t2i_terminal(
        "remote", "deploy", "-m", "sd15", "--no-flex-start", prompt=prompt, answer=answers, env=env
    )
    assert done.returncode == 0, done.stderr
    # The plan comes before the offer, and says what holds without it.
    plan, asked, rest = done.stderr.partition("Have a Cloud Scheduler job")
    assert asked
    assert "enforced by  nothing but `t2i remote reap`, which you run" in plan
    jobs = list(vertex.jobs.values())
    assert [job["httpTarget"]["oauthToken"]["serviceAccountEmail"] for job in jobs] == (
        [account] if account else []
    )
    assert (f"a Cloud Scheduler job, which undeploys it as {account}" in rest) == bool(account)


def test_an_account_that_is_none_makes_nothing(
    t2i_terminal: Terminal, vertex: FakeVertex, env: dict[str, str]
) -> None:
    vertex.granted = {one for names in STEPS.values() for one in names}
    vertex.granted.remove("iam.serviceAccounts.actAs")
    done = t2i_terminal(
        "remote",
        "deploy",
        "-m",
        "sd15",
        "--no-flex-start",
        prompt="[none]:",
        answer="ann@example.com",
        env=env,
    )
    assert done.returncode == 2
    assert "ann@example.com is no service account" in done.stderr
    assert vertex.left() == {}


def test_only_the_flag_counts_with_yes(
    t2i_terminal: Terminal, vertex: FakeVertex, env: dict[str, str]
) -> None:
    done = t2i_terminal(*DEPLOY, prompt="?", answer="y", env=env)
    assert done.returncode == 0
    assert "Have a Cloud Scheduler job" not in done.stderr
    assert "nothing but `t2i remote reap`" in done.stderr
    assert vertex.jobs == {}


def test_dry_run_prints_the_plan(t2i: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    done = t2i(
        "remote", "deploy", "-m", "sdxl", "--accelerator", "t4:2", "--min-replicas", "1",
        "--max-replicas", "3", "--scale-to-zero", "15m", "--name", "fast", "--dry-run", "--json",
        env=env,
    )  # fmt: skip
    plan = json.loads(done.stdout)
    assert plan["accelerator"] == "NVIDIA_TESLA_T4"
    assert plan["accelerator_count"] == 2
    assert plan["estimate"]["usd_per_hour"] == round(3 * (0.44 + 2 * 0.40), 2)
    assert plan["scale_to_zero_seconds"] == 900
    assert plan["wake_up"] == {"seconds": 369, "download_bytes": 6_900_000_000, "usd": 0.13}
    assert plan["permissions_missing"] == []
    assert vertex.left() == {}


def test_missing_permissions_are_named_before_anything_is_made(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    vertex.granted = {"aiplatform.endpoints.list", "aiplatform.models.list"}
    done = t2i(*DEPLOY, env=env)
    assert done.returncode == 3
    assert "missing: aiplatform.endpoints.predict, aiplatform.models.upload" in done.stderr
    assert vertex.left() == {}


def test_the_cost_limit(t2i: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    done = t2i(*DEPLOY, "--ttl", "10h", "--max-cost", "3", env=env)
    assert done.returncode == 2
    assert "would cost up to 8.10 USD" in done.stderr
    assert "--ttl 3h42m would fit" in done.stderr
    unknown = t2i(*DEPLOY, "--machine-type", "z9-standard-1", "--max-cost", "3", env=env)
    assert unknown.returncode == 2
    assert "price of z9-standard-1 is not known" in unknown.stderr
    assert vertex.left() == {}


def test_prices_can_be_overridden(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('date = "May 2027"\n[machines]\ng2-standard-4 = 2.5\n')
    done = t2i(*DEPLOY, "--dry-run", env=env | {"T2I_VERTEX_PRICES": str(file)})
    assert "2.50 USD per hour" in done.stdout
    assert "May 2027" in done.stdout
    file.write_text("[machines]\ng2-standard-4 = 'dear'\n")
    wrong = t2i(*DEPLOY, "--dry-run", env=env | {"T2I_VERTEX_PRICES": str(file)})
    assert wrong.returncode == 2


@pytest.mark.parametrize("step", ["upload", "createEndpoint", "deployModel"])
def test_run_again_after_a_failure_goes_on(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str], step: str
) -> None:
    vertex.operation_seconds = 0.2
    vertex.operation_errors[step] = {"code": 14, "message": "The zone is having a bad day."}
    failed = t2i(*DEPLOY, env=env)
    assert failed.returncode == 6
    assert "The zone is having a bad day." in failed.stderr
    made = vertex.left()
    assert "deployed" not in made
    for kind, names in made.items():
        assert all(f"{kind[:-1]} projects/123456789" in failed.stderr for _ in names)
        assert all(name in failed.stderr for name in names)
    again = t2i(*DEPLOY, env=env)
    assert again.returncode == 0, again.stderr
    assert {kind: len(names) for kind, names in vertex.left().items()} == {
        "endpoints": 1,
        "models": 1,
        "deployed": 1,
    }
    assert set(made) <= set(vertex.left())
    assert t2i("remote", "down", "sd15", env=env).returncode == 0
    assert vertex.left() == {}


def test_a_failure_offers_to_remove_what_was_made(
    t2i_terminal: Terminal, vertex: FakeVertex, env: dict[str, str]
) -> None:
    vertex.operation_errors["deployModel"] = {"code": 13, "message": "Internal error."}
    done = t2i_terminal(*DEPLOY, prompt="Remove all of that? [y/N]", answer="y", env=env)
    assert done.returncode == 6
    assert "Of sd15 there is: endpoint projects/" in done.stderr
    assert vertex.left() == {}


def test_ctrl_c_offers_it_too(
    t2i_terminal: Terminal, vertex: FakeVertex, env: dict[str, str]
) -> None:
    vertex.slow = {"deployModel": 10_000.0}
    done = t2i_terminal(*DEPLOY, prompt="it takes 5 to 30 minutes", answer="\x03y", env=env)
    assert done.returncode == 130, done.stderr
    assert "Of sd15 there is: endpoint projects/" in done.stderr
    assert "Remove all of that? [y/N]" in done.stderr
    assert vertex.left() == {}


def test_deploy_again_moves_the_ttl(t2i: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    assert t2i(*DEPLOY, "--ttl", "1h", env=env).returncode == 0
    assert t2i(*DEPLOY, "--ttl", "3h", env=env).returncode == 0
    (endpoint,) = vertex.endpoints.values()
    expires = int(endpoint["labels"]["t2i-expires"])
    assert expires == pytest.approx(vertex.now() + 3 * 3600, abs=120)
    assert len(vertex.spans) == 1


def test_a_name_that_is_taken(
    t2i: T2I, t2i_terminal: Terminal, vertex: FakeVertex, env: dict[str, str]
) -> None:
    assert t2i(*DEPLOY, env=env).returncode == 0
    args = ("remote", "deploy", "-m", "sdxl", "--name", "sd15", "--yes")
    other = t2i_terminal(*args, prompt="Remove", answer="y", env=env)
    assert other.returncode == 2
    assert len(vertex.left()["deployed"]) == 1
    assert "it serves stable-diffusion-v1-5" in other.stderr


def test_quota_and_a_server_that_never_gets_ready(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    message = (
        "The following quotas are exceeded: CustomModelServingL4GPUsPerProjectPerRegion. "
        "Please see the quota page."
    )
    vertex.operation_errors["deployModel"] = {"code": 8, "message": message}
    full = t2i(*DEPLOY, env=env)
    assert full.returncode == 4
    assert (
        "The quota CustomModelServingL4GPUsPerProjectPerRegion is exceeded in us-central1"
        in full.stderr
    )
    message = "Model server never became ready. Please validate that your model file is valid."
    vertex.operation_errors["deployModel"] = {"code": 9, "message": message}
    sick = t2i(*DEPLOY, env=env)
    assert sick.returncode == 9
    (number,) = vertex.endpoints
    assert "https://console.cloud.google.com/logs/query" in sick.stderr
    assert f"endpoint_id%3D%22{number}%22" in sick.stderr


def test_scale_to_zero(t2i: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    done = t2i(*DEPLOY, "--scale-to-zero", "15m", env=env)
    assert done.returncode == 0, done.stderr
    assert "wake-up      about 6 minutes, part of it downloading 5.5 GB anew" in done.stderr
    (endpoint,) = vertex.endpoints.values()
    resources = endpoint["deployedModels"][0]["dedicatedResources"]
    assert resources["scaleToZeroSpec"] == {
        "minScaleupPeriod": "900s",
        "idleScaledownPeriod": "900s",
    }
    for wrong in (
        ("--scale-to-zero", "10s"),
        ("--scale-to-zero", "15m", "--min-replicas", "2", "--max-replicas", "2"),
        ("--max-cost", "nan"),
        ("--max-cost", "-1"),
    ):
        assert t2i(*DEPLOY, *wrong, "--dry-run", env=env).returncode == 2


def test_the_scheduler_enforces_the_ttl(t2i: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    keeper = "keeper@gallery.iam.gserviceaccount.com"
    done = t2i(*DEPLOY, "--ttl", "1h", "--scheduler-account", keeper, env=env)
    assert done.returncode == 0, done.stderr
    assert f"a Cloud Scheduler job, which undeploys it as {keeper}" in done.stderr
    assert vertex.fire_jobs() == []
    vertex.advance(3700)
    assert vertex.fire_jobs() == [200]
    left = vertex.left()
    assert "deployed" not in left
    assert len(left["jobs"]) == 1
    assert t2i("remote", "reap", env=env).returncode == 0
    assert vertex.left() == {}


def test_reap_takes_what_is_past_its_ttl_and_nothing_else(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    for name, ttl in (("short", "1h"), ("long", "9h"), ("brief", "90m")):
        assert t2i(*DEPLOY, "--name", name, "--ttl", ttl, env=env).returncode == 0
    foreign = vertex.make_endpoint(labels={"managed-by": "ann"}).split("/")[-1]
    vertex.advance(2 * 3600)
    warned = t2i("remote", "list", env=env)
    assert "warning: short is past its TTL and still paid for" in warned.stderr
    assert " PAST" in warned.stdout
    done = t2i("remote", "reap", "--json", env=env)
    assert json.loads(done.stdout) == {"removed": ["short", "brief"]}
    left = [endpoint["labels"].get("t2i-name") for endpoint in vertex.endpoints.values()]
    assert left == ["long", None]
    assert foreign in vertex.endpoints
    nothing = t2i("remote", "reap", env=env)
    assert "nothing to remove" in nothing.stderr
    all_ = t2i("remote", "down", "--all", env=env)
    assert all_.returncode == 2  # it asks
    assert t2i("remote", "down", "--all", "--yes", env=env).returncode == 0
    assert list(vertex.endpoints) == [foreign]


def test_a_deletion_that_is_refused_once(t2i: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    assert t2i(*DEPLOY, env=env).returncode == 0
    held = refusal(400, "FAILED_PRECONDITION", "The Endpoint is being used.")
    vertex.faults.append(Fault(where=r"DELETE .*/endpoints/\d+$", status=400, body=held))
    vertex.operation_errors["deleteModel"] = {"code": 13, "message": "Try later."}
    done = t2i("remote", "down", env=env)
    assert done.returncode == 0, done.stderr
    assert vertex.left() == {}


def test_what_cannot_be_removed_is_said(t2i: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    assert t2i(*DEPLOY, env=env).returncode == 0
    vertex.granted = {
        "aiplatform.endpoints.list",
        "aiplatform.endpoints.get",
        "aiplatform.models.list",
        "aiplatform.models.delete",
        "aiplatform.operations.list",
    }
    done = t2i("remote", "down", env=env)
    assert done.returncode == 3
    (number,) = vertex.endpoints
    assert f"endpoint projects/123456789/locations/us-central1/endpoints/{number}" in done.stderr
    assert "this is paid for" in done.stderr
    assert "aiplatform.endpoints.undeploy is missing" in done.stderr
    assert "`t2i remote down sd15` tries again" in done.stderr


@pytest.mark.parametrize("cancellable", [True, False])
def test_down_ends_a_deployment_under_way(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str], cancellable: bool
) -> None:
    assert t2i(*DEPLOY, env=env).returncode == 0
    (number,) = vertex.endpoints
    (model,) = vertex.models.values()
    vertex.cancellable = cancellable
    vertex.operation_seconds = 300 if cancellable else 3
    resources = {"machineSpec": {"machineType": "n1-standard-4"}, "minReplicaCount": 1}
    body = {"deployedModel": {"model": model["name"], "dedicatedResources": resources}}
    with vertex.lock:
        vertex.begin_deployment(number, body)
    vertex.operation_seconds = 0
    assert t2i("remote", "down", env=env).returncode == 0
    assert vertex.left() == {}
    assert len(vertex.spans) == (1 if cancellable else 2)


def test_use_and_unknown_endpoints(t2i: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    foreign = vertex.make_endpoint(dedicated=False)
    number = foreign.split("/")[-1]
    done = t2i("remote", "use", number, env=env)
    assert done.stdout == f"projects/gallery/locations/us-central1/endpoints/{number}\n"
    missing = t2i("remote", "use", "4711", env=env)
    assert missing.returncode == 9
    assert f"There is: {number} (an endpoint)." in missing.stderr
    not_ours = t2i("remote", "down", env=env)
    assert not_ours.returncode == 2
    assert "t2i has made no endpoint" in not_ours.stderr
    assert number in vertex.endpoints


def test_a_rate_limit_is_waited_for(t2i: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    fault = quota(retry_after=1, times=2)
    fault.where = r"POST .*/endpoints$"
    vertex.faults.append(fault)
    assert t2i(*DEPLOY, env=env).returncode == 0
    assert counted(vertex)["POST endpoints"] == 3


def test_no_secret_is_shown(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str], home: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model_index.json").write_text("{}")
    body = refusal(503, "UNAVAILABLE", "Not now.")
    vertex.faults.append(Fault(where="PUT /upload", status=503, body=body, times=99))
    vertex.operation_errors["deployModel"] = {"code": 13, "message": "Internal error."}
    outputs = [
        t2i("remote", "deploy", "-m", weights, "--service-account", KEEPER, "--yes", env=env),
        t2i(*DEPLOY, env=env),
        t2i("remote", "list", env=env),
        t2i("remote", "down", "sd15", env=env),
    ]
    text = "".join(done.stdout + done.stderr for done in outputs)
    text += "".join(p.read_text() for p in (home / ".local/state").rglob("*") if p.is_file())
    assert vertex.uploads
    assert outputs[0].returncode == 6
    for secret in ("ya29", "PRIVATE KEY", "upload_id"):
        assert secret not in text


def test_remote_commands_import_no_torch_and_no_sdk(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str]
) -> None:
    done = t2i("remote", "list", env=env | {"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "google.auth" in imported
    for heavy in (
        "torch",
        "diffusers",
        "google.cloud.aiplatform",
        "google.cloud.aiplatform_v1",
        "PIL",
    ):
        assert heavy not in imported


def test_a_gated_model_goes_through_this_machine_and_no_token_into_the_container(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str], hub: FakeHub
) -> None:
    repo = Repo.from_folder(
        catalog.MODELS["postcard"].folder or Path(), gated=True, readers={"ann"}
    )
    hub.repos["ann/secret"] = repo
    hub.users["hf_good"] = "ann"
    env = env | hub.environment | {"HF_TOKEN": "hf_good"}
    refused = t2i("remote", "deploy", "-m", "ann/secret", "--yes", env=env)
    assert refused.returncode == 2
    assert "may not read the weights of ann/secret" in refused.stderr
    assert "--service-account" in refused.stderr
    assert vertex.requests == []
    done = t2i(
        "remote", "deploy", "-m", "ann/secret", "--service-account", KEEPER, "--yes", env=env
    )
    assert done.returncode == 0, done.stderr
    names = {name.removeprefix("t2i/secret/") for _, name in vertex.objects}
    assert {"model_index.json", "unet/config.json", "t2i/secret.labels"} <= names
    (bucket,) = vertex.buckets.values()
    assert bucket["name"] == "t2i-gallery-us-central1"
    assert bucket["labels"]["managed-by"] == "t2i"
    (model,) = vertex.models.values()
    variables = {v["name"]: v["value"] for v in model["containerSpec"]["env"]}
    assert variables["MODEL_ID"] == "gs://t2i-gallery-us-central1/t2i/secret"
    assert "hf_good" not in json.dumps(vertex.models) + done.stderr
    uploads = len(vertex.uploads)
    again = t2i(
        "remote", "deploy", "-m", "ann/secret", "--service-account", KEEPER, "--yes", env=env
    )
    assert again.returncode == 0, again.stderr
    assert len(vertex.uploads) == uploads + 1  # the labels alone

    down = t2i("remote", "down", env=env)
    assert down.returncode == 0
    assert "files in gs://t2i-gallery-us-central1/t2i/secret/; with --bucket" in down.stderr
    assert set(vertex.left()) == {"buckets", "objects"}
    # The weights stay for the next deployment, until their TTL ends or --bucket takes them.
    assert "leftovers" in t2i("remote", "list", env=env).stdout
    gone = t2i("remote", "down", "secret", "--bucket", env=env)
    assert gone.returncode == 0, gone.stderr
    assert vertex.left() == {}


def test_ctrl_c_says_what_is_left_and_the_same_command_goes_on(
    t2i: T2I, t2i_env: dict[str, str], vertex: FakeVertex, env: dict[str, str]
) -> None:
    vertex.operation_seconds = 0.2
    with running(t2i_env, vertex, *DEPLOY) as process:
        until(lambda: vertex.endpoints, process)
        vertex.operation_seconds = 3
        until(lambda: any(o.kind == "deployModel" for o in vertex.operations.values()), process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    (number,) = vertex.endpoints
    assert f"endpoints/{number}" in errors
    assert "a deployment under way (it will be paid for)" in errors
    assert "Run the same command again to go on" in errors
    vertex.operation_seconds = 0
    again = t2i(*DEPLOY, env=env)
    assert again.returncode == 0, again.stderr
    assert len(vertex.spans) == 1


def test_memory_is_compared_with_what_there_is(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str], home: Path
) -> None:
    there = vertex.make_endpoint().replace("123456789", "gallery")
    gone = "projects/gallery/locations/us-central1/endpoints/4711"
    far = "projects/gallery/locations/europe-west4/endpoints/4712"
    memory = home / ".local/state/t2i/vertex.json"
    memory.parent.mkdir(parents=True)
    known = [{"name": name, "expires": 5} for name in (there, gone, far)]
    memory.write_text(json.dumps({"current": gone, "endpoints": known}))
    done = t2i("remote", "list", env=env)
    assert done.returncode == 0, done.stderr
    record = json.loads(memory.read_text())
    assert [one["name"] for one in record["endpoints"]] == [there, far]
    assert record["current"] is None
    assert f"warning: {far} is past its TTL" in done.stderr
    assert "`t2i remote reap --project gallery --region europe-west4` removes it" in done.stderr
    assert done.stderr.count("past its TTL") == 1


def test_what_cannot_be_seen_is_said(t2i: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    vertex.granted = {"aiplatform.endpoints.list", "aiplatform.models.list"}
    done = t2i("remote", "reap", env=env)
    assert done.returncode == 0
    assert "warning: Weights may still be there: gs://t2i-gallery-us-central1: The" in done.stderr


def test_a_full_name_tells_the_region(t2i: T2I, vertex: FakeVertex, env: dict[str, str]) -> None:
    assert t2i(*DEPLOY, env=env).returncode == 0
    (number,) = vertex.endpoints
    name = f"projects/gallery/locations/us-central1/endpoints/{number}"
    # Nothing but the name says where it is.
    env = {key: value for key, value in env.items() if key != "T2I_VERTEX_REGION"}
    env["XDG_STATE_HOME"] = "/nowhere"
    (Path(env["GOOGLE_APPLICATION_CREDENTIALS"]).parent / "elsewhere.toml").write_text(
        'vertex_region = "europe-west4"\n'
    )
    config = Path(env["GOOGLE_APPLICATION_CREDENTIALS"]).parent / "elsewhere.toml"
    for command in ("status", "down"):
        done = t2i("remote", command, name, env=env | {"T2I_CONFIG": str(config)})
        assert done.returncode == 0, done.stderr
    assert vertex.left() == {}


def test_any_command_warns_of_a_remembered_endpoint_past_its_ttl(
    t2i: T2I, vertex: FakeVertex, env: dict[str, str], home: Path
) -> None:
    name = vertex.make_endpoint()
    old = "projects/gallery/locations/us-central1/endpoints/4711"
    memory = home / ".local/state/t2i/vertex.json"
    memory.parent.mkdir(parents=True)
    record = {"current": old, "endpoints": [{"name": old, "expires": 5}]}
    memory.write_text(json.dumps(record))
    done = t2i("remote", "use", name, env=env)
    assert done.returncode == 0
    assert f"warning: {old} is past its TTL and may still be paid for" in done.stderr
