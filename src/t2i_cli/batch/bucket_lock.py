"""One run at a time in a bucket's folder: each run keeps an object there, and looks for others.

The object is written first and the others are looked for afterwards, so that of two runs one sees
the other at least, in any store that lists what was written before. It is written again every
BEAT_SECONDS; one that is older by LOST_SECONDS than a run's own, by the store's clock, or whose
process is known to be dead, is of a run that was killed.
"""

import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from threading import Thread

from t2i_cli.batch.lock import Shard
from t2i_cli.buckets.object_store import ObjectStore
from t2i_cli.errors import InputError, StorageError, T2IError
from t2i_cli.files.state_files import is_text, parse_json
from t2i_cli.terminal.console import escape_controls

BEAT_SECONDS = 20.0
LOST_SECONDS = 120.0
LOCK_PREFIX = ".t2i/run-"
"""Of the names of locks: then the shard, if there is one, and the run's own id."""

_LOCK_NAME = re.compile(r"\.t2i/run-(?:(\d+-of-\d+)-)?[0-9a-f]{16}\.json")


@dataclass(frozen=True)
class BucketRun:
    """A run that holds the folder; `id` is part of the names that are its own."""

    id: str
    check: Callable[[], None]
    """Raises StorageError if another run has taken the folder."""


def unlocked_run() -> BucketRun:
    """A run in a store whose writes are refused themselves if another run made some."""
    return BucketRun(os.urandom(8).hex(), lambda: None)


@contextmanager
def lock_bucket(store: ObjectStore, shard: Shard | None) -> Iterator[BucketRun]:
    """Lock the folder, or one shard of it. Raises InputError if another run holds it, T2IError."""
    part = f"{shard.number}-of-{shard.total}-" if shard else ""
    run_id = os.urandom(8).hex()
    name = f"{LOCK_PREFIX}{part}{run_id}.json"
    content = json.dumps(_this_process()).encode()
    store.write(name, content)
    lost, ended = Flag(), Flag()
    try:
        _refuse_others(store, name, shard)
        beat = Thread(target=_beat, args=(store, name, content, lost, ended), daemon=True)
        beat.start()

        def check() -> None:
            if lost.is_set():
                raise StorageError(
                    f"Another run works in '{store.url}': this one gave no sign of life for long.",
                    hint="Run the same command again after it: what is stored stays done.",
                )

        yield BucketRun(run_id, check)
    finally:
        ended.set()
        if not lost.is_set():
            # One that stays is known for that of a dead process.
            with suppress(T2IError):
                store.remove([name])


def _beat(store: ObjectStore, name: str, content: bytes, lost: Flag, ended: Flag) -> None:
    """Write the lock again and again; another run removes it before it takes the folder."""
    while not ended.wait(BEAT_SECONDS):
        # A store that does not answer is met by the run itself.
        with suppress(T2IError):
            if store.read(name) is None:
                lost.set()
                return
            if not ended.is_set():
                store.write(name, content)


def _refuse_others(store: ObjectStore, name: str, shard: Shard | None) -> None:
    """Raise InputError if a live run's lock excludes this one; remove the locks of dead runs."""
    for other in sorted(store.sizes()):
        found = _LOCK_NAME.fullmatch(other)
        if other == name or not found:
            continue
        own = f"{shard.number}-of-{shard.total}" if shard else None
        if own and found[1] and found[1] != own:
            continue  # another shard
        data = store.read(other)
        if data is None:
            continue  # it ended just now
        holder = _parse_holder(data)
        if _is_dead(store, other, name, holder):
            store.remove([other])
            continue
        text = escape_controls(f"process {holder.get('process')} on {holder.get('node')}")
        raise InputError(
            f"Another run is at work in '{store.url}' ({text}).",
            hint=f"Wait for it; one that was killed is known for that after {LOST_SECONDS:.0f} s. "
            "Or use another folder with -o.",
        )


def _is_dead(store: ObjectStore, other: str, name: str, holder: dict[str, object]) -> bool:
    """Whether the run that wrote a lock has ended without removing it."""
    import psutil

    own = _this_process()
    if all(own[key] == holder.get(key) for key in ("node", "boot", "namespace")):
        try:
            started = psutil.Process(int(str(holder.get("process")))).create_time()
        except (ValueError, psutil.NoSuchProcess):
            return True
        except psutil.Error:
            return False
        return f"{started:.2f}" != holder.get("started")
    written, now = store.modified(other), store.modified(name)
    if written is None or now is None:
        return False
    return (now - written).total_seconds() > LOST_SECONDS


def _this_process() -> dict[str, object]:
    """What tells this process from others, on any machine."""
    import psutil

    return {
        "process": os.getpid(),
        "node": platform.node(),
        "started": f"{psutil.Process().create_time():.2f}",
        "boot": _boot(),
        "namespace": _process_namespace(),
    }


def _boot() -> str:
    """The id of the machine's start (Linux), else its time."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    import psutil

    return f"{psutil.boot_time():.0f}"


def _process_namespace() -> str:
    """The namespace of process ids (Linux): containers of one machine have ids of their own."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _parse_holder(data: bytes) -> dict[str, object]:
    """What a lock says of its run; empty for one that t2i did not write."""
    with suppress(ValueError):
        found = parse_json(data)
        if isinstance(found, dict):
            return {key: value for key, value in found.items() if _is_fact(value)}
    return {}


def _is_fact(value: object) -> bool:
    return is_text(value, 300) or type(value) is int
