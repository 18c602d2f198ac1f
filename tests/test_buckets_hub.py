"""Repositories of the Hub as a batch's folder: commits, each whole, each upon the one before.

The tests' Hub takes no commits; here the library's client is a stand-in with the same calls.
"""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from t2i_cli.batch import manifest
from t2i_cli.batch.bucket_folder import BucketFolder
from t2i_cli.batch.lock import Shard
from t2i_cli.buckets import hub_repository, object_store
from t2i_cli.buckets.bucket_url import parse_bucket_url
from t2i_cli.buckets.object_store import ObjectStore
from t2i_cli.buckets.store_opening import open_store
from t2i_cli.errors import InputError, StorageError

ROOT = "datasets/me/pictures"


class RefusedError(Exception):
    """The Hub's answer to a commit upon another than the last one."""

    status_code = 412


class HubClient:
    """The calls of huggingface_hub's client that a repository is written by."""

    def __init__(self, files: MemoryFileSystem) -> None:
        self.files = files
        self.commits: list[set[str]] = []
        self.uploaded: list[str] = []

    def repo_info(self, **place: object) -> SimpleNamespace:
        """The last commit."""
        assert place == {"repo_id": "me/pictures", "repo_type": "dataset", "revision": "main"}
        return SimpleNamespace(sha=str(len(self.commits)))

    def preupload_lfs_files(
        self, additions: list[CommitOperationAdd], num_threads: int, **place: object
    ) -> None:
        """Take a file before its commit."""
        self.uploaded += [addition.path_in_repo for addition in additions]

    def create_commit(
        self,
        operations: Iterable[CommitOperationAdd | CommitOperationDelete],
        commit_message: str,
        parent_commit: str,
        **place: object,
    ) -> SimpleNamespace:
        """Store the files of a commit, unless there was another one meanwhile."""
        if parent_commit != str(len(self.commits)):
            raise RefusedError
        for operation in operations:
            path = f"{ROOT}/{operation.path_in_repo}"
            if isinstance(operation, CommitOperationAdd):
                with operation.as_file() as file:
                    self.files.pipe_file(path, file.read())
            else:
                self.files.rm_file(path)
        self.commits.append({operation.path_in_repo for operation in operations})
        return SimpleNamespace(oid=str(len(self.commits)))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubClient]:
    """The Hub, with an empty repository."""
    files = MemoryFileSystem(skip_instance_cache=True)
    resolved = SimpleNamespace(
        repo_id="me/pictures", repo_type="dataset", revision="main", path_in_repo="run"
    )
    files.resolve_path = lambda path: resolved
    found = HubClient(files)
    opened: tuple[Any, str] = (files, f"/{ROOT}/run")
    monkeypatch.setattr(object_store, "_open_file_system", lambda url: opened)
    monkeypatch.setattr(hub_repository, "hub_api", lambda: found)
    yield found
    MemoryFileSystem.store.clear()


@pytest.fixture
def store(client: HubClient) -> ObjectStore:
    """A folder of the repository."""
    return open_store(parse_bucket_url(f"hf://{ROOT}/run"))


def test_images_and_their_lines_are_one_commit(client: HubClient, store: ObjectStore) -> None:
    folder = BucketFolder(store)
    folder.check()
    with folder.lock(None):
        book = folder.open_manifest(None)
        for number in (1, 2):
            folder.save_image(f"{number}.png", b"picture")
            line = {"id": f"{number:016x}", "status": "done", "file": f"{number}.png"}
            assert not book.append([line], [f"{number}.png"], last=False)
        assert client.uploaded == ["run/1.png", "run/2.png"], "uploaded while others are made"
        assert client.commits == []
        assert store.sizes() == {}, "nothing of it is to be seen"
        assert book.append([], last=True)
        [first] = client.commits
        assert {"run/1.png", "run/2.png"} < first
        assert len(first) == 3
        folder.write_page("index.html", b"<html>")
        folder.finish(merge=True)
    assert len(client.commits) == 2
    assert store.sizes().keys() == {"1.png", "2.png", "index.html", "manifest.jsonl"}
    assert len(manifest.load_manifests(BucketFolder(store)).rows) == 2
    folder.finish(merge=True)
    assert len(client.commits) == 2, "no commit without a change"


def test_another_commit_ends_the_run_and_nothing_of_it_is_lost(
    client: HubClient, store: ObjectStore
) -> None:
    other = open_store(store.url)
    other.write("theirs.txt", b"1")
    other.commit()
    store.write("1.png", b"picture")
    with pytest.raises(StorageError, match="was changed by another program during the run"):
        store.commit()
    assert store.sizes().keys() == {"theirs.txt"}
    again = open_store(store.url)
    again.write("1.png", b"picture")
    again.commit()
    assert store.sizes().keys() == {"1.png", "theirs.txt"}


def test_create_replaces_nothing(client: HubClient, store: ObjectStore) -> None:
    assert store.create("1.png", b"1")
    store.commit()
    assert not store.create("1.png", b"2")
    store.commit()
    assert store.read("1.png") == b"1"


def test_shards_are_refused(store: ObjectStore) -> None:
    with pytest.raises(InputError, match="--shard is not taken"):
        with BucketFolder(store).lock(Shard(1, 2)):
            pass
