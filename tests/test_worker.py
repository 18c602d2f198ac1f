"""The warm worker: real processes of t2i's server, with a stub backend where that will do.

What a run gives must be the same with a worker, without one, and when one fails it.
"""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends import factory
from t2i_cli.backends.local import LocalBackend, LocalOptions, load_target, planning
from t2i_cli.backends.local.memory_plan import MemoryPlan
from t2i_cli.cli import main
from t2i_cli.errors import InputError, OutOfMemoryError, T2IError, TimedOutError
from t2i_cli.events import Event, Notice, Step
from t2i_cli.image_formats import ImageFormat
from t2i_cli.models import catalog
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.output import metadata
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.terminal.console import Console
from t2i_cli.worker import backend, control, fingerprint, process_proof, spawn, state, tips
from t2i_cli.worker.backend import MAX_REQUESTS_PER_CALL, WorkerBackend
from t2i_cli.worker.client import KEEP_ALIVE_HEADER, WorkerExchange, _Connection
from t2i_cli.worker.daemon import MAX_LOG
from t2i_cli.worker.state import RuntimeDir, WorkerState
from tests import backends, tiny_models
from tests.conftest import T2I
from tests.fakes import worker_process
from tests.fakes.stub_backend import StubBackend

ROOT = Path(__file__).parents[1]
PROMPT = "a red star on a white background"
PATIENCE = 180.0
"""Seconds for what takes one or two, on a machine that has other work."""
LONG = 600.0
USUAL = LocalOptions()


@pytest.fixture(scope="module")
def runtime() -> Iterator[Path]:
    """A runtime folder for this module, with a path short enough for a socket; its worker paints.

    Workers are shared by tests that do not end them.
    """
    folder = Path(tempfile.mkdtemp(prefix="t2i-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setattr(spawn, "DAEMON_MODULE", worker_process.WORKER)
        yield folder
        end()
    shutil.rmtree(folder)


def end() -> None:
    """Leave no worker behind."""
    with suppress(InputError):
        if (found := control.worker_status()).pid and found.state != "none":
            kill(found.pid)


def kill(pid: int) -> None:
    """Kill the worker, and wait until it is no more."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    assert RuntimeDir.find().wait_for_exit(PATIENCE)


@dataclass
class Run:
    """A run by way of the worker, or without it where `stand_in` has made the images."""

    stand_in: StubBackend
    outcomes: list[GeneratedImage | Failure] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Notice)]

    @property
    def error(self) -> T2IError:
        [outcome] = self.outcomes
        assert isinstance(outcome, Failure)
        return outcome.error

    @property
    def image(self) -> GeneratedImage:
        [outcome] = self.outcomes
        assert isinstance(outcome, GeneratedImage)
        return outcome


def requests(*prompts: str) -> list[ResolvedRequest]:
    """Settled requests for postcard."""
    return [
        resolve_request(GenerateRequest(prompt=prompt, seed=seed), catalog.MODELS["postcard"])
        for seed, prompt in enumerate(prompts)
    ]


def run(
    *prompts: str,
    keep_alive: float = LONG,
    options: LocalOptions = USUAL,
    scheduler: str | None = None,
    format: ImageFormat = "png",
    meanwhile: Callable[[Event], None] = lambda event: None,
) -> Run:
    """Make images; `meanwhile` hears of what happens."""
    done = Run(StubBackend(steps=True))
    asks = WorkerBackend(options, keep_alive, lambda _: done.stand_in, format)

    def hear(event: Event) -> None:
        done.events.append(event)
        meanwhile(event)

    asked = [replace(one, scheduler=scheduler) for one in requests(*(prompts or (PROMPT,)))]
    done.outcomes += asks.run(asked, hear, threading.Event())
    asks.close()
    return done


def worker() -> int:
    """The process of the worker that is there."""
    found = control.worker_status()
    assert found.state in {"idle", "busy"}, found
    assert found.pid
    return found.pid


def until(condition: Callable[[], bool]) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# What a worker gives is what a run without one gives.


@pytest.mark.usefixtures("runtime")
def test_images_and_progress_are_those_of_a_run_without_it() -> None:
    prompts = [f"{PROMPT} {number}" for number in range(MAX_REQUESTS_PER_CALL + 2)]
    warmed = run(*prompts)
    assert warmed.stand_in.made == []
    assert warmed.notes == []
    painted = list(StubBackend().run(requests(*prompts), lambda _: None, threading.Event()))
    assert [outcome.index for outcome in warmed.outcomes] == list(range(len(prompts)))
    for ours, theirs in zip(warmed.outcomes, painted, strict=True):
        assert isinstance(ours, GeneratedImage)
        assert isinstance(theirs, GeneratedImage)
        assert (ours.request, ours.info) == (theirs.request, theirs.info)
        assert (ours.seconds, ours.size) == (theirs.seconds, theirs.size)
        assert metadata.image_file_bytes(ours, "png") == metadata.image_file_bytes(theirs, "png")
        # In another format than it came in, too.
        assert metadata.image_file_bytes(ours, "webp") == metadata.image_file_bytes(theirs, "webp")
    steps = [event for event in warmed.events if isinstance(event, Step)]
    assert [step.indices for step in steps] == [(n // 2,) for n in range(2 * len(prompts))]


@pytest.mark.usefixtures("runtime")
def test_runs_share_a_worker_which_sends_the_format_that_is_wanted() -> None:
    run()
    first = worker()
    # Lenience matters to a run's requests alone, which are settled before the worker sees them.
    sent = run(format="jpeg", options=LocalOptions(lenient=True)).image
    assert metadata.image_file_bytes(sent, "jpeg")[:2] == b"\xff\xd8"
    assert "image" not in vars(sent)
    assert sent.image.size == sent.size
    assert worker() == first


CODES = ["not_allowed", "quota", "timed_out", "remote", "out_of_memory", "model", "withheld"]


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("code", CODES)
def test_a_failure_is_the_same_error(code: str) -> None:
    failed = run(f"fail {code}")
    wanted = worker_process.failure(code)
    assert type(failed.error) is type(wanted)
    assert failed.error.to_json() == wanted.to_json()
    assert failed.stand_in.made == []


@pytest.mark.usefixtures("runtime")
def test_a_refusal_is_raised_as_it_came() -> None:
    with pytest.raises(InputError, match="It does not fit") as raised:
        run(scheduler="heun")
    assert (raised.value.hint, raised.value.field) == ("Make it fit.", "scheduler")


@pytest.mark.usefixtures("runtime")
def test_a_bug_in_the_worker_is_met_again_without_it() -> None:
    assert run("bug").stand_in.made == requests("bug")


# Its life.


@pytest.mark.usefixtures("runtime")
def test_it_leaves_when_it_was_idle_for_as_long_as_the_newest_run_said() -> None:
    run()
    found = control.worker_status()
    assert (found.state, found.keep_alive, found.model) == ("idle", LONG, "postcard")
    run(keep_alive=0.2)
    assert RuntimeDir.find().wait_for_exit(PATIENCE)
    assert control.worker_status().state == "none"
    left = {path.name for path in RuntimeDir.find().folder.iterdir()}
    assert left == {"worker.lock", "start.lock", "worker.log"}


@pytest.mark.usefixtures("runtime")
def test_it_leaves_when_nobody_can_find_it_any_more() -> None:
    assert run().notes == []
    (RuntimeDir.find().folder / "worker.json").unlink()
    assert RuntimeDir.find().wait_for_exit(PATIENCE)


@pytest.mark.usefixtures("runtime")
def test_killed_in_mid_image_the_run_goes_on_and_the_next_starts_another() -> None:
    run()
    first = worker()

    def strike(event: Event) -> None:
        if isinstance(event, Step) and event.indices == (1,):
            kill(first)

    broken = run("first", "slow", "last", meanwhile=strike)
    assert broken.notes == ["The warm worker has ended. This run goes on without it."]
    assert [outcome.index for outcome in broken.outcomes] == [0, 1, 2]
    assert [request.prompt for request in broken.stand_in.made] == ["slow", "last"]
    assert [event.indices for event in broken.events if isinstance(event, Step)][-1] == (2,)
    # Its state and its socket are still there.
    assert RuntimeDir.find().state() is not None
    assert run().notes == []
    assert worker() != first


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("moment", ["before", "in mid-image"])
def test_hung_it_is_ended_and_not_waited_for(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "UNRESPONSIVE_AFTER", 3.0)
    run()
    first = worker()
    until(lambda: bool((state := RuntimeDir.find().state()) and state.warm))

    def stop(event: Event) -> None:
        if isinstance(event, Step):
            os.kill(first, signal.SIGSTOP)

    if moment == "before":
        os.kill(first, signal.SIGSTOP)
        until(lambda: control.worker_status().state == "hung")
        hung = run()
    else:
        hung = run("slow", meanwhile=stop)
    assert hung.notes == ["The warm worker hung, and was ended. This run goes on without it."]
    assert len(hung.stand_in.made) == 1
    assert not RuntimeDir.find().is_alive()


@pytest.mark.usefixtures("runtime")
def test_hung_it_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "UNRESPONSIVE_AFTER", 3.0)
    run()
    until(lambda: bool((state := RuntimeDir.find().state()) and state.warm))
    pid = worker()
    os.kill(pid, signal.SIGSTOP)
    until(lambda: control.worker_status().state == "hung")
    assert control.stop_worker() == pid
    assert control.worker_status().state == "none"


def spoil() -> None:
    """Damage what a worker says of itself, once it says no more."""
    until(lambda: bool((state := RuntimeDir.find().state()) and state.warm))
    (RuntimeDir.find().folder / "worker.json").write_text("{")


@pytest.mark.usefixtures("runtime")
def test_one_that_cannot_be_read_of_is_replaced() -> None:
    run()
    first = worker()
    spoil()
    with pytest.raises(InputError, match="cannot be read"):
        control.worker_status()
    assert not spawn.evict_idle_worker(), "nobody knows whether it is at work"
    assert run().notes == []
    assert worker() != first


@pytest.mark.usefixtures("runtime")
def test_one_that_cannot_be_read_of_can_be_stopped() -> None:
    run()
    spoil()
    assert control.stop_worker() == 0
    assert control.stop_worker() is None


@pytest.mark.usefixtures("runtime")
def test_a_hung_one_that_cannot_be_told_from_others_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state, "UNRESPONSIVE_AFTER", 3.0)
    run()
    first = worker()
    until(lambda: bool((found := RuntimeDir.find().state()) and found.warm))
    os.kill(first, signal.SIGSTOP)
    found = RuntimeDir.find().state()
    assert found is not None
    RuntimeDir.find().write(replace(found, token="another"))  # noqa: S106
    until(lambda: control.worker_status().state == "hung")
    notes = ["The warm worker hangs, and cannot be ended. This run goes on without it."]
    assert run().notes == notes
    with pytest.raises(TimedOutError, match="does not end"):
        control.stop_worker()
    assert RuntimeDir.find().is_alive()
    RuntimeDir.find().write(found)
    os.kill(first, signal.SIGCONT)
    assert control.stop_worker() == first


@pytest.mark.usefixtures("runtime")
def test_its_token_is_known_to_nobody_else() -> None:
    run()
    state = RuntimeDir.find().state()
    assert state is not None
    assert state.token
    assert state.token not in repr(state)
    command = psutil.Process(state.pid).cmdline()
    assert not any(state.token in word for word in command)
    assert any(process_proof.token_digest(state.token) in word for word in command)
    assert (RuntimeDir.find().folder / "worker.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("runtime")
def test_its_log_is_bounded() -> None:
    run()
    log = RuntimeDir.find().log
    log.write_bytes(b"x" * 2 * MAX_LOG)
    until(lambda: log.stat().st_size < MAX_LOG)
    log.unlink()
    time.sleep(2 * state.HEARTBEAT_INTERVAL)
    assert worker()


@pytest.mark.usefixtures("runtime")
def test_only_a_time_to_stay_is_taken_for_one() -> None:
    run()
    place_ = RuntimeDir.find()
    state = place_.state()
    assert state is not None
    for value in ("nan", "inf", "-1", "soon"):
        with WorkerExchange(
            place_, state, spawn.STATUS_PATH, None, {KEEP_ALIVE_HEADER: value}
        ) as one:
            assert one.json()["keep_alive"] == LONG


def test_a_process_id_that_a_dead_worker_left_gets_no_signal(tmp_path: Path) -> None:
    place_ = RuntimeDir(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        place_.signal(WorkerState(pid=other.pid, identity="", version="", model=""), signal.SIGTERM)
        other.communicate(b"\n")
    assert other.returncode == 0


def test_what_another_version_says_of_itself_is_understood(tmp_path: Path) -> None:
    said = {"pid": 2, "identity": "x", "version": "9", "model": "y", "mood": "sunny"}
    (tmp_path / "worker.json").write_text(json.dumps(said))
    state = RuntimeDir(tmp_path).state()
    assert state == WorkerState(pid=2, identity="x", version="9", model="y")
    (tmp_path / "worker.json").write_text('{"pid": 1')
    assert RuntimeDir(tmp_path).state() is None


def refused(code: str) -> bytes:
    """What a worker's server answers that is stopping, or has met another error."""
    body = json.dumps({"error": {"code": code, "message": "The server is stopping."}}).encode()
    return b"HTTP/1.1 503 -\r\nContent-Length: %d\r\n\r\n" % len(body) + body


GIVEN_UP = (
    b'HTTP/1.1 200 OK\r\n\r\nevent: accepted\ndata: {"job": "x"}\n\nevent: failure\ndata: {"index":'
    b' 0, "error": {"code": "terminated", "message": "The server is stopping."}}\n\n'
)


@contextmanager
def leaving(answer: bytes, *, stays: bool = False) -> Iterator[None]:
    """A worker that is about to leave, and gives the first who asks this answer.

    It is gone then, or at the end of the block.
    """
    ready, over = threading.Event(), threading.Event()
    identity_ = fingerprint.WorkerSpec(model="postcard", revision=None, options=USUAL).fingerprint()
    place_ = RuntimeDir.find()

    def act() -> None:
        with place_.lifetime_lock(), socket.socket(socket.AF_UNIX) as listener:
            place_.clear()  # what a killed one left
            path = place_.folder / "worker.sock"
            listener.bind(str(path))
            listener.listen()
            # No process gives itself a signal, whatever it reads.
            pid = os.getpid()
            place_.write(
                WorkerState(
                    pid=pid, identity=identity_, version="0", model="postcard", socket=str(path)
                )
            )
            ready.set()
            asked = b""
            while not asked:  # some only look whether anyone is there
                connection, _ = listener.accept()
                with connection:
                    if asked := connection.recv(2**16):
                        connection.sendall(answer)
            if stays:
                over.wait(PATIENCE)
            place_.clear()

    thread = threading.Thread(target=act)
    thread.start()
    assert ready.wait(PATIENCE)
    try:
        yield
    finally:
        over.set()
        thread.join()


LEAVES = [refused("terminated"), GIVEN_UP, b""]


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("answer", LEAVES, ids=["refuses", "gives up", "hangs up"])
def test_one_that_leaves_just_as_it_is_asked_has_another_hired_in_its_place(answer: bytes) -> None:
    end()
    with leaving(answer):
        made = run()
    assert made.notes == []
    assert made.stand_in.made == []
    assert made.image
    assert worker()


@pytest.mark.usefixtures("runtime")
def test_the_model_is_asked_for_again_where_the_worker_leaves_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end()
    asks = WorkerBackend(USUAL, LONG, lambda _: pytest.fail("It went on without a worker."))
    monkeypatch.setattr(catalog, "find_known", lambda *_: None)
    monkeypatch.setattr(catalog, "is_repository", lambda _: True)
    with leaving(refused("terminated")):
        asked = GenerateRequest(prompt=PROMPT, model="postcard")
        assert asks.describe(asked) == replace(catalog.MODELS["postcard"], adapters="files")


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("stays", [True, False])
def test_one_that_leaves_is_not_waited_for_for_long_nor_twice(
    stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    end()
    monkeypatch.setattr(backend, "EXIT_TIMEOUT", 0.3 if stays else PATIENCE)
    hired: list[str] = []
    again = ExitStack()

    def hire(wanted_: fingerprint.WorkerSpec, keep_alive: float) -> tuple[RuntimeDir, WorkerState]:
        hired.append(wanted_.model)
        if len(hired) == 2:
            again.enter_context(leaving(LEAVES[0]))
        return spawn.get_or_spawn(wanted_, keep_alive)

    monkeypatch.setattr(backend, "get_or_spawn", hire)
    with leaving(LEAVES[0], stays=stays), again:
        made = run()
    assert made.notes == ["The warm worker has ended. This run goes on without it."]
    assert len(made.stand_in.made) == 1
    assert len(hired) == (1 if stays else 2)


HALF_STARTED = """
import sys, time
from pathlib import Path
from t2i_cli.worker.state import RuntimeDir, WorkerState
place = RuntimeDir(Path(sys.argv[1]))
with place.lifetime_lock():
    place.write(WorkerState(pid=int(sys.argv[2]) or __import__("os").getpid(),
                            identity=sys.argv[3], version="0", model="postcard"))
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("same", [True, False])
def test_half_started_it_is_replaced(same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    end()
    wanted = fingerprint.WorkerSpec(model="postcard", revision=None, options=LocalOptions())
    place_ = RuntimeDir.find()
    stuck = subprocess.Popen(
        [
            *(sys.executable, "-c", HALF_STARTED, str(place_.folder), "0"),
            wanted.fingerprint() if same else "another",
            "t2i_cli.worker.process",  # as in the command line of a worker of version 0.1
        ],
        stdout=subprocess.PIPE,
    )
    assert stuck.stdout is not None
    with stuck.stdout as said:
        assert said.readline() == b"locked\n"
    assert control.worker_status().state == "starting"
    assert not spawn.evict_idle_worker()
    assert stuck.poll() is None
    if same:
        # It could yet come to listen; this one has had its time.
        old = time.time() - 2 * state.START_TIMEOUT
        os.utime(place_.folder / "worker.json", (old, old))
    assert run().notes == []
    assert stuck.wait(PATIENCE) < 0
    assert worker() != stuck.pid


@pytest.mark.usefixtures("runtime")
def test_a_worker_that_cannot_start_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    end()
    monkeypatch.setattr(spawn, "DAEMON_MODULE", "tests.fakes.nothing_of_that_name")
    failed = run()
    assert failed.image
    [note] = failed.notes
    assert "could not start" in note
    assert "nothing_of_that_name" in RuntimeDir.find().log.read_text()


@pytest.mark.usefixtures("runtime")
def test_one_of_other_options_is_replaced_when_it_is_idle_and_left_alone_at_work() -> None:
    run()
    first = worker()

    def other(event: Event) -> None:
        if isinstance(event, Step) and not bypassed:
            bypassed.append(run(options=LocalOptions(dtype="bfloat16")))
            kill(first)

    bypassed: list[Run] = []
    run("slow", meanwhile=other)
    [note] = bypassed[0].notes
    assert note == "The warm worker is at work for other runs. This run goes on without it."
    assert len(bypassed[0].stand_in.made) == 1
    run()
    second = worker()
    assert run(options=LocalOptions(dtype="bfloat16")).notes == []
    assert worker() not in {first, second}


@pytest.mark.usefixtures("runtime")
def test_it_makes_room_for_a_run_without_it_unless_it_is_at_work() -> None:
    end()
    assert not spawn.evict_idle_worker()
    made: list[bool] = []

    def make_room(event: Event) -> None:
        if isinstance(event, Step) and not made:
            made.append(spawn.evict_idle_worker())
            kill(worker())

    run("slow", meanwhile=make_room)
    assert made == [False]
    assert run().notes == []
    assert spawn.evict_idle_worker()
    assert control.worker_status().state == "none"


# Whom it serves.


def wanted(**changes: object) -> fingerprint.WorkerSpec:
    options: dict[str, object] = {"model": "postcard", "revision": None}
    return fingerprint.WorkerSpec(**{"options": LocalOptions(), **options, **changes})  # type: ignore[arg-type]


OTHER_VARIABLES = [
    *("HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    *("PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS", "https_proxy", "PYTHONPATH", "T2I_SOMETHING"),
]
OTHER_OPTIONS = [
    {"device": "cpu"},
    {"dtype": "bfloat16"},
    {"memory": "low"},
    {"safety_checker": False},
    {"trust_remote_code": True},
    {"attention_slicing": True},
    {"offline": True},
]


@pytest.mark.parametrize("variable", OTHER_VARIABLES)
def test_other_environments_want_other_workers(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = wanted().fingerprint()
    assert wanted().fingerprint() == before
    monkeypatch.setenv(variable, "hf_secret")
    assert wanted().fingerprint() != before
    assert "hf_secret" not in wanted().fingerprint()


def test_what_reaches_the_worker_otherwise_is_no_difference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = wanted().fingerprint()
    for variable in ("T2I_OUTPUT", "T2I_KEEP_ALIVE", "T2I_CONFIG", "PWD", "TERM", "COLUMNS"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.chdir(tmp_path)
    assert wanted().fingerprint() == before
    # An alias and its repository are one model.
    assert (
        wanted(model="sd15").fingerprint()
        == wanted(model=catalog.MODELS["sd15"].repo).fingerprint()
    )


@pytest.mark.parametrize("changes", OTHER_OPTIONS, ids=str)
def test_other_options_want_other_workers(changes: dict[str, object]) -> None:
    options = LocalOptions(**changes)  # type: ignore[arg-type]
    assert wanted(options=options).fingerprint() != wanted().fingerprint()


def test_other_versions_users_and_models_want_other_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = wanted().fingerprint()
    assert wanted(model="sd15").fingerprint() != before
    assert wanted(model="sd15", revision="main").fingerprint() != wanted(model="sd15").fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "__version__", "0.0.0")
        assert wanted().fingerprint() != before
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 12345)
        assert wanted().fingerprint() != before
    # A model that was trained anew is another, and so is one of the same name elsewhere.
    model = tmp_path / "a" / "model"
    model.mkdir(parents=True)
    (model / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "a")
    trained = wanted(model="./model").fingerprint()
    (model / "unet.safetensors").write_text("new")
    anew = wanted(model="./model").fingerprint()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    monkeypatch.chdir(tmp_path / "b")
    assert len({trained, anew, wanted(model="./model").fingerprint()}) == 3


def open_to_others(folder: Path, patch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o750)


def anothers(folder: Path, patch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    own = os.getuid()
    # platformdirs asks for the effective one.
    patch.setattr(os, "getuid", lambda: own + 1)


def a_link(folder: Path, patch: pytest.MonkeyPatch) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [(open_to_others, "mode 0750"), (anothers, "another user's"), (a_link, "no folder")],
)
def test_a_folder_that_is_not_the_users_own_is_not_used(
    spoil: Callable[[Path, pytest.MonkeyPatch], None],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    spoil(tmp_path / "t2i", monkeypatch)
    refused = run()
    [note] = refused.notes
    assert complaint in note
    assert len(refused.stand_in.made) == 1
    assert not (tmp_path / "t2i" / "worker.json").exists()
    with pytest.raises(InputError, match=complaint):
        control.worker_status()
    assert not spawn.evict_idle_worker()


def test_without_unix_sockets_it_listens_on_loopback_and_asks_for_its_secret(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = runtime / ("x" * 90)
    deep.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    try:
        assert run().notes == []
        state = RuntimeDir.find().state()
        assert state is not None
        assert (state.socket, run().stand_in.made) == (None, [])
        assert state.secret
        assert state.secret not in repr(state)
        assert (RuntimeDir.find().folder / "worker.json").stat().st_mode & 0o777 == 0o600
        connection = _Connection(state)
        connection.request("GET", spawn.STATUS_PATH)
        assert connection.getresponse().status == 401
        connection.close()
        connection.request("GET", spawn.STATUS_PATH, headers={KEEP_ALIVE_HEADER: "1"})
        assert connection.getresponse().status == 401
        connection.close()
        assert control.worker_status().keep_alive == LONG
        RuntimeDir.find().write(replace(state, secret="another"))  # noqa: S106
        assert control.worker_status().state == "none"
        RuntimeDir.find().write(state)
    finally:
        end()


# From the command line.


PAINTED = ("-m", "tests.fakes.worker_process")


class Command(Protocol):
    """Starts `t2i`, by way of workers that paint, in a runtime folder of its own."""

    def __call__(
        self, *arguments: str, program: Sequence[str] = PAINTED
    ) -> "subprocess.Popen[str]": ...


@pytest.fixture
def command(t2i_env: dict[str, str], tmp_path: Path) -> Iterator[Command]:
    """Processes that keep their worker for ten minutes; it ends with the test."""
    runtime = Path(tempfile.mkdtemp(prefix="t2i-"))
    env = t2i_env | {
        "XDG_RUNTIME_DIR": str(runtime),
        "PYTHONPATH": str(ROOT),
        "T2I_KEEP_ALIVE": "10m",
    }

    def start(*arguments: str, program: Sequence[str] = PAINTED) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *program, *arguments],
            env=env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    yield start
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        end()
    shutil.rmtree(runtime)


def finished(process: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    """Standard output and stderr of a process that ends as it should."""
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, errors
    return output, errors


def status_of(command: Command) -> dict[str, Any]:
    """What `t2i worker status` says."""
    found: dict[str, Any] = json.loads(finished(command("worker", "status", "--json"))[0])
    return found


def test_two_first_runs_at_once_make_one_worker(command: Command, tmp_path: Path) -> None:
    runs = [
        command("generate", PROMPT, "-m", "postcard", "-s", "1", "-o", f"{name}.png")
        for name in ("one", "two")
    ]
    for name, process in zip(("one", "two"), runs, strict=True):
        output, errors = finished(process)
        assert output == f"{name}.png\n"
        assert "without it" not in errors
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    found = status_of(command)
    assert (found["state"], found["keep_alive"]) == ("idle", LONG)
    sentence, _ = finished(command("worker", "status"))
    assert f"(process {found['pid']}, postcard) has been idle for" in sentence
    _, said = finished(command("worker", "stop"))
    assert said == f"The worker (process {found['pid']}) has ended.\n"
    assert json.loads(finished(command("worker", "stop", "--json"))[0])["stopped"] is False
    assert finished(command("worker", "status"))[0] == "No worker runs.\n"


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_a_run_cancels_its_image_and_not_the_worker(
    stop: signal.Signals, code: int, command: Command, tmp_path: Path
) -> None:
    slow = command("generate", "slow", "-m", "postcard", "-o", "slow.png")
    assert slow.stderr is not None
    assert "step" in slow.stderr.readline()
    busy = status_of(command)
    assert busy["state"] == "busy"
    slow.send_signal(stop)
    finished(slow, code)
    until(lambda: status_of(command)["state"] == "idle")
    assert status_of(command)["pid"] == busy["pid"]
    assert not (tmp_path / "slow.png").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["fail out_of_memory"], worker_process.failure("out_of_memory")),
        (["fail withheld"], worker_process.failure("withheld")),
        (["x", "--scheduler", "heun"], worker_process.unfit()),
    ],
    ids=str,
)
def test_exit_codes_and_errors_are_the_same(
    arguments: Sequence[str], error: T2IError, command: Command
) -> None:
    failed = command("generate", *arguments, "-m", "postcard", "-o", "x.png", "--json")
    _, errors = finished(failed, error.exit_code)
    assert json.loads(errors.splitlines()[-1])["error"] == error.to_json()


SAYS_WHAT_IT_IMPORTS = """
import os, sys
os._exit = lambda code: None
from t2i_cli.cli.main import main
main()
heavy = {"torch", "diffusers", "transformers", "httpx", "httpx2", "fastapi", "asyncio", "PIL"}
print("HEAVY", sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def test_the_real_one_makes_the_same_files_and_its_client_imports_nothing_heavy(
    command: Command, t2i: T2I, tmp_path: Path
) -> None:
    """A model that only the worker can describe, named by a relative path."""
    tiny_models.copy_postcard(tmp_path / "model")
    asked = ("generate", PROMPT, "-m", "./model", "--steps", "2", "-s", "5", "-n", "2", "--json")
    cold = t2i(*asked, "-o", "cold-{index}.png")
    assert cold.returncode == 0, cold.stderr
    for side in ("first", "second"):
        program = ("-c", SAYS_WHAT_IT_IMPORTS)
        warmed = command(*asked, "-o", f"{side}-{{index}}.png", program=program)
        output, errors = finished(warmed)
        assert "without it" not in errors
        assert ("loading ./model on cpu" in errors) == (side == "first")
        assert "step 2 of 2" in errors
        assert "HEAVY []" in errors
        told = [json.loads(line) for line in output.splitlines()]
        for ours, theirs in zip(told, map(json.loads, cold.stdout.splitlines()), strict=True):
            differs = {"path": None, "seconds": None}
            assert ours | differs == theirs | differs
            assert ours["memory"].keys() == {"weights_mib", "working_mib"}
            own = tmp_path / ours["path"]
            assert own.read_bytes() == (tmp_path / theirs["path"]).read_bytes()


# Who asks for one.


def test_generate_takes_a_worker_where_one_is_to_be_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "t2i.toml"))
    monkeypatch.delenv("T2I_KEEP_ALIVE", raising=False)
    assert isinstance(backends.chosen(worker=True, keep_alive="10m"), WorkerBackend)
    assert isinstance(backends.chosen(worker=True), LocalBackend)
    monkeypatch.setenv("T2I_KEEP_ALIVE", "1h30m")
    assert isinstance(backends.chosen(worker=True), WorkerBackend)
    assert isinstance(backends.chosen(worker=True, keep_alive="0"), LocalBackend)
    # As batch does, and --dry-run.
    assert isinstance(backends.chosen(), LocalBackend)
    with pytest.raises(InputError, match="--keep-alive must be a duration as 90s"):
        backends.chosen(worker=True, keep_alive="soon")
    with pytest.raises(InputError, match="--keep-alive means nothing to the http backend"):
        backends.chosen("http", worker=True, keep_alive="10m")


def test_a_cold_run_on_a_terminal_mentions_it_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "t2i.toml"))
    monkeypatch.delenv("T2I_KEEP_ALIVE", raising=False)
    monkeypatch.setattr(factory, "create_local_backend", lambda options: StubBackend())

    def mentioned(*options: str, live: bool = True) -> bool:
        monkeypatch.setattr(Console, "live", property(lambda self: live and not self.quiet))
        output = ("--overwrite", "-o", str(tmp_path / "x.png"))
        assert main._run(["generate", PROMPT, "-m", "postcard", *output, *options]) == 0
        return "t2i config set keep_alive" in capsys.readouterr().err

    assert not mentioned(live=False)
    assert not mentioned("--json")
    assert not mentioned("--quiet")
    assert not mentioned("--keep-alive", "0")
    assert mentioned()
    assert not mentioned()


def test_whoever_cannot_be_remembered_as_told_is_not_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").write_text("a file")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(Console, "live", True)
    tips.show_tip_once(Console())
    assert capsys.readouterr().err == ""


# Memory that a local run needs.

ROOMY = MemoryPlan(
    device="cpu",
    device_name="CPU",
    dtype="float32",
    free_mib=9,
    total_mib=9,
    weights_mib=1,
    working_mib=1,
    measures=(),
    download_mib=0,
)


@pytest.mark.parametrize("short", ["refused", "measures"])
def test_a_local_run_asks_for_room_only_where_memory_is_short(
    short: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    tight = False

    def plan(*_: object) -> MemoryPlan:
        if asked or not tight:
            return ROOMY
        if short == "refused":
            raise OutOfMemoryError("It does not fit.")
        return replace(ROOMY, measures=("vae-tiling",))

    monkeypatch.setattr(load_target, "resolve_target", lambda *_: None)
    monkeypatch.setattr(planning, "plan_memory", plan)

    def make_room() -> bool:
        asked.append("room")
        return True

    local = LocalBackend(LocalOptions(), make_room)
    [request] = requests(PROMPT)
    local.check(request)
    assert asked == []
    tight = True
    local.check(request)
    assert asked == ["room"]
    asked.clear()
    alone = LocalBackend(LocalOptions())
    if short == "refused":
        with pytest.raises(OutOfMemoryError):
            alone.check(request)
    else:
        alone.check(request)


def test_what_a_worker_sends_is_read_up_to_a_limit() -> None:
    """Whoever answers at its socket could else fill the memory with one line."""

    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - a buffer has no type
            self.given += len(buffer)
            assert self.given < 2**22
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    class Answered(WorkerExchange):
        def __init__(self) -> None:
            self._response = io.BufferedReader(Endless())  # type: ignore[assignment]

        def _translating_errors(self, unavailable: object = None) -> nullcontext[None]:  # type: ignore[override]
            return nullcontext()

    with pytest.raises(EOFError):
        next(Answered().events(2**16))
    with pytest.raises(ValueError):
        Answered().json()
