"""What -v tells (timings, the plan, files, requests, and no secret), and colours on a terminal."""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from t2i_cli import diagnostics
from t2i_cli.cli.commands import doctor
from t2i_cli.diagnostics import Diagnostic
from t2i_cli.net.http_client import shown_url
from t2i_cli.terminal.colours import painted
from t2i_cli.terminal.console import Console, console
from tests.conftest import T2I, Terminal
from tests.fakes.hub import FakeHub


class FakeTerminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_verbose_tells_plan_files_and_timings(t2i: T2I, home: Path) -> None:
    (home / "t2i.toml").write_text('format = "webp"\n')
    done = t2i("generate", "a star", "-m", "postcard", "--steps", "1", "-o", "a.webp", "-v")
    assert (done.returncode, done.stdout) == (0, "a.webp\n")
    for told in (
        rf"settings read from {re.escape(str(home))}/t2i\.toml",
        r"weights in .*unet/.*\.safetensors: [\d.]+ MB",
        r"plan: float32 on cpu \(CPU\), \d+ MiB of weights .* MiB free; measures: none",
        r"loaded from .*postcard/model in [\d.]+ s",
        r"image 1: made in [\d.]+ s, saved in [\d.]+ s",
        r"ended with exit code 0",
    ):
        assert len(re.findall(rf"^\[[\d.]+ s\] {told}$", done.stderr, re.MULTILINE)) >= 1, told
    assert done.stderr.count("settings read") == 1


def test_without_verbose_nothing_of_that_is_told(t2i: T2I) -> None:
    done = t2i("generate", "x", "-m", "postcard", "--dry-run", "--json")
    assert (done.returncode, done.stderr) == (0, "")


def test_verbose_tells_requests_without_secrets(t2i: T2I, hub: FakeHub) -> None:
    token = "hf_" + "s3cret" * 5
    env: Mapping[str, str] = hub.environment | {"HF_TOKEN": token}
    done = t2i("generate", "x", "-m", "no/such-model", "-v", env=env)
    assert done.returncode == 3
    url = re.escape(hub.environment["HF_ENDPOINT"])
    assert re.search(rf"\] GET {url}/api/models/no/such-model\S*: sent$", done.stderr, re.MULTILINE)
    assert re.search(r"/no/such-model\S*: 40\d in [\d.]+ s$", done.stderr, re.MULTILINE)
    assert "s3cret" not in done.stderr
    server = {"T2I_HTTP_API_KEY": "sk-" + "s3cret" * 5}
    http = ("generate", "x", "--backend", "http", "--url", "http://127.0.0.1:9/v1", "--retries=0")
    refused = t2i(*http, "-v", env=server)
    assert refused.returncode == 6
    assert re.search(r"\] GET http://127.0.0.1:9/v1/models: ConnectError in", refused.stderr)
    assert "s3cret" not in refused.stderr


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pass@host:8080/v1/models?key=s3cret#s3cret", "https://host:8080/v1/models"),
        ("https://host/stabilityai/stable-diffusion-xl-base-1.0", None),
        ("https://host/sk-0123456789abcdefghij/v1", "https://host/sk-…/v1"),
        (f"https://host/blob/{'a1' * 32}", "https://host/blob/…"),
        ("http://[::1", "the server"),
        ("http://[::1]:80/v1", None),
    ],
)
def test_an_address_is_shown_without_secrets(url: str, shown: str | None) -> None:
    assert shown_url(url) == (shown or url)


@pytest.mark.parametrize(
    ("stream", "variables", "coloured"),
    [
        (FakeTerminal(), {"TERM": "xterm"}, True),
        (FakeTerminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (FakeTerminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (FakeTerminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    stream: io.StringIO,
    variables: Mapping[str, str],
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert painted("x", "red", stream) == ("\x1b[1;31mx\x1b[0m" if coloured else "x")


def test_an_error_is_coloured_on_a_terminal(t2i_terminal: Terminal) -> None:
    line = ("generate", "x", "--steps", "many")
    shown = t2i_terminal(*line, prompt="", answer="", env={"TERM": "xterm"}).stderr
    assert "\x1b[1;31merror: \x1b[0m--steps must be" in shown
    assert "\x1b[36mhint: \x1b[0m" in shown
    plain = t2i_terminal(*line, prompt="", answer="", env={"TERM": "xterm", "NO_COLOR": "1"})
    assert "error: --steps must be" in plain.stderr
    assert "\x1b" not in plain.stderr


def test_what_is_quoted_in_a_coloured_error_cannot_paint(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = FakeTerminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr", stream)
    Console().warn("\x1b[2J")
    assert stream.getvalue() == "\x1b[33mwarning: \x1b[0m\\u001b[2J\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_doctor_is_coloured_on_a_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Diagnostic(name="t2i", status="ok", detail="0.1"),
        Diagnostic(name="hub", status="note", detail="no answer"),
    ]
    stream = FakeTerminal() if terminal else io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr(diagnostics, "run_diagnostics", lambda: iter(found))
    doctor.doctor()
    ok, note = ("\x1b[32mok  \x1b[0m", "\x1b[33mnote\x1b[0m") if terminal else ("ok  ", "note")
    assert stream.getvalue() == f"{ok}  t2i: 0.1\n{note}  hub: no answer\n"
    console.configure()
