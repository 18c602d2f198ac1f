"""Locks a batch's folder, or one shard of it, and provides a folder for unfinished files."""

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
"""t2i's own folder inside a batch's: lock files and unfinished files."""
_LOCK_NAME = "lock"
_LOCK_CONTENT = re.compile(rb"(?:process \d+ on [^\0]{1,300})?")
"""Content of a lock file of t2i; empty between its creation and the first write."""


@dataclass(frozen=True)
class Shard:
    """Shard `number` (from 1) of `total`; a row's shard depends on its id alone."""

    number: int
    total: int

    def includes(self, row_id: str) -> bool:
        """Whether the row belongs to this shard."""
        try:
            return int(row_id, 16) % self.total == self.number - 1
        except ValueError:
            # An id that t2i did not write, of a manifest that was edited.
            return self.number == 1

    @property
    def manifest(self) -> str:
        """The file name of the shard's manifest."""
        return manifest.shard_manifest_name(self.number, self.total)


def parse_shard(text: str) -> Shard:
    """Parse `2/4` as the second shard of four. Raises InputError."""
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and len(text) < 12):
        raise InputError(f"--shard {text} is not of the form 1/4.", field="shard")
    if not 1 <= int(number) <= int(total):
        raise InputError(f"--shard {text}: there is no such part.", field="shard")
    return Shard(int(number), int(total))


def is_batch_folder(folder: Path) -> bool:
    """Whether a batch has worked in the folder."""
    return os.path.lexists(folder / STATE_FOLDER) or bool(manifest.manifest_files(folder))


@contextmanager
def lock_folder(folder: Path, shard: Shard | None) -> Iterator[Path]:
    """Lock the folder, or one shard of it; create it if missing. Yields a scratch folder.

    The operating system releases the lock when this process ends. Raises InputError if another
    run holds the lock, if the folder is not writable, or if a file or folder at a path that t2i
    uses was not made by t2i; StorageError if the file system has no locks.
    """
    if shard and sys.platform == "win32":
        raise InputError("--shard needs locks that several may hold; Windows has none.")
    state_folder = folder / STATE_FOLDER
    with ExitStack() as stack:
        try:
            _make_folder(state_folder)
            # A lock file shows that t2i made the state folder and what is in it.
            is_own = os.path.lexists(state_folder / _LOCK_NAME)
            names = [(_LOCK_NAME, shard is not None)]
            if shard:
                names.append((f"lock-{shard.number}-of-{shard.total}", False))
            for name, shared in names:
                stack.callback(os.close, _acquire(state_folder / name, folder, shared=shared))
            scratch = _prepare_scratch(state_folder, shard, is_own)
        except OSError as error:
            raise storage_error(error, "write to the folder", folder) from error
        yield scratch
        with suppress(OSError):
            scratch.rmdir()


def _make_folder(folder: Path) -> None:
    """Create a folder if it is missing; raises InputError for a link or a file."""
    with suppress(FileExistsError):
        folder.mkdir(parents=True)
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise _foreign_path_error(folder, "is no folder")


def _foreign_path_error(path: Path, what: str) -> InputError:
    return InputError(
        f"'{path}' {what} of t2i's, and is left as it is.",
        hint="Move it away, or use another folder with -o.",
    )


def _acquire(path: Path, folder: Path, *, shared: bool = False) -> int:
    """Open and lock a lock file; returns its descriptor.

    Raises InputError if another process holds the lock or the file is not t2i's, StorageError if
    the file system has no locks.
    """
    try:
        check_regular(path)
    except OSError as error:
        raise _foreign_path_error(path, "is no lock") from error
    handle = open_regular(path, os.O_RDWR | os.O_CREAT)
    if not _LOCK_CONTENT.fullmatch(os.read(handle, 1000)):
        os.close(handle)
        raise _foreign_path_error(path, "is no lock")
    try:
        acquired = _lock_shared(handle) if shared else lock_descriptor(handle, blocking=False)
    except OSError as error:
        os.close(handle)
        raise StorageError(
            f"The folder '{folder}' cannot be locked: {os_reason(error)}.",
            hint="-o takes a folder on a file system with locks.",
        ) from error
    os.lseek(handle, 0, os.SEEK_SET)
    if not acquired:
        holder = os.read(handle, 100).decode(errors="replace")
        holder = escape_controls(" ".join(holder.split())) or "another process"
        os.close(handle)
        raise InputError(
            f"Another run is at work in '{folder}' ({holder}).",
            hint="Wait for it, or use another folder with -o.",
        )
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
    return handle


def _lock_shared(handle: int) -> bool:
    """Try to take a shared lock, which filelock does not offer; returns whether that succeeded."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _prepare_scratch(state_folder: Path, shard: Shard | None, is_own: bool) -> Path:
    """Create the folder for unfinished files, empty it, and check that it is writable.

    Raises InputError if it existed before t2i's lock file did, or contains anything but unfinished
    files: it is not t2i's then.
    """
    scratch = state_folder / (
        f"unfinished-{shard.number}-of-{shard.total}" if shard else "unfinished"
    )
    if os.path.lexists(scratch) and not is_own:
        raise _foreign_path_error(scratch, "is no folder")
    _make_folder(scratch)
    leftovers = list(scratch.iterdir())
    if foreign := next((path for path in leftovers if not atomic.is_temporary(path)), None):
        raise _foreign_path_error(foreign, "is no unfinished file")
    for path in leftovers:
        path.unlink()
    atomic.probe_folder(scratch)
    return scratch
