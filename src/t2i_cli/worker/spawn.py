"""Finding the worker that a run wants: the one that is there, or a new one in its place."""

import json
import os
import secrets
import signal
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from t2i_cli.files.state_files import open_regular
from t2i_cli.worker import process_proof
from t2i_cli.worker.client import WorkerExchange, can_connect
from t2i_cli.worker.fingerprint import WorkerSpec
from t2i_cli.worker.state import (
    EXIT_TIMEOUT,
    START_TIMEOUT,
    RuntimeDir,
    WorkerState,
    WorkerUnavailableError,
    WorkerUnresponsiveError,
)

if TYPE_CHECKING:
    import subprocess

STATUS_PATH = "/t2i/v1/worker"
MODEL_PATH = f"{STATUS_PATH}/model"
"""Where a worker tells how it is, and what its model is: of its own, beside the native dialect."""
DAEMON_MODULE = "t2i_cli.worker.daemon"
"""What a worker's process runs."""


def get_or_spawn(wanted: WorkerSpec, keep_alive: float) -> tuple[RuntimeDir, WorkerState]:
    """The worker that is wanted, taking connections; started, or in another's place, if need be.

    Raises UnusableError where there is none to be had soon.
    """
    place, identity = RuntimeDir.find(), wanted.fingerprint()
    state = place.state()
    if state and state.identity == identity and can_connect(state):
        return place, state
    from filelock import Timeout

    try:
        with place.start_lock().acquire(timeout=START_TIMEOUT):
            return place, _replaced(place, wanted, identity, keep_alive)
    except Timeout as error:
        raise WorkerUnavailableError(
            "Another run's warm worker takes too long to start."
        ) from error


def shut_down(place: RuntimeDir) -> bool:
    """Have the worker leave unless it is at work; whether there is none any more."""
    state = place.state()
    if not place.is_alive():
        return True
    if state and state.listening:
        try:
            with WorkerExchange(place, state, STATUS_PATH) as exchange:
                if exchange.ok and exchange.json()["idle"] is None:
                    return False
        except WorkerUnresponsiveError:
            return place.kill()
        except WorkerUnavailableError:
            # It is on its way out.
            return place.wait_gone(within=EXIT_TIMEOUT)
    if state is None or not place.signal(state, signal.SIGTERM):
        place.forget()
    return place.wait_gone(within=EXIT_TIMEOUT) or place.kill()


def evict_idle_worker() -> bool:
    """Have an idle worker leave, for the memory that it holds; whether one did."""
    try:
        place = RuntimeDir.find()
    except WorkerUnavailableError:
        return False
    state = place.state()
    if state is None or not place.is_alive():
        return False
    if not state.listening and not place.is_unresponsive(state):
        return False  # another run has just started it
    return shut_down(place)


def _replaced(
    place: RuntimeDir, wanted: WorkerSpec, identity: str, keep_alive: float
) -> WorkerState:
    state = place.state()
    if (
        state
        and state.identity == identity
        and place.is_alive()
        and not place.is_unresponsive(state)
    ):
        # Another run has started it meanwhile, or was stopped while it did.
        if not state.listening or can_connect(state):
            return _listening(place, identity, None)
    if not shut_down(place):
        raise WorkerUnavailableError("The warm worker is at work for other runs.")
    place.clear()
    return _listening(place, identity, _start(place, wanted, identity, keep_alive))


def _start(
    place: RuntimeDir, wanted: WorkerSpec, identity: str, keep_alive: float
) -> "subprocess.Popen[bytes]":
    """Start a worker that outlives this process and its terminal."""
    import subprocess

    token = secrets.token_urlsafe(32)
    order = {
        "folder": str(place.folder),
        "identity": identity,
        "model": wanted.model,
        "revision": wanted.revision,
        "options": asdict(wanted.options),
        "keep_alive": keep_alive,
        "proof": process_proof.token_digest(token),
    }
    relative = wanted.folder is not None and not wanted.folder.is_absolute()
    detached = getattr(subprocess, "DETACHED_PROCESS", 0)
    try:
        log = open_regular(place.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    except OSError as error:
        raise WorkerUnavailableError(f"The warm worker has no log: {error}.") from error
    try:
        os.ftruncate(log, 0)
        return subprocess.Popen(  # noqa: S603
            # Without -P, modules in the folder it runs in would come before the libraries'.
            [sys.executable, "-P", "-m", DAEMON_MODULE, json.dumps(order)],
            # Elsewhere than in the user's folder, which may lie on a disk to be taken out.
            cwd=None if relative else place.folder,
            env=os.environ | {process_proof.TOKEN_VARIABLE: token},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            creationflags=detached,
        )
    finally:
        os.close(log)


def _listening(
    place: RuntimeDir, identity: str, process: "subprocess.Popen[bytes] | None"
) -> WorkerState:
    """Wait for a worker to listen."""
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end:
        state = place.state()
        if state and state.identity == identity and state.listening:
            if process is not None:
                # It is nobody's child to wait for; Popen would warn of that.
                process.returncode = 0
            return state
        if process.poll() is not None if process else not place.is_alive():
            raise WorkerUnavailableError(
                f"The warm worker could not start; '{place.log}' may tell why."
            )
        time.sleep(0.02)
    if process:
        process.kill()
        process.wait()
    raise WorkerUnavailableError(
        f"The warm worker takes too long to start; '{place.log}' may tell why."
    )
