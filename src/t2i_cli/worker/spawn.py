"""Finding the worker that a run wants: the one that is there, or a new one in its place."""

import json
import os
import secrets
import signal
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from t2i_cli.output.state_files import open_regular
from t2i_cli.worker import process_proof
from t2i_cli.worker.client import Exchange, reachable
from t2i_cli.worker.fingerprint import Wanted
from t2i_cli.worker.state import LEAVING, STARTING, HungError, Place, State, UnusableError

if TYPE_CHECKING:
    import subprocess

STATUS_PATH = "/t2i/v1/worker"
MODEL_PATH = f"{STATUS_PATH}/model"
"""Where a worker tells how it is, and what its model is: of its own, beside the native dialect."""
MODULE = "t2i_cli.worker.daemon"
"""What a worker's process runs."""


def hire(wanted: Wanted, keep_alive: float) -> tuple[Place, State]:
    """The worker that is wanted, taking connections; started, or in another's place, if need be.

    Raises UnusableError where there is none to be had soon.
    """
    place, identity = Place.find(), wanted.identity()
    state = place.state()
    if state and state.identity == identity and reachable(state):
        return place, state
    from filelock import Timeout

    try:
        with place.starting().acquire(timeout=STARTING):
            return place, _replaced(place, wanted, identity, keep_alive)
    except Timeout as error:
        raise UnusableError("Another run's warm worker takes too long to start.") from error


def retire(place: Place) -> bool:
    """Have the worker leave unless it is at work; whether there is none any more."""
    state = place.state()
    if not place.alive():
        return True
    if state and state.listening:
        try:
            with Exchange(place, state, STATUS_PATH) as exchange:
                if exchange.ok and exchange.json()["idle"] is None:
                    return False
        except HungError:
            return place.kill()
        except UnusableError:
            # It is on its way out.
            return place.gone(within=LEAVING)
    if state is None or not place.signal(state, signal.SIGTERM):
        place.forget()
    return place.gone(within=LEAVING) or place.kill()


def make_room() -> bool:
    """Have an idle worker leave, for the memory that it holds; whether one did."""
    try:
        place = Place.find()
    except UnusableError:
        return False
    state = place.state()
    if state is None or not place.alive():
        return False
    if not state.listening and not place.hung(state):
        return False  # another run has just started it
    return retire(place)


def _replaced(place: Place, wanted: Wanted, identity: str, keep_alive: float) -> State:
    state = place.state()
    if state and state.identity == identity and place.alive() and not place.hung(state):
        # Another run has started it meanwhile, or was stopped while it did.
        if not state.listening or reachable(state):
            return _listening(place, identity, None)
    if not retire(place):
        raise UnusableError("The warm worker is at work for other runs.")
    place.clear()
    return _listening(place, identity, _start(place, wanted, identity, keep_alive))


def _start(
    place: Place, wanted: Wanted, identity: str, keep_alive: float
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
        "proof": process_proof.proof(token),
    }
    relative = wanted.folder is not None and not wanted.folder.is_absolute()
    detached = getattr(subprocess, "DETACHED_PROCESS", 0)
    try:
        log = open_regular(place.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    except OSError as error:
        raise UnusableError(f"The warm worker has no log: {error}.") from error
    try:
        os.ftruncate(log, 0)
        return subprocess.Popen(  # noqa: S603
            # Without -P, modules in the folder it runs in would come before the libraries'.
            [sys.executable, "-P", "-m", MODULE, json.dumps(order)],
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


def _listening(place: Place, identity: str, process: "subprocess.Popen[bytes] | None") -> State:
    """Wait for a worker to listen."""
    end = time.monotonic() + STARTING
    while time.monotonic() < end:
        state = place.state()
        if state and state.identity == identity and state.listening:
            if process is not None:
                # It is nobody's child to wait for; Popen would warn of that.
                process.returncode = 0
            return state
        if process.poll() is not None if process else not place.alive():
            raise UnusableError(f"The warm worker could not start; '{place.log}' may tell why.")
        time.sleep(0.02)
    if process:
        process.kill()
        process.wait()
    raise UnusableError(f"The warm worker takes too long to start; '{place.log}' may tell why.")
