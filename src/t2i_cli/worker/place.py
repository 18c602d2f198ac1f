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
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from filelock import BaseFileLock

BEAT = 1.0
"""Seconds between two beats of a worker's heart: the time of its state file is set anew."""
HUNG = 10.0
"""Seconds without a beat after which a silent worker counts as hung."""
STARTING = 30.0
"""The same of one that is not warm yet; and what it may take until it listens, mostly one."""
LEAVING = 5.0
"""Seconds in which a worker that is leaving is gone."""
_MAX_SOCKET = 103
"""Bytes of a Unix socket's path on macOS; Linux has 107 (sun_path in sys/un.h)."""


class UnusableError(Exception):
    """No worker can be used now, and why; never seen by users, as the run goes on without one."""


class HungError(UnusableError):
    """The worker at `place` has a heart that stopped: it holds its memory until it is killed."""

    def __init__(self, place: "Place") -> None:
        super().__init__("The warm worker hung, and was ended.")
        self.place = place


class LeavingError(UnusableError):
    """The worker at `place` left just as it was asked, before it made anything."""

    def __init__(self, place: "Place") -> None:
        super().__init__("The warm worker has ended.")
        self.place = place


@dataclass(frozen=True, kw_only=True)
class State:
    """What a worker says of itself; it listens on `socket`, or on loopback's `port` with `secret`.

    Neither is there before it listens. `warm` says that it is past its libraries' imports, which
    can keep its heart from beating for a while.
    """

    pid: int
    identity: str
    version: str
    model: str
    socket: str | None = None
    port: int | None = None
    secret: str | None = field(default=None, repr=False)
    warm: bool = False

    @property
    def listening(self) -> bool:
        """Whether it can be connected to."""
        return bool(self.socket or self.port)


class Place:
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
            raise UnusableError(f"No folder for a warm worker can be made: {error}.") from error
        if not stat.S_ISDIR(found.st_mode):
            raise UnusableError(f"The warm worker's folder '{folder}' is no folder.")
        if sys.platform != "win32" and found.st_uid != os.getuid():
            raise UnusableError(f"The warm worker's folder '{folder}' is another user's.")
        if sys.platform != "win32" and found.st_mode & 0o077:
            raise UnusableError(
                f"The warm worker's folder '{folder}' is open to others "
                f"(mode {stat.S_IMODE(found.st_mode):04o})."
            )
        return cls(folder)

    @property
    def socket(self) -> Path | None:
        """Where to listen, if this system has Unix sockets and the path is not too long."""
        import socket

        path = self.folder / "worker.sock"
        short = len(os.fsencode(path)) <= _MAX_SOCKET
        return path if hasattr(socket, "AF_UNIX") and short else None

    def state(self) -> State | None:
        """What the worker last said of itself, dead or alive."""
        try:
            found = json.loads(self._state.read_text(encoding="utf-8"))
            # Another version's may say more.
            return State(**{f.name: found[f.name] for f in fields(State) if f.name in found})
        except (OSError, ValueError, TypeError):
            return None

    def write(self, state: State) -> None:
        """Say something of oneself, whole or not at all."""
        beside = self._state.with_suffix(".new")
        descriptor = os.open(beside, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(state), file)
        os.replace(beside, self._state)

    def clear(self) -> None:
        """Remove what a worker leaves behind."""
        for path in (self._state, self.folder / "worker.sock"):
            with suppress(FileNotFoundError):
                path.unlink()

    def beat(self) -> bool:
        """Show that the worker's event loop runs; whether it can still be found here."""
        try:
            os.utime(self._state)
        except FileNotFoundError:
            return False
        return True

    def hung(self, state: State) -> bool:
        """Whether the worker's heart has not beaten for too long."""
        try:
            silent = time.time() - self._state.stat().st_mtime
        except FileNotFoundError:  # it has left
            return False
        return silent > (HUNG if state.warm else STARTING)

    def life(self) -> "BaseFileLock":
        """The lock that a worker holds as long as it lives."""
        from filelock import FileLock

        return FileLock(self.folder / "worker.lock", mode=0o600)

    def starting(self) -> "BaseFileLock":
        """The lock of whoever starts or replaces the worker."""
        from filelock import FileLock

        return FileLock(self.folder / "start.lock", mode=0o600)

    def alive(self) -> bool:
        """Whether a worker lives, sound or not."""
        from filelock import Timeout

        try:
            with self.life().acquire(timeout=0):
                return False
        except Timeout:
            return True

    def gone(self, within: float) -> bool:
        """Wait at most so many seconds for the worker's end; whether it came."""
        end = time.monotonic() + within
        while self.alive():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def signal(self, state: State, number: int) -> None:
        """Send a signal to a worker that lives: its lock says that the process id is its own."""
        # Whoever looks whether it lives holds the lock for an instant.
        time.sleep(0.02)
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(state.pid, number)

    def kill(self) -> None:
        """End a worker that does not answer."""
        if self.alive() and (state := self.state()):
            # Windows has SIGTERM only, and ends a process at once by it.
            self.signal(state, getattr(signal, "SIGKILL", signal.SIGTERM))
            self.gone(within=5)
