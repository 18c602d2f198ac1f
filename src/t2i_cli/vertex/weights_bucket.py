"""Weights in a bucket: where a deployment's lie, whose they are, and how they get there."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from t2i_cli.errors import AccessError
from t2i_cli.net import gcs
from t2i_cli.net.gcs import Blob, GcsClient
from t2i_cli.net.google_http import NotFoundError
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.labels import Labels
from t2i_cli.vertex.location import Location

WEIGHTS_ROOT = "t2i/"
"""Everything that t2i puts into a bucket lies under this."""

OnBytes = Callable[[int, int], None]
"""Takes the bytes that are there, and the total."""


def default_bucket(place: Location) -> str:
    """The bucket's name where none is given."""
    return f"t2i-{place.project}-{place.region}".replace(":", "-").replace(".", "-")[:63].strip("-")


def weights_prefix(name: str) -> str:
    """The prefix of a deployment's weights."""
    return f"{WEIGHTS_ROOT}{name}/"


def marker_name(name: str) -> str:
    """The object that carries a deployment's labels; it lies beside the weights, not among them."""
    return f"{WEIGHTS_ROOT}{name}.labels"


def storage(rest: GoogleClient) -> GcsClient:
    """Cloud Storage by the connection."""
    return GcsClient(rest, rest.place.host("storage"))


def bucket_labels(rest: GoogleClient, bucket: str) -> Mapping[str, str] | None:
    """The bucket's labels, or None if there is no such bucket."""
    found = storage(rest).bucket(bucket)
    return None if found is None else found.get("labels", {})


def check_owner(rest: GoogleClient, bucket: str) -> None:
    """Raise AccessError if the bucket is another project's: its default name can be guessed."""
    owner = (storage(rest).bucket(bucket) or {}).get("projectNumber")
    ours = rest.call("GET", "cloudresourcemanager", f"projects/{rest.place.project}")["name"]
    if ours != f"projects/{owner}":
        raise AccessError(
            f"gs://{bucket} is not of the project {rest.place.project}: nothing is uploaded there.",
            hint="--bucket names another one.",
        )


def make_bucket(rest: GoogleClient, bucket: str, labels: Mapping[str, str]) -> None:
    """A private bucket in the region."""
    place = rest.place
    storage(rest).make_bucket(bucket, project=place.project, region=place.region, labels=labels)


def list_blobs(rest: GoogleClient, bucket: str, prefix: str) -> list[Blob]:
    """The files whose names begin so; none where there is no bucket."""
    try:
        return storage(rest).list_blobs(bucket, prefix)
    except NotFoundError:
        return []


def write_marker(rest: GoogleClient, bucket: str, labels: Labels) -> None:
    """Write the object that tells whose the weights are and when they may go."""
    storage(rest).put(bucket, marker_name(labels.name), b"", labels.encoded())


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
        size, checksum = path.stat().st_size, gcs.file_crc32c(path)
        same = there.get(name)
        if same is None or (same.size, same.crc32c) != (size, checksum):
            sent = partial(_count, on_bytes, done, total)
            storage(rest).upload(bucket, name, path, checksum, sent)
        done += size
        on_bytes(done, total)


def _count(on_bytes: OnBytes, before: int, total: int, sent: int) -> None:
    on_bytes(before + sent, total)
