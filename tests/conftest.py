"""Fixtures that every test module shares."""

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections import Counter
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

FORKED = Path(__file__).parent / "fakes/forked_t2i.py"
READ_LATE = re.compile(
    r"(T2I|HF|XDG|GOOGLE|CLOUDSDK|AWS)_|(HOME|USERPROFILE|PATH|NO_GCE_CHECK|GCE_METADATA_\w+)$"
)
"""Variables that are read by a command, not when Python starts or torch is imported."""

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 60_000
"""Milliseconds that a browser has, on a machine that is busy with other things."""


LONG_FILES = (
    *("test_docs_commands.py", "test_page.py", "test_vertex_life.py", "test_vertex_run.py"),
    *("test_examples.py", "test_generate.py", "test_models.py", "test_batch.py"),
    *("test_serve_process.py", "test_golden.py", "test_batch_crash.py", "test_buckets_s3.py"),
)
"""Files of few tests that take minutes: one that begins last has the other processes wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, the long files come first, and the others by their number of tests."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    tests = Counter(item.path.name for item in items)

    def place(item: pytest.Item) -> tuple[int, int, str]:
        name = item.path.name
        first = LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)
        return first, -tests[name], name

    items.sort(key=place)


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


def isolated_environment(home: Path) -> dict[str, str]:
    """The environment of processes whose home is that folder."""
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
def t2i_env(home: Path) -> dict[str, str]:
    """An environment where nothing of the developer's own settings, caches or tokens is seen.

    The Hub's address refuses every connection: a test that needs a hub starts a fake one.
    """
    return isolated_environment(home)


class Starter:
    """Starts `t2i` by forks of one process, which is started at the first of them."""

    def __init__(self, folder: Path) -> None:
        self._address = folder / "t2i.sock"
        self._env = isolated_environment(folder)
        self._process: subprocess.Popen[str] | None = None

    def command(self, env: Mapping[str, str]) -> list[str]:
        """What starts `t2i` with that environment, but for its arguments.

        A process of its own where a variable may steer Python, torch, or what `t2i` does before
        its command; with T2I_TEST_FRESH, always.
        """
        fresh = {"T2I_TEST_FRESH", "COVERAGE_PROCESS_CONFIG"} & os.environ.keys()
        other = {n for n in env.keys() | self._env.keys() if env.get(n) != self._env.get(n)}
        if fresh or not hasattr(os, "pidfd_open") or not all(map(READ_LATE.match, other)):
            return [sys.executable, "-m", "t2i_cli"]
        self._start()
        return [sys.executable, "-I", "-S", str(FORKED), str(self._address)]

    def _start(self) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.forked_t2i", str(self._address)],
                cwd=FORKED.parent.parent.parent,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == "ready\n"

    def close(self) -> None:
        """End the process that forks."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


@pytest.fixture(scope="session")
def t2i_starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """The process that the fixture `t2i` forks, one for all tests of this one."""
    starter = Starter(tmp_path_factory.mktemp("starter"))
    yield starter
    starter.close()


@pytest.fixture
def t2i(t2i_env: dict[str, str], tmp_path: Path, t2i_starter: "Starter") -> T2I:
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
        whole = t2i_env | dict(env or {})
        done = subprocess.run(
            [*t2i_starter.command(whole), *map(str, args)],
            env=whole,
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
