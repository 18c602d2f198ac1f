"""The folder of a batch: what a run needs of it, on a disk (`local_folder`) or in a bucket.

Files are named relative to the folder, with `/`. An error of a file that is missing, or none of
t2i's, is an OSError; the others are T2IErrors.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from io import BufferedReader, BytesIO
from pathlib import Path
from threading import Event as Flag
from typing import BinaryIO, Literal, Protocol

from t2i_cli.batch.lock import Shard
from t2i_cli.batch.manifest import RecordSource


class ManifestLog(Protocol):
    """A manifest that one run appends to."""

    @property
    def location(self) -> str:
        """Where it is, as users are told."""
        ...

    @property
    def restored(self) -> bool:
        """Whether another program removed it, and it was written again."""
        ...

    def append(
        self, lines: Sequence[Mapping[str, object]], files: Iterable[str] = (), *, last: bool = True
    ) -> bool:
        """Append lines after the finished `files`; returns whether all lines are stored for good.

        Unless they are the `last` for now, lines may wait for others. Raises T2IError.
        """
        ...

    def close(self) -> None:
        """Close it; lines that wait are not stored."""
        ...


class BatchFolder(RecordSource, Protocol):
    """Reads and writes the folder; thread-safe where images are saved."""

    @property
    def saver_threads(self) -> int | None:
        """Threads that save images at a time; `None` for as many as suit the workers."""

    def location(self, file: str = "") -> str:
        """The folder, or a file in it, as users are told."""
        ...

    def check(self) -> None:
        """Raise T2IError if the folder cannot be used; changes nothing."""
        ...

    def is_used(self) -> bool:
        """Whether a batch has worked in the folder."""
        ...

    def has_lock(self) -> bool:
        """Whether the folder may be locked without creating it."""
        ...

    def lock(self, shard: Shard | None) -> AbstractContextManager[None]:
        """Keep other runs out of the folder, or of one shard of it. Raises T2IError."""
        ...

    def merge(self) -> int:
        """Join all manifests to the main one; returns how many shards had one of their own."""
        ...

    def open_manifest(self, shard: Shard | None) -> ManifestLog:
        """Open a run's manifest. Raises T2IError."""
        ...

    def finish(self, *, merge: bool) -> None:
        """End a run, after all else is written; may `merge` the manifest. Raises T2IError."""
        ...

    def stop_retries_on(self, stop: Flag) -> None:
        """Try nothing again that fails once `stop` is set: the user wants the run to end."""
        ...

    def free_bytes(self) -> int | None:
        """Free space; `None` where there is no limit to be known."""
        ...

    def occupant(self, file: str) -> Literal["file", "folder"] | None:
        """What is at a path, links included."""
        ...

    def check_parents(self, file: str) -> None:
        """Raise OSError if a folder of the path is a link, or no folder."""
        ...

    def file_size(self, file: str) -> int:
        """Size of a regular file in bytes. Raises OSError."""
        ...

    def open_file(self, file: str) -> BytesIO | BufferedReader:
        """Open a regular file for reading. Raises OSError."""
        ...

    def unlisted_candidates(self, names: Iterable[str]) -> Iterator[str]:
        """Files that may be images with these names, or that had them before."""
        ...

    def save_image(self, file: str, data: bytes) -> None:
        """Write an image, whole or not at all. Raises StorageError, or what a bucket answers."""
        ...

    def remove_file(self, file: str) -> None:
        """Remove a file. Raises T2IError."""
        ...

    def page_name(self, names: Sequence[str], is_ours: Callable[[BinaryIO], bool]) -> str | None:
        """The first name that is free, or whose file `is_ours` accepts."""
        ...

    def write_page(self, name: str, data: bytes) -> None:
        """Write a gallery or sheet, whole or not at all. Raises T2IError."""
        ...

    def local_copies(self, files: Mapping[str, str]) -> AbstractContextManager[Mapping[str, Path]]:
        """Paths on this machine of files by key; those of links are left out."""
        ...
