"""Buckets without a server: fsspec's file systems in memory and on this disk."""

import errno
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event as Flag
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from t2i_cli.batch import bucket_lock, bucket_manifest, manifest
from t2i_cli.batch.bucket_folder import BucketFolder
from t2i_cli.batch.lock import Shard
from t2i_cli.buckets import bucket_errors, object_store
from t2i_cli.buckets.bucket_url import BucketUrl, is_bucket_url, parse_bucket_url, parse_place
from t2i_cli.buckets.object_store import ObjectStore
from t2i_cli.buckets.store_opening import open_store
from t2i_cli.errors import (
    AccessError,
    InputError,
    QuotaError,
    RemoteError,
    StorageError,
    T2IError,
    TimedOutError,
)
from t2i_cli.generate import OutputDestination
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.output.bucket_writer import is_bucket_folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A folder in memory, of a name of its own; failures are tried again at once."""
    monkeypatch.setattr(object_store, "RETRY_POLICY", RetryPolicy(retries=3, first_pause=0.001))
    name = f"memory://{tmp_path.name}/run"
    yield open_store(parse_bucket_url(name))
    MemoryFileSystem.store.clear()


def line(number: int, status: str = "done") -> dict[str, object]:
    """The line of an image."""
    return {"id": f"{number:016x}", "index": number, "status": status, "file": f"{number}.png"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://bucket/a/", "s3://bucket/a"),
        ("S3://Bucket", "s3://Bucket"),
        ("hf://datasets/owner/name/a b", "hf://datasets/owner/name/a b"),
        ("file:///pictures/x", Path("/pictures/x")),
        ("t2i-out", Path("t2i-out")),
        ("C:/images", Path("C:/images")),
    ],
)
def test_a_place_is_a_path_or_a_url(text: str, said: object) -> None:
    found = parse_place(text)
    assert (found.text if isinstance(found, BucketUrl) else found) == said
    assert is_bucket_url(text) == isinstance(found, BucketUrl)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://", "names no bucket"),
        ("s3:///", "names no bucket"),
        ("simplecache::s3://a/b", "chain of URLs"),
        ("ftp://me:secret@host/x", "may hold no password"),
        ("s3://a\nb/c", "U+000A"),
        ("s3://[x/y", "is no URL"),
    ],
)
def test_a_wrong_url_is_refused_as_it_was_given(text: str, said: str) -> None:
    for parse in (parse_bucket_url, lambda target: OutputDestination(target=target).template):
        with pytest.raises(InputError) as refused:
            parse(text)
        assert said in refused.value.message
        assert "secret" not in refused.value.message
        if said == "names no bucket":
            assert (refused.value.message, refused.value.hint) == (
                f"'{text}' names no bucket.",
                "As s3://bucket/folder",
            )


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("az://box/x", "az:// needs a package that is not installed (Install adlfs", None),
        ("nothing://box/x", "Protocol not known: nothing", None),
    ],
)
def test_a_protocol_that_is_not_there_is_one_sentence(
    text: str, said: str, hint: str | None
) -> None:
    with pytest.raises(InputError) as refused:
        open_store(parse_bucket_url(text))
    assert said in refused.value.message
    assert refused.value.hint == hint


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gcs"), ("gcs", "gcs")])
def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, protocol: str, extra: str
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install it to access it")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(InputError) as refused:
        open_store(parse_bucket_url(f"{protocol}://box/x"))
    assert refused.value.hint == f"Install it with: pip install 't2i-cli[{extra}]'"


class _AnsweredError(Exception):
    """An error with a status, as libraries for HTTP have it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status

    @property
    def code(self) -> int:
        """Deprecated, as in aiohttp's errors."""
        warnings.warn("use status", DeprecationWarning, stacklevel=2)
        return self.status


class HTTPClientError(_AnsweredError):
    """Named as botocore's: an answer that could not be read."""


class NoCredentialsError(Exception):
    """Named as botocore's."""


class ReadTimeoutError(Exception):
    """Named as botocore's."""


@pytest.mark.parametrize(
    ("raised", "kind", "tried_again"),
    [
        (_AnsweredError(500), RemoteError, True),
        (_AnsweredError(503), RemoteError, True),
        (_AnsweredError(429), QuotaError, True),
        (_AnsweredError(504), TimedOutError, True),
        (_AnsweredError(403), AccessError, False),
        (_AnsweredError(401), AccessError, False),
        (_AnsweredError(501), InputError, False),
        (PermissionError("denied"), AccessError, False),
        (FileNotFoundError("no bucket"), InputError, False),
        (NoCredentialsError("none"), AccessError, False),
        (ReadTimeoutError("slow"), TimedOutError, True),
        (ConnectionResetError("cut"), RemoteError, True),
        (HTTPClientError(400), RemoteError, True),
        (ValueError("odd name"), InputError, False),
        (OSError(errno.EIO, "other"), RemoteError, False),
    ],
)
def test_what_a_store_answers_is_told_in_one_sentence(
    raised: Exception, kind: type[T2IError], tried_again: bool
) -> None:
    url = parse_bucket_url("s3://box/x")
    found = bucket_errors.bucket_error(raised, "write", url, "a.png")
    assert type(found) is kind
    assert found.message.startswith("Cannot write 's3://box/x/a.png': ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bucket_errors.is_passing_failure(raised) is tried_again
    # Also where a package's own error hides it.
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = raised
    if not isinstance(raised, OSError | ValueError):
        assert type(bucket_errors.bucket_error(wrapped, "write", url)) is kind


def fail_times(store: ObjectStore, method: str, times: int, error: Exception) -> list[int]:
    """Have a call of the file system fail so often; the list counts the calls."""
    real, calls = getattr(store._fs, method), list[int]()

    def call(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return real(*args, **options)

    setattr(store._fs, method, call)
    return calls


@pytest.fixture(autouse=True)
def _own_file_system(store: ObjectStore) -> None:
    """fsspec shares its file systems; what a test does to one is no other's."""
    store._fs = MemoryFileSystem(skip_instance_cache=True)


def test_a_failure_that_may_pass_is_tried_again_and_no_other(store: ObjectStore) -> None:
    calls = fail_times(store, "pipe_file", 3, ConnectionResetError("cut"))
    store.write("a", b"1")
    assert (len(calls), store.read("a")) == (4, b"1")
    calls = fail_times(store, "pipe_file", 9, PermissionError("denied"))
    with pytest.raises(AccessError):
        store.write("a", b"2")
    assert len(calls) == 1


def test_a_bug_is_no_answer_of_a_store(store: ObjectStore) -> None:
    fail_times(store, "pipe_file", 1, TypeError("a bug"))
    with pytest.raises(TypeError, match="a bug"):
        store.write("a", b"1")


def test_a_stopped_run_tries_nothing_again(store: ObjectStore) -> None:
    store.stop = Flag()
    store.stop.set()
    calls = fail_times(store, "pipe_file", 9, ConnectionResetError("cut"))
    with pytest.raises(RemoteError):
        store.write("a", b"1")
    assert len(calls) == 1
    del store._fs.pipe_file
    store.write("a", b"1")  # what succeeds, does
    assert store.read("a") == b"1"


def test_nothing_is_replaced_by_create_and_a_lost_answer_is_no_refusal(store: ObjectStore) -> None:
    assert store.create("a", b"1")
    assert not store.create("a", b"1")
    assert not store.create("a", b"2")
    real = store._fs.pipe_file

    def lose_the_answer(*args: object, **options: object) -> None:
        store._fs.pipe_file = real
        real(*args, **options)
        raise ConnectionResetError("cut")

    store._fs.pipe_file = lose_the_answer
    assert store.create("b", b"3")
    assert (store.read("a"), store.read("b"), store.read("c")) == (b"1", b"3", None)
    assert store.sizes() == {"a": 1, "b": 1}
    store.remove(["a", "never"])
    assert not store.exists("a")
    assert store.exists("b")


def test_folders_are_made_where_a_server_of_files_needs_them(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ObjectStore(store.url)
    other._fs, other._root = LocalFileSystem(skip_instance_cache=True), str(tmp_path / "deep/run")
    with pytest.raises(InputError, match="no such bucket"):
        other.write("a/b.png", b"1")
    other.url = BucketUrl("sftp://host/deep/run")
    other.write("a/b.png", b"1")
    assert (tmp_path / "deep/run/a/b.png").read_bytes() == b"1"


def test_an_existing_folder_is_one_for_generate(store: ObjectStore) -> None:
    store.write("a.png", b"1")
    assert is_bucket_folder(store.url.text)
    assert not is_bucket_folder(f"{store.url}-other")
    assert is_bucket_folder("memory://bucket")


def parts(store: ObjectStore) -> list[str]:
    """The names of the manifest's objects."""
    return sorted(name for name in store.sizes() if name.startswith("manifest"))


def test_lines_wait_for_others_and_a_part_is_never_changed(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("t2i_cli.batch.bucket_manifest.time.monotonic", lambda: now[0])
    book = BucketFolder(store).open_manifest(None)
    assert not book.append([line(1)], last=False)
    assert parts(store) == []
    now[0] += bucket_manifest.MIN_PART_SECONDS
    assert book.append([line(2)], last=False)
    [first] = parts(store)
    assert not book.append([line(3)], last=False)
    assert book.append([], last=True)
    many = [line(n) for n in range(10, 10 + bucket_manifest.MAX_PART_LINES)]
    assert book.append(many, last=False)
    assert [name.partition("-")[0] for name in parts(store)] == [
        f"manifest/{n:08d}" for n in (1, 2, 3)
    ]
    assert json.loads((store.read(first) or b"").splitlines()[0]) == {"t2i_manifest": 1}
    found = manifest.load_manifests(BucketFolder(store))
    assert len(found.rows) == 3 + bucket_manifest.MAX_PART_LINES
    # A long run waits longer, but not for ever.
    now[0] += 10_000
    assert not book.append([line(4)], last=False)
    now[0] += bucket_manifest.MAX_PART_SECONDS
    assert book.append([], last=False)


def test_a_line_that_could_not_be_written_is_written_with_the_next(store: ObjectStore) -> None:
    book = BucketFolder(store).open_manifest(None)
    fail_times(store, "pipe_file", 9, ConnectionResetError("cut"))
    with pytest.raises(RemoteError):
        book.append([line(1)])
    assert parts(store) == []
    del store._fs.pipe_file
    assert book.append([line(2)])
    assert len(manifest.load_manifests(BucketFolder(store)).rows) == 2


def test_the_last_line_of_an_id_counts_across_runs_parts_and_the_joined_manifest(
    store: ObjectStore,
) -> None:
    folder = BucketFolder(store)
    folder.open_manifest(None).append([line(1, "failed"), line(2)])
    folder.open_manifest(None).append([line(1)])
    assert folder.merge() == 0
    assert parts(store) == ["manifest.jsonl"]
    assert {e.status for e in manifest.load_manifests(folder).rows.values()} == {"done"}
    later = folder.open_manifest(None)
    later.append([line(2, "failed")])
    assert [name for name in parts(store) if "00000003" in name], "numbers are never given twice"
    rows = manifest.load_manifests(BucketFolder(store)).rows
    assert rows[f"{2:016x}"].status == "failed"


@pytest.mark.parametrize("left", range(4))
def test_a_merge_that_was_interrupted_reads_the_same(store: ObjectStore, left: int) -> None:
    folder = BucketFolder(store)
    for status in ("done", "failed", "done"):
        folder.open_manifest(None).append([line(1, status), {"cost": 1}])
    folder.open_manifest(None).append([line(1) | {"earlier": True}, line(1, "failed")])
    before = manifest.load_manifests(folder)
    kept = {name: store.read(name) or b"" for name in parts(store)}
    folder.merge()
    # The run was killed after some of the parts were removed, in any order.
    store.write(list(kept)[left], kept[list(kept)[left]])
    assert manifest.load_manifests(BucketFolder(store)) == before
    BucketFolder(store).merge()
    assert manifest.load_manifests(BucketFolder(store)) == before
    joined = [json.loads(text) for text in (store.read("manifest.jsonl") or b"").splitlines()]
    assert joined.count({"cost": 1}) == 1
    assert joined[0] == {"t2i_manifest": 1, "parts": 4}


def test_a_joined_manifest_is_one_for_a_disk(store: ObjectStore, tmp_path: Path) -> None:
    folder = BucketFolder(store)
    folder.open_manifest(Shard(1, 2)).append([line(1)])
    folder.open_manifest(Shard(2, 2)).append([line(2)])
    assert folder.merge() == 2
    (tmp_path / "manifest.jsonl").write_bytes(store.read("manifest.jsonl") or b"")
    assert manifest.load_manifests(tmp_path) == manifest.load_manifests(folder)
    manifest.Manifest(tmp_path / "manifest.jsonl").close()
    # And a disk's, copied into a bucket.
    store.write("manifest.jsonl", manifest.MANIFEST_HEADER + manifest.encode_lines([line(5)]))
    assert manifest.load_manifests(folder).rows.keys() == {f"{5:016x}"}


def test_a_disks_shards_are_not_passed_over(store: ObjectStore) -> None:
    store.write("manifest-1-of-2.jsonl", manifest.MANIFEST_HEADER)
    with pytest.raises(InputError, match="is a shard's manifest, of a folder on a disk"):
        BucketFolder(store).check()


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"t2i_manifest": 9}\n'])
def test_an_object_that_is_no_manifest_is_refused_or_read_as_empty(
    store: ObjectStore, data: bytes
) -> None:
    store.write("manifest.jsonl", data)
    folder = BucketFolder(store)
    try:
        assert manifest.load_manifests(folder).rows == {}
    except InputError as error:
        assert "manifest.jsonl" in error.message


def hold(store: ObjectStore, **changes: object) -> str:
    """Write the lock of another run."""
    name = f"{bucket_lock.LOCK_PREFIX}{'ab' * 8}.json"
    store.write(name, json.dumps(bucket_lock._this_process() | changes).encode())
    return name


def refusal(store: ObjectStore, shard: Shard | None = None) -> str:
    """Why the folder cannot be locked, and that nothing of the try is left."""
    before = store.sizes().keys()
    with pytest.raises(InputError) as refused, bucket_lock.lock_bucket(store, shard):
        pass
    assert store.sizes().keys() == before
    return refused.value.message


def test_a_live_run_keeps_others_out_and_a_dead_one_does_not(store: ObjectStore) -> None:
    hold(store)
    assert f"at work in '{store.url}' (process {os.getpid()} on " in refusal(store)
    hold(store, started="1.00")  # the number is another process's by now
    with bucket_lock.lock_bucket(store, None):
        assert len(store.sizes()) == 1
    hold(store, process=2**22 + 1)
    with bucket_lock.lock_bucket(store, None):
        assert len(store.sizes()) == 1
    assert store.sizes() == {}


@pytest.mark.parametrize("key", ["node", "boot", "namespace"])
def test_a_run_elsewhere_is_dead_only_when_it_has_been_silent(store: ObjectStore, key: str) -> None:
    name = hold(store, process=2**22 + 1, **{key: "another"})
    assert "at work in" in refusal(store)
    entry = store._fs.store[store._path(name)]
    silent = timedelta(seconds=bucket_lock.LOST_SECONDS + 1)
    entry.modified = datetime.now(tz=UTC) - silent
    with bucket_lock.lock_bucket(store, None):
        assert not store.exists(name)


def test_a_store_without_times_is_asked_for_a_removal(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(store, node="another")

    def unknown(path: str) -> datetime:
        raise NotImplementedError

    monkeypatch.setattr(store._fs, "modified", unknown)
    assert "at work in" in refusal(store)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"process": "x\\u001b[2J"}'])
def test_a_lock_that_t2i_did_not_write_keeps_a_run_out_for_a_while(
    store: ObjectStore, data: bytes
) -> None:
    store.write(f"{bucket_lock.LOCK_PREFIX}{'cd' * 8}.json", data)
    assert "\x1b" not in refusal(store)


def test_shards_run_beside_each_other_and_nothing_else(store: ObjectStore) -> None:
    with bucket_lock.lock_bucket(store, Shard(1, 2)):
        with bucket_lock.lock_bucket(store, Shard(2, 2)):
            assert "at work in" in refusal(store, Shard(1, 2))
            assert "at work in" in refusal(store)
    with bucket_lock.lock_bucket(store, None):
        assert "at work in" in refusal(store, Shard(1, 2))


def test_a_run_that_was_taken_for_dead_writes_no_line(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_lock, "BEAT_SECONDS", 0.01)
    folder = BucketFolder(store)
    with folder.lock(None):
        book = folder.open_manifest(None)
        book.append([line(1)])
        [name] = [name for name in store.sizes() if name.startswith(bucket_lock.LOCK_PREFIX)]
        store.remove([name])  # as the run that takes the folder does
        lost = Flag()
        for _ in range(500):
            try:
                book.append([line(2)])
            except StorageError as error:
                assert "Another run works in" in error.message
                lost.set()
                break
            lost.wait(0.01)
        assert lost.is_set()
        other = f"{bucket_lock.LOCK_PREFIX}{'ef' * 8}.json"
        store.write(other, b"{}")
    assert store.exists(other), "the lock of the other run stays"


def test_the_lock_is_written_again_while_the_run_lives(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_lock, "BEAT_SECONDS", 0.01)
    with bucket_lock.lock_bucket(store, None):
        [name] = store.sizes()
        first, waited = store.modified(name), Flag()
        assert first is not None
        for _ in range(500):
            if (store.modified(name) or first) > first:
                break
            waited.wait(0.01)
        assert (store.modified(name) or first) > first


def test_a_folder_knows_its_files(store: ObjectStore) -> None:
    store.write("a.png", b"123")
    folder = BucketFolder(store)
    folder.check()
    assert folder.file_size("a.png") == 3
    assert folder.open_file("a.png").read() == b"123"
    assert folder.occupant("a.png") == "file"
    assert folder.occupant("b.png") is None
    for ask in (folder.file_size, folder.open_file):
        with pytest.raises(FileNotFoundError):
            ask("b.png")
    assert not folder.is_used()
    assert list(folder.unlisted_candidates(["b.png", "a.png"])) == ["a.png"]
    assert folder.free_bytes() is None
    with folder.local_copies({"x": "a.png", "y": "b.png"}) as files:
        assert {key: path.read_bytes() for key, path in files.items()} == {"x": b"123"}
        copied = files["x"]
    assert not copied.exists()
    store.write("index.html", b"a stranger's")
    ours: Callable[[Any], bool] = lambda file: file.read() == b"ours"  # noqa: E731
    assert folder.page_name(("index.html", "gallery.html"), ours) == "gallery.html"
    folder.write_page("gallery.html", b"theirs")
    assert folder.page_name(("index.html", "gallery.html"), ours) is None
    assert io.BytesIO(store.read("index.html") or b"").read() == b"a stranger's"
