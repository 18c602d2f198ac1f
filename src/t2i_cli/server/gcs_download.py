"""Downloads the model at AIP_STORAGE_URI, which Vertex AI passes to a container.

Uses Cloud Storage's JSON API (cloud.google.com/storage/docs/json_api) with the credentials that
google-auth finds; STORAGE_EMULATOR_HOST names another host, called without credentials, as in
Google's own client.
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
"""Attempts of one call or of one file's download."""
DOWNLOAD_POLICY = RetryPolicy(retries=DOWNLOAD_ATTEMPTS - 1, first_pause=1.5)

_RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_MAX_NAME = 150
"""Longest name of a download folder, in characters; file systems allow 255."""
_ROLE = "The container's service account needs storage.objects.list and storage.objects.get on it."


def download_artifacts(
    uri: str, on_event: OnEvent = lambda _: None, stack: ExitStack | None = None
) -> Path:
    """The folder with the model at `uri`: gs://BUCKET/PATH, file:///PATH or a folder.

    Objects of a gs:// URI are downloaded into a new folder, which is removed on failure and when
    `stack` closes. Raises T2IError.
    """
    parts = urlsplit(uri)
    if is_bucket_uri(uri):
        with _open_gcs(parts.netloc) as client:
            folder = _download(uri, client, on_event)
        if stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder
    folder = Path(url2pathname(parts.path) if parts.scheme == "file" else uri)
    if not folder.is_dir():
        raise ModelError(f"There is no model folder {uri}.")
    return folder


def is_bucket_uri(uri: str) -> bool:
    """Whether it is a gs:// URI of Cloud Storage."""
    return uri.startswith("gs://")


def _download(uri: str, client: GcsClient, on_event: OnEvent) -> Path:
    parts = urlsplit(uri)
    files = _model_files(client, parts.netloc, parts.path.strip("/"))
    if not files:
        raise ModelError(f"There are no files at {uri}.")
    total, done = sum(blob.size for blob, _ in files), 0
    folder = _new_folder(uri)
    try:
        for blob, path in files:
            on_event(Downloading(model=uri, done=done, total=total))
            client.download(parts.netloc, blob, folder / path)
            done += blob.size
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    on_event(Downloading(model=uri, done=done, total=total))
    return folder


def _new_folder(uri: str) -> Path:
    """A new private folder in the temporary directory, named after the URI unless that exists."""
    name = "t2i-model-" + re.sub(r"[^A-Za-z0-9._]+", "-", uri.removeprefix("gs://"))[:_MAX_NAME]
    folder = Path(tempfile.gettempdir(), name.rstrip("-"))
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:  # of another server, or left by one that was killed
        return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    return folder


@contextmanager
def _open_gcs(bucket: str) -> Iterator[GcsClient]:
    """A client for the bucket. Raises AccessError, ModelError, RemoteError."""
    host = os.environ.get(gcs.EMULATOR_VARIABLE)
    token = None
    if host is None:
        token = google_credentials.TokenProvider(google_credentials.find_credentials()[0])
    root = (host if "://" in host else f"http://{host}") if host else gcs.GCS_HOST
    try:
        with GoogleHttp(
            token,
            # No proxy for an emulator, which is local.
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


def _model_files(client: GcsClient, bucket: str, prefix: str) -> list[tuple[Blob, str]]:
    """The objects under a prefix, each with its path in the model's folder. Raises ModelError."""
    folder_prefix = f"{prefix}/" if prefix else ""
    # The Cloud console creates an object with a name ending in a slash for an empty folder.
    blobs = [
        blob for blob in client.list_blobs(bucket, folder_prefix) if not blob.name.endswith("/")
    ]
    files = [(blob, blob.name.removeprefix(folder_prefix)) for blob in blobs]
    for _, path in files:
        if "\\" in path or {"", ".", ".."} & set(path.split("/")):
            raise ModelError(f"The bucket {bucket} holds a file with the unsafe name {path!r}.")
    return files
