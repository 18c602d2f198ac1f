"""The model that Vertex AI hands to a container: AIP_STORAGE_URI, brought to a folder here.

Cloud Storage is asked by its JSON API (cloud.google.com/storage/docs/json_api), with the
credentials that google-auth finds; STORAGE_EMULATOR_HOST points at another host, which is asked
without any, as Google's own client does.
"""

import base64
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import httpx2
from google_crc32c import Checksum

from t2i_cli.errors import (
    AccessError,
    ModelError,
    RemoteError,
    StorageError,
    TimedOutError,
    os_reason,
)
from t2i_cli.events import Downloading, OnEvent

DOWNLOAD_ATTEMPTS = 5
"""Of one call or one file; the waits between them double."""
FIRST_RETRY_WAIT = 1.0
"""Seconds."""
GCS_HOST = "https://storage.googleapis.com"
EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"

_CHUNK = 2**20
_LONGEST = 150
"""Characters of an address in its folder's name; file systems take 255."""
_ROLE = "The container's service account needs storage.objects.list and storage.objects.get on it."
_T = TypeVar("_T")


@dataclass(frozen=True)
class BucketObject:
    """An object, its path in the model's folder, its size in bytes and its CRC32C in base64."""

    name: str
    path: str
    size: int
    crc32c: str | None


def download_artifacts(
    uri: str, on_event: OnEvent = lambda _: None, end: ExitStack | None = None
) -> Path:
    """The folder with the model at `uri`: gs://BUCKET/PATH, file:///PATH or a folder.

    A gs:// one is downloaded into a new folder, named for it, which is removed again if that fails,
    and by `end`. Raises T2IError.
    """
    parts = urlsplit(uri)
    if is_bucket_uri(uri):
        with closing(Bucket(parts.netloc)) as bucket:
            folder = _download(uri, bucket, parts.path.strip("/"), on_event)
        if end:
            end.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder
    folder = Path(url2pathname(parts.path) if parts.scheme == "file" else uri)
    if not folder.is_dir():
        raise ModelError(f"There is no model folder {uri}.")
    return folder


def is_bucket_uri(uri: str) -> bool:
    """Whether that is an address in Cloud Storage."""
    return uri.startswith("gs://")


def _download(uri: str, bucket: "Bucket", prefix: str, on_event: OnEvent) -> Path:
    items = bucket.items(prefix)
    if not items:
        raise ModelError(f"There are no files at {uri}.")
    total, done = sum(item.size for item in items), 0
    folder = _new_folder(uri)
    try:
        for item in items:
            on_event(Downloading(model=uri, done=done, total=total))
            bucket.download(item, folder / item.path)
            done += item.size
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    on_event(Downloading(model=uri, done=done, total=total))
    return folder


def _new_folder(uri: str) -> Path:
    """A folder of this process alone, of the same name on every replica where nobody has it."""
    name = "t2i-model-" + re.sub(r"[^A-Za-z0-9._]+", "-", uri.removeprefix("gs://"))[:_LONGEST]
    folder = Path(tempfile.gettempdir(), name.rstrip("-"))
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:  # another server's, or what one that was killed left behind
        return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    return folder


class Bucket:
    """Reads one bucket of Cloud Storage. Raises AccessError, ModelError, RemoteError."""

    def __init__(self, name: str) -> None:
        self._name = name
        host = os.environ.get(EMULATOR_VARIABLE)
        self._token: Callable[[], str] | None = None
        if host is None:
            from t2i_cli.vertex import credentials

            host = GCS_HOST
            self._token = credentials.TokenProvider(credentials.find_credentials()[0])
        root = host if "://" in host else f"http://{host}"
        self._objects = f"{root.rstrip('/')}/storage/v1/b/{quote(name, safe='')}/o"
        # What stands in for the real one is near, and no proxy's business.
        self._client = httpx2.Client(timeout=60, trust_env=self._token is not None)

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def items(self, prefix: str) -> list[BucketObject]:
        """The files under a prefix."""
        under = f"{prefix}/" if prefix else ""
        query = {"prefix": under, "fields": "items(name,size,crc32c),nextPageToken"}
        found: list[BucketObject] = []
        while True:
            page = self._tried(partial(self._page, query))
            # A name that ends in a slash is what the console makes for an empty folder.
            entries = [e for e in page.get("items", []) if not e["name"].endswith("/")]
            found += [self._item(entry, under) for entry in entries]
            if "nextPageToken" not in page:
                return found
            query = query | {"pageToken": page["nextPageToken"]}

    def download(self, item: BucketObject, target: Path) -> None:
        """Bring one file whole, and checked, to its place. Raises StorageError, too."""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._tried(partial(self._bring, item, target))
        except OSError as error:
            raise StorageError(f"Cannot write '{target}': {os_reason(error)}.") from error

    def _item(self, entry: dict[str, Any], under: str) -> BucketObject:
        path = entry["name"].removeprefix(under)
        if "\\" in path or {"", ".", ".."} & set(path.split("/")):
            raise ModelError(f"The bucket {self._name} holds a file with the unsafe name {path!r}.")
        return BucketObject(entry["name"], path, int(entry["size"]), entry.get("crc32c"))

    def _page(self, query: dict[str, str]) -> dict[str, Any]:
        answer = self._client.get(self._objects, params=query, headers=self._headers())
        self._check(answer)
        try:
            page: dict[str, Any] = answer.json()
        except ValueError as error:
            raise _Again("it answers with what is no JSON") from error
        return page

    def _bring(self, item: BucketObject, target: Path) -> None:
        url = f"{self._objects}/{quote(item.name, safe='')}"
        checksum: Any = Checksum()  # type: ignore[no-untyped-call]
        size = 0
        with (
            self._client.stream(
                "GET", url, params={"alt": "media"}, headers=self._headers()
            ) as answer,
            target.open("wb") as file,
        ):
            self._check(answer)
            # As they are stored: a file kept gzipped has the size and sum of its gzipped bytes.
            for piece in answer.iter_raw(_CHUNK):
                file.write(piece)
                checksum.update(piece)
                size += len(piece)
        sum_ = base64.b64encode(checksum.digest()).decode()
        if size != item.size or item.crc32c not in {None, sum_}:
            raise _Again(f"{item.name} arrived damaged")

    def _headers(self) -> dict[str, str]:
        if not self._token:
            return {}
        try:
            return {"Authorization": f"Bearer {self._token()}"}
        except (RemoteError, TimedOutError) as error:
            raise _Again(error.message.rstrip(".")) from error

    def _check(self, answer: httpx2.Response) -> None:
        match answer.status_code:
            case 200:
                return
            case 401 | 403:
                raise AccessError(f"The bucket {self._name} may not be read.", hint=_ROLE)
            case 404:
                raise ModelError(f"There is no bucket {self._name}, or a file of it has gone.")
            case 408 | 429 | 500 | 502 | 503 | 504:
                raise _Again(f"it answers {answer.status_code}")
            case status:
                raise RemoteError(f"Cloud Storage answers {status} for the bucket {self._name}.")

    def _tried(self, call: Callable[[], _T]) -> _T:
        """What the call returns, tried again while Cloud Storage cannot be reached or is busy."""
        for wait in [FIRST_RETRY_WAIT * 2**n for n in range(DOWNLOAD_ATTEMPTS - 1)]:
            try:
                return call()
            except (_Again, httpx2.TransportError):
                time.sleep(wait)
        try:
            return call()
        except (_Again, httpx2.TransportError) as error:
            reason = str(error) or type(error).__name__
            raise RemoteError(
                f"Cannot read the bucket {self._name}: {reason}.", hint="Try again later."
            ) from error


class _Again(Exception):
    """What another try may cure."""
