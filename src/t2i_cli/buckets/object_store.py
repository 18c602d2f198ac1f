"""Objects in a folder of a bucket, through fsspec: listed, read and written whole."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from threading import Event as Flag
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from t2i_cli.buckets.bucket_errors import (
    BUG_TYPES,
    bucket_error,
    is_missing_place,
    is_passing_failure,
    missing_package_error,
)
from t2i_cli.buckets.bucket_url import BucketUrl
from t2i_cli.errors import RemoteError
from t2i_cli.net.retry import RetryableError, RetryPolicy, call_with_retry

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PARALLEL_CALLS = 16
"""Calls in flight at a time: a store takes tens of milliseconds for each."""
RETRY_POLICY = RetryPolicy(retries=5, timeout=60, first_pause=0.5, longest_pause=8)
_S3_OPTIONS = {
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 30,
        "max_pool_connections": PARALLEL_CALLS,
        "retries": {"total_max_attempts": 1},
    }
}
"""Short waits, and no retries beside RETRY_POLICY."""
_FOLDER_PROTOCOLS = {"ftp", "sftp", "ssh", "smb", "hdfs", "arrow_hdfs"}
"""Servers of files, whose folders must be made."""

_VERSION_KEYS = (
    *("ETag", "etag", "generation", "blob_id", "md5Hash", "content_md5", "checksum"),
    *("LastModified", "last_modified", "updated", "mtime", "modified", "created"),
)
"""Of what fsspec's packages tell of an object: what another content has another of, best first."""

_Result = TypeVar("_Result")


class ObjectVersion(NamedTuple):
    """An object's size in bytes, and a text that another content of it has another of."""

    size: int
    version: str


class ObjectStore:
    """Objects by their names relative to the URL; thread-safe.

    Every call is tried again after a failure that may pass, until `stop` is set. Raises T2IError.
    """

    commits = False
    """Whether writes are stored by `commit()`, and all together; otherwise each is at once."""

    def __init__(self, url: BucketUrl) -> None:
        self.url = url
        self.stop = Flag()
        self._fs, path = _open_file_system(url)
        self._root = path.rstrip("/")

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The size in bytes of each object, or of those in a folder below."""

        def find() -> dict[str, dict[str, Any]]:
            self._fs.invalidate_cache()
            path = self._path(folder).rstrip("/")
            try:
                found: dict[str, dict[str, Any]] = self._fs.find(path, detail=True)
            except FileNotFoundError as error:
                if is_missing_place(error):
                    raise
                return {}  # a folder in which nothing is yet
            return found

        prefix, sizes = self._root + "/", dict[str, int]()
        for path, info in self._call("list", folder, find).items():
            if path.startswith(prefix):
                sizes[path.removeprefix(prefix)] = int(info.get("size") or 0)
            elif path != self._root:  # an object may have the folder's own name
                raise RemoteError(f"'{self.url}' lists '{path}', which is not in it.")
        return sizes

    def versions(self, depth: int) -> dict[str, ObjectVersion]:
        """The version of each object, in the folder and in those below it down to a depth."""

        def find() -> dict[str, dict[str, Any]]:
            self._fs.invalidate_cache()
            try:
                return dict(self._fs.find(self._root, maxdepth=depth, detail=True))
            except FileNotFoundError as error:
                if is_missing_place(error):
                    raise
                return {}

        prefix = self._root + "/"
        return {
            path.removeprefix(prefix): _version(info)
            for path, info in self._call("list", "", find).items()
            if path.startswith(prefix)
        }

    def version(self, name: str) -> ObjectVersion | None:
        """The version of an object; `None` if there is none of that name."""

        def ask() -> dict[str, Any] | None:
            self._fs.invalidate_cache()
            try:
                return dict(self._fs.info(self._path(name)))
            except FileNotFoundError as error:
                if is_missing_place(error):
                    raise
                return None

        info = self._call("read", name, ask)
        return _version(info) if info and info["type"] == "file" else None

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """The bytes of an object from one place to another; fewer where it is shorter, or gone."""

        def cat() -> bytes:
            try:
                data: bytes = self._fs.cat_file(self._path(name), start=start, end=end)
            except FileNotFoundError as error:
                if is_missing_place(error):
                    raise
                return b""
            return data

        return self._call("read", name, cat)

    def read(self, name: str, size: int | None = None) -> bytes | None:
        """The content of an object, or its beginning; `None` if there is none of that name."""

        def cat() -> bytes | None:
            try:
                data: bytes = self._fs.cat_file(self._path(name), end=size)
            except FileNotFoundError as error:
                if is_missing_place(error):
                    raise
                return None
            return data

        return self._call("read", name, cat)

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""

        def ask() -> bool:
            self._fs.invalidate_cache()
            try:
                return bool(self._fs.info(self._path(name))["type"] == "file")
            except FileNotFoundError as error:
                if is_missing_place(error):
                    raise
                return False

        return self._call("read", name, ask)

    def is_folder(self) -> bool:
        """Whether the URL is that of a folder in which something is."""

        def ask() -> bool:
            self._fs.invalidate_cache()
            try:
                return bool(self._fs.info(self._root)["type"] == "directory")
            except FileNotFoundError as error:
                if is_missing_place(error):
                    raise
                return False

        return self._call("read", "", ask)

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """The contents of several objects, in their order."""
        with ThreadPoolExecutor(PARALLEL_CALLS, thread_name_prefix="bucket") as pool:
            return list(pool.map(self.read, names))

    def write(self, name: str, data: bytes) -> None:
        """Write an object, in the place of any that has the name."""

        def pipe() -> None:
            try:
                self._fs.pipe_file(self._path(name), data)
            except FileNotFoundError:
                if self.url.protocol not in _FOLDER_PROTOCOLS:
                    raise
                self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(self._path(name), data)

        self._call("write", name, pipe)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless one has the name; returns whether that was done."""
        tries = 0

        def pipe() -> bool:
            nonlocal tries
            tries += 1
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                # The answer to an attempt before this one may have been lost.
                return tries > 1 and bool(self._fs.cat_file(self._path(name)) == data)
            return True

        return self._call("write", name, pipe)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; one that is gone is no error."""

        def remove_one(name: str) -> None:
            def rm() -> None:
                try:
                    self._fs.rm_file(self._path(name))
                except FileNotFoundError as error:
                    if is_missing_place(error):
                        raise

            self._call("remove", name, rm)

        with ThreadPoolExecutor(PARALLEL_CALLS, thread_name_prefix="bucket") as pool:
            list(pool.map(remove_one, names))

    def modified(self, name: str) -> datetime | None:
        """When an object was written, by the store's clock; `None` if it is gone or not known."""

        def ask() -> datetime | None:
            self._fs.invalidate_cache()
            try:
                found: datetime = self._fs.modified(self._path(name))
            except (FileNotFoundError, NotImplementedError):
                return None
            return found

        return self._call("read", name, ask)

    def commit(self) -> None:
        """Store what was written; here it is already."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _call(self, action: str, name: str, function: Callable[[], _Result]) -> _Result:
        def attempt(seconds_left: float) -> _Result:
            try:
                return function()
            except BUG_TYPES:
                raise
            except Exception as error:  # noqa: BLE001 - the border of fsspec's many packages
                failure = bucket_error(error, action, self.url, name)
                if is_passing_failure(error) and not self.stop.is_set():
                    raise RetryableError(failure) from error
                raise failure from error

        return call_with_retry(attempt, RETRY_POLICY)


def _version(info: Mapping[str, Any]) -> ObjectVersion:
    """What a store tells of an object, of which each package has its own names."""
    told = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
    return ObjectVersion(int(info.get("size") or 0), told.strip('"'))


def _open_file_system(url: BucketUrl) -> "tuple[AbstractFileSystem, str]":
    """fsspec's file system for a URL, and the path in it. Raises T2IError."""
    import fsspec

    options = _S3_OPTIONS if url.protocol in ("s3", "s3a") else {}
    try:
        found = fsspec.url_to_fs(url.text, use_listings_cache=False, **options)
    except ImportError as error:
        raise missing_package_error(error, url) from error
    except BUG_TYPES:
        raise
    except Exception as error:  # noqa: BLE001 - the border of fsspec's many packages
        raise bucket_error(error, "use", url) from error
    file_system, path = found
    if hasattr(file_system, "retries"):
        file_system.retries = 1
    return file_system, str(path)
