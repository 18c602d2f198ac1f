"""Whom the worker's state has t2i signal: tried where there is nobody else to be hit.

All of it runs in a PID namespace of its own, in which -1 is every process of the test's.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import T2I

ALONE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.fixture(scope="module", autouse=True)
def permitted() -> None:
    """Skip where no namespace can be made."""
    try:
        made = subprocess.run([*ALONE, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("There is no unshare here.")
    if made.returncode:
        pytest.skip(f"No PID namespace can be made: {made.stderr.decode()}")


def alone(code: str, folder: Path, env: dict[str, str]) -> str:
    """What Python prints, run as process 1 of a namespace that ends with it."""
    command = [*ALONE, sys.executable, "-c", code, str(folder)]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, timeout=120, cwd=folder
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


PLANTED = """
import json, os, subprocess, sys, threading, time
from pathlib import Path
from t2i_cli.worker import control, process_proof
from t2i_cli.worker.state import RuntimeDir

place = RuntimeDir(Path(sys.argv[1]) / "t2i")
place.folder.mkdir(mode=0o700)
state = place.folder / "worker.json"
token = "a" * 40
idle = [sys.executable, "-c", "import time; time.sleep(600)"]
plain = subprocess.Popen(idle)
proven = subprocess.Popen([*idle, process_proof.token_digest(token)])
own = subprocess.Popen([*idle, process_proof.token_digest("b" * 40)])

def says(pid, **more):
    return {"pid": pid, "identity": "x", "version": "1", "model": "m", **more}

began = process_proof.start_time(proven.pid)
states = {
    "everybody": says(-1),
    "its group": says(0),
    "the first": says(1),
    "a float": says(float(plain.pid)),
    "text": says(str(plain.pid)),
    "true": says(True),
    "huge": says(2**80),
    "an earlier version's": says(plain.pid),
    "no token": says(proven.pid, started=began),
    "no start": says(proven.pid, token=token),
    "another start": says(proven.pid, token=token, started=began + 60),
    "another token": says(proven.pid, token="c" * 40, started=began),
    "another process": says(own.pid, token=token, started=process_proof.start_time(own.pid)),
    "not of its argument": says(
        plain.pid, token=token, started=process_proof.start_time(plain.pid)
    ),
}
for name, said in states.items():
    locked, gone = threading.Event(), threading.Event()

    def live():
        # As a worker that is sound: it leaves where it cannot be found.
        with place.lifetime_lock():
            state.write_text(json.dumps(said))
            locked.set()
            while state.exists():
                time.sleep(0.02)
        gone.set()

    thread = threading.Thread(target=live)
    thread.start()
    locked.wait()
    if name in ("everybody", "its group", "an earlier version's"):
        stop = [sys.executable, "-m", "t2i_cli", "worker", "stop"]
        done = subprocess.run(stop, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (name, done)
        assert done.stderr.startswith("The worker"), (name, done)
    else:
        assert control.stop_worker() is not None, name
    thread.join()
    for process in (plain, proven, own):
        assert process.poll() is None, name
print("all alive")
"""


def test_no_process_but_the_worker_is_signalled(t2i_env: dict[str, str], tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    env = t2i_env | {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert alone(PLANTED, tmp_path, env) == "all alive\n"


PROVEN = """
import os, signal, subprocess, sys
from pathlib import Path
from t2i_cli.worker import process_proof

lock = Path(sys.argv[1]) / "worker.lock"
lock.touch()
token = "a" * 40
for fds in (True, False):
    if not fds and hasattr(os, "pidfd_open"):
        del os.pidfd_open  # as on macOS
    code = "import time; time.sleep(600)"
    # Its line tells that the kernel shows its arguments: just after exec they may still be none.
    worker = subprocess.Popen(
        [sys.executable, "-uc", f"print(); {code}", process_proof.token_digest(token)],
        stdout=subprocess.PIPE,
    )
    worker.stdout.readline()
    began = process_proof.start_time(worker.pid)
    assert not process_proof.send_signal(signal.SIGKILL, worker.pid, began, "b", lock)
    assert not process_proof.send_signal(signal.SIGKILL, worker.pid, None, None, lock)
    assert process_proof.send_signal(signal.SIGSTOP, worker.pid, began, token, lock)
    assert process_proof.send_signal(signal.SIGKILL, worker.pid, began, token, lock)
    assert worker.wait() == -signal.SIGKILL
    assert not process_proof.send_signal(signal.SIGKILL, worker.pid, began, token, lock)
    for nobody in (-1, 0, 1, os.getpid()):
        assert not process_proof.send_signal(signal.SIGKILL, nobody, began, token, lock)
    other = subprocess.Popen(
        [sys.executable, "-u", "-c", f"import sys; f = open(sys.argv[1]); print(); {code}", lock],
        stdout=subprocess.PIPE,
    )
    other.stdout.readline()
    assert not process_proof.send_signal(signal.SIGKILL, other.pid, None, None, lock)
    # The module's name in the version that wrote no token.
    command = [*other.args, "t2i_cli.worker.process"]
    earlier = subprocess.Popen(command, stdout=subprocess.PIPE)
    earlier.stdout.readline()
    assert process_proof.send_signal(signal.SIGKILL, earlier.pid, None, None, lock)
    assert earlier.wait() == -signal.SIGKILL
print("done")
"""


def test_the_worker_is_signalled_sound_or_hung(t2i_env: dict[str, str], tmp_path: Path) -> None:
    assert alone(PROVEN, tmp_path, t2i_env) == "done\n"


@pytest.mark.parametrize("said", ['{"pid": -1}', "[" * 100_000, "\xff", ""])
def test_a_damaged_state_of_nobody_is_nothing(t2i: T2I, tmp_path: Path, said: str) -> None:
    folder = tmp_path / "run" / "t2i"
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o700)
    (folder / "worker.json").write_text(said, encoding="latin-1")
    env = {"XDG_RUNTIME_DIR": str(folder.parent)}
    told = t2i("worker", "status", env=env)
    assert (told.returncode, told.stdout) == (0, "No worker runs.\n")
    assert t2i("worker", "stop", env=env).stderr == "No worker runs.\n"
