"""A folder of a repository on the Hugging Face Hub: writes are stored by commits, each whole.

Every commit names the one before it, so that the Hub refuses it where another run, or anything
else, has committed meanwhile (`parent_commit`).
"""

from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING, Any

from t2i_cli.buckets.bucket_errors import is_conflict
from t2i_cli.buckets.bucket_url import BucketUrl
from t2i_cli.buckets.object_store import ObjectStore
from t2i_cli.errors import InputError, StorageError
from t2i_cli.hub.client import hub_api

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete


class HubRepository(ObjectStore):
    """Objects in a repository; what is written or removed is told to the Hub by `commit()`.

    Large files are uploaded as they are written, and take no memory then.
    """

    commits = True

    def __init__(self, url: BucketUrl) -> None:
        super().__init__(url)
        found = self._call("use", "", lambda: self._fs.resolve_path(self._root))
        self._place: dict[str, Any] = {
            "repo_id": found.repo_id,
            "repo_type": found.repo_type,
            "revision": found.revision,
        }
        self._folder = f"{found.path_in_repo}/" if found.path_in_repo else ""
        self._operations: dict[str, CommitOperationAdd | CommitOperationDelete] = {}
        self._lock = Lock()
        self._parent = self._head()

    def write(self, name: str, data: bytes) -> None:
        """Upload an object, which `commit()` stores."""
        from huggingface_hub import CommitOperationAdd

        operation = CommitOperationAdd(path_in_repo=self._folder + name, path_or_fileobj=data)

        def upload() -> None:
            hub_api().preupload_lfs_files(additions=[operation], num_threads=1, **self._place)

        self._call("write", name, upload)
        with self._lock:
            self._operations[name] = operation

    def create(self, name: str, data: bytes) -> bool:
        """Upload an object, which `commit()` stores, unless one has the name."""
        if self._call("read", name, lambda: bool(self._fs.exists(self._path(name)))):
            return False
        self.write(name, data)
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, which `commit()` does."""
        from huggingface_hub import CommitOperationDelete

        with self._lock:
            for name in names:
                self._operations[name] = CommitOperationDelete(path_in_repo=self._folder + name)

    def commit(self) -> None:
        """Store what was written, all or nothing. Raises T2IError if another has committed."""
        with self._lock:
            operations, self._operations = self._operations, {}
        if not operations:
            return

        def create_commit() -> str | None:
            try:
                made = hub_api().create_commit(
                    operations=list(operations.values()),
                    commit_message=f"t2i: {len(operations)} files",
                    parent_commit=self._parent,
                    **self._place,
                )
            except Exception as error:
                if is_conflict(error):
                    return None
                raise
            return str(made.oid)

        oid = self._call("write", "", create_commit)
        if oid is None:
            raise StorageError(
                f"'{self.url}' was changed by another program during the run.",
                hint="Run the same command again, one at a time: what is stored stays done.",
            )
        self._parent = oid

    def _head(self) -> str:
        """The commit that the next one follows. Raises T2IError."""
        place = self._place
        info = self._call("use", "", lambda: hub_api().repo_info(**place))
        if not info.sha:
            raise InputError(f"'{self.url}' names no repository that can be written.")
        return str(info.sha)
