"""Where a file of weights that is named lies: on this machine, on the Hub, or in a bucket.

In place of one that is still to be downloaded stands a file in the cache with its header alone.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_cli.errors import ModelError, T2IError
from t2i_cli.models import (
    bucket_models,
    catalog,
    checkpoint_file,
    file_digests,
    header_files,
    hub_sources,
)
from t2i_cli.models.bucket_models import BucketModel
from t2i_cli.models.checkpoint_file import CheckpointFile
from t2i_cli.models.composed_root import composed_root
from t2i_cli.models.hub_sources import HubSource

if TYPE_CHECKING:
    from t2i_cli.hub.repository_file import RepositoryFile

_CONVERT = "t2i models convert"
"""The command for pickles, which takes files of this machine."""


@dataclass(frozen=True)
class WeightSource:
    """A file of weights: its path, or that of its header; and what it is on the Hub.

    `sha256` is known of one on the Hub that is not downloaded yet. One in a bucket has the path
    that it has once it is fetched.
    """

    path: Path
    shown: str
    hub: HubSource | None = None
    sha256: str | None = None
    bucket: BucketModel | None = None

    def read_checkpoint(self) -> CheckpointFile:
        """What it is, by its header. Raises T2IError."""
        try:
            if self.bucket:
                return self.bucket.read_checkpoint()
            return checkpoint_file.read_checkpoint(self.path)
        except ModelError as error:
            if (self.bucket or self.hub) and _CONVERT in (error.hint or ""):
                error.hint = f"Fetch it, and write its weights to a new file: `{_CONVERT} FILE`."
            raise

    def digest(self) -> str | None:
        """The SHA-256 of its content, if it is known without a fetch. Raises ModelError."""
        if self.bucket and not self.path.is_file():
            return None
        return self.sha256 or file_digests.sha256_of(self.path)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name it in errors as the user did, not by the path of its header in the cache."""
        with named_as(self.path, self.shown):
            yield


def names_file(name: str) -> bool:
    """Whether a name means a file of weights, wherever it lies. Raises InputError."""
    if bucket_models.is_bucket_model(name):
        return hub_sources.has_weight_ending(name)
    return catalog.is_file(name) or file_on_hub(name) is not None


def file_on_hub(name: str, revision: str | None = None) -> HubSource | None:
    """The file in a repository that a name means, `None` for another name. Raises InputError."""
    found = hub_sources.parse_source(name)
    if found is None or found.file is None:
        return None
    return found._replace(revision=revision or found.revision)


def find_weight_file(
    name: str, revision: str | None = None, *, offline: bool
) -> WeightSource | None:
    """The file of weights that a name means, `None` for another name. Raises T2IError.

    Of one on the Hub or in a bucket the header is fetched, and nothing else.
    """
    if bucket := bucket_models.find_if_url(name, offline=offline):
        path = bucket.file_path
        return WeightSource(path, name, bucket=bucket) if path else None
    if file := catalog.file_named(name):
        return WeightSource(file, str(file))
    source = file_on_hub(name, revision)
    if source is None:
        return None
    hub_sources.check_no_pickle(source.name)
    from t2i_cli.hub import repository_file

    try:
        found = repository_file.find_file(
            source.repo, str(source.file), revision=source.revision, offline=offline
        )
    except ModelError as error:
        error.hint = f"{error.hint or ''} There is no such file on this machine, either.".lstrip()
        raise
    if found.path:
        return WeightSource(found.path, source.name, source)
    return WeightSource(_header_of(found), source.name, source, found.sha256)


@contextmanager
def named_as(path: Path, shown: str) -> Iterator[None]:
    """Have errors say `shown` where they would have the path of a file."""
    try:
        yield
    except T2IError as error:
        if str(path) != shown:
            error.message = error.message.replace(str(path), shown)
            error.hint = error.hint and error.hint.replace(str(path), shown)
            error.args = (error.message,)
        raise


def _header_of(file: "RepositoryFile") -> Path:
    """A file with the header of one on the Hub, and as long as it. Raises T2IError."""
    from t2i_cli.hub import repository_file

    key = hashlib.sha256(f"{file.repo}@{file.commit}/{file.name}".encode()).hexdigest()[:16]
    path = composed_root() / "headers" / key / Path(file.name).name
    read = partial(repository_file.read_remote_beginning, file)
    return header_files.keep_header(path, file.size, read)
