"""Where the worker is found: its folder, what it says of itself there, its locks and its heart.

A user has one worker at most: it holds the lock `worker.lock` as long as it lives, which the system
drops however it dies. Whoever starts or replaces one holds `start.lock` meanwhile.
"""

import json
import os
import signal
import stat
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

from t2i_cli.files.state_files import (
    is_amount,
    is_count,
    is_text,
    read_json,
    remove_socket,
    replace_text,
)

if TYPE_CHECKING:
    from filelock import BaseFileLock

HEARTBEAT_INTERVAL = 1.0
"""Seconds between two beats of a worker's heart: the time of its state file is set anew."""
UNRESPONSIVE_AFTER = 10.0
"""Seconds without a beat after which a silent worker counts as hung."""
START_TIMEOUT = 30.0
"""The same of one that is not warm yet; and what it may take until it listens, mostly one."""
EXIT_TIMEOUT = 5.0
"""Seconds in which a worker that is leaving is gone."""
_LOCKS = ("worker.lock", "start.lock")
_SOCKET = "worker.sock"
_MAX_PID = 2**31 - 1
_MAX_SOCKET = 103
"""Bytes of a Unix socket's path on macOS; Linux has 107 (sun_path in sys/un.h)."""


class WorkerUnavailableError(Exception):
    """No worker can be used now, and why; never seen by users, as the run goes on without one."""


class WorkerUnresponsiveError(WorkerUnavailableError):
    """The worker at `place` has a heart that stopped: it holds its memory until it is killed."""

    def __init__(self, place: "RuntimeDir") -> None:
        super().__init__("The warm worker hung, and was ended.")
        self.place = place


class WorkerExitingError(WorkerUnavailableError):
    """The worker at `place` left just as it was asked, before it made anything."""

    def __init__(self, place: "RuntimeDir") -> None:
        super().__init__("The warm worker has ended.")
        self.place = place


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """What a worker says of itself; it listens on `socket`, or on loopback's `port` with `secret`.

    Neither is there before it listens. `warm` says that it is past its libraries' imports, which
    can keep its heart from beating for a while. `started` (see `processes`) and `token` tell it
    from any other process of that id; earlier versions wrote neither.
    """

    pid: int
    identity: str
    version: str
    model: str
    socket: str | None = None
    port: int | None = None
    secret: str | None = field(default=None, repr=False)
    warm: bool = False
    started: float | None = None
    token: str | None = field(default=None, repr=False)

    @property
    def listening(self) -> bool:
        """Whether it can be connected to."""
        return bool(self.socket or self.port)


class RuntimeDir:
    """The folder of one user's worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "worker.log"
        self._state = folder / "worker.json"

    @classmethod
    def find(cls) -> Self:
        """The folder in the user's runtime folder, made if it is missing, and nobody else's.

        Raises UnusableError if it is another user's, or open to others.
        """
        from platformdirs import user_runtime_path

        try:
            with warnings.catch_warnings():
                # Without XDG_RUNTIME_DIR; the folder it gives then is checked like any other.
                warnings.simplefilter("ignore")
                parent = user_runtime_path(ensure_exists=True)
            folder = parent / "t2i"
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            found = folder.lstat()
        except OSError as error:
            raise WorkerUnavailableError(
                f"No folder for a warm worker can be made: {error}."
            ) from error
        if not stat.S_ISDIR(found.st_mode):
            raise WorkerUnavailableError(f"The warm worker's folder '{folder}' is no folder.")
        if sys.platform != "win32" and found.st_uid != os.getuid():
            raise WorkerUnavailableError(f"The warm worker's folder '{folder}' is another user's.")
        if sys.platform != "win32" and found.st_mode & 0o077:
            raise WorkerUnavailableError(
                f"The warm worker's folder '{folder}' is open to others "
                f"(mode {stat.S_IMODE(found.st_mode):04o})."
            )
        place = cls(folder)
        place._check_contents()
        return place

    def _check_contents(self) -> None:
        """Raise UnusableError for a link, or anything else that no worker leaves."""
        kinds = dict.fromkeys((*_LOCKS, self.log.name, self._state.name), stat.S_IFREG)
        for name, kind in (kinds | {_SOCKET: stat.S_IFSOCK}).items():
            with suppress(FileNotFoundError):
                found = os.lstat(self.folder / name)
                if stat.S_IFMT(found.st_mode) != kind:
                    raise WorkerUnavailableError(
                        f"'{self.folder / name}' is not what a warm worker leaves there."
                    )

    @property
    def socket(self) -> Path | None:
        """Where to listen, if this system has Unix sockets and the path is not too long."""
        import socket

        path = self.folder / _SOCKET
        short = len(os.fsencode(path)) <= _MAX_SOCKET
        return path if hasattr(socket, "AF_UNIX") and short else None

    def state(self) -> WorkerState | None:
        """What the worker last said of itself, dead or alive; None if it cannot be read."""
        try:
            found = read_json(self._state)
        except (OSError, ValueError):
            return None
        return _state(found, self.folder) if isinstance(found, dict) else None

    @property
    def damaged(self) -> bool:
        """Whether what a worker said of itself cannot be read."""
        return self.state() is None and os.path.lexists(self._state)

    def write(self, state: WorkerState) -> None:
        """Say something of oneself, whole or not at all."""
        replace_text(self._state, json.dumps(asdict(state)))

    def clear(self) -> None:
        """Remove what a worker leaves behind."""
        self.forget()
        remove_socket(self.folder / _SOCKET)

    def forget(self) -> None:
        """Remove what a worker said of itself: one whose event loop runs leaves then."""
        with suppress(FileNotFoundError):
            self._state.unlink()

    def heartbeat(self) -> bool:
        """Show that the worker's event loop runs; whether it can still be found here."""
        try:
            os.utime(self._state, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def is_unresponsive(self, state: WorkerState) -> bool:
        """Whether the worker's heart has not beaten for too long."""
        try:
            silent = time.time() - self._state.lstat().st_mtime
        except FileNotFoundError:  # it has left
            return False
        return silent > (UNRESPONSIVE_AFTER if state.warm else START_TIMEOUT)

    def lifetime_lock(self) -> "BaseFileLock":
        """The lock that a worker holds as long as it lives."""
        from filelock import FileLock

        return FileLock(self.folder / _LOCKS[0], mode=0o600)

    def start_lock(self) -> "BaseFileLock":
        """The lock of whoever starts or replaces the worker."""
        from filelock import FileLock

        return FileLock(self.folder / _LOCKS[1], mode=0o600)

    def is_alive(self) -> bool:
        """Whether a worker lives, sound or not."""
        from filelock import Timeout

        try:
            with self.lifetime_lock().acquire(timeout=0):
                return False
        except Timeout:
            return True

    def wait_gone(self, within: float) -> bool:
        """Wait at most so many seconds for the worker's end; whether it came."""
        end = time.monotonic() + within
        while self.is_alive():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def signal(self, state: WorkerState, number: int) -> bool:
        """Send a signal to a worker that lives, and to no other process; whether it was sent."""
        from t2i_cli.worker import process_proof

        # Whoever looks whether it lives holds the lock for an instant.
        time.sleep(0.02)
        if not self.is_alive():
            return False
        return process_proof.send_signal(
            number, state.pid, state.started, state.token, self.folder / _LOCKS[0]
        )

    def kill(self) -> bool:
        """End a worker that does not answer; whether there is none any more."""
        if self.is_alive() and (state := self.state()):
            # Windows has SIGTERM only, and ends a process at once by it.
            if self.signal(state, getattr(signal, "SIGKILL", signal.SIGTERM)):
                return self.wait_gone(within=5)
        return not self.is_alive()


def _state(found: Mapping[str, object], folder: Path) -> WorkerState | None:
    """A state, None if it is damaged; another version's may say more."""
    values = {f.name: found[f.name] for f in fields(WorkerState) if f.name in found}
    whole = (
        is_count(pid := values.get("pid"), _MAX_PID)
        and pid > 1
        and all(is_text(values.get(name)) for name in ("identity", "version", "model"))
        and (values.get("socket") is None or _is_socket(values["socket"], folder))
        and (values.get("port") is None or is_count(port := values["port"], 65_535) and port > 0)
        and all(_is_key(values.get(name)) for name in ("secret", "token"))
        and isinstance(values.get("warm", False), bool)
        and (values.get("started") is None or is_amount(values["started"]))
    )
    return WorkerState(**values) if whole else None  # type: ignore[arg-type]


def _is_socket(value: object, folder: Path) -> bool:
    """Whether it is the folder's socket, however the folder was reached."""
    if not is_text(value) or os.path.basename(value) != _SOCKET:
        return False
    try:
        return os.path.samefile(os.path.dirname(value), folder)
    except OSError:
        return False


def _is_key(value: object) -> bool:
    """Whether it is no secret, or one that can stand in a header."""
    return value is None or (is_text(value, 200) and value.isascii())
