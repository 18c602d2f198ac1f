"""Opens the folder of a batch, on a disk or in a bucket."""

from pathlib import Path

from t2i_cli.batch.batch_folder import BatchFolder
from t2i_cli.batch.local_folder import LocalFolder
from t2i_cli.buckets.bucket_url import BucketUrl


def open_batch_folder(place: Path | BucketUrl) -> BatchFolder:
    """The folder at a place. Raises T2IError."""
    if isinstance(place, Path):
        return LocalFolder(place)
    from t2i_cli.batch.bucket_folder import BucketFolder
    from t2i_cli.buckets.store_opening import open_store

    return BucketFolder(open_store(place))
