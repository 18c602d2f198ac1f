"""The headers of calls to Google: those of the credentials, the quota project among them."""

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from t2i_cli.backend import GeneratedImage
from t2i_cli.errors import InputError
from t2i_cli.library_environment import is_project_id
from t2i_cli.net import gcs, google_credentials
from t2i_cli.vertex import cloud_session, permissions, weights_bucket
from tests import backends
from tests.conftest import T2I
from tests.factories import request
from tests.fakes.oauth import FakeOAuth
from tests.fakes.vertex import FakeVertex

VARIABLE = "GOOGLE_CLOUD_QUOTA_PROJECT"
QUOTA_HEADER = "x-goog-user-project"


def quota_projects(vertex: FakeVertex) -> set[str | None]:
    """The quota projects of all calls but those for a token."""
    calls = zip(vertex.requests, vertex.seen_headers, strict=True)
    return {headers.get(QUOTA_HEADER) for (_, path), headers in calls if path != "/token"}


@pytest.fixture
def person(vertex: FakeVertex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeVertex:
    """The cloud, for a person's own credentials with the quota project `museum`."""
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    for name in list(os.environ):
        if name.startswith(("T2I_", "GOOGLE_", "CLOUDSDK_")):
            monkeypatch.delenv(name)
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    vertex.payers |= {"museum-101", "archive-7"}
    oauth = FakeOAuth(url=vertex.url)
    file = oauth.person_file(tmp_path, "museum-101")
    # A person's token always comes from Google's own address.
    monkeypatch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", oauth.token_uri)
    for name, value in vertex.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    monkeypatch.setenv("T2I_VERTEX_PROJECT", "gallery")
    return vertex


def test_each_command_sends_the_quota_project_of_the_environment(
    t2i: T2I, vertex: FakeVertex
) -> None:
    env = vertex.environment | {VARIABLE: "museum-101"}
    vertex.payers.add("museum-101")
    name = vertex.make_endpoint(dedicated=False)
    assert t2i("remote", "use", name, env=env).returncode == 0
    assert t2i("remote", "generate", "a tree", "-o", "tree.png", env=env).returncode == 0
    assert t2i("remote", "list", env=env).returncode == 0
    assert any(path.endswith(":predict") for _, path in vertex.requests)
    assert any(path.startswith("/storage/") for _, path in vertex.requests)
    assert quota_projects(vertex) == {"museum-101"}


def test_a_person_s_quota_project_is_sent(person: FakeVertex, tmp_path: Path) -> None:
    with cloud_session.connect() as session:
        client = session.client
        assert permissions.check_permissions(client, ["predict"]).missing == ()
        weights_bucket.make_bucket(client, "t2i-bucket", {})
        (tmp_path / "weights").write_bytes(b"weights")
        storage, checksum = weights_bucket.storage(client), gcs.file_crc32c(tmp_path / "weights")
        storage.upload("t2i-bucket", "w", tmp_path / "weights", checksum, lambda _: None)
        (blob,) = storage.list_blobs("t2i-bucket", "")
        storage.download("t2i-bucket", blob, tmp_path / "copy")
    assert quota_projects(person) == {"museum-101"}
    permissions.check_capabilities()
    backend = backends.chosen("vertex", endpoint=person.make_endpoint(dedicated=False))
    (outcome,) = backend.run([request(prompt="a tree")], lambda _: None, threading.Event())
    backend.close()
    assert isinstance(outcome, GeneratedImage), outcome
    assert quota_projects(person) == {"museum-101"}


def test_the_environment_stands_over_the_file(
    person: FakeVertex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "archive-7")
    credentials, _ = google_credentials.find_credentials()
    headers = google_credentials.TokenProvider(credentials)()
    assert headers == {"authorization": "Bearer ya29.person", QUOTA_HEADER: "archive-7"}


def test_an_impersonated_account_has_it_of_the_environment(
    person: FakeVertex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "archive-7")
    target = "deployer@gallery.iam.gserviceaccount.com"
    credentials, _ = google_credentials.find_credentials(target)
    assert credentials.quota_project_id == "archive-7"


def test_the_regions_that_the_credentials_know_are_sent(
    person: FakeVertex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(person.key))
    credentials, _ = google_credentials.find_credentials()
    tokens = google_credentials.TokenProvider(credentials)
    assert set(tokens()) == {"authorization"}
    tomorrow = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)
    credentials._rab_manager.set_initial_regional_access_boundary("0xA30", tomorrow)  # type: ignore[attr-defined]
    assert tokens()["x-allowed-locations"] == "0xA30"


@pytest.mark.parametrize("value", ["museum\n", "Müller", "a b", "x", "museum/1"])
def test_a_quota_project_that_is_none(
    person: FakeVertex, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    file = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"])
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quota_project_id": value}))
    with pytest.raises(InputError, match="quota project"):
        google_credentials.find_credentials()
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(InputError, match=VARIABLE):
        google_credentials.find_credentials()
    assert person.requests == []


def test_project_ids() -> None:
    good = ("gallery", "t2i-gallery-1", "example.com:gallery", "123456789", "a" * 30)
    assert [name for name in good if not is_project_id(name)] == []
    bad = [
        *("short", "Gallery", "1gallery", "gallery-", "a" * 31, "gal lery", "g_allery", "", "0123")
    ]
    bad += ["gallery\n", ":gallery", "gal/lery", "com:gallery", "gâllery"]
    assert [name for name in bad if is_project_id(name)] == []
