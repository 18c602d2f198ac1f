"""Endpoints of private networks: certificates of one's own, and http:// at private addresses."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from t2i_cli.backends.vertex import endpoint
from t2i_cli.backends.vertex.options import VertexOptions
from t2i_cli.errors import InputError, RemoteError
from t2i_cli.net import google_credentials
from t2i_cli.net.google_credentials import TokenProvider
from t2i_cli.net.http_client import HttpClient
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.settings.options import EndpointOptions, LocationOptions
from t2i_cli.settings.schema import is_private_http_url
from t2i_cli.vertex import lifecycle, location
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.location import Location
from tests.conftest import T2I
from tests.fakes.google import refusal
from tests.fakes.oauth import AUTHORIZED
from tests.fakes.tls import running_tls
from tests.fakes.vertex import FakeVertex, Fault, counted


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings and no memory of the developer's."""
    for name in list(os.environ):
        if name.startswith(("T2I_", "GOOGLE_", "CLOUDSDK_", "SSL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_a_certificate_of_one_s_own(t2i: T2I, vertex: FakeVertex, tmp_path: Path) -> None:
    name = vertex.make_endpoint(dedicated=False)
    with running_tls(vertex.url, tmp_path) as tls:
        env = vertex.environment | {"T2I_VERTEX_API_ENDPOINT": tls.url}
        refused = t2i("remote", "list", env=env)
        assert refused.returncode == RemoteError.exit_code
        assert "The certificate of 127.0.0.1:" in refused.stderr
        assert "cannot be trusted" in refused.stderr
        assert "--ca-file" in refused.stderr
        assert counted(vertex) == {"POST token": 1}
        listed = t2i("remote", "list", "--ca-file", str(tls.ca_file), env=env)
        assert listed.returncode == 0, listed.stderr
        env["T2I_VERTEX_CA_FILE"] = str(tls.ca_file)
        made = t2i("remote", "generate", "a tree", "--endpoint", name, env=env)
        assert made.returncode == 0, made.stderr
        assert counted(vertex)["POST predict"] == 1


def test_a_certificate_for_another_address(vertex: FakeVertex, tmp_path: Path) -> None:
    with running_tls(vertex.url, tmp_path, "10.0.0.1") as tls:
        here = Location(
            project="gallery",
            region="us-central1",
            api_endpoint=tls.url,
            ca_file=str(tls.ca_file),
        )
        with (
            GoogleClient(here, lambda: AUTHORIZED) as client,
            pytest.raises(RemoteError, match="certificate of 127.0.0.1:.* cannot be trusted"),
        ):
            client.call("GET", "aiplatform", f"{here.parent}/endpoints")
    assert vertex.requests == []


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\xff\x00", None])
def test_a_file_without_certificates_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.pem"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match="Cannot read certificates in PEM"):
        HttpClient("https://example.com", 1, ca_file=str(file))


def test_the_setting_is_checked(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nothing")
    done = t2i("config", "set", "vertex_ca_file", "bad.pem")
    assert done.returncode == InputError.exit_code
    assert "Cannot read certificates in PEM from bad.pem: it holds none." in done.stderr


NAME = "projects/gallery/locations/us-central1/endpoints/1"


def test_a_command_of_remote_run_is_told_the_file() -> None:
    here = Location(project="gallery", region="r", api_endpoint="https://x", ca_file="ca.pem")
    client = SimpleNamespace(location=here)
    environment = lifecycle.endpoint_environment(EndpointRecord(name=NAME), client)  # type: ignore[arg-type]
    assert environment["T2I_VERTEX_CA_FILE"] == os.path.abspath("ca.pem")


def test_which_addresses_are_private() -> None:
    good = ["http://10.0.1.23", "http://172.16.0.1:80/", "http://192.168.0.9", "http://[fd20::1]"]
    assert [url for url in good if not is_private_http_url(url)] == []
    bad = ["http://8.8.8.8", "http://172.32.0.1", "http://169.254.169.254", "http://example.com"]
    bad += ["https://10.0.0.1", "http://10.0.0.1.example.com", "http://a:b@10.0.0.1"]
    bad += ["http://[2001:db8::1]", "http://0.0.0.0", "http://10.0.0.1/?q=1", "http://10.0.0.1:x"]
    assert [url for url in bad if is_private_http_url(url)] == []


def test_http_at_a_private_address_is_warned_of(
    vertex: FakeVertex, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LocationOptions(project="gallery", api_endpoint="http://10.0.1.23")
    assert location.find_location(options).host("aiplatform") == "http://10.0.1.23"
    assert "The access token goes to http://10.0.1.23 without encryption" in capsys.readouterr().err
    # Nothing is looked up there: such an endpoint serves predictions only.
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(vertex.key))
    named = EndpointOptions(
        project="gallery", api_endpoint="http://10.0.1.23", endpoint="5", serving="t2i"
    )
    options_there = VertexOptions(retry_policy=RetryPolicy(retries=0), endpoint=named)
    tokens = TokenProvider(google_credentials.find_credentials()[0])
    found = endpoint.find_endpoint(options_there, tokens, None)
    place = "projects/gallery/locations/us-central1/endpoints/5"
    assert found.url == f"http://10.0.1.23/v1/{place}:predict"
    assert found.dedicated
    assert found.serving == "t2i"
    assert vertex.requests == []


def test_a_host_of_predictions_only(t2i: T2I, vertex: FakeVertex) -> None:
    name = vertex.make_endpoint()
    unknown = refusal(404, "NOT_FOUND", "The requested URL was not found on this server.")
    vertex.faults = [Fault(where="GET .*/endpoints", status=404, body=unknown, times=99)]
    done = t2i("remote", "generate", "a tree", "--endpoint", name, env=vertex.environment)
    assert done.returncode == 0, done.stderr
    assert counted(vertex)["POST predict"] == 1
