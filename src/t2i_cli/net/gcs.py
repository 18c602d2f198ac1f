"""Client of Cloud Storage's JSON API: buckets; listing, upload, download and deletion of objects.

https://cloud.google.com/storage/docs/json_api; docs/decisions/cloud-storage-client.md says
why this is not Google's own client.
"""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from google_crc32c import Checksum

from t2i_cli.errors import RemoteError, StorageError, os_reason
from t2i_cli.known_secrets import register_secret
from t2i_cli.net.google_answers import answer_error, parse_answer
from t2i_cli.net.google_http import (
    GOOGLE_POLICY,
    GoneError,
    GoogleHttp,
    NotFoundError,
)
from t2i_cli.net.http_client import HttpResponse
from t2i_cli.net.retry import RetryableError, call_with_retry, retryable

GCS_HOST = "https://storage.googleapis.com"
EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"
"""Names an emulator's host, called without credentials, as in Google's own client."""
CHUNK_BYTES = 32 * 256 * 1024
"""Bytes of one request of a resumable upload: a multiple of 256 KiB."""

_READ_BYTES = 2**20
_MAX_SESSIONS = 5
"""Sessions of one upload, the first included: a session can expire at any time."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A stored object: its size in bytes, its CRC32C in base64, its custom metadata."""

    name: str
    size: int
    crc32c: str | None
    labels: Mapping[str, str] = field(default_factory=dict)


class GcsClient:
    """Cloud Storage at `host`. Raises T2IError only."""

    def __init__(self, http: GoogleHttp, host: str = GCS_HOST) -> None:
        self._http = http
        self._host = host

    def bucket(self, name: str) -> Mapping[str, Any] | None:
        """A bucket's metadata, or None if there is no such bucket."""
        try:
            return self._http.call_url("GET", self._bucket_url(name))
        except NotFoundError:
            return None

    def make_bucket(
        self, name: str, *, project: str, region: str, labels: Mapping[str, str]
    ) -> None:
        """Create a private bucket in the region."""
        body = {
            "name": name,
            "location": region,
            "labels": dict(labels),
            "iamConfiguration": {
                "uniformBucketLevelAccess": {"enabled": True},
                "publicAccessPrevention": "enforced",
            },
            # Google's default keeps deleted objects for 7 days, which are paid for.
            "softDeletePolicy": {"retentionDurationSeconds": "0"},
        }
        url = f"{self._host}/storage/v1/b"
        self._http.call_url("POST", url, json=body, params={"project": project})

    def remove_bucket(self, name: str) -> None:
        """Delete an empty bucket."""
        self._http.call_url("DELETE", self._bucket_url(name))

    def list_blobs(self, bucket: str, prefix: str) -> list[Blob]:
        """The objects whose names start with `prefix`. Raises NotFoundError without a bucket."""
        query = {"prefix": prefix, "fields": "items(name,size,crc32c,metadata),nextPageToken"}
        entries = self._http.list_url(f"{self._bucket_url(bucket)}/o", "items", query)
        return [
            Blob(
                name=item["name"],
                size=int(item["size"]),
                crc32c=item.get("crc32c"),
                labels=item.get("metadata", {}),
            )
            for item in entries
        ]

    def delete(self, bucket: str, name: str) -> None:
        """Delete one object."""
        self._http.call_url("DELETE", self._blob_url(bucket, name))

    def download(self, bucket: str, blob: Blob, target: Path) -> None:
        """Download one object to `target` and check its size and CRC32C.

        Raises StorageError if `target` cannot be written.
        """

        def attempt() -> None:
            checksum: Any = Checksum()  # type: ignore[no-untyped-call]
            size = 0
            url = self._blob_url(bucket, blob.name)
            with self._http.stream(url, {"alt": "media"}) as response, target.open("wb") as file:
                # Raw bytes: size and checksum of a gzipped object are of its gzipped bytes.
                for chunk in response.iter_raw(_READ_BYTES):
                    size += len(chunk)
                    if size > blob.size:
                        break
                    file.write(chunk)
                    checksum.update(chunk)
            if size != blob.size or blob.crc32c not in {None, _base64_digest(checksum)}:
                raise RetryableError(RemoteError(f"{blob.name} arrived damaged."))

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._http.retry(attempt)
        except OSError as error:
            raise StorageError(f"Cannot write '{target}': {os_reason(error)}.") from error

    def put(self, bucket: str, name: str, data: bytes, labels: Mapping[str, str]) -> None:
        """Upload a small object with custom metadata, in one request."""
        headers = {"Content-Range": _content_range(0, data, len(data))}

        def send(upload_url: str) -> HttpResponse:
            return self._http.send("PUT", upload_url, content=data, headers=headers)

        self._in_session(bucket, name, len(data), labels, send)

    def upload(
        self, bucket: str, name: str, path: Path, crc32c: str, on_sent: Callable[[int], None]
    ) -> None:
        """Upload a file in chunks; resumes after a failure. `on_sent` gets the bytes stored so far.

        Where the session has expired, the file is sent from its start again. `crc32c` is in
        base64. Raises RemoteError if the stored object has another checksum.
        https://cloud.google.com/storage/docs/performing-resumable-uploads
        """
        size = path.stat().st_size

        def send(upload_url: str) -> HttpResponse:
            start = 0
            with path.open("rb") as stream:
                while True:
                    stream.seek(start)
                    response = self._send_chunk(upload_url, start, stream.read(CHUNK_BYTES), size)
                    if response.status != 308:
                        return response
                    start = _bytes_received(response)
                    on_sent(start)

        response = self._in_session(bucket, name, size, {}, send)
        if parse_answer(response.body).get("crc32c") not in {None, crc32c}:
            raise RemoteError(f"{name} arrived damaged.", hint="Run the same command again.")

    def _in_session(
        self,
        bucket: str,
        name: str,
        size: int,
        labels: Mapping[str, str],
        send: Callable[[str], HttpResponse],
    ) -> HttpResponse:
        """Call `send` with a session's URL, and with another one where the session has expired.

        Status 404 or 410: https://cloud.google.com/storage/docs/resumable-uploads#session-uris
        """
        for left in reversed(range(_MAX_SESSIONS)):
            upload_url = self._start_upload(bucket, name, size, labels)
            try:
                return send(upload_url)
            except (GoneError, NotFoundError):
                if not left:
                    raise
        raise AssertionError("the last session raises")

    def _send_chunk(self, upload_url: str, start: int, chunk: bytes, size: int) -> HttpResponse:
        """Send a chunk, with retries, until the server has more than `start` bytes of the file.

        Returns the last response; status 308 asks for more chunks.
        """
        may_have_data = False

        def attempt(_left: float) -> HttpResponse:
            nonlocal may_have_data
            if may_have_data:
                headers = {"Content-Range": f"bytes */{size}"}
                response = self._http.send("PUT", upload_url, headers=headers)
                if response.status != 308 or _bytes_received(response) > start:
                    return response
            may_have_data = True
            headers = {"Content-Range": _content_range(start, chunk, size)}
            with retryable():
                return self._http.send("PUT", upload_url, content=chunk, headers=headers, tries=1)

        return call_with_retry(attempt, GOOGLE_POLICY)

    def _start_upload(self, bucket: str, name: str, size: int, labels: Mapping[str, str]) -> str:
        """Start a resumable upload; return its URL, a secret: it allows writing without a token."""
        response = self._http.send(
            "POST",
            f"{self._host}/upload/storage/v1/b/{quote(bucket, safe='')}/o",
            params={"uploadType": "resumable", "name": name},
            json={"metadata": dict(labels)} if labels else {},
            headers={"X-Upload-Content-Length": str(size)},
        )
        try:
            url = urlsplit(response.headers.get("location", ""))
        except ValueError as error:
            raise answer_error("it names no place for an upload") from error
        register_secret(url.query)
        # The response names Google's own host even if another host was asked.
        return f"{self._host}{url.path}?{url.query}"

    def _bucket_url(self, bucket: str) -> str:
        return f"{self._host}/storage/v1/b/{quote(bucket, safe='')}"

    def _blob_url(self, bucket: str, name: str) -> str:
        return f"{self._bucket_url(bucket)}/o/{quote(name, safe='')}"


def file_crc32c(path: Path) -> str:
    """A file's CRC32C in base64, big-endian, as Cloud Storage has it. Raises StorageError."""
    checksum: Any = Checksum()  # type: ignore[no-untyped-call]
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_READ_BYTES):
                checksum.update(chunk)
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {os_reason(error)}.") from error
    return _base64_digest(checksum)


def _base64_digest(checksum: Any) -> str:  # noqa: ANN401 - the library has no types
    return base64.b64encode(checksum.digest()).decode()


def _content_range(start: int, chunk: bytes, total: int) -> str:
    return f"bytes {start}-{start + len(chunk) - 1}/{total}" if chunk else f"bytes */{total}"


def _bytes_received(response: HttpResponse) -> int:
    match = re.fullmatch(r"bytes=0-(\d{1,15})", response.headers.get("range", ""))
    return int(match[1]) + 1 if match else 0
