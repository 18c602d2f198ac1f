"""Cloud Storage by its JSON API: buckets, and files listed, sent, brought and removed.

https://cloud.google.com/storage/docs/json_api; why not Google's own client says
docs/decisions/cloud-storage-client.md.
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
from t2i_cli.net.google_http import GOOGLE_POLICY, GoogleHttp, NotFoundError, json_of
from t2i_cli.net.http_client import HttpResponse
from t2i_cli.net.retry import RetryableError, call_with_retry, retryable

GCS_HOST = "https://storage.googleapis.com"
EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"
"""Names a host that stands in for Google's and asks for no credentials, as to Google's client."""
CHUNK_BYTES = 32 * 256 * 1024
"""Bytes of one request of an upload: a multiple of 256 KiB."""

_PIECE = 2**20


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file as its bucket has it: its size in bytes, its CRC32C in base64."""

    name: str
    size: int
    crc32c: str | None
    labels: Mapping[str, str] = field(default_factory=dict)


class GcsClient:
    """Cloud Storage at a host; errors leave it only as T2IError."""

    def __init__(self, http: GoogleHttp, host: str = GCS_HOST) -> None:
        self._http = http
        self._host = host

    def bucket(self, name: str) -> Mapping[str, Any] | None:
        """What is known of a bucket, or None if there is no such bucket."""
        try:
            return self._http.call_url("GET", self._bucket_url(name))
        except NotFoundError:
            return None

    def make_bucket(
        self, name: str, *, project: str, region: str, labels: Mapping[str, str]
    ) -> None:
        """Make a private bucket in the region."""
        body = {
            "name": name,
            "location": region,
            "labels": dict(labels),
            "iamConfiguration": {
                "uniformBucketLevelAccess": {"enabled": True},
                "publicAccessPrevention": "enforced",
            },
        }
        url = f"{self._host}/storage/v1/b"
        self._http.call_url("POST", url, json=body, params={"project": project})

    def remove_bucket(self, name: str) -> None:
        """Delete an empty bucket."""
        self._http.call_url("DELETE", self._bucket_url(name))

    def list_blobs(self, bucket: str, prefix: str) -> list[Blob]:
        """The files whose names begin so. Raises NotFoundError if there is no bucket."""
        query = {"prefix": prefix, "fields": "items(name,size,crc32c,metadata),nextPageToken"}
        found = self._http.list_url(f"{self._bucket_url(bucket)}/o", "items", query)
        return [
            Blob(
                name=item["name"],
                size=int(item["size"]),
                crc32c=item.get("crc32c"),
                labels=item.get("metadata", {}),
            )
            for item in found
        ]

    def delete(self, bucket: str, name: str) -> None:
        """Delete one file."""
        self._http.call_url("DELETE", self._blob_url(bucket, name))

    def download(self, bucket: str, blob: Blob, target: Path) -> None:
        """Bring one file whole, and checked, to its place. Raises StorageError, too."""

        def attempt() -> None:
            checksum: Any = Checksum()  # type: ignore[no-untyped-call]
            size = 0
            url = self._blob_url(bucket, blob.name)
            with self._http.stream(url, {"alt": "media"}) as answer, target.open("wb") as file:
                # As they are stored: a file kept gzipped has the size and sum of its gzipped bytes.
                for piece in answer.iter_raw(_PIECE):
                    file.write(piece)
                    checksum.update(piece)
                    size += len(piece)
            if size != blob.size or blob.crc32c not in {None, _in_base64(checksum)}:
                raise RetryableError(RemoteError(f"{blob.name} arrived damaged."))

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._http.retry(attempt)
        except OSError as error:
            raise StorageError(f"Cannot write '{target}': {os_reason(error)}.") from error

    def put(self, bucket: str, name: str, data: bytes, labels: Mapping[str, str]) -> None:
        """Write a small file, with labels of its own."""
        session = self._session(bucket, name, len(data), labels)
        headers = {"Content-Range": _range(0, data, len(data))}
        self._http.send("PUT", session, content=data, headers=headers)

    def upload(
        self, bucket: str, name: str, path: Path, crc32c: str, on_sent: Callable[[int], None]
    ) -> None:
        """Send one file in pieces; after a break it goes on from what arrived.

        Raises RemoteError if what arrived has another checksum.
        https://cloud.google.com/storage/docs/performing-resumable-uploads
        """
        size, start = path.stat().st_size, 0
        session = self._session(bucket, name, size, {})
        with path.open("rb") as stream:
            while True:
                stream.seek(start)
                answer = self._send_piece(session, start, stream.read(CHUNK_BYTES), size)
                if answer.status != 308:
                    break
                start = _arrived(answer)
                on_sent(start)
        if json_of(answer).get("crc32c") not in {None, crc32c}:
            raise RemoteError(f"{name} arrived damaged.", hint="Run the same command again.")

    def _send_piece(self, session: str, start: int, piece: bytes, size: int) -> HttpResponse:
        """The answer once more of the file is there than `start` bytes."""
        broken = False

        def attempt(_left: float) -> HttpResponse:
            nonlocal broken
            if broken:
                headers = {"Content-Range": f"bytes */{size}"}
                answer = self._http.send("PUT", session, headers=headers)
                if answer.status != 308 or _arrived(answer) > start:
                    return answer
            broken = True
            headers = {"Content-Range": _range(start, piece, size)}
            with retryable():
                return self._http.send("PUT", session, content=piece, headers=headers, tries=1)

        return call_with_retry(attempt, GOOGLE_POLICY)

    def _session(self, bucket: str, name: str, size: int, labels: Mapping[str, str]) -> str:
        """The address that takes the file. Who knows it can write there: it is shown nowhere."""
        answer = self._http.send(
            "POST",
            f"{self._host}/upload/storage/v1/b/{quote(bucket, safe='')}/o",
            params={"uploadType": "resumable", "name": name},
            json={"metadata": dict(labels)} if labels else {},
            headers={"X-Upload-Content-Length": str(size)},
        )
        url = urlsplit(answer.headers["location"])
        # The answer names Google's own host, whatever the host that was asked.
        return f"{self._host}{url.path}?{url.query}"

    def _bucket_url(self, bucket: str) -> str:
        return f"{self._host}/storage/v1/b/{quote(bucket, safe='')}"

    def _blob_url(self, bucket: str, name: str) -> str:
        return f"{self._bucket_url(bucket)}/o/{quote(name, safe='')}"


def file_crc32c(path: Path) -> str:
    """A file's CRC32C as storage keeps it: in base64, big-endian. Raises StorageError."""
    checksum: Any = Checksum()  # type: ignore[no-untyped-call]
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE):
                checksum.update(piece)
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {os_reason(error)}.") from error
    return _in_base64(checksum)


def _in_base64(checksum: Any) -> str:  # noqa: ANN401 - the library has no types
    return base64.b64encode(checksum.digest()).decode()


def _range(start: int, piece: bytes, total: int) -> str:
    return f"bytes {start}-{start + len(piece) - 1}/{total}" if piece else f"bytes */{total}"


def _arrived(answer: HttpResponse) -> int:
    found = re.fullmatch(r"bytes=0-(\d+)", answer.headers.get("range", ""))
    return int(found[1]) + 1 if found else 0
