"""Opens the store that a URL names."""

from t2i_cli.buckets.bucket_url import BucketUrl
from t2i_cli.buckets.object_store import ObjectStore

_HUB_BUCKETS = "hf://buckets/"
"""The Hub's buckets store objects one by one, its repositories by commits."""


def open_store(url: BucketUrl) -> ObjectStore:
    """The objects of a URL's folder. Raises T2IError."""
    if url.protocol == "hf" and not url.text.startswith(_HUB_BUCKETS):
        from t2i_cli.buckets.hub_repository import HubRepository

        return HubRepository(url)
    return ObjectStore(url)
