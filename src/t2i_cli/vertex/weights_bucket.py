"""Weights in Cloud Storage: object names, ownership markers, and upload."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from t2i_cli.durations import format_duration
from t2i_cli.errors import AccessError
from t2i_cli.net import gcs
from t2i_cli.net.gcs import Blob, GcsClient
from t2i_cli.net.google_http import NotFoundError
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.labels import Labels
from t2i_cli.vertex.location import Location

WEIGHTS_ROOT = "t2i/"
"""Prefix of every object that t2i uploads."""

OnBytes = Callable[[int, int], None]
"""Takes the bytes done so far and the total."""


def default_bucket(location: Location) -> str:
    """The default bucket name of a location."""
    return (
        f"t2i-{location.project}-{location.region}".replace(":", "-")
        .replace(".", "-")[:63]
        .strip("-")
    )


def weights_prefix(name: str) -> str:
    """Prefix of a deployment's weights."""
    return f"{WEIGHTS_ROOT}{name}/"


def marker_name(name: str) -> str:
    """Name of the object with a deployment's labels; it is outside the weights' prefix."""
    return f"{WEIGHTS_ROOT}{name}.labels"


def storage(client: GoogleClient) -> GcsClient:
    """A Cloud Storage client on the same connection."""
    return GcsClient(client, client.location.host("storage"))


def bucket_labels(client: GoogleClient, bucket: str) -> Mapping[str, str] | None:
    """The bucket's labels, or None if it does not exist."""
    found = storage(client).bucket(bucket)
    return None if found is None else found.get("labels", {})


def retention_text(bucket: Mapping[str, Any]) -> str | None:
    """What a bucket keeps of deleted objects and for how long, None if it keeps nothing.

    `bucket` is Cloud Storage's resource; what it keeps is paid for.
    https://cloud.google.com/storage/docs/soft-delete, object-versioning
    """
    if bucket.get("versioning", {}).get("enabled"):
        return "earlier versions of deleted files until a lifecycle rule or you delete them"
    seconds = int(bucket.get("softDeletePolicy", {}).get("retentionDurationSeconds", 0))
    return f"deleted files for {format_duration(seconds)} (soft delete)" if seconds else None


def check_owner(client: GoogleClient, bucket: str) -> None:
    """Raise AccessError if the bucket belongs to another project: default names are guessable."""
    owner = (storage(client).bucket(bucket) or {}).get("projectNumber")
    ours = client.call("GET", "cloudresourcemanager", f"projects/{client.location.project}")["name"]
    if ours != f"projects/{owner}":
        raise AccessError(
            f"gs://{bucket} is not of the project {client.location.project}: "
            "nothing is uploaded there.",
            hint="--bucket names another one.",
        )


def make_bucket(client: GoogleClient, bucket: str, labels: Mapping[str, str]) -> None:
    """Create a private bucket in the region. Raises T2IError."""
    location = client.location
    storage(client).make_bucket(
        bucket, project=location.project, region=location.region, labels=labels
    )


def list_blobs(client: GoogleClient, bucket: str, prefix: str) -> list[Blob]:
    """The objects with the prefix; empty if the bucket does not exist."""
    try:
        return storage(client).list_blobs(bucket, prefix)
    except NotFoundError:
        return []


def write_marker(client: GoogleClient, bucket: str, labels: Labels) -> None:
    """Write the marker object with the deployment's labels, its expiry among them."""
    storage(client).put(bucket, marker_name(labels.name), b"", labels.encoded())


def upload_folder(
    client: GoogleClient, source: Path, bucket: str, prefix: str, on_bytes: OnBytes
) -> None:
    """Upload every file of a local folder; skip objects with the same size and CRC32C."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    total = sum(path.stat().st_size for path in files)
    existing = {file.name: file for file in list_blobs(client, bucket, prefix)}
    done = 0
    for path in files:
        name = prefix + path.relative_to(source).as_posix()
        size, checksum = path.stat().st_size, gcs.file_crc32c(path)
        same = existing.get(name)
        if same is None or (same.size, same.crc32c) != (size, checksum):
            sent = partial(_count, on_bytes, done, total)
            storage(client).upload(bucket, name, path, checksum, sent)
        done += size
        on_bytes(done, total)


def _count(on_bytes: OnBytes, before: int, total: int, sent: int) -> None:
    on_bytes(before + sent, total)
