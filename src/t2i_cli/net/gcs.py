"""Weights in a bucket: resumable uploads of Cloud Storage's JSON interface.

https://cloud.google.com/storage/docs/performing-resumable-uploads
"""

import base64
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from t2i_cli.errors import (
    AccessError,
    QuotaError,
    RemoteError,
    StorageError,
    TimedOutError,
    os_reason,
)
from t2i_cli.vertex import labels as labelling
from t2i_cli.vertex.client import MAX_ATTEMPTS, GoogleClient, NotFoundError
from t2i_cli.vertex.location import Location

WEIGHTS_ROOT = "t2i/"
"""Everything that t2i puts into a bucket lies under this."""
CHUNK_BYTES = 32 * 256 * 1024
"""Bytes of one request of an upload: a multiple of 256 KiB."""

OnBytes = Callable[[int, int], None]
"""Takes the bytes that are there, and the total."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file as the bucket has it."""

    name: str
    size: int
    md5: str | None
    labels: Mapping[str, str]


def default_bucket(place: Location) -> str:
    """The bucket's name where none is given."""
    return f"t2i-{place.project}-{place.region}".replace(":", "-").replace(".", "-")[:63].strip("-")


def weights_prefix(name: str) -> str:
    """The prefix of a deployment's weights."""
    return f"{WEIGHTS_ROOT}{name}/"


def marker_name(name: str) -> str:
    """The object that carries a deployment's labels; it lies beside the weights, not among them."""
    return f"{WEIGHTS_ROOT}{name}.labels"


def bucket_labels(rest: GoogleClient, bucket: str) -> Mapping[str, str] | None:
    """The bucket's labels, or None if there is no such bucket."""
    try:
        found = rest.call("GET", "storage", f"b/{quote(bucket)}")
    except NotFoundError:
        return None
    labels: Mapping[str, str] = found.get("labels", {})
    return labels


def check_owner(rest: GoogleClient, bucket: str) -> None:
    """Raise AccessError if the bucket is another project's: its default name can be guessed."""
    owner = rest.call("GET", "storage", f"b/{quote(bucket)}").get("projectNumber")
    ours = rest.call("GET", "cloudresourcemanager", f"projects/{rest.place.project}")["name"]
    if ours != f"projects/{owner}":
        raise AccessError(
            f"gs://{bucket} is not of the project {rest.place.project}: nothing is uploaded there.",
            hint="--bucket names another one.",
        )


def make_bucket(rest: GoogleClient, bucket: str, labels: Mapping[str, str]) -> None:
    """A private bucket in the region."""
    body = {
        "name": bucket,
        "location": rest.place.region,
        "labels": dict(labels),
        "iamConfiguration": {
            "uniformBucketLevelAccess": {"enabled": True},
            "publicAccessPrevention": "enforced",
        },
    }
    rest.call("POST", "storage", "b", json=body, params={"project": rest.place.project})


def remove_bucket(rest: GoogleClient, bucket: str) -> None:
    """Delete an empty bucket."""
    rest.call("DELETE", "storage", f"b/{quote(bucket)}")


def list_blobs(rest: GoogleClient, bucket: str, prefix: str) -> list[Blob]:
    """The files whose names begin so; none where there is no bucket."""
    try:
        found = list(rest.list_all("storage", f"b/{quote(bucket)}/o", "items", {"prefix": prefix}))
    except NotFoundError:
        return []
    return [
        Blob(
            name=item["name"],
            size=int(item["size"]),
            md5=item.get("md5Hash"),
            labels=item.get("metadata", {}),
        )
        for item in found
    ]


def delete_blob(rest: GoogleClient, bucket: str, name: str) -> None:
    """Delete one file."""
    rest.call("DELETE", "storage", f"b/{quote(bucket)}/o/{quote(name, safe='')}")


def write_marker(rest: GoogleClient, bucket: str, labels: labelling.Labels) -> None:
    """Write the object that tells whose the weights are and when they may go."""
    _put(rest, bucket, marker_name(labels.name), b"", labels.encoded())


def upload_folder(
    rest: GoogleClient, source: Path, bucket: str, prefix: str, on_bytes: OnBytes
) -> None:
    """Have every file of a local folder under the prefix; those that are there stay."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    total = sum(path.stat().st_size for path in files)
    there = {file.name: file for file in list_blobs(rest, bucket, prefix)}
    done = 0
    for path in files:
        name = prefix + path.relative_to(source).as_posix()
        size = path.stat().st_size
        same = there.get(name)
        if same is None or same.size != size or same.md5 != _md5(path):
            _upload(rest, bucket, name, path, partial(_count, on_bytes, done, total))
        done += size
        on_bytes(done, total)


def _count(on_bytes: OnBytes, before: int, total: int, sent: int) -> None:
    on_bytes(before + sent, total)


def _put(
    rest: GoogleClient, bucket: str, name: str, data: bytes, metadata: Mapping[str, str]
) -> None:
    session = _session(rest, bucket, name, len(data), metadata)
    rest.send("PUT", session, content=data, headers={"Content-Range": _range(0, data, len(data))})


def _upload(
    rest: GoogleClient, bucket: str, name: str, path: Path, on_sent: Callable[[int], None]
) -> None:
    """Send one file in pieces; after a break it goes on from what arrived."""
    size = path.stat().st_size
    session = _session(rest, bucket, name, size, {})
    failures = start = 0
    with path.open("rb") as stream:
        while True:
            stream.seek(start)
            piece = stream.read(CHUNK_BYTES)
            headers = {"Content-Range": _range(start, piece, size)}
            try:
                answer = rest.send("PUT", session, content=piece, headers=headers, tries=1)
            except (RemoteError, TimedOutError, QuotaError):
                failures += 1
                if failures == MAX_ATTEMPTS:
                    raise
                time.sleep(0.1 * 2**failures)
                answer = rest.send("PUT", session, headers={"Content-Range": f"bytes */{size}"})
            if answer.status_code != 308:
                return
            if _arrived(answer) > start:
                failures = 0
            start = _arrived(answer)
            on_sent(start)


def _session(
    rest: GoogleClient, bucket: str, name: str, size: int, metadata: Mapping[str, str]
) -> str:
    """The address that takes the file. Whoever knows it can write there: it is shown nowhere."""
    host = rest.place.host("storage")
    answer = rest.send(
        "POST",
        f"{host}/upload/storage/v1/b/{quote(bucket)}/o",
        params={"uploadType": "resumable", "name": name},
        json={"metadata": dict(metadata)} if metadata else {},
        headers={"X-Upload-Content-Length": str(size)},
    )
    url = urlsplit(answer.headers["location"])
    # The answer names Google's own host, whatever the host that was asked.
    return f"{host}{url.path}?{url.query}"


def _range(start: int, piece: bytes, total: int) -> str:
    return f"bytes {start}-{start + len(piece) - 1}/{total}" if piece else f"bytes */{total}"


def _arrived(answer: httpx2.Response) -> int:
    found = re.fullmatch(r"bytes=0-(\d+)", answer.headers.get("range", ""))
    return int(found[1]) + 1 if found else 0


def _md5(path: Path) -> str:
    """The file's digest as storage keeps it."""

    def plain() -> Any:  # noqa: ANN401 - hashlib's own type has no public name
        return hashlib.md5(usedforsecurity=False)

    try:
        with path.open("rb") as stream:
            return base64.b64encode(hashlib.file_digest(stream, plain).digest()).decode()
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {os_reason(error)}.") from error
