"""The model that Vertex AI hands to a container: AIP_STORAGE_URI, brought to a folder here.

Cloud Storage is asked by its JSON API (cloud.google.com/storage/docs/json_api), with the
credentials that google-auth finds; STORAGE_EMULATOR_HOST points at another host, which is asked
without any, as Google's own client does.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from t2i_cli.errors import AccessError, ModelError, RemoteError, T2IError, TimedOutError
from t2i_cli.events import Downloading, OnEvent
from t2i_cli.net import gcs, google_credentials
from t2i_cli.net.gcs import Blob, GcsClient
from t2i_cli.net.google_http import GoogleHttp
from t2i_cli.net.retry import RetryPolicy

DOWNLOAD_ATTEMPTS = 5
"""Of one call or one file."""
DOWNLOAD_POLICY = RetryPolicy(retries=DOWNLOAD_ATTEMPTS - 1, first_pause=1.5)

_RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST = 150
"""Characters of an address in its folder's name; file systems take 255."""
_ROLE = "The container's service account needs storage.objects.list and storage.objects.get on it."


def download_artifacts(
    uri: str, on_event: OnEvent = lambda _: None, end: ExitStack | None = None
) -> Path:
    """The folder with the model at `uri`: gs://BUCKET/PATH, file:///PATH or a folder.

    A gs:// one is downloaded into a new folder, named for it, which is removed again if that fails,
    and by `end`. Raises T2IError.
    """
    parts = urlsplit(uri)
    if is_bucket_uri(uri):
        with _reader(parts.netloc) as reader:
            folder = _download(uri, reader, on_event)
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


def _download(uri: str, reader: GcsClient, on_event: OnEvent) -> Path:
    parts = urlsplit(uri)
    items = _model_files(reader, parts.netloc, parts.path.strip("/"))
    if not items:
        raise ModelError(f"There are no files at {uri}.")
    total, done = sum(blob.size for blob, _ in items), 0
    folder = _new_folder(uri)
    try:
        for blob, path in items:
            on_event(Downloading(model=uri, done=done, total=total))
            reader.download(parts.netloc, blob, folder / path)
            done += blob.size
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


@contextmanager
def _reader(bucket: str) -> Iterator[GcsClient]:
    """Cloud Storage as a container reads it. Raises AccessError, ModelError, RemoteError."""
    host = os.environ.get(gcs.EMULATOR_VARIABLE)
    token = None
    if host is None:
        token = google_credentials.TokenProvider(google_credentials.find_credentials()[0])
    root = (host if "://" in host else f"http://{host}") if host else gcs.GCS_HOST
    try:
        with GoogleHttp(
            token,
            # What stands in for the real one is near, and no proxy's business.
            proxies=token is not None,
            policy=DOWNLOAD_POLICY,
            retry_statuses=_RETRY_STATUSES,
            make_error=partial(_error_from_response, bucket),
        ) as http:
            yield GcsClient(http, root.rstrip("/"))
    except (RemoteError, TimedOutError) as error:
        reason = error.message.rstrip(".")
        raise RemoteError(
            f"Cannot read the bucket {bucket}: {reason}.", hint="Try again later."
        ) from error


def _error_from_response(bucket: str, status: int, _body: bytes) -> T2IError:
    if status in {401, 403}:
        return AccessError(f"The bucket {bucket} may not be read.", hint=_ROLE)
    if status == 404:
        return ModelError(f"There is no bucket {bucket}, or a file of it has gone.")
    return RemoteError(f"it answers {status}")


def _model_files(reader: GcsClient, bucket: str, prefix: str) -> list[tuple[Blob, str]]:
    """The files under a prefix, each with its path in the model's folder."""
    under = f"{prefix}/" if prefix else ""
    # A name that ends in a slash is what the console makes for an empty folder.
    blobs = [blob for blob in reader.list_blobs(bucket, under) if not blob.name.endswith("/")]
    found = [(blob, blob.name.removeprefix(under)) for blob in blobs]
    for _, path in found:
        if "\\" in path or {"", ".", ".."} & set(path.split("/")):
            raise ModelError(f"The bucket {bucket} holds a file with the unsafe name {path!r}.")
    return found
