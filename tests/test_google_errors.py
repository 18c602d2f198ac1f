"""What is told of Google's refusals: quotas, machines that are lacking, permissions, projects."""

import pytest

from t2i_cli.errors import AccessError, InputError, QuotaError, RemoteError, T2IError
from t2i_cli.net import google_errors, google_http
from t2i_cli.net.google_http import CapacityError, error_from_status
from t2i_cli.settings.options import LocationOptions
from t2i_cli.vertex import capacity_errors, location
from t2i_cli.vertex.location import Location
from t2i_cli.vertex.machine_types import ReplicaHardware
from t2i_cli.vertex.model_memory import ModelMemory
from tests.conftest import T2I
from tests.fakes.google import refusal
from tests.fakes.vertex import FakeVertex, Fault, counted

L4 = "aiplatform.googleapis.com/custom_model_serving_nvidia_l4_gpus"
T4 = "aiplatform.googleapis.com/custom_model_serving_nvidia_t4_gpus"
EXCEEDED = f"The following quota metrics exceed quota limits: {L4}"
STOCKOUT = (
    "Resources are insufficient in region: us-central1. Please try a different region or use a "
    "different accelerator."
)


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (EXCEEDED, [L4]),
        (f"{EXCEEDED}, {T4}, ", [L4, T4]),
        (f"{EXCEEDED},{T4}.", [L4, T4]),
        (f"Quota exceeded for {L4} with base model: x. Please submit a request.", [L4]),
        (f"Quota exceeded for quota metric '{L4}' and limit 'x' of service 'y'.", [L4]),
        ("The following quotas are exceeded: CustomModelServingL4GPUsPerProjectPerRegion",
         ["CustomModelServingL4GPUsPerProjectPerRegion"]),
        ("Quota exceeded for quota metric 'Online requests' and limit 'z'.", ["Online requests"]),
        ("Resource exhausted. Please try again later.", []),
        (STOCKOUT, []),
    ],
)  # fmt: skip
def test_the_quotas_of_a_message(message: str, names: list[str]) -> None:
    assert google_errors.quota_names(message) == names


@pytest.mark.parametrize("name", ["RESOURCE_EXHAUSTED", "UNAVAILABLE", "", "INTERNAL"])
@pytest.mark.parametrize("message", [STOCKOUT, EXCEEDED])
def test_what_lacks_machines_is_known_by_its_words(name: str, message: str) -> None:
    error = google_http.error_from_status(0, name, message)
    assert isinstance(error, CapacityError)
    assert error.google_message == message.rstrip(".")
    assert error.exit_code == QuotaError.exit_code


def test_a_rate_limit_is_no_lack_of_machines() -> None:
    message = "Quota exceeded for aiplatform.googleapis.com/online_prediction_requests_per_minute."
    error = google_http.error_from_status(429, "", message)
    assert type(error) is QuotaError
    assert "online_prediction_requests_per_minute is exceeded" in error.message


@pytest.mark.parametrize(
    ("when", "code", "message"),
    [("at once", 8, EXCEEDED), ("later", 8, EXCEEDED), ("later", 8, STOCKOUT),
     ("later", 14, STOCKOUT)],
)  # fmt: skip
def test_a_deployment_without_machines(
    t2i: T2I, vertex: FakeVertex, when: str, code: int, message: str
) -> None:
    if when == "later":
        vertex.operation_errors["deployModel"] = {"code": code, "message": message}
    else:
        body = refusal(429, "RESOURCE_EXHAUSTED", message)
        vertex.faults = [Fault(where=":deployModel", status=429, body=body, times=9)]
    done = t2i("remote", "deploy", "-m", "sd15", "--yes", env=vertex.environment)
    assert done.returncode == QuotaError.exit_code
    assert counted(vertex)["POST deployModel"] == 1
    if message == STOCKOUT:
        assert "Google has no g2-standard-4 with 1 NVIDIA_L4 left in us-central1" in done.stderr
        assert "A larger quota does not help" in done.stderr
    else:
        assert f"The quota {L4} is exceeded in us-central1 of the project gallery." in done.stderr
        link = "https://console.cloud.google.com/iam-admin/quotas?project=gallery"
        assert link in done.stderr
    assert "take another region, machine or accelerator" in done.stderr


@pytest.mark.parametrize(
    ("message", "sentence", "hint"),
    [
        (
            "Permission 'aiplatform.endpoints.list' denied on resource "
            "'//aiplatform.googleapis.com/projects/galery/locations/us-central1' "
            "(or it may not exist).",
            "The permission aiplatform.endpoints.list is missing, or "
            "projects/galery/locations/us-central1 does not exist: Google does not say which.",
            "Is the project's name right, galery?",
        ),
        (
            "Permission 'storage.buckets.get' denied on resource (or it may not exist).",
            "The permission storage.buckets.get is missing, or what it is needed on does not exist",
            "docs/remote.md",
        ),
        (
            "Permission denied on resource project galery.",
            "There is no project galery, or this account may not use it",
            "gcloud projects list",
        ),
        (
            "Permission aiplatform.models.upload denied.",
            "The permission aiplatform.models.upload is missing.",
            "docs/remote.md",
        ),
        (
            "Your application is authenticating by using local Application Default Credentials. "
            "The aiplatform.googleapis.com API requires a quota project, which is not set by "
            "default.",
            "Google needs a project to count the calls",
            "set-quota-project",
        ),
        (
            "Caller does not have required permission to use project museum-1. Grant the caller "
            "the roles/serviceusage.serviceUsageConsumer role",
            "Google needs the project museum-1 to count the calls",
            "GOOGLE_CLOUD_QUOTA_PROJECT",
        ),
    ],
)
def test_refused_permissions(message: str, sentence: str, hint: str) -> None:
    error = google_http.error_from_status(403, "PERMISSION_DENIED", message)
    assert isinstance(error, AccessError)
    assert sentence in error.message
    assert hint in str(error.hint)


def test_a_mistyped_project_is_told(t2i: T2I, vertex: FakeVertex) -> None:
    done = t2i("remote", "list", "--project", "galery", env=vertex.environment)
    assert done.returncode == AccessError.exit_code
    assert "or projects/galery/locations/us-central1/endpoints does not exist" in done.stderr
    assert "Is the project's name right, galery?" in done.stderr


@pytest.mark.parametrize(
    "project", ["Gallery", "g", "gal_lery", "gallery-", "my project", "-x-x-x"]
)
def test_what_no_project_can_be_called_is_refused_before_any_call(project: str) -> None:
    with pytest.raises(InputError, match="project"):
        location.find_location(LocationOptions(project=project))
    with pytest.raises(InputError, match="is no Google Cloud project"):
        location.find_location(login_project=project)


def test_an_invalid_project_as_a_command(t2i: T2I, vertex: FakeVertex) -> None:
    done = t2i("remote", "list", "--project", "gal", env=vertex.environment)
    assert done.returncode == InputError.exit_code
    assert "'gal' is no Google Cloud project" in done.stderr
    assert vertex.requests == []


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"no healthy upstream", "no healthy upstream"),
        (b'"as JSON"', "as JSON"),
        (b"<html><title>Bad Gateway</title></html>", "Bad Gateway"),
        (b"<!DOCTYPE html><p>That's an <b>error</b>.</p>", "That's an error"),
        (b"", "HTTP status 500"),
        (b"\0\1\2", "HTTP status 500"),
        (b"<html>", "HTTP status 500"),
    ],
)
def test_texts_of_errors_that_are_no_json(body: bytes, text: str) -> None:
    error: T2IError = google_http.error_from_google(500, body)
    assert isinstance(error, RemoteError)
    assert " ".join(error.message.split()).replace(" .", ".") == f"Google says: {text}."


def test_a_stock_out_names_where_such_machines_are_and_what_else_would_do() -> None:
    here = Location(project="gallery", region="us-central1")
    need = ModelMemory(weights=7 * 2**30, peak=10 * 2**30)
    words = "Resources are insufficient in region: us-central1."
    with pytest.raises(CapacityError) as raised:  # noqa: SIM117 - the inner one is under test
        with capacity_errors.explaining_capacity(
            here, ReplicaHardware(machine="g2-standard-8", accelerator="NVIDIA_L4", count=1), need
        ):
            raise error_from_status(0, "RESOURCE_EXHAUSTED", words)
    hint = str(raised.value.hint)
    assert "The nearest regions with such machines: us-" in hint
    named = hint.rpartition("Machines of us-central1 with others: ")[2]
    assert "a2-highgpu-1g" in named and "g2-" not in named
