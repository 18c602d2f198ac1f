"""A batch's folder on a disk."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from threading import Event as Flag
from typing import BinaryIO, Literal

from t2i_cli.batch import lock, manifest, manifest_merge
from t2i_cli.batch.lock import Shard
from t2i_cli.batch.manifest import Manifest
from t2i_cli.errors import InputError, StorageError, os_reason
from t2i_cli.files import atomic, inside_folder
from t2i_cli.files.inside_folder import open_inside, stat_inside
from t2i_cli.files.state_files import free_or_own_path, open_regular
from t2i_cli.output import filenames
from t2i_cli.output.image_writer import check_folder, storage_error, write_image_file


class LocalManifest:
    """A manifest on a disk, of which every append is synced if it is to be `durable`."""

    def __init__(self, folder: Path, name: str, *, durable: bool = True) -> None:
        self._folder = folder
        self._manifest = Manifest(folder / name, durable=durable)
        self.location = str(folder / name)

    @property
    def restored(self) -> bool:
        """Whether another program removed it, and it was written again."""
        return self._manifest.restored

    def append(
        self, lines: Sequence[Mapping[str, object]], files: Iterable[str] = (), *, last: bool = True
    ) -> bool:
        """Append lines, all or none of them, after syncing the folders of `files`."""
        self._manifest.append(lines, {(self._folder / file).parent for file in files})
        return True

    def close(self) -> None:
        """Close the file."""
        self._manifest.close()


class LocalFolder:
    """A folder on a disk; unfinished files are written to `scratch`, which `lock` gives."""

    saver_threads: int | None = None

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        self.path = path
        self._scratch = scratch

    def location(self, file: str = "") -> str:
        """The path of the folder, or of a file in it."""
        return str(self.path / file)

    def check(self) -> None:
        """Raise InputError if the folder cannot be used or created; changes nothing."""
        check_folder(self.path)

    def is_used(self) -> bool:
        """Whether a batch has worked in the folder."""
        return lock.is_batch_folder(self.path)

    def has_lock(self) -> bool:
        """Whether t2i's own folder is there, in which the lock is."""
        return os.path.lexists(self.path / lock.STATE_FOLDER)

    @contextmanager
    def lock(self, shard: Shard | None) -> Iterator[None]:
        """Lock the folder, or one shard of it, as `lock_folder` does."""
        with lock.lock_folder(self.path, shard) as scratch:
            self._scratch = scratch
            try:
                yield
            finally:
                self._scratch = None

    def manifest_records(self) -> Iterator[Iterator[dict[str, object] | None]]:
        """The lines of each manifest, the oldest one first."""
        return map(manifest.read_records, manifest.manifest_files(self.path))

    def merge(self) -> int:
        """Join the manifests of shards to the main one; returns their number."""
        return manifest_merge.merge_manifests(self.path, self._scratch)

    def open_manifest(self, shard: Shard | None) -> LocalManifest:
        """Open a run's manifest. Raises InputError and StorageError."""
        return LocalManifest(self.path, shard.manifest if shard else manifest.MAIN_MANIFEST)

    def finish(self, *, merge: bool) -> None:
        """Do nothing: all is written."""

    def stop_retries_on(self, stop: Flag) -> None:
        """Do nothing: writes to a disk are not tried again."""

    def free_bytes(self) -> int:
        """Free space of the file system."""
        return shutil.disk_usage(filenames.existing_parent(self.path)).free

    def occupant(self, file: str) -> Literal["file", "folder"] | None:
        """What is at a path, links included."""
        path = self.path / file
        if not os.path.lexists(path):
            return None
        return "folder" if os.path.isdir(path) and not os.path.islink(path) else "file"

    def check_parents(self, file: str) -> None:
        """Raise OSError if a folder of the path is a link, or no folder."""
        inside_folder.check_parents(self.path, file)

    def file_size(self, file: str) -> int:
        """Size of a regular file in bytes. Raises OSError."""
        return stat_inside(self.path, file).st_size

    def open_file(self, file: str) -> BufferedReader:
        """Open a regular file for reading. Raises OSError."""
        return os.fdopen(open_inside(self.path, file), "rb")

    def unlisted_candidates(self, names: Iterable[str]) -> Iterator[str]:
        """All files in the folders of these names: a row may have had another one before."""
        for parent in sorted({str(PurePosixPath(file).parent) for file in names}):
            prefix = "" if parent == "." else f"{parent}/"
            try:
                self.check_parents(f"{prefix}x")
                entries = sorted(os.listdir(self.path / parent))
            except OSError:
                continue  # not there yet, or not to be read
            yield from (prefix + name for name in entries)

    def save_image(self, file: str, data: bytes) -> None:
        """Write an image atomically, and synced. Raises StorageError."""
        try:
            self.check_parents(file)
        except OSError as error:
            raise StorageError(f"Cannot write '{error.filename}': {os_reason(error)}.") from error
        try:
            write_image_file(self.path / file, data, overwrite=True, scratch=self._scratch)
        except InputError as error:
            # The folder was writable when the run began, so the path is not at fault.
            raise StorageError(error.message) from error

    def remove_file(self, file: str) -> None:
        """Remove a file. Raises StorageError."""
        path = self.path / file
        try:
            path.unlink()
        except OSError as error:
            raise StorageError(f"Cannot remove '{path}': {os_reason(error)}.") from error

    def page_name(self, names: Sequence[str], is_ours: Callable[[BinaryIO], bool]) -> str | None:
        """The first name that is free, or whose file `is_ours` accepts."""

        def accepts(path: Path) -> bool:
            with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
                return is_ours(file)

        found = free_or_own_path((self.path / name for name in names), accepts)
        return None if found is None else found.name

    def write_page(self, name: str, data: bytes) -> None:
        """Write a gallery or sheet atomically. Raises StorageError."""
        path = self.path / name
        try:
            atomic.write_bytes(path, data, scratch=self._scratch)
        except OSError as error:
            raise storage_error(error, "write", path) from error

    @contextmanager
    def local_copies(self, files: Mapping[str, str]) -> Iterator[Mapping[str, Path]]:
        """The paths of files by key; those of links are left out."""
        yield {key: self.path / file for key, file in files.items() if self._is_inside(file)}

    def _is_inside(self, file: str) -> bool:
        try:
            stat_inside(self.path, file)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True
