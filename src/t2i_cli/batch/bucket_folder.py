"""A batch's folder in a bucket."""

import errno
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from threading import Event as Flag
from typing import BinaryIO, Literal

from t2i_cli.batch import bucket_manifest
from t2i_cli.batch.bucket_lock import LOCK_PREFIX, lock_bucket, unlocked_run
from t2i_cli.batch.bucket_manifest import BucketManifest, Records, check_copied_shards
from t2i_cli.batch.lock import Shard
from t2i_cli.batch.manifest import MAIN_MANIFEST
from t2i_cli.buckets.object_store import PARALLEL_CALLS, ObjectStore
from t2i_cli.errors import InputError

_OWN_OBJECTS = (MAIN_MANIFEST, f"{bucket_manifest.PARTS_FOLDER}/", LOCK_PREFIX)


class BucketFolder:
    """The objects below a URL. What is there is listed once, and again when it is locked."""

    saver_threads: int | None = PARALLEL_CALLS

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._sizes: dict[str, int] | None = None
        self._run = unlocked_run()

    def location(self, file: str = "") -> str:
        """The URL of the folder, or of a file in it."""
        return self._store.url.location(file)

    def check(self) -> None:
        """List the folder: raises T2IError if there is no such bucket, or it may not be read."""
        self._sizes = self._store.sizes()
        check_copied_shards(self._store, self._sizes)

    def is_used(self) -> bool:
        """Whether a batch has worked in the folder."""
        return any(name.startswith(_OWN_OBJECTS) for name in self._known())

    has_lock = is_used

    @contextmanager
    def lock(self, shard: Shard | None) -> Iterator[None]:
        """Keep other runs out, as `lock_bucket` does; in a repository, its commits do that."""
        if shard and self._store.commits:
            raise InputError(
                f"--shard is not taken with '{self._store.url}': its commits are a chain.",
                field="shard",
            )
        opened = nullcontext(unlocked_run()) if self._store.commits else None
        with opened or lock_bucket(self._store, shard) as run:
            self._run, self._sizes = run, None
            yield

    def manifest_records(self) -> Iterator[Records]:
        """The lines of the manifest, with those of its parts."""
        return bucket_manifest.read_bucket_records(self._store)

    def merge(self) -> int:
        """Join the parts of the manifest; returns how many shards wrote some."""
        return bucket_manifest.merge_parts(self._store, self, self._run.check)

    def open_manifest(self, shard: Shard | None) -> BucketManifest:
        """A manifest for the parts of this run."""
        return BucketManifest(self._store, self._run, shard)

    def finish(self, *, merge: bool) -> None:
        """Join the parts, if wanted, and store what waits for a commit."""
        if merge:
            self.merge()
        self._store.commit()

    def stop_retries_on(self, stop: Flag) -> None:
        """Try nothing again that fails once `stop` is set."""
        self._store.stop = stop

    def free_bytes(self) -> int | None:
        """Not known: a bucket has no end."""
        return None

    def occupant(self, file: str) -> Literal["file", "folder"] | None:
        """Whether there is an object of that name; the folder itself is always there."""
        if not file:
            return "folder"
        return "file" if file in self._known() else None

    def check_parents(self, file: str) -> None:
        """Do nothing: a bucket has neither folders nor links."""

    def file_size(self, file: str) -> int:
        """Size of an object in bytes. Raises FileNotFoundError."""
        try:
            return self._known()[file]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "it is gone", self.location(file)) from None

    def open_file(self, file: str) -> io.BytesIO:
        """The content of an object. Raises FileNotFoundError."""
        data = self._store.read(file)
        if data is None:
            raise FileNotFoundError(errno.ENOENT, "it is gone", self.location(file))
        return io.BytesIO(data)

    def unlisted_candidates(self, names: Iterable[str]) -> Iterator[str]:
        """Objects with these names: to read all others would cost more than it is worth."""
        known = self._known()
        return (name for name in sorted(names) if name in known)

    def save_image(self, file: str, data: bytes) -> None:
        """Write an image."""
        self._store.write(file, data)

    def remove_file(self, file: str) -> None:
        """Remove an object."""
        self._store.remove([file])

    def page_name(self, names: Sequence[str], is_ours: Callable[[BinaryIO], bool]) -> str | None:
        """The first name that is free, or whose object `is_ours` accepts."""
        for name in names:
            data = self._store.read(name)
            if data is None or is_ours(io.BytesIO(data)):
                return name
        return None

    def write_page(self, name: str, data: bytes) -> None:
        """Write a gallery or sheet."""
        self._store.write(name, data)

    @contextmanager
    def local_copies(self, files: Mapping[str, str]) -> Iterator[Mapping[str, Path]]:
        """Copies of objects in a temporary folder by key; those that are gone are left out."""
        with TemporaryDirectory(prefix="t2i-") as folder:

            def copy(number: int, file: str) -> Path | None:
                data = self._store.read(file)
                if data is None:
                    return None
                path = Path(folder, f"{number}{PurePosixPath(file).suffix}")
                path.write_bytes(data)
                return path

            with ThreadPoolExecutor(PARALLEL_CALLS, thread_name_prefix="bucket") as pool:
                paths = pool.map(copy, range(len(files)), files.values())
                yield {key: path for key, path in zip(files, paths, strict=True) if path}

    def _known(self) -> Mapping[str, int]:
        if self._sizes is None:
            self._sizes = self._store.sizes()
        return self._sizes
