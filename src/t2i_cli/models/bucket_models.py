"""Models in buckets: a diffusers folder or one file, named by its URL, as `s3://bucket/model`.

What describes a model (configs, the header of a file) is fetched when it is described, the weights
when they are loaded, into a copy on this machine; with that copy it is as any folder or file.
"""

import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_cli.buckets.bucket_url import BucketUrl, is_bucket_url, parse_bucket_url
from t2i_cli.errors import (
    InputError,
    ModelError,
    QuotaError,
    RemoteError,
    T2IError,
    TimedOutError,
)
from t2i_cli.events import Notice, OnEvent
from t2i_cli.files import model_parts, weight_files
from t2i_cli.models import diffusers_folder, header_files, hub_sources
from t2i_cli.models.checkpoint_file import CheckpointFile, read_checkpoint

if TYPE_CHECKING:
    from t2i_cli.buckets.local_copy import LocalCopy
    from t2i_cli.buckets.object_store import ObjectStore, ObjectVersion

_WEB_PROTOCOLS = {"http", "https"}
"""Those of pages: an address of the Hub is one of its models, and others are none."""
_DEPTH = 2
"""Folders of a model's files: its own, and one for each part."""
_MAX_FILES = 5000
_LISTING_SECONDS = 60
"""For so long a listing is used again: a run describes its model several times."""

_listings: dict[str, tuple[float, "LocalCopy", T2IError | None]] = {}


@dataclass(frozen=True, kw_only=True)
class BucketModel:
    """A model's copy on this machine; `file` is the name of a single file in it.

    `obstacle` is the error that keeps the bucket from being asked now, if any.
    """

    copy: "LocalCopy"
    file: str | None = None
    obstacle: T2IError | None = None

    @property
    def file_path(self) -> Path | None:
        """Where the single file lies once it is fetched."""
        return self.copy.path(self.file) if self.file else None

    def fetch_configs(self) -> Path:
        """The folder of a diffusers model, with its configs. Raises T2IError."""
        from t2i_cli.hub import files

        copy = self.copy
        if model_parts.MODEL_INDEX not in copy.files:
            raise _no_model(copy)
        self._fetch([model_parts.MODEL_INDEX], lambda _: None, announced=False)
        index = diffusers_folder.read_model_index(copy.folder)
        self._fetch(files.config_files(index, copy.files), lambda _: None, announced=False)
        return copy.folder

    def read_checkpoint(self) -> CheckpointFile:
        """What the single file is, by its header; the file itself may not be fetched yet."""
        path = self.copy.path(str(self.file))
        if path.is_file():
            return read_checkpoint(path)
        return replace(read_checkpoint(self._header_file()), path=path)

    def needed(self, dtype: str, skip: Container[str] = ()) -> list[str]:
        """The files to load for a dtype; those of another one win if all of them are fetched.

        `skip` are parts whose weights are not needed. Raises ModelError.
        """
        if self.file:
            return [self.file]
        from t2i_cli.hub import files

        url, index = self.copy.url.text, diffusers_folder.read_model_index(self.copy.folder)
        wanted = files.needed_files(url, index, self.copy.files, dtype, skip)
        for other in ("float32", *weight_files.VARIANTS) if self.copy.missing(wanted) else ():
            found = files.needed_files(url, index, self.copy.files, other, skip)
            if not self.copy.missing(found):
                return found
        return wanted

    def download_size(self, dtype: str, skip: Container[str] = ()) -> tuple[int, int]:
        """Bytes of the needed files, and of those still to be fetched. Raises T2IError."""
        names = self.needed(dtype, skip)
        self._check_available(names)
        return self.copy.size(names), self.copy.missing_bytes(names)

    def download(self, dtype: str, on_event: OnEvent, skip: Container[str] = ()) -> None:
        """Fetch the needed files. Raises T2IError."""
        self._fetch(self.needed(dtype, skip), on_event, announced=True)
        failure = self.obstacle
        if failure and not isinstance(failure, ModelError):
            message = f"{failure.message} The copy of {self.copy.url} on this machine is used."
            on_event(Notice(message=message))

    def _fetch(self, names: list[str], on_event: OnEvent, *, announced: bool) -> None:
        self._check_available(names)
        if self.copy.missing(names):
            from t2i_cli.buckets.copy_download import CopyDownload

            url, file = self.copy.url, self.file
            download = CopyDownload(self.copy, self._store(), lambda: _list_files(url, file))
            download.run(names, on_event, announced=announced)

    def _check_available(self, names: list[str]) -> None:
        """Raise what keeps the bucket from being asked if files are missing."""
        if self.obstacle and self.copy.missing(names):
            raise self.obstacle

    def _store(self) -> "ObjectStore":
        return _open_store(_folder_of(self.copy.url) if self.file else self.copy.url)

    def _header_file(self) -> Path:
        """A file as long as the model's, of which the header alone takes room on the disk."""
        copy, name = self.copy, str(self.file)
        size = copy.files[name].size

        def read(count: int) -> bytes:
            self._check_available([name])
            return self._store().read_range(name, 0, count)

        return header_files.keep_header(copy.header_path(name), size, read)


@contextmanager
def naming_urls() -> Iterator[None]:
    """Have errors within name URLs where they would name their copies on this machine."""
    try:
        yield
    except T2IError as error:
        from t2i_cli.buckets import local_copy

        error.message = local_copy.with_urls(error.message)
        error.hint = error.hint and local_copy.with_urls(error.hint)
        error.args = (error.message,)
        raise


def is_bucket_model(name: str) -> bool:
    """Whether a model's name is the URL of a bucket's folder or object."""
    return is_bucket_url(name) and name.partition("://")[0].lower() not in _WEB_PROTOCOLS


def find_if_url(name: str, *, offline: bool) -> BucketModel | None:
    """The model that a URL names, `None` for another name. Raises T2IError."""
    return find_bucket_model(name, offline=offline) if is_bucket_model(name) else None


def find_bucket_model(name: str, *, offline: bool) -> BucketModel:
    """The model that a URL names, by what the bucket has now, or what was fetched before.

    Raises T2IError.
    """
    url = _parse_url(name)
    file = _file_of(url)
    hub_sources.check_no_pickle(url.text)
    from t2i_cli.buckets import local_copy

    if offline:
        known = local_copy.newest_copy(url)
        if known is None:
            raise _not_downloaded(url)
        return BucketModel(copy=known, file=file, obstacle=_not_downloaded(url))
    at, copy, obstacle = _listings.get(url.text, (0.0, None, None))
    if copy is None or time.monotonic() - at > _LISTING_SECONDS or not copy.folder.is_dir():
        copy, obstacle = _look(url, file)
        _listings[url.text] = (time.monotonic(), copy, obstacle)
    return BucketModel(copy=copy, file=file, obstacle=obstacle)


def has_all_files(model: BucketModel) -> bool:
    """Whether all files that the model needs are fetched."""
    try:
        return not model.copy.missing(model.needed("float32"))
    except ModelError:  # not even its index is there
        return False


def has_local_copy(name: str) -> bool:
    """Whether the newest version known of a URL's model is fetched, by what is on this machine."""
    from t2i_cli.buckets import local_copy

    known = local_copy.newest_copy(_parse_url(name))
    return known is not None and has_all_files(model_of_copy(known.folder))


def known_version(name: str) -> str | None:
    """The folder of the version that a URL had when it was asked last; `None` if it was not."""
    if not is_bucket_model(name):
        return None
    from t2i_cli.buckets import local_copy

    known = local_copy.newest_copy(_parse_url(name))
    return str(known.folder) if known else None


def model_of_copy(folder: Path, *, offline: bool = False) -> BucketModel:
    """The model whose copy is in a folder, as it was found. Raises ModelError if it is gone."""
    from t2i_cli.buckets import local_copy

    copy = local_copy.copy_in(folder)
    if copy is None:
        raise ModelError(f"The copy of the model in {folder} was removed.")
    known = _listings.get(copy.url.text)
    obstacle = _not_downloaded(copy.url) if offline else known[2] if known else None
    return BucketModel(copy=copy, file=_file_of(copy.url), obstacle=obstacle)


def _look(url: BucketUrl, file: str | None) -> "tuple[LocalCopy, T2IError | None]":
    """The newest version of what the URL has; of a bucket without an answer the copy here."""
    from t2i_cli.buckets import local_copy

    try:
        found = _list_files(url, file)
    except (RemoteError, TimedOutError, QuotaError) as error:
        if known := local_copy.newest_copy(url):
            return known, error
        raise
    except InputError as error:
        raise ModelError(error.message, hint=error.hint) from error
    if not found:
        raise ModelError(f"There is no model at {url}.", hint="Check the URL.")
    if len(found) > _MAX_FILES:
        raise ModelError(
            f"{url} has {len(found):,} objects, and is no model's folder.",
            hint="Name the model's own folder in it.",
        )
    return local_copy.known_copy(url, found), None


def _list_files(url: BucketUrl, file: str | None) -> "dict[str, ObjectVersion]":
    """The versions of a folder's files, or of the object that a URL names. Raises T2IError."""
    if file is None:
        return _open_store(url).versions(_DEPTH)
    version = _open_store(_folder_of(url)).version(file)
    return {file: version} if version else {}


def _open_store(url: BucketUrl) -> "ObjectStore":
    from t2i_cli.buckets.object_store import ObjectStore

    return ObjectStore(url)


def _parse_url(name: str) -> BucketUrl:
    try:
        return parse_bucket_url(name)
    except InputError as error:
        raise InputError(error.message, hint=error.hint, field="model") from error


def _file_of(url: BucketUrl) -> str | None:
    """The name of the single file that a URL is of, if it is of one."""
    return url.text.rpartition("/")[2] if hub_sources.has_weight_ending(url.text) else None


def _folder_of(url: BucketUrl) -> BucketUrl:
    return BucketUrl(url.text.rpartition("/")[0])


def _not_downloaded(url: BucketUrl) -> ModelError:
    return ModelError(
        f"{url} is not downloaded to this machine.", hint=f"`t2i models pull {url}` downloads it."
    )


def _no_model(copy: "LocalCopy") -> ModelError:
    """The error for a folder without model_index.json, by what it has."""
    names = [name for name in copy.files if "/" not in name]
    if content := model_parts.other_content(names, {}):
        return ModelError(f"{copy.url} {content[0]}.", hint=content[1])
    return ModelError(
        f"{copy.url} is no diffusers folder: it has no {model_parts.MODEL_INDEX}.",
        hint="A single file of weights is named by its own URL.",
    )
