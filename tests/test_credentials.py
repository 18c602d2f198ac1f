"""Google credentials of each kind, against a token server on loopback."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2i_cli.errors import AccessError, InputError, RemoteError, T2IError, TimedOutError
from t2i_cli.net import google_credentials
from tests.fakes.oauth import ACCOUNT, FakeOAuth, running_oauth

KEY = "GOOGLE_APPLICATION_CREDENTIALS"


@pytest.fixture
def oauth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOAuth]:
    """A token server, and a home without any credentials."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    for name in (KEY, "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    with running_oauth() as state:
        yield state


def statement(email: str) -> str:
    """A signed statement as Google makes it, without the signature."""
    payload = base64.urlsafe_b64encode(json.dumps({"email": email}).encode()).decode()
    return f"header.{payload.rstrip('=')}.signature"


def test_a_service_account_key(
    oauth: FakeOAuth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = oauth.key_file(tmp_path)
    monkeypatch.setenv(KEY, str(key))
    assert google_credentials.verify_credentials()[1] == google_credentials.CredentialInfo(
        account=ACCOUNT, project="gallery", source=f"{key}, named by {KEY}"
    )
    assert oauth.requests == ["/token"]


def test_the_environment_names_the_project(
    oauth: FakeOAuth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, str(oauth.key_file(tmp_path)))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "museum")
    assert google_credentials.verify_credentials()[1].project == "museum"


def test_application_default_of_a_person(
    oauth: FakeOAuth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gcloud").mkdir()
    oauth.person_file(tmp_path).rename(tmp_path / "gcloud/application_default_credentials.json")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "museum")
    # A person's token always comes from Google's own address.
    monkeypatch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", oauth.token_uri)
    oauth.id_token = statement("ann@example.org")
    assert google_credentials.verify_credentials()[1] == google_credentials.CredentialInfo(
        account="ann@example.org",
        project="museum",
        source="gcloud's application default credentials",
    )


def test_impersonation(oauth: FakeOAuth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, str(oauth.key_file(tmp_path)))
    monkeypatch.setattr(
        "google.auth.iam._IAM_ENDPOINT", oauth.url + "/accounts/{}:generateAccessToken"
    )
    target = "deployer@gallery.iam.gserviceaccount.com"
    _, login = google_credentials.verify_credentials(target)
    assert login.account == target
    assert login.source.startswith(f"impersonation by {ACCOUNT} from ")
    assert oauth.requests == ["/token", f"/accounts/{target}:generateAccessToken"]
    with pytest.raises(InputError, match="not a service account"):
        google_credentials.verify_credentials("ann@example.org")


def test_none(oauth: FakeOAuth) -> None:
    with pytest.raises(AccessError, match="no Google credentials") as caught:
        google_credentials.verify_credentials()
    assert "gcloud auth application-default login" in str(caught.value.hint)


@pytest.mark.parametrize("content", [None, "{", '{"type": "sword"}', '{"type": "service_account"}'])
def test_a_broken_key(
    oauth: FakeOAuth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    file = tmp_path / "broken.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv(KEY, str(file))
    with pytest.raises(AccessError, match=r"broken\.json, which holds no usable credentials"):
        google_credentials.verify_credentials()


@pytest.mark.parametrize(
    ("status", "kind"), [(400, AccessError), (401, AccessError), (503, RemoteError)]
)
def test_refusals(
    oauth: FakeOAuth,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    kind: type[T2IError],
) -> None:
    monkeypatch.setenv(KEY, str(oauth.key_file(tmp_path)))
    oauth.status = status
    with pytest.raises(kind) as caught:
        google_credentials.verify_credentials()
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"
    if status == 400:
        assert "(invalid_grant)" in caught.value.message


def test_a_slow_server(oauth: FakeOAuth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, str(oauth.key_file(tmp_path)))
    oauth.delay = 30
    start = time.monotonic()
    with pytest.raises(TimedOutError):
        google_credentials.verify_credentials(seconds=0.3)
    assert time.monotonic() - start < 20


def test_no_network(oauth: FakeOAuth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oauth.url = "http://127.0.0.1:9"
    monkeypatch.setenv(KEY, str(oauth.key_file(tmp_path)))
    with pytest.raises(RemoteError, match="cannot be reached"):
        google_credentials.verify_credentials()
