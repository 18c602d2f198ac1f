"""Downloads files of a bucket into the copy on this machine: each whole, once, and gone on with."""

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout

from t2i_cli.buckets.local_copy import LocalCopy, fetched_bytes, remove_older, storage_errors
from t2i_cli.buckets.object_store import ObjectStore, ObjectVersion
from t2i_cli.errors import RemoteError, StorageError
from t2i_cli.events import Downloading, Notice, OnEvent
from t2i_cli.terminal.console import format_bytes

COPY_CHUNK_BYTES = 2**23
"""Bytes of one call: large enough that its latency counts little."""
PARALLEL_CHUNKS = 8
"""Calls in flight at a time, whose answers wait in memory: one connection fills no fast network."""


class CopyDownload:
    """A download into a copy; `store` is that of its URL, or of the folder of an object's URL.

    `list_files` asks the bucket for the versions of all files.
    """

    def __init__(
        self,
        copy: LocalCopy,
        store: ObjectStore,
        list_files: Callable[[], Mapping[str, ObjectVersion]],
    ) -> None:
        self._copy = copy
        self._store = store
        self._list_files = list_files

    def run(self, names: Sequence[str], on_event: OnEvent, *, announced: bool) -> None:
        """Fetch those of the files that are missing, after a notice if `announced`.

        A download that broke off is gone on with. Raises T2IError.
        """
        with storage_errors(self._copy.folder.parent), self._locked(names, on_event):
            self._take_over(self._copy.missing(names))
            missing, total = self._copy.missing(names), self._copy.size(names)
            if announced and missing:
                self._announce(names, on_event)
            done = total - self._copy.missing_bytes(names)
            for count in self._fetched_chunks(missing):
                done += count
                if announced:
                    on_event(Downloading(model=self._copy.url.text, done=done, total=total))
            self._check_unchanged(missing)
            remove_older(self._copy.folder)

    def _check_unchanged(self, names: Sequence[str]) -> None:
        """Raise RemoteError, without the files, if the bucket has others of these names now."""
        now = self._list_files() if names else {}
        if all(now.get(name) == self._copy.files[name] for name in names):
            return
        for name in names:
            self._copy.path(name).unlink(missing_ok=True)
        raise RemoteError(
            f"'{self._copy.url}' was changed while it was fetched.",
            hint="Run the same command again.",
        )

    def _announce(self, names: Sequence[str], on_event: OnEvent) -> None:
        """Tell sizes before a fetch. Raises StorageError if the disk lacks the space."""
        total, needed, place = (
            self._copy.size(names),
            self._copy.missing_bytes(names),
            self._copy.folder.parent,
        )
        url, free = self._copy.url, shutil.disk_usage(place).free
        changed = " has changed, and" if self._copy.earlier() else ""
        # Not mentioned below 1 %: configuration files are always present.
        present = total - needed
        part = f", of which {format_bytes(present)} are here" if present > total // 100 else ""
        on_event(
            Notice(
                message=f"{url}{changed} takes {format_bytes(total)}{part}; downloading.",
                hint=f"It goes to {place}, where {format_bytes(free)} are free.",
            )
        )
        if needed > free:
            raise StorageError(
                f"The download of {url} needs {format_bytes(needed)}, and {place} has "
                f"{format_bytes(free)} free.",
                hint="Make room, or set XDG_CACHE_HOME to a place on another disk.",
            )

    @contextmanager
    def _locked(self, names: Sequence[str], on_event: OnEvent) -> Iterator[None]:
        """Hold the lock of the URL; meanwhile what another process fetches is told."""
        lock, total = FileLock(self._copy.folder.parent / "lock"), self._copy.size(names)
        while True:
            try:
                lock.acquire(timeout=1)
                break
            except Timeout:
                done = total - self._copy.missing_bytes(names)
                on_event(Downloading(model=self._copy.url.text, done=done, total=total))
        try:
            yield
        finally:
            lock.release()

    def _take_over(self, names: Sequence[str]) -> None:
        """Link files that an earlier version has with the same content."""
        for earlier in self._copy.earlier():
            for name in names:
                known = earlier.files.get(name)
                if known and known.version and known == self._copy.files[name]:
                    path = self._copy.path(name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with suppress(OSError):  # not there, or no links in this file system
                        os.link(earlier.path(name), path)

    def _fetched_chunks(self, names: Sequence[str]) -> Iterator[int]:
        """Fetch the files, several chunks at a time; yields the bytes of each that is stored."""
        chunks = iter([chunk for name in names for chunk in self._chunks(name)])
        waiting: deque[tuple[str, int, Future[bytes]]] = deque()
        pool = ThreadPoolExecutor(PARALLEL_CHUNKS, thread_name_prefix="bucket")
        try:
            while True:
                while len(waiting) < PARALLEL_CHUNKS and (chunk := next(chunks, None)):
                    name, start, end = chunk
                    waiting.append((name, end, pool.submit(self._read, name, start, end)))
                if not waiting:
                    break
                name, end, future = waiting.popleft()
                yield self._store_chunk(name, end, future.result())
        except BaseException:
            self._store.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()

    def _chunks(self, name: str) -> list[tuple[str, int, int]]:
        """What is to be fetched of a file: its name, and the places from and to which."""
        size, begun = self._copy.files[name].size, fetched_bytes(self._copy.incomplete(name))
        places = range(begun, size, COPY_CHUNK_BYTES) if begun < size else [size]
        return [(name, start, min(start + COPY_CHUNK_BYTES, size)) for start in places]

    def _read(self, name: str, start: int, end: int) -> bytes:
        return self._store.read_range(name, start, end) if start < end else b""

    def _store_chunk(self, name: str, end: int, data: bytes) -> int:
        """Append a chunk to its file, which gets its name when it is whole."""
        path, size = self._copy.incomplete(name), self._copy.files[name].size
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(data)
            file.flush()
            if end == size:
                os.fsync(file.fileno())
            stored = file.tell()
        if stored != end:
            path.unlink()
            raise RemoteError(
                f"'{self._copy.url}' gave {stored:,} bytes of {name}, which has {end:,}.",
                hint="Run the same command again.",
            )
        if end == size:
            os.replace(path, self._copy.path(name))
        return len(data)
