"""Finds a run's worker: uses a matching one, or starts one and shuts another down."""

import json
import os
import secrets
import signal
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from t2i_cli.files.state_files import open_regular
from t2i_cli.library_environment import environment_of_children
from t2i_cli.worker import process_proof
from t2i_cli.worker.answers import worker_activity
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
"""Routes of a worker's status and model spec, beside those of the t2i dialect."""
DAEMON_MODULE = "t2i_cli.worker.daemon"
"""The module that a worker's process runs."""


def get_or_spawn(spec: WorkerSpec, keep_alive: float) -> tuple[RuntimeDir, WorkerState]:
    """A worker for `spec` that accepts connections; started, or replacing another, if needed.

    Raises WorkerUnavailableError if none can be used within START_TIMEOUT.
    """
    runtime_dir, identity = RuntimeDir.find(), spec.fingerprint()
    state = runtime_dir.state()
    if state and state.identity == identity and can_connect(state):
        return runtime_dir, state
    from filelock import Timeout

    try:
        with runtime_dir.start_lock().acquire(timeout=START_TIMEOUT):
            return runtime_dir, _spawn_under_lock(runtime_dir, spec, identity, keep_alive)
    except Timeout as error:
        raise WorkerUnavailableError(
            "Another run's warm worker takes too long to start."
        ) from error


def shut_down(runtime_dir: RuntimeDir) -> bool:
    """Shut the worker down unless it is busy; return whether there is none any more."""
    state = runtime_dir.state()
    if not runtime_dir.is_alive():
        return True
    if state and state.listening:
        try:
            with WorkerExchange(runtime_dir, state, STATUS_PATH) as exchange:
                if worker_activity(exchange).idle is None:
                    return False
        except WorkerUnresponsiveError:
            return runtime_dir.kill()
        except WorkerUnavailableError:
            # It is exiting.
            return runtime_dir.wait_for_exit(EXIT_TIMEOUT)
    if state is None or not runtime_dir.signal(state, signal.SIGTERM):
        runtime_dir.remove_state()
    return runtime_dir.wait_for_exit(EXIT_TIMEOUT) or runtime_dir.kill()


def evict_idle_worker() -> bool:
    """Shut an idle worker down to free its memory; return whether one was."""
    try:
        runtime_dir = RuntimeDir.find()
    except WorkerUnavailableError:
        return False
    state = runtime_dir.state()
    if state is None or not runtime_dir.is_alive():
        return False
    if not state.listening and not runtime_dir.is_unresponsive(state):
        return False  # another run is starting it
    return shut_down(runtime_dir)


def _spawn_under_lock(
    runtime_dir: RuntimeDir, spec: WorkerSpec, identity: str, keep_alive: float
) -> WorkerState:
    state = runtime_dir.state()
    if (
        state
        and state.identity == identity
        and runtime_dir.is_alive()
        and not runtime_dir.is_unresponsive(state)
    ):
        # Another run has started it meanwhile, or was suspended while starting it.
        if not state.listening or can_connect(state):
            return _wait_until_listening(runtime_dir, identity, None)
    if not shut_down(runtime_dir):
        raise WorkerUnavailableError("The warm worker is at work for other runs.")
    runtime_dir.clear()
    return _wait_until_listening(
        runtime_dir, identity, _spawn(runtime_dir, spec, identity, keep_alive)
    )


def _spawn(
    runtime_dir: RuntimeDir, spec: WorkerSpec, identity: str, keep_alive: float
) -> "subprocess.Popen[bytes]":
    """Start a worker process that outlives this process and its terminal."""
    import subprocess

    token = secrets.token_urlsafe(32)
    config = {
        "folder": str(runtime_dir.folder),
        "identity": identity,
        "model": spec.model,
        "revision": spec.revision,
        "parts": spec.parts,
        "options": asdict(spec.options),
        "keep_alive": keep_alive,
        "proof": process_proof.token_digest(token),
    }
    needs_cwd = spec.has_relative_paths
    detached = getattr(subprocess, "DETACHED_PROCESS", 0)
    try:
        log = open_regular(runtime_dir.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    except OSError as error:
        raise WorkerUnavailableError(f"The warm worker has no log: {error}.") from error
    try:
        os.ftruncate(log, 0)
        return subprocess.Popen(  # noqa: S603
            # -P: modules in the working directory must not shadow the libraries.
            [sys.executable, "-P", "-m", DAEMON_MODULE, json.dumps(config)],
            # Not the user's working directory, which may be on a disk to be unmounted.
            cwd=None if needs_cwd else runtime_dir.folder,
            env=environment_of_children() | {process_proof.TOKEN_VARIABLE: token},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            creationflags=detached,
        )
    finally:
        os.close(log)


def _wait_until_listening(
    runtime_dir: RuntimeDir, identity: str, process: "subprocess.Popen[bytes] | None"
) -> WorkerState:
    """Wait for the worker to listen; return its state. Raises WorkerUnavailableError.

    `process` is the worker's if this process started it.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        state = runtime_dir.state()
        if state and state.identity == identity and state.listening:
            if process is not None:
                # It outlives this process; without a returncode Popen would warn.
                process.returncode = 0
            return state
        if process.poll() is not None if process else not runtime_dir.is_alive():
            raise WorkerUnavailableError(
                f"The warm worker could not start; '{runtime_dir.log}' may tell why."
            )
        time.sleep(0.02)
    if process:
        process.kill()
        process.wait()
    raise WorkerUnavailableError(
        f"The warm worker takes too long to start; '{runtime_dir.log}' may tell why."
    )
