"""`t2i worker status` and `t2i worker stop`."""

import signal
from dataclasses import asdict, dataclass, replace
from typing import Literal

from t2i_cli import durations
from t2i_cli.errors import InputError, TimedOutError
from t2i_cli.terminal.console import escape_controls
from t2i_cli.worker.answers import worker_activity
from t2i_cli.worker.client import WorkerExchange
from t2i_cli.worker.spawn import STATUS_PATH
from t2i_cli.worker.state import RuntimeDir, WorkerUnavailableError, WorkerUnresponsiveError


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """The worker's status; what does not apply to its state is `None`. Times are in seconds."""

    state: Literal["none", "starting", "idle", "busy", "hung"]
    pid: int | None = None
    version: str | None = None
    model: str | None = None
    idle: float | None = None
    keep_alive: float | None = None
    waiting: int | None = None

    def to_json(self) -> dict[str, object]:
        """The object that --json prints."""
        return {"running": self.state != "none", **asdict(self)}

    def sentence(self) -> str:
        """The status as a sentence."""
        subject = f"The worker (process {self.pid}, {escape_controls(str(self.model))})"
        match self.state:
            case "none":
                return "No worker runs."
            case "starting":
                return f"{subject} is starting."
            case "hung":
                return f"{subject} does not answer; `t2i worker stop` ends it."
            case "busy":
                waiting = f", with {self.waiting} more waiting" if self.waiting else ""
                return f"{subject} is at work{waiting}."
        left = durations.format_duration(max(0, (self.keep_alive or 0) - (self.idle or 0)))
        idle = durations.format_duration(self.idle or 0)
        return f"{subject} has been idle for {idle}; it leaves in {left}."


def worker_status() -> WorkerStatus:
    """The worker's status.

    Raises InputError if the runtime directory is not the user's own, or the state file is damaged.
    """
    runtime_dir = _find_runtime_dir()
    state = runtime_dir.state()
    if not runtime_dir.is_alive():
        return WorkerStatus(state="none")
    if state is None:
        if runtime_dir.damaged:
            raise InputError(
                f"What the worker says of itself in '{runtime_dir.folder}' cannot be read.",
                hint="`t2i worker stop` ends it.",
            )
        return WorkerStatus(state="none")
    known = WorkerStatus(state="starting", pid=state.pid, version=state.version, model=state.model)
    if runtime_dir.is_unresponsive(state):
        return replace(known, state="hung")
    if not state.listening:
        return known
    try:
        with WorkerExchange(runtime_dir, state, STATUS_PATH) as exchange:
            activity = worker_activity(exchange)
    except WorkerUnresponsiveError:
        return replace(known, state="hung")
    except WorkerUnavailableError:
        return WorkerStatus(state="none")
    idle = activity.idle
    return replace(
        known,
        state="busy" if idle is None else "idle",
        idle=None if idle is None else round(idle, 1),
        keep_alive=activity.keep_alive,
        waiting=activity.waiting,
    )


def stop_worker() -> int | None:
    """Stop the worker: at once if it is idle or hung, else after at most 30 s for running jobs.

    Returns its process id, 0 if that is unknown, None if there is no worker. Raises InputError if
    the runtime directory is not the user's own, TimedOutError if the worker does not end.
    """
    runtime_dir = _find_runtime_dir()
    state = runtime_dir.state()
    if not runtime_dir.is_alive():
        return None
    if state is None or not runtime_dir.is_unresponsive(state):
        if state is None or not runtime_dir.signal(state, signal.SIGTERM):
            # The process is not known; a worker exits when its state file is removed.
            runtime_dir.remove_state()
        # The server allows running jobs 30 s, and clients 5 s to read their responses.
        runtime_dir.wait_for_exit(40)
    if not runtime_dir.kill():
        raise TimedOutError(
            "The worker does not end, and does not tell which process it is.",
            hint=f"It holds the lock '{runtime_dir.lifetime_lock().lock_file}'.",
        )
    return state.pid if state else 0


def _find_runtime_dir() -> RuntimeDir:
    try:
        return RuntimeDir.find()
    except WorkerUnavailableError as error:
        raise InputError(str(error), hint="It must be the user's own, with mode 0700.") from error
