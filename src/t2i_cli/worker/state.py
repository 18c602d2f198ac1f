"""The worker's runtime directory: state file, lifetime lock, start lock, heartbeat, socket.

A user has at most one worker. It holds the lock `worker.lock` until its process ends, however it
ends. A process that starts or replaces a worker holds `start.lock`. The heartbeat is the state
file's mtime.
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
"""Seconds between two heartbeats: the worker sets the mtime of its state file."""
UNRESPONSIVE_AFTER = 10.0
"""Seconds without a heartbeat after which a worker counts as hung."""
START_TIMEOUT = 30.0
"""Seconds until a new worker must listen, usually 1; UNRESPONSIVE_AFTER until it is warm."""
EXIT_TIMEOUT = 5.0
"""Seconds to wait for a worker that is exiting."""
_LOCKS = ("worker.lock", "start.lock")
_SOCKET = "worker.sock"
_MAX_PID = 2**31 - 1
_MAX_SOCKET = 103
"""Longest path of a Unix socket, in bytes: 103 on macOS, 107 on Linux (sun_path in sys/un.h)."""


class WorkerUnavailableError(Exception):
    """No worker can be used now; the message says why. The run continues without a worker."""


class WorkerUnresponsiveError(WorkerUnavailableError):
    """The worker's heartbeat has stopped: it holds its memory until it is killed."""

    def __init__(self, runtime_dir: "RuntimeDir") -> None:
        super().__init__("The warm worker hung, and was ended.")
        self.runtime_dir = runtime_dir


class WorkerExitingError(WorkerUnavailableError):
    """The worker exited before it answered; a new one may be started."""

    def __init__(self, runtime_dir: "RuntimeDir") -> None:
        super().__init__("The warm worker has ended.")
        self.runtime_dir = runtime_dir


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """The state file. The worker listens on `socket`, or on loopback `port` with `secret`.

    All three are None until it listens. `warm`: its imports, which can delay heartbeats for
    seconds, are done. `started` (see process_proof.start_time) and `token` tell the worker from
    another process with the same id; earlier versions wrote neither.
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
        """Whether the worker accepts connections."""
        return bool(self.socket or self.port)


class RuntimeDir:
    """The directory of one user's worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "worker.log"
        self._state = folder / "worker.json"

    @classmethod
    def find(cls) -> Self:
        """The directory `t2i` in the user's runtime directory, created if it is missing.

        Raises WorkerUnavailableError if it is another user's, open to others, or holds files that
        no worker writes.
        """
        from platformdirs import user_runtime_path

        try:
            with warnings.catch_warnings():
                # platformdirs warns without XDG_RUNTIME_DIR; its fallback is checked below.
                warnings.simplefilter("ignore")
                parent = user_runtime_path(ensure_exists=True)
            folder = parent / "t2i"
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            found = folder.lstat()
        except (OSError, RuntimeError) as error:  # platformdirs raises it without a home
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
        runtime_dir = cls(folder)
        runtime_dir._check_contents()
        return runtime_dir

    def _check_contents(self) -> None:
        """Raise WorkerUnavailableError for a link, or any other file that no worker writes."""
        kinds = dict.fromkeys((*_LOCKS, self.log.name, self._state.name), stat.S_IFREG)
        for name, kind in (kinds | {_SOCKET: stat.S_IFSOCK}).items():
            with suppress(FileNotFoundError):
                found = os.lstat(self.folder / name)
                # A hard link would have another's file truncated. A lock file is always empty.
                if (
                    stat.S_IFMT(found.st_mode) != kind
                    or found.st_nlink > 1
                    or (name in _LOCKS and found.st_size)
                ):
                    raise WorkerUnavailableError(
                        f"'{self.folder / name}' is not what a warm worker leaves there."
                    )

    @property
    def socket(self) -> Path | None:
        """Path of the worker's Unix socket; None without Unix sockets or if it is too long."""
        import socket

        path = self.folder / _SOCKET
        short = len(os.fsencode(path)) <= _MAX_SOCKET
        return path if hasattr(socket, "AF_UNIX") and short else None

    def state(self) -> WorkerState | None:
        """The state file's contents, also of a dead worker; None if missing or damaged."""
        try:
            found = read_json(self._state)
        except (OSError, ValueError):
            return None
        return _parse_state(found, self.folder) if isinstance(found, dict) else None

    @property
    def damaged(self) -> bool:
        """Whether there is a state file that cannot be read."""
        return self.state() is None and os.path.lexists(self._state)

    def write(self, state: WorkerState) -> None:
        """Write the state file, atomically."""
        replace_text(self._state, json.dumps(asdict(state)))

    def clear(self) -> None:
        """Remove the state file and the socket."""
        self.remove_state()
        remove_socket(self.folder / _SOCKET)

    def remove_state(self) -> None:
        """Remove the state file; a worker whose event loop runs then exits."""
        with suppress(FileNotFoundError):
            self._state.unlink()

    def heartbeat(self) -> bool:
        """Set the state file's mtime to now; False if the file is gone."""
        try:
            os.utime(self._state, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def is_unresponsive(self, state: WorkerState) -> bool:
        """Whether the worker's last heartbeat is too long ago."""
        try:
            silent = time.time() - self._state.lstat().st_mtime
        except FileNotFoundError:  # it has exited
            return False
        return silent > (UNRESPONSIVE_AFTER if state.warm else START_TIMEOUT)

    def lifetime_lock(self) -> "BaseFileLock":
        """The lock that a worker holds until its process ends."""
        from filelock import FileLock

        return FileLock(self.folder / _LOCKS[0], mode=0o600)

    def start_lock(self) -> "BaseFileLock":
        """The lock of a process that starts or replaces the worker."""
        from filelock import FileLock

        return FileLock(self.folder / _LOCKS[1], mode=0o600)

    def is_alive(self) -> bool:
        """Whether a worker process exists, hung or not: its lifetime lock is held."""
        from filelock import Timeout

        try:
            with self.lifetime_lock().acquire(timeout=0):
                return False
        except Timeout:
            return True

    def wait_for_exit(self, seconds: float) -> bool:
        """Wait at most `seconds` for the worker's process to end; return whether it did."""
        deadline = time.monotonic() + seconds
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def signal(self, state: WorkerState, number: int) -> bool:
        """Send a signal to the worker's process, and to no other; return whether it was sent."""
        from t2i_cli.worker import process_proof

        # is_alive() of another process may hold the lock for an instant.
        time.sleep(0.02)
        if not self.is_alive():
            return False
        return process_proof.send_signal(
            number, state.pid, state.started, state.token, self.folder / _LOCKS[0]
        )

    def kill(self) -> bool:
        """Kill a worker that does not respond; return whether it is gone."""
        if self.is_alive() and (state := self.state()):
            # On Windows SIGTERM ends a process at once.
            if self.signal(state, getattr(signal, "SIGKILL", signal.SIGTERM)):
                return self.wait_for_exit(5)
        return not self.is_alive()


def _parse_state(record: Mapping[str, object], folder: Path) -> WorkerState | None:
    """The validated state, None if it is invalid. Unknown fields of other versions are ignored."""
    values = {f.name: record[f.name] for f in fields(WorkerState) if f.name in record}
    valid = (
        is_count(pid := values.get("pid"), _MAX_PID)
        and pid > 1
        and all(is_text(values.get(name)) for name in ("identity", "version", "model"))
        and (values.get("socket") is None or _is_socket(values["socket"], folder))
        and (values.get("port") is None or is_count(port := values["port"], 65_535) and port > 0)
        and all(_is_token(values.get(name)) for name in ("secret", "token"))
        and isinstance(values.get("warm", False), bool)
        and (values.get("started") is None or is_amount(values["started"]))
    )
    return WorkerState(**values) if valid else None  # type: ignore[arg-type]


def _is_socket(value: object, folder: Path) -> bool:
    """Whether it is the socket's path, also by another path to the folder."""
    if not is_text(value) or os.path.basename(value) != _SOCKET:
        return False
    try:
        return os.path.samefile(os.path.dirname(value), folder)
    except OSError:
        return False


def _is_token(value: object) -> bool:
    """Whether it is None or short ASCII text, which a header can carry."""
    return value is None or (is_text(value, 200) and value.isascii())
