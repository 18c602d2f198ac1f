"""Plans (--dry-run) of backends that are paid, without an account and without a network."""

import json
import socket
from pathlib import Path

import pytest
from huggingface_hub import constants

from t2i_cli.backend import Backend
from t2i_cli.errors import AccessError, RemoteError, T2IError
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.net import google_credentials
from t2i_cli.net.unreachable import UnreachableError
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.settings import store
from t2i_cli.settings.options import DeploymentSpec, LocationOptions
from t2i_cli.vertex import cloud_session, endpoint_store
from t2i_cli.vertex.dry_run import plan_dry_run
from t2i_cli.vertex.endpoint_store import EndpointRecord
from tests.backends import chosen
from tests.conftest import T2I

NOBODY = "There are no Google credentials."


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings, no credentials, and no network."""
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for setting in store.SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)

    def find(*_: object) -> None:
        raise AccessError(NOBODY)

    monkeypatch.setattr(google_credentials, "find_credentials", find)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")


def closed_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def planned(backend: Backend, **fields: object) -> tuple[ResolvedRequest, dict[str, object]]:
    """A request as the backend resolves it, and the plan's estimate of it."""
    asked = GenerateRequest(prompt="x", **fields)  # type: ignore[arg-type]
    request = resolve_request(asked, backend.describe(asked))
    backend.check(request)
    return request, backend.estimate(request)


def test_gemini_tells_its_price() -> None:
    plan_only = chosen("gemini", plan_only=True)
    request, estimate = planned(plan_only)
    assert "/projects/PROJECT/locations/global/" in str(estimate["url"])
    assert estimate["not_known"] == f"the project, and whether it may be called: {NOBODY}"
    price = plan_only.image_price(request)
    assert price is not None
    assert price.usd == 0.067
    named = chosen("gemini", plan_only=True, project="gallery-1")
    assert planned(named)[1]["not_known"] == f"whether it may be called: {NOBODY}"
    with pytest.raises(AccessError):
        planned(chosen("gemini"))


def test_hf_plans_for_what_a_provider_may_honour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "prices.toml"
    table.write_text('[images]\n"owner/model" = 0.03\n"together/owner/model" = 0.02\n')
    monkeypatch.setenv("T2I_IMAGE_PRICES", str(table))
    for provider, usd in (("auto", 0.03), ("together", 0.02)):
        backend = chosen("hf", plan_only=True, provider=provider)
        request, estimate = planned(backend, model="owner/model", steps=4, width=64, height=64)
        price = backend.image_price(request)
        assert price is not None
        assert price.usd == usd
        assert estimate["provider"] == provider
        assert estimate["provider_model"] is None
        assert {"width", "height", "num_inference_steps"} <= set(estimate["sends"])  # type: ignore[call-overload]
        assert estimate["not_known"] == "which providers serve it: The Hub cannot be reached."
    with pytest.raises(T2IError, match="nscale takes no steps"):
        planned(chosen("hf", plan_only=True, provider="nscale"), model="owner/model", steps=4)
    other = chosen("hf", plan_only=True)
    unknown = other.image_price(planned(other, model="other/model")[0])
    assert unknown is not None
    assert (unknown.usd, unknown.source) == (None, "billed by the provider through Hugging Face")
    with pytest.raises(UnreachableError):
        planned(chosen("hf"), model="owner/model")


def test_http_is_not_waited_for() -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    _, estimate = planned(chosen("http", plan_only=True, url=url), model="dall-e-3", steps=4)
    host = url.removeprefix("http://").removesuffix("/v1")
    assert estimate["not_known"] == f"what the server has: {host} cannot be reached."
    assert (estimate["url"], estimate["dialect"]) == (url, None)
    known = chosen("http", plan_only=True, url=url, dialect="openai")
    assert planned(known, model="dall-e-3")[1]["dialect"] == "openai"
    with pytest.raises(T2IError, match="openai dialect. takes no steps"):
        planned(known, model="dall-e-3", steps=4)
    with pytest.raises(RemoteError, match="cannot be reached"):
        planned(chosen("http", plan_only=True, url=url))  # whose model only the server knows
    with pytest.raises(UnreachableError):
        planned(chosen("http", url=url, retries=0), model="dall-e-3")


def test_an_endpoint_is_planned_for_as_it_is_remembered() -> None:
    _, estimate = planned(chosen("vertex", plan_only=True, endpoint="123"))
    name = "projects/PROJECT/locations/us-central1/endpoints/123"
    assert estimate["endpoint"] == name
    assert estimate["usd_per_hour_at_most"] is None
    assert estimate["not_known"] == f"what is deployed there now: {NOBODY}"
    name = name.replace("PROJECT", "gallery")
    machine = {
        "machineType": "g2-standard-4",
        "acceleratorType": "NVIDIA_L4",
        "acceleratorCount": 1,
    }
    record = EndpointRecord(name=name, serving="t2i", model="sd15", machine=machine, replicas=2)
    endpoint_store.remember_endpoint(record, current=True)
    _, estimate = planned(chosen("vertex", plan_only=True), steps=4)
    assert (estimate["endpoint"], estimate["serving"]) == (name, "t2i")
    assert estimate["usd_per_hour_at_most"] == 1.62
    assert estimate["concurrency"] == 4
    with pytest.raises(AccessError):
        planned(chosen("vertex"))


def test_a_deployment_is_planned_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object, **__: object) -> None:
        raise UnreachableError("Google cannot be reached.")

    monkeypatch.setattr(cloud_session, "connect", connect)
    plan = plan_dry_run(DeploymentSpec(model="sd15"), LocationOptions(), lambda _: None)
    assert plan.to_json()["quota_unknown"] == "Google cannot be reached."


def test_as_processes(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("a red star\na blue moon\n")
    done = t2i("batch", "two.txt", "--backend", "gemini", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cost"]["usd"] == 0.134
    ephemeral = ("batch", "two.txt", "--ephemeral", "-m", "sd15", "--dry-run")
    done = t2i(*ephemeral)
    assert done.returncode == 0, done.stderr
    assert "price        0.81 USD per hour" in done.stdout
    assert "enforced by  this command, while this machine is on" in done.stdout
    assert "2 of 2 images to make" in done.stdout
    told = json.loads(t2i(*ephemeral, "--json").stdout)
    assert told["models"][0]["deployment"]["estimate"]["usd_per_hour"] == 0.81
    assert told["to_make"] == 2
    absent = t2i("batch", "none.txt", *ephemeral[2:])
    assert (absent.returncode, absent.stdout) == (2, "")  # no plan comes before what is wrong
    refused = t2i(*ephemeral, "--max-cost", "1")
    assert (refused.returncode, "would cost up to 3.24 USD" in refused.stderr) == (2, True)
