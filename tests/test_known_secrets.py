"""No secret of this process is in an error, on stderr or in a log, whatever a library quotes."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from t2i_cli import known_secrets
from t2i_cli.errors import InternalError, RemoteError, error_reason, internal_error
from t2i_cli.known_secrets import register_secret, scrub_secrets
from t2i_cli.net import error_body
from t2i_cli.server.batcher import batcher_log
from t2i_cli.settings import store
from t2i_cli.terminal.console import Console
from tests.conftest import T2I

SECRET = 'hf_planted/key+"äß"?value'  # noqa: S105 - nobody's
VARIABLES = ("HF_TOKEN", "T2I_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "PASSWORD")


def forms(secret: str) -> dict[str, str]:
    """How a secret may stand in another text."""
    data = secret.encode()
    basic = {
        f"basic {user}": base64.b64encode(user.encode() + data).decode() for user in ("u:", "us:")
    }
    return basic | {
        "plain": secret,
        "bytes": base64.b64encode(data).decode(),
        "for a URL": base64.urlsafe_b64encode(data).decode(),
        "in the middle": base64.b64encode(b"Authorization: " + data + b" of Bob").decode(),
        "quoted": quote(secret, safe=""),
        "JSON": json.dumps({"key": secret}),
        "repr": repr({"key": secret}),
    }


def leaks(text: str, secret: str) -> bool:
    """Whether eight characters of the secret, or base64 of six bytes of it, are in the text."""
    parts = [secret[n : n + 8] for n in range(len(secret) - 7)]
    data = secret.encode()
    # At each offset in a group of three bytes.
    coded = [base64.b64encode(data[n : n + 6]).decode() for n in range(len(data) - 5)]
    coded += [part.replace("+", "-").replace("/", "_") for part in coded]
    return any(part in text for part in [*parts, *coded])


@pytest.mark.parametrize("form", forms(""))
def test_every_form_of_a_secret_is_replaced(form: str) -> None:
    text = f"401 for {forms(SECRET)[form]} from the host"
    assert leaks(text, SECRET) or form in {"quoted", "JSON", "repr"}
    register_secret(SECRET)
    found = scrub_secrets(text)
    assert not leaks(found, SECRET)
    assert "planted" not in found and "401 for " in found and " from the host" in found


@pytest.mark.parametrize("form", forms(""))
@pytest.mark.parametrize("cut", [error_reason, error_body.sanitise], ids=lambda cut: cut.__name__)
def test_a_text_is_cut_after_secrets_are_replaced(form: str, cut: Callable[[Any], str]) -> None:
    register_secret(SECRET)
    longest = len(cut("x" * 1000))
    for before in range(longest - len(forms(SECRET)[form]), longest):
        text = cut("x" * before + " " + forms(SECRET)[form])
        assert not leaks(str(RemoteError(text).message), SECRET), text
        assert "planted" not in text


@pytest.mark.parametrize("variable", VARIABLES)
def test_variables_that_are_named_for_a_secret_hold_one(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "planted-secret")
    error = internal_error(ValueError("header Bearer planted-secret is no header"))
    assert isinstance(error, InternalError)
    assert "planted" not in json.dumps(error.to_json())
    assert "planted" not in str(RemoteError("x", hint="planted-secret").hint)


def test_a_proxys_password_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://bob:planted-secret@proxy:8080")
    assert scrub_secrets("407 of bob:planted-secret") == "407 of bob:…"
    monkeypatch.setenv("https_proxy", "http://bob@[::1")
    assert scrub_secrets("407 of bob") == "407 of bob"


def test_paths_and_short_values_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/bob/key.json")
    monkeypatch.setenv("API_KEY", "none")
    text = "Cannot read /home/bob/key.json: none."
    assert scrub_secrets(text) == text


def test_a_settings_file_s_key_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "t2i.toml"))
    store.set_setting("http_api_key", "planted-secret")
    assert store.get_setting("http_api_key") == "planted-secret"
    assert "planted" not in RemoteError("Illegal header b'planted-secret'").message


def test_stderr_and_logs_have_none(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    register_secret("planted-secret")
    printer = Console()
    printer.configure(verbose=True)
    error = internal_error(ValueError("planted-secret"))
    printer.cause(error)
    printer.event("log", message="planted-secret")
    printer.warn("planted-secret")
    try:
        raise ValueError("planted-secret")
    except ValueError as raised:
        batcher_log.error("It has %s.", "planted-secret", exc_info=raised)
    shown = capsys.readouterr().err + caplog.text
    assert "planted" not in shown
    assert shown.count("ValueError: …") == 2, shown


def test_a_bugs_traceback_has_none(t2i: T2I, tmp_path: Path) -> None:
    """A module in place of one that t2i imports late raises what quotes the key."""
    (tmp_path / "platformdirs.py").write_text(
        "import os\nraise KeyError('no header: ' + os.environ['T2I_HTTP_API_KEY'])\n"
    )
    key = "planted-secret-of-a-server"
    env = {"PYTHONPATH": str(tmp_path), "T2I_HTTP_API_KEY": key}
    done = t2i("worker", "status", env=env)
    assert done.returncode == 1, done
    assert "KeyError: 'no header: …'" in done.stderr
    assert "planted" not in done.stderr + done.stdout


def test_the_last_ones_are_kept() -> None:
    for number in range(1_000):
        register_secret(f"planted-{number:04}")
    register_secret("planted-0990")
    assert scrub_secrets("planted-0990 planted-0999 planted-0000") == "… … planted-0000"
    assert len(known_secrets._registered) < 100


def test_a_secret_that_is_no_text_is_found() -> None:
    register_secret("\udce4planted\udcff")
    assert scrub_secrets("a \udce4planted\udcff b") == "a … b"
