"""The folder of a batch: one run at a time, and nothing left of those that died."""

import os
import platform
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor

from t2i_cli.batch import manifest
from t2i_cli.errors import InputError, StorageError, os_reason
from t2i_cli.files import atomic
from t2i_cli.files.state_files import check_regular, open_regular
from t2i_cli.output.image_writer import storage_error
from t2i_cli.terminal.console import escape_controls

STATE_FOLDER = ".t2i"
"""The folder's own, with locks and unfinished files."""
_LOCK = "lock"
_HELD_BY = re.compile(rb"(?:process \d+ on [^\0]{1,300})?")
"""What t2i writes into a lock; nothing, for a moment."""


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `total`; the split follows from the rows' ids alone."""

    number: int
    total: int

    def includes(self, row_id: str) -> bool:
        """Whether the row is this part's."""
        return int(row_id, 16) % self.total == self.number - 1

    @property
    def manifest(self) -> str:
        """The part's manifest."""
        return manifest.shard_manifest_name(self.number, self.total)


def parse_shard(text: str) -> Shard:
    """`2/4` as the second part of four. Raises InputError."""
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and len(text) < 12):
        raise InputError(f"--shard {text} is not of the form 1/4.", field="shard")
    if not 1 <= int(number) <= int(total):
        raise InputError(f"--shard {text}: there is no such part.", field="shard")
    return Shard(int(number), int(total))


@contextmanager
def lock_folder(folder: Path, shard: Shard | None) -> Iterator[Path]:
    """Hold the folder, or a shard's part of it, made if it is missing; gives a scratch folder.

    The system drops the lock when this process dies, however it does. Raises InputError while
    another run holds it, where it cannot be written to, or where t2i's own place is another's.
    """
    if shard and sys.platform == "win32":
        raise InputError("--shard needs locks that several may hold; Windows has none.")
    state = folder / STATE_FOLDER
    with ExitStack() as stack:
        try:
            _make(state)
            # Whatever lies in the state's folder is t2i's if this does.
            known = os.path.lexists(state / _LOCK)
            names = [(_LOCK, shard is not None)]
            if shard:
                names.append((f"lock-{shard.number}-of-{shard.total}", False))
            for name, shared in names:
                stack.callback(os.close, _locked(state / name, folder, shared=shared))
            scratch = _scratch(state, shard, known)
        except OSError as error:
            raise storage_error(error, "write to the folder", folder) from error
        yield scratch
        with suppress(OSError):
            scratch.rmdir()


def _make(folder: Path) -> None:
    """Make a folder if it is missing; raises InputError for a link or anything else."""
    with suppress(FileExistsError):
        folder.mkdir(parents=True)
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise _strange(folder, "is no folder")


def _strange(path: Path, what: str) -> InputError:
    return InputError(
        f"'{path}' {what} of t2i's, and is left as it is.",
        hint="Move it away, or use another folder with -o.",
    )


def _locked(path: Path, folder: Path, *, shared: bool = False) -> int:
    try:
        check_regular(path)
    except OSError as error:
        raise _strange(path, "is no lock") from error
    handle = open_regular(path, os.O_RDWR | os.O_CREAT)
    if not _HELD_BY.fullmatch(os.read(handle, 1000)):
        os.close(handle)
        raise _strange(path, "is no lock")
    try:
        free = _lock_shared(handle) if shared else lock_descriptor(handle, blocking=False)
    except OSError as error:
        os.close(handle)
        raise StorageError(
            f"The folder '{folder}' cannot be locked: {os_reason(error)}.",
            hint="-o takes a folder on a file system with locks.",
        ) from error
    os.lseek(handle, 0, os.SEEK_SET)
    if not free:
        owner = os.read(handle, 100).decode(errors="replace")
        owner = escape_controls(" ".join(owner.split())) or "another process"
        os.close(handle)
        raise InputError(
            f"Another run is at work in '{folder}' ({owner}).",
            hint="Wait for it, or use another folder with -o.",
        )
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
    return handle


def _lock_shared(handle: int) -> bool:
    """Whether the lock was free for one of several holders, which filelock has no lock for."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _scratch(state: Path, shard: Shard | None, known: bool) -> Path:
    """A folder for unfinished files, without those that a dead run left; tried by writing.

    One that was there before t2i was is another's, and so is one that holds a folder.
    """
    scratch = state / (f"unfinished-{shard.number}-of-{shard.total}" if shard else "unfinished")
    if os.path.lexists(scratch) and not known:
        raise _strange(scratch, "is no folder")
    _make(scratch)
    left = list(scratch.iterdir())
    if any(stat.S_ISDIR(os.lstat(path).st_mode) for path in left):
        raise _strange(scratch, "holds a folder that is none")
    for path in left:
        path.unlink()
    atomic.probe_folder(scratch)
    return scratch
