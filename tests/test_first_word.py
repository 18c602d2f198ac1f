"""What a fresh user meets: no model, no network, and a download of gigabytes."""

import io
from pathlib import Path

import pytest

from t2i_cli import postcard
from t2i_cli.errors import InputError
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.download_consent import asks_for_downloads, confirm_download
from tests.conftest import T2I, Terminal
from tests.fakes.hub import FakeHub, Repo

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
NAMES_POSTCARD = "hint: Check the network and try again. `-m postcard`, the small model inside t2i"
OFFER = "Make it with postcard, the small model inside t2i? [y/N] "
QUESTION = f"{SD15} must be downloaded first: 1000000.0 GB. Go on? [y/N] "
BEGUN = f"The download of {SD15} needs 1000000.0 GB"
"""The error that a download of that size begins and ends with."""


@pytest.fixture
def large(hub: FakeHub) -> dict[str, str]:
    """The way to a Hub whose default model is larger than any disk."""
    repo = Repo.from_folder(postcard.FOLDER)
    repo.claimed = {WEIGHTS: 10**15}
    hub.repos[SD15] = repo
    return hub.environment | {"T2I_MEMORY": "fast"}  # which does not compare with the memory


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "a red star"),
        ("batch", "prompts.txt"),
        ("serve", "--port", "0"),
    ],
)
def test_without_network_the_error_names_what_is_here(
    t2i: T2I, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "prompts.txt").write_text("a red star\n")
    done = t2i(*command)
    assert (done.returncode, done.stdout) == (6, "")
    assert "error: The Hub cannot be reached." in done.stderr
    assert NAMES_POSTCARD in done.stderr
    assert OFFER not in done.stderr


def test_offline_and_gated_models_name_it_too(t2i: T2I, hub: FakeHub) -> None:
    offline = t2i("generate", "x", "--offline")
    assert offline.returncode == 9
    assert "`-m postcard`, the small model inside t2i, needs no download." in offline.stderr
    hub.repos[SD15] = Repo.from_folder(postcard.FOLDER, gated=True)
    gated = t2i("generate", "x", env=hub.environment)
    assert gated.returncode == 3
    assert "`-m postcard`, the small model inside t2i, needs no download." in gated.stderr


def test_pulling_a_model_names_no_other(t2i: T2I) -> None:
    done = t2i("models", "pull", "sdxl", env={"T2I_DTYPE": "float32"})
    assert done.returncode == 6
    assert "postcard" not in done.stderr


def test_on_a_terminal_it_is_offered(t2i_terminal: Terminal, tmp_path: Path) -> None:
    line = ("generate", "a red star", "--steps", "1", "-s", "1", "-o", "a.png")
    done = t2i_terminal(*line, prompt=OFFER, answer="y", env={})
    assert (done.returncode, done.stdout) == (0, "a.png\n")
    assert f"The Hub cannot be reached. {OFFER}" in done.stderr
    assert "error:" not in done.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "answer", "offered"),
    [((), "n", True), (("-m", "sdxl"), "", False)],
)
def test_who_declines_or_chose_a_model_gets_the_error(
    t2i_terminal: Terminal, tmp_path: Path, options: tuple[str, ...], answer: str, offered: bool
) -> None:
    done = t2i_terminal("generate", "x", *options, prompt=OFFER, answer=answer, env={})
    assert (done.returncode, done.stdout) == (6, "")
    assert (OFFER in done.stderr) == offered
    assert "`-m postcard`" in done.stderr
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("command", [("generate", "x"), ("batch", "prompts.txt"), ("serve",)])
def test_before_gigabytes_a_terminal_is_asked(
    t2i_terminal: Terminal,
    large: dict[str, str],
    tmp_path: Path,
    command: tuple[str, ...],
) -> None:
    (tmp_path / "prompts.txt").write_text("a red star\na blue star\n")
    done = t2i_terminal(*command, prompt=QUESTION, answer="n", env=large)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count(QUESTION) == 1
    assert "Declined; nothing was downloaded." in done.stderr
    assert "`-m postcard` needs no download" in done.stderr
    assert BEGUN not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"home", "prompts.txt"}


def test_who_agrees_gets_the_download(t2i_terminal: Terminal, large: dict[str, str]) -> None:
    done = t2i_terminal("generate", "x", "-m", "sd15", prompt=QUESTION, answer="y", env=large)
    assert done.returncode == 11
    assert f"{QUESTION}y" in done.stderr
    assert BEGUN in done.stderr


def test_the_warm_worker_downloads_nothing_unasked(
    t2i_terminal: Terminal, large: dict[str, str]
) -> None:
    line = ("generate", "x", "-m", "sd15", "--keep-alive", "5s")
    done = t2i_terminal(*line, prompt=QUESTION, answer="n", env=large)
    assert done.returncode == 2
    assert "Declined; nothing was downloaded." in done.stderr


@pytest.mark.parametrize("way", ["script", "--yes"])
def test_a_script_and_who_agreed_before_are_not_asked(
    t2i: T2I, t2i_terminal: Terminal, large: dict[str, str], way: str
) -> None:
    line = ("generate", "x", "-m", "sd15")
    if way == "script":
        done = t2i(*line, env=large)
    else:
        # The answer would be given to any question.
        done = t2i_terminal(*line, "--yes", prompt="[y/N] ", answer="n", env=large)
    assert "Go on?" not in done.stderr
    assert BEGUN in done.stderr


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("missing", "asked"), [((900,), False), ((600, 600), True), ((0, 0), False)]
)
def test_the_models_of_a_run_are_asked_for_together(
    missing: tuple[int, ...], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr("sys.stdin", _Terminal("y\n"))
    plans = [{"model": f"a/{number}", "download_mib": mib} for number, mib in enumerate(missing)]
    confirm_download([*plans, {"url": "http://server"}], Console(), yes=False)
    assert ("a/0 and a/1 must be downloaded first: 1.3 GB." in shown.getvalue()) == asked


@pytest.mark.parametrize(
    ("value", "asks"), [("", True), ("0", True), ("No", True), ("1", False), ("TRUE", False)]
)
def test_the_variable_is_read(value: str, asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in ("sys.stderr", "sys.stdin"):
        monkeypatch.setattr(stream, _Terminal())
    monkeypatch.setenv("T2I_YES", value)
    assert asks_for_downloads(Console(), yes=False) == asks
    assert not asks_for_downloads(Console(), yes=True)
    monkeypatch.setenv("T2I_YES", "perhaps")
    with pytest.raises(InputError, match="T2I_YES must be 1 or 0, not 'perhaps'"):
        asks_for_downloads(Console(), yes=True)


def test_the_variable_agrees_to_no_removal(t2i: T2I, hub: FakeHub) -> None:
    env = hub.environment | {"T2I_YES": "1", "T2I_DTYPE": "float32"}
    hub.repos[SD15] = Repo.from_folder(postcard.FOLDER)
    assert t2i("models", "pull", "sd15", env=env).returncode == 0
    done = t2i("models", "remove", "sd15", env=env)
    assert done.returncode == 2
    assert "--yes agrees." in done.stderr
