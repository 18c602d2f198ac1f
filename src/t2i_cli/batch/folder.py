"""The folder of a batch: one run at a time, and nothing left of those that died."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from t2i_cli.batch import manifest
from t2i_cli.errors import InputError, StorageError, os_reason
from t2i_cli.sink import translated

STATE = ".t2i"
"""The folder's own, with locks and unfinished files."""


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `total`; the split follows from the rows' ids alone."""

    number: int
    total: int

    def has(self, row_id: str) -> bool:
        """Whether the row is this part's."""
        return int(row_id, 16) % self.total == self.number - 1

    @property
    def manifest(self) -> str:
        """The part's manifest."""
        return manifest.shard_name(self.number, self.total)


def parse_shard(text: str) -> Shard:
    """`2/4` as the second part of four. Raises InputError."""
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and len(text) < 12):
        raise InputError(f"--shard {text} is not of the form 1/4.", field="shard")
    if not 1 <= int(number) <= int(total):
        raise InputError(f"--shard {text}: there is no such part.", field="shard")
    return Shard(int(number), int(total))


@contextmanager
def held(folder: Path, shard: Shard | None) -> Iterator[Path]:
    """Hold the folder, or a shard's part of it, made if it is missing; gives a scratch folder.

    The system drops the lock when this process dies, however it does. Raises InputError while
    another run holds it, or where it cannot be written to.
    """
    state = folder / STATE
    with ExitStack() as stack:
        try:
            state.mkdir(parents=True, exist_ok=True)
            names = [("lock", shard is not None)]
            if shard:
                names.append((f"lock-{shard.number}-of-{shard.total}", False))
            for name, shared in names:
                stack.callback(os.close, _locked(state / name, folder, shared=shared))
            scratch = _scratch(state, shard)
        except OSError as error:
            raise translated(error, "write to the folder", folder) from error
        yield scratch
        with suppress(OSError):
            scratch.rmdir()


def _locked(path: Path, folder: Path, *, shared: bool = False) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(handle, 100, 0).decode(errors="replace").strip() or "another process"
        os.close(handle)
        raise InputError(
            f"Another run is at work in '{folder}' ({owner}).",
            hint="Wait for it, or use another folder with -o.",
        ) from error
    except OSError as error:
        os.close(handle)
        raise StorageError(
            f"The folder '{folder}' cannot be locked: {os_reason(error)}.",
            hint="-o takes a folder on a file system with locks.",
        ) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    return handle


def _scratch(state: Path, shard: Shard | None) -> Path:
    """A folder for unfinished files, without those that a dead run left; tried by writing."""
    scratch = state / (f"unfinished-{shard.number}-of-{shard.total}" if shard else "unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(exist_ok=True)
    probe = scratch / secrets.token_hex(8)
    probe.write_bytes(b"")
    probe.unlink()
    return scratch
