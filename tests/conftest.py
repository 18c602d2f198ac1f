"""Fixtures that every test module shares."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import settings

from t2i_cli import known_secrets
from tests.fakes.hub import FakeHub, running_hub
from tests.fakes.vertex import FakeVertex, running_vertex

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Whoever runs the tests in the background may have these ignored, and every child with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A tenth of `full`'s examples finds what a change breaks; `make full` looks for what is rare.
settings.register_profile("t2i", deadline=None, derandomize=True, max_examples=60)
settings.register_profile("full", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("t2i")

PASSED_ON = (
    *("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("COVERAGE_PROCESS_CONFIG",),
)
"""What of the developer's environment a test's process may see: nothing that steers t2i."""

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 60_000
"""Milliseconds that a browser has, on a machine that is busy with other things."""


@pytest.fixture(autouse=True)
def _no_secret_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test gave as a key is a word like others in the next one."""
    monkeypatch.setattr(known_secrets, "_registered", {})


@pytest.fixture(autouse=True)
def _online_again() -> Iterator[None]:
    """A backend that a test made offline in this process leaves the next one online."""
    yield
    os.environ.pop("HF_HUB_OFFLINE", None)
    if constants := sys.modules.get("huggingface_hub.constants"):
        constants.HF_HUB_OFFLINE = False  # type: ignore[attr-defined]


class T2I(Protocol):
    """Runs `t2i` with arguments as a process and waits for it; output is text."""

    def __call__(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        input: str = "",
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The isolated home folder of this test's processes."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def t2i_env(home: Path) -> dict[str, str]:
    """An environment where nothing of the developer's own settings, caches or tokens is seen.

    The Hub's address refuses every connection: a test that needs a hub starts a fake one.
    """
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_DATA_HOME": str(home / ".local/share"),
        "XDG_STATE_HOME": str(home / ".local/state"),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_DISABLE_XET": "1",
        "T2I_CONFIG": str(home / "t2i.toml"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "NO_GCE_CHECK": "true",
        "PYTHONWARNINGS": "default",
    }


@pytest.fixture
def t2i(t2i_env: dict[str, str], tmp_path: Path) -> T2I:
    """Run `t2i` as a real process: `t2i("config", "list", env={...}, input="...")`.

    What it opens it must close: Python's warnings of what it does not are shown (PYTHONWARNINGS).
    """

    def run(
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        input: str = "",
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "t2i_cli", *map(str, args)],
            env=t2i_env | dict(env or {}),
            input=input,
            cwd=cwd or tmp_path,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "ResourceWarning" not in done.stderr, done.stderr
        return done

    return run


class Terminal(Protocol):
    """Runs `t2i` on a terminal and types `answer` after `prompt`; the result's stderr is what the
    terminal showed.
    """

    def __call__(
        self, *args: str, prompt: str, answer: str, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def t2i_terminal(t2i_env: dict[str, str], tmp_path: Path) -> Terminal:
    """Run `t2i` as a person does: standard input and stderr are a terminal, stdout is a pipe."""

    def run(
        *args: str, prompt: str, answer: str, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "t2i_cli", *args],
            env=t2i_env | dict(env),
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=slave,
            cwd=tmp_path,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        shown = b""
        with suppress(OSError):  # the process closed its end
            while piece := os.read(master, 1000):
                shown += piece
                if prompt.encode() in shown and answer:
                    os.write(master, answer.encode() + b"\n")
                    answer = ""
        output, _ = process.communicate(timeout=60)
        os.close(master)
        return subprocess.CompletedProcess(
            args, process.returncode, output.decode(), shown.decode()
        )

    return run


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A Hugging Face Hub on loopback; `env=hub.environment` points a process at it."""
    with running_hub() as state:
        yield state


@pytest.fixture
def vertex(tmp_path: Path) -> Iterator[FakeVertex]:
    """Google Cloud on loopback; `env=vertex.environment` points a process at it."""
    with running_vertex(tmp_path) as state:
        yield state


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Debian's Chromium; of one module only, as Playwright holds the thread's event loop."""
    if not CHROMIUM.exists():
        pytest.skip(f"There is no {CHROMIUM}; `apt-get install chromium` brings it.")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()
