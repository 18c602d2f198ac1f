"""`t2i batch` through Ray's own proxy, as `ray start --head` runs it, and a head that is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from t2i_cli.batch import manifest

pytest.importorskip("ray")
# They start a cluster, and a model for each worker.
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]

SOURCE = Path(__file__).parent.parent
ROWS = 24


def until(reached: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def free_ports(number: int) -> list[int]:
    """Ports that nothing listens on."""
    with ExitStack() as held:
        sockets = [
            held.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
            for _ in range(number)
        ]
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Head:
    """A `ray start --head` with its processes, and the environment of the commands beside it."""

    process: subprocess.Popen[bytes]
    address: str
    env: dict[str, str]

    def processes(self, name: str) -> list[psutil.Process]:
        """Its processes of that name, or with it in their command."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if name in child.name() or name in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def workers(self) -> list[psutil.Process]:
        """The processes of t2i's actors."""
        return self.processes("ray::T2IWorker")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head with two CPUs, which listens for Ray's clients behind Ray's own proxy."""
    # The paths of Ray's sockets are short of what a path may have.
    folder = Path(tmp_path_factory.mktemp("r"))
    env = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    env |= {"HOME": str(folder), "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    port, client = free_ports(2)
    command = ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2"]
    command += ["--num-gpus", "0", "--port", str(port), "--ray-client-server-port", str(client)]
    command += ["--include-dashboard", "false", "--object-store-memory", str(2**28)]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        env=env,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: is_listening(client) or process.poll() is not None)
        assert process.poll() is None
        yield Head(process, f"ray://127.0.0.1:{client}", env)
    finally:
        begun = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for one in [*begun, process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def is_listening(port: int) -> bool:
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 1)):
        return True
    return False


def batch(head: Head, folder: Path) -> "subprocess.Popen[str]":
    """A batch of ROWS images on two workers of the head, in a process group of its own."""
    source = folder / "prompts.txt"
    source.write_text("\n".join(f"a red star {number}" for number in range(ROWS)))
    options = ["-m", "postcard", "--steps", "4", "--batch-size", "1", "--device", "cpu"]
    options += ["--backend", "ray", "--workers", "2", "--address", head.address, "-o", "out"]
    return subprocess.Popen(
        [sys.executable, "-m", "t2i_cli", "batch", str(source), *options],
        env=head.env,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def await_images(process: "subprocess.Popen[str]", images: int = 1) -> None:
    assert process.stdout
    for _ in range(images):
        assert process.stdout.readline().startswith("out/")


def made(folder: Path) -> list[str]:
    """The files of the manifest's lines of images, each of which is there once."""
    lines = manifest.read_records(folder / "out" / "manifest.jsonl")
    files = [str(line["file"]) for line in lines if line and line.get("status") == "done"]
    assert len(files) == len(set(files))
    assert {path.name for path in (folder / "out").glob("*.png")} == set(files)
    return files


def finish(head: Head, folder: Path) -> str:
    """Run the batch to its end; what it told."""
    process = batch(head, folder)
    _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert len(made(folder)) == ROWS
    return told


def test_a_killed_driver_leaves_no_actor_behind_the_proxy(head: Head, tmp_path: Path) -> None:
    process = batch(head, tmp_path)
    await_images(process)
    assert head.workers()
    process.kill()
    process.communicate()
    # Ray's server waits 30 s for its client to come back.
    until(lambda: not head.workers())
    assert len(made(tmp_path)) < ROWS
    finish(head, tmp_path)
    until(lambda: not head.workers())


def test_ctrl_c_once_finishes_what_is_in_progress(head: Head, tmp_path: Path) -> None:
    process = batch(head, tmp_path)
    await_images(process)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "Run the same command again to go on" in told
    assert 0 < len(made(tmp_path)) < ROWS
    until(lambda: not head.workers())


def test_ctrl_c_twice_ends_at_once(head: Head, tmp_path: Path) -> None:
    process = batch(head, tmp_path)
    await_images(process)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    made(tmp_path)
    until(lambda: not head.workers())


def test_a_connection_that_breaks_is_made_again(head: Head, tmp_path: Path) -> None:
    process = batch(head, tmp_path)
    await_images(process)
    (server,) = [
        one for one in head.processes("specific-server") if one.status() != psutil.STATUS_ZOMBIE
    ]
    server.kill()
    _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert "The connection to Ray was lost" in told
    assert len(made(tmp_path)) == ROWS


# The last: the head's node is gone afterwards.
def test_a_head_that_is_killed_ends_the_run_with_one_sentence(head: Head, tmp_path: Path) -> None:
    process = batch(head, tmp_path)
    await_images(process)
    for one in psutil.Process(head.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    head.process.kill()
    _, told = process.communicate(timeout=400)
    assert process.returncode in {6, 8}, told
    assert "Run the same command again to go on" in told
    assert "Traceback" not in told
    made(tmp_path)
