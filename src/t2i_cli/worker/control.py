"""What a user asks of the worker: how it is, and to end."""

import signal
from dataclasses import asdict, dataclass, replace
from typing import Literal

from t2i_cli import durations
from t2i_cli.errors import InputError, TimedOutError
from t2i_cli.worker.client import WorkerExchange
from t2i_cli.worker.spawn import STATUS_PATH
from t2i_cli.worker.state import RuntimeDir, WorkerUnavailableError, WorkerUnresponsiveError


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """How the worker is; what does not fit its state is `None`. Times are seconds."""

    state: Literal["none", "starting", "idle", "busy", "hung"]
    pid: int | None = None
    version: str | None = None
    model: str | None = None
    idle: float | None = None
    keep_alive: float | None = None
    waiting: int | None = None

    def to_json(self) -> dict[str, object]:
        """As --json prints it."""
        return {"running": self.state != "none", **asdict(self)}

    def sentence(self) -> str:
        """As it is told to people."""
        who = f"The worker (process {self.pid}, {self.model})"
        match self.state:
            case "none":
                return "No worker runs."
            case "starting":
                return f"{who} is starting."
            case "hung":
                return f"{who} does not answer; `t2i worker stop` ends it."
            case "busy":
                waiting = f", with {self.waiting} more waiting" if self.waiting else ""
                return f"{who} is at work{waiting}."
        left = durations.format_duration(max(0, (self.keep_alive or 0) - (self.idle or 0)))
        idle = durations.format_duration(self.idle or 0)
        return f"{who} has been idle for {idle}; it leaves in {left}."


def worker_status() -> WorkerStatus:
    """How the worker is.

    Raises InputError if its folder is not the user's own, or what it says of itself is damaged.
    """
    place = _place()
    state = place.state()
    if not place.is_alive():
        return WorkerStatus(state="none")
    if state is None:
        if place.damaged:
            raise InputError(
                f"What the worker says of itself in '{place.folder}' cannot be read.",
                hint="`t2i worker stop` ends it.",
            )
        return WorkerStatus(state="none")
    known = WorkerStatus(state="starting", pid=state.pid, version=state.version, model=state.model)
    if place.is_unresponsive(state):
        return replace(known, state="hung")
    if not state.listening:
        return known
    try:
        with WorkerExchange(place, state, STATUS_PATH) as exchange:
            answer = exchange.json()
            if not exchange.ok:
                raise WorkerUnavailableError("The warm worker does not tell how it is.")
    except WorkerUnresponsiveError:
        return replace(known, state="hung")
    except WorkerUnavailableError:
        return WorkerStatus(state="none")
    idle = answer["idle"]
    return replace(
        known,
        state="busy" if idle is None else "idle",
        idle=None if idle is None else round(idle, 1),
        keep_alive=answer["keep_alive"],
        waiting=answer["waiting"],
    )


def stop_worker() -> int | None:
    """End the worker: at once if it is idle or hung; what runs has 30 seconds.

    Its process id, 0 if it did not tell, None where there is no worker. Raises InputError if its
    folder is not the user's own, and TimedOutError if it does not end.
    """
    place = _place()
    state = place.state()
    if not place.is_alive():
        return None
    if state is None or not place.is_unresponsive(state):
        if state is None or not place.signal(state, signal.SIGTERM):
            # Not the process that is named there; a worker that cannot be found leaves by itself.
            place.forget()
        # The server gives what runs 30 seconds, and those who asked for it 5.
        place.wait_gone(within=40)
    if not place.kill():
        raise TimedOutError(
            "The worker does not end, and does not tell which process it is.",
            hint=f"It holds the lock '{place.lifetime_lock().lock_file}'.",
        )
    return state.pid if state else 0


def _place() -> RuntimeDir:
    try:
        return RuntimeDir.find()
    except WorkerUnavailableError as error:
        raise InputError(str(error), hint="It must be the user's own, with mode 0700.") from error
