"""Writes finished images to URLs, each whole, and without overwriting unless asked to."""

import os
from collections.abc import Sequence
from threading import Lock

from t2i_cli.backend import GeneratedImage
from t2i_cli.buckets.bucket_url import parse_bucket_url
from t2i_cli.buckets.object_store import ObjectStore
from t2i_cli.buckets.store_opening import open_store
from t2i_cli.image_formats import ImageFormat
from t2i_cli.output import metadata
from t2i_cli.output.image_writer import SavedImage, exists_error, saved_image


class BucketImageWriter:
    """Writes the image at position i to the URL `paths[i]`; `save()` is thread-safe."""

    def __init__(
        self, paths: Sequence[str], format: ImageFormat, *, overwrite: bool = False
    ) -> None:
        self.paths = paths
        self.format: ImageFormat = format
        self.overwrite = overwrite
        self._stores: dict[str, ObjectStore] = {}
        self._lock = Lock()

    def check(self) -> None:
        """Raise T2IError for a URL that exists or cannot be reached; changes nothing."""
        for path in self.paths:
            store, name = self._find(path)
            if not self.overwrite and store.exists(name):
                raise exists_error(path)

    def prepare(self) -> None:
        """Check the URLs, and write a tiny object beside them, which is removed. Raises T2IError.

        A repository is not written to: that would be a commit.
        """
        self.check()
        for store in self._stores.values():
            if not store.commits:
                probe = f".t2i-{os.urandom(8).hex()}.tmp"
                store.write(probe, b"")
                store.remove([probe])

    def save(self, generated: GeneratedImage) -> SavedImage:
        """Write one image; raises InputError if the object exists by now, or another T2IError."""
        path = self.paths[generated.index]
        data = metadata.image_file_bytes(generated, self.format)
        store, name = self._find(path)
        if store.commits:
            with self._lock:  # commits follow one another
                self._write(store, name, data, path)
                store.commit()
        else:
            self._write(store, name, data, path)
        return saved_image(generated, path, self.format, data)

    def close(self) -> None:
        """Do nothing: a bucket has no empty folders."""

    def _write(self, store: ObjectStore, name: str, data: bytes, path: str) -> None:
        if self.overwrite:
            store.write(name, data)
        elif not store.create(name, data):
            raise exists_error(path)

    def _find(self, path: str) -> tuple[ObjectStore, str]:
        """The store of a URL's folder, and the name in it."""
        folder, _, name = path.rpartition("/")
        with self._lock:
            if folder not in self._stores:
                self._stores[folder] = open_store(parse_bucket_url(folder))
            return self._stores[folder], name


def is_bucket_folder(target: str) -> bool:
    """Whether a URL names a bucket, or a folder that is there. Raises T2IError."""
    url = parse_bucket_url(target)
    return "/" not in url.text.partition("://")[2] or open_store(url).is_folder()
