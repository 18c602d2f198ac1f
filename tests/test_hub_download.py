"""Downloads from a fake Hub over real sockets, in this process."""

import os
import shutil
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from huggingface_hub import constants

from t2i_cli import hub as t2i_hub
from t2i_cli.errors import (
    AccessError,
    ModelError,
    QuotaError,
    RemoteError,
    StorageError,
    T2IError,
    TimedOutError,
)
from t2i_cli.events import Downloading, Event, Notice
from t2i_cli.hub import snapshot
from tests.fakes.hub import FakeHub, Repo
from tests.fakes.models import CONFIGS, FULL, HALF, TEXT, repository
from tests.hub_in_process import use_fake_hub

NAME = "ann/picture"
COMMIT = Repo(repository()).commit
ASKED_SECONDS = snapshot._COMMIT_TTL


@pytest.fixture
def cache(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and this process's huggingface_hub pointed at the fake hub."""
    hub.repos[NAME] = Repo(repository())
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    return use_fake_hub(hub, tmp_path, monkeypatch)


def fetch(
    events: list[Event] | None = None,
    *,
    name: str = NAME,
    revision: str | None = None,
    offline: bool = False,
    dtype: str = "float32",
) -> Path:
    seen = [] if events is None else events
    return t2i_hub.download_model(
        name, revision=revision, offline=offline, dtype=dtype, on_event=seen.append
    )


def content(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def notes(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Notice))


def test_fetch_configs_brings_no_weights(hub: FakeHub, cache: Path) -> None:
    folder = t2i_hub.fetch_configs(NAME, revision=None, offline=False)
    assert content(folder) == CONFIGS
    assert (folder / "unet/config.json").read_bytes() == repository()["unet/config.json"]


def test_fetch_brings_what_is_needed(hub: FakeHub, cache: Path) -> None:
    events: list[Event] = []
    folder = fetch(events)
    assert folder.name == COMMIT
    assert content(folder) == CONFIGS | {FULL, TEXT}
    assert (folder / FULL).read_bytes() == repository()[FULL]
    downloading = [event for event in events if isinstance(event, Downloading)]
    total = sum(len(repository()[path]) for path in content(folder))
    assert {event.total for event in downloading} == {total}
    assert [event.done for event in downloading] == sorted(event.done for event in downloading)
    assert downloading[-1].done == total
    assert isinstance(events[0], Notice)
    assert events[0].message == "ann/picture takes 600.4 kB; downloading."
    assert f" It goes to {cache}, where " in notes(events)
    assert notes(events).endswith(" free.")


def test_progress_moves_while_a_file_comes(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.drip = 0.1
    events: list[Event] = []
    fetch(events)
    done = {event.done for event in events if isinstance(event, Downloading)}
    assert len(done) >= 5


def test_fetch_half_brings_fp16(hub: FakeHub, cache: Path) -> None:
    assert content(fetch(dtype="float16")) == CONFIGS | {HALF, TEXT}


def test_weights_here_win_over_the_preferred_variant(hub: FakeHub, cache: Path) -> None:
    fetch(dtype="float16")
    hub.requests.clear()
    fetch(dtype="float32")
    assert hub.fetched() == []


def test_the_second_run_asks_once_and_downloads_nothing(hub: FakeHub, cache: Path) -> None:
    fetch()
    hub.requests.clear()
    events: list[Event] = []
    fetch(events)
    assert len(hub.requests) == 1
    assert events == []


@pytest.mark.parametrize("offline", [False, True])
def test_a_pinned_commit_in_the_cache_asks_nothing(
    hub: FakeHub, cache: Path, offline: bool
) -> None:
    fetch(revision=COMMIT)
    hub.requests.clear()
    assert fetch(revision=COMMIT, offline=offline).name == COMMIT
    assert hub.requests == []


@pytest.mark.parametrize("revision", [None, "main"])
def test_offline_asks_nothing(hub: FakeHub, cache: Path, revision: str | None) -> None:
    fetch()
    hub.requests.clear()
    assert content(fetch(offline=True, revision=revision)) == CONFIGS | {FULL, TEXT}
    t2i_hub.fetch_configs(NAME, revision=revision, offline=True)
    size = t2i_hub.download_size(NAME, revision=revision, offline=True, dtype="float32")
    assert size.missing_bytes == 0
    assert hub.requests == []


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_offline_without_the_model_is_an_error(
    hub: FakeHub, cache: Path, revision: str | None
) -> None:
    with pytest.raises(ModelError, match="ann/picture is not downloaded") as caught:
        fetch(offline=True, revision=revision)
    assert "t2i models pull ann/picture" in str(caught.value.hint)
    assert hub.requests == []


def test_offline_with_a_part_names_what_is_missing(hub: FakeHub, cache: Path) -> None:
    (fetch() / FULL).unlink()
    hub.requests.clear()
    with pytest.raises(ModelError, match="partly downloaded.*1 are missing, " + FULL):
        fetch(offline=True)
    assert hub.requests == []


def test_offline_takes_what_another_program_downloaded(hub: FakeHub, cache: Path) -> None:
    shutil.rmtree(fetch().parents[1] / "trees")
    assert FULL in content(fetch(offline=True))


def test_a_dead_network_falls_back_on_the_cache(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    events: list[Event] = []
    assert fetch(events) == folder
    assert notes(events) == (
        "The Hub cannot be reached. The copy of ann/picture in the cache is used."
    )


@pytest.mark.parametrize("status", [500, 429])
def test_a_failing_hub_falls_back_on_the_cache(hub: FakeHub, cache: Path, status: int) -> None:
    folder = fetch()
    hub.status = status
    assert fetch() == folder


def test_a_dead_network_without_the_model_fails_at_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(RemoteError, match="cannot be reached"):
        fetch()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, AccessError),
        (403, AccessError),
        (429, QuotaError),
        (500, RemoteError),
        (503, RemoteError),
        (504, TimedOutError),
    ],
)
def test_error_answers(hub: FakeHub, cache: Path, status: int, kind: type[T2IError]) -> None:
    hub.status = status
    with pytest.raises(kind) as caught:
        fetch()
    assert caught.value.hint


def test_a_slow_hub_times_out(hub: FakeHub, cache: Path) -> None:
    hub.delay = 30
    start = time.monotonic()
    with pytest.raises(TimedOutError):
        fetch()
    assert time.monotonic() - start < 20


def test_an_unknown_repository(hub: FakeHub, cache: Path) -> None:
    with pytest.raises(ModelError, match="no repository ann/other"):
        fetch(name="ann/other")
    with pytest.raises(ModelError, match="not the name of a repository"):
        fetch(name="ann//other")


def test_an_unknown_revision(hub: FakeHub, cache: Path) -> None:
    with pytest.raises(ModelError, match="no such revision"):
        fetch(revision="v9")


def test_a_repository_that_is_not_of_diffusers(hub: FakeHub, cache: Path) -> None:
    hub.repos[NAME] = Repo({"config.json": b"{}"})
    with pytest.raises(ModelError, match="not a diffusers repository"):
        fetch()


@pytest.mark.parametrize("index", [b"{", b"[]", b"\xff"])
def test_a_broken_index(hub: FakeHub, cache: Path, index: bytes) -> None:
    hub.repos[NAME] = Repo({"model_index.json": index})
    with pytest.raises(ModelError, match=r"broken model_index\.json"):
        fetch()


def test_a_gated_model_says_where_to_accept(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[NAME].gated = True
    hub.users["hf_bobs"] = "bob"
    with pytest.raises(AccessError, match="gated") as caught:
        fetch()
    assert caught.value.hint == (
        "Accept the licence at https://huggingface.co/ann/picture and run `t2i login`."
    )
    monkeypatch.setenv("HF_TOKEN", "hf_bobs")
    with pytest.raises(AccessError, match="gated") as caught:
        fetch()
    assert "with the account you are logged in as" in str(caught.value.hint)
    hub.repos[NAME].readers.add("bob")
    assert (fetch() / FULL).exists()
    # The content network is another host, and must not learn the token.
    assert {seen.token for seen in hub.requests if seen.path.startswith("/cdn/")} == {None}


def test_a_token_that_cannot_be_sent_is_not_shown(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_se\x01cret")
    with pytest.raises(AccessError) as caught:
        fetch()
    assert "cret" not in caught.value.message


def test_a_broken_download_keeps_finished_files(hub: FakeHub, cache: Path) -> None:
    hub.cut = {FULL}
    events: list[Event] = []
    with pytest.raises(RemoteError) as caught:
        fetch(events)
    assert caught.value.hint == "Run it again: the files that are finished are kept."
    assert "poor; trying again" in notes(events)
    [storage] = cache.glob("models--*")
    assert list(storage.glob("blobs/*.incomplete")) == []
    hub.cut.clear()
    hub.requests.clear()
    events.clear()
    folder = fetch(events)
    assert (folder / FULL).read_bytes() == repository()[FULL]
    assert len(hub.fetched()) == 1
    assert "200.4 kB are here" in notes(events)
    first = next(event for event in events if isinstance(event, Downloading))
    assert first.done >= 200_000


def test_an_interrupted_connection_goes_on_within_a_run(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.cut = {FULL}

    def heal(event: Event) -> None:
        if isinstance(event, Notice) and "poor" in event.message:
            hub.cut.clear()

    folder = t2i_hub.download_model(
        NAME, revision=None, offline=False, dtype="float32", on_event=heal
    )
    assert (folder / FULL).read_bytes() == repository()[FULL]
    assert any(seen.range for seen in hub.requests)


def test_ctrl_c_ends_the_download_and_leaves_nothing_unfinished(hub: FakeHub, cache: Path) -> None:
    hub.drip = 0.5

    def interrupt(event: Event) -> None:
        if isinstance(event, Downloading) and event.done > 0:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        t2i_hub.download_model(
            NAME, revision=None, offline=False, dtype="float32", on_event=interrupt
        )
    assert time.monotonic() - start < 7
    assert list(cache.glob("models--*/blobs/*.incomplete")) == []


def test_a_branch_keeps_its_old_commit_until_the_new_one_is_whole(
    hub: FakeHub, cache: Path
) -> None:
    old = fetch()
    hub.repos[NAME] = Repo(repository() | {FULL: b"retrained", "README.md": b"new"})
    hub.cut = {FULL}
    with pytest.raises(RemoteError):
        fetch()
    assert fetch(offline=True) == old
    hub.cut.clear()
    new = fetch()
    assert new != old
    assert fetch(offline=True) == new


def test_a_new_commit_downloads_only_what_changed(hub: FakeHub, cache: Path) -> None:
    fetch()
    hub.repos[NAME] = Repo(repository() | {"unet/config.json": b'{"new": true}'})
    hub.requests.clear()
    size = t2i_hub.download_size(NAME, revision=None, offline=False, dtype="float32")
    assert size.missing_bytes == len(b'{"new": true}')
    fetch()
    assert hub.fetched() == ["README.md", "unet/config.json"]  # the licence is told


def test_files_of_an_older_commit_are_linked(hub: FakeHub, cache: Path) -> None:
    old = fetch()
    hub.repos[NAME] = Repo(repository() | {"README.md": b"new"})
    folder = t2i_hub.fetch_configs(NAME, revision=None, offline=False)
    assert folder != old
    size = t2i_hub.download_size(NAME, revision=None, offline=False, dtype="float32")
    assert size.missing_bytes == 0
    assert content(folder) == content(old)


def test_one_run_asks_once_for_the_commit(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch()
    hub.requests.clear()
    monkeypatch.setattr(snapshot, "_COMMIT_TTL", ASKED_SECONDS)
    monkeypatch.setattr(snapshot, "_resolved", {})
    t2i_hub.fetch_configs(NAME, revision=None, offline=False)
    t2i_hub.download_size(NAME, revision=None, offline=False, dtype="float32")
    fetch()
    assert len(hub.requests) == 1


def test_an_answer_of_the_hub_holds_for_a_minute(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch()
    now = [1000.0]
    monkeypatch.setattr(snapshot, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(snapshot, "_COMMIT_TTL", ASKED_SECONDS)
    monkeypatch.setattr(snapshot, "_resolved", {})
    asked = []
    for seconds in (0, 30, 29, 2, 59):
        now[0] += seconds
        hub.requests.clear()
        t2i_hub.fetch_configs(NAME, revision=None, offline=False)
        asked.append(len(hub.requests))
    assert asked == [1, 0, 0, 1, 0]


def test_download_size(hub: FakeHub, cache: Path) -> None:
    full = t2i_hub.download_size(NAME, revision="v1", offline=False, dtype="float32")
    half = t2i_hub.download_size(NAME, revision="v1", offline=False, dtype="float16")
    assert full.total_bytes - half.total_bytes == 300_000
    index = len(repository()["model_index.json"])
    assert full.missing_bytes == full.total_bytes - index


def test_a_disk_too_small_is_refused_before_the_download(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 9 * 10**5, 10**5))
    with pytest.raises(StorageError, match=r"needs 600.* has 100\.0 kB free"):
        fetch()
    assert [path for path in hub.fetched() if path != "model_index.json"] == []


def test_a_cache_that_cannot_be_written(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = cache / "file"
    blocked.write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(blocked / "hub"))
    with pytest.raises(StorageError, match="Cannot write"):
        fetch()


def test_stale_unfinished_files_are_removed(hub: FakeHub, cache: Path) -> None:
    (fetch() / FULL).unlink()
    [storage] = cache.glob("models--*")
    stale, fresh, locked = (
        storage / "blobs" / f"{letter * 64}.1234abcd.incomplete" for letter in "abc"
    )
    for path in (stale, fresh, locked):
        path.write_bytes(b"half")
    for path in (stale, locked):
        os.utime(path, (0, 0))
    for blob in storage.glob("blobs/*"):
        if blob.stat().st_size == len(repository()[FULL]):
            blob.unlink()
    with FileLock(cache / ".locks" / storage.name / f"{'c' * 64}.lock"):
        fetch()
    assert not stale.exists()
    assert fresh.exists()
    assert locked.exists()


def test_only_files_that_the_hubs_library_leaves_are_removed(hub: FakeHub, cache: Path) -> None:
    (fetch() / FULL).unlink()
    [storage] = cache.glob("models--*")
    for blob in storage.glob("blobs/*"):
        if blob.stat().st_size == len(repository()[FULL]):
            blob.unlink()
    others, link = storage / "blobs/thesis.incomplete", storage / f"blobs/{'d' * 64}.incomplete"
    link.symlink_to(others.name)
    others.write_text("precious")
    os.utime(others, (0, 0))
    [reference] = storage.glob("refs/*")
    (reference.parent / f"{reference.name}.{os.getpid()}.tmp").symlink_to(others)
    fetch()
    assert others.read_text() == "precious"
    assert link.is_symlink()
