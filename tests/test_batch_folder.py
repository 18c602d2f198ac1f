"""The folder's lock: one run at a time, and none held by the dead."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from t2i_cli.batch.lock import Shard, lock_folder, parse_shard
from t2i_cli.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from t2i_cli.batch.lock import lock_folder
with lock_folder(Path(sys.argv[1]), None) as scratch:
    (scratch / ".t2i-0123456789abcdef.tmp").write_bytes(b"half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_second_run_is_refused_while_the_first_lives_and_not_after(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    with pytest.raises(InputError, match=f"at work in .*process {other.pid} on "):
        with lock_folder(tmp_path, None):
            pass
    with pytest.raises(InputError, match="at work in"):
        with lock_folder(tmp_path, Shard(1, 2)):
            pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    with lock_folder(tmp_path, None) as scratch:
        assert list(scratch.iterdir()) == [], "what the dead left is gone"


def test_shards_run_beside_each_other_and_nothing_else(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(lock_folder(tmp_path, Shard(1, 2)))
        (first / "mine").write_bytes(b"")
        second = stack.enter_context(lock_folder(tmp_path, Shard(2, 2)))
        assert first != second
        assert (first / "mine").exists()
        for taken in (Shard(1, 2), None):
            with pytest.raises(InputError, match="at work in"):
                with lock_folder(tmp_path, taken):
                    pass
    with lock_folder(tmp_path, None):
        pass


def test_an_error_inside_is_not_the_folders(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="^mine$"):
        with lock_folder(tmp_path, None):
            raise OSError("mine")


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="Cannot write to the folder"):
        with lock_folder(tmp_path / "file", None):
            pass


def test_shards_split_every_row_once() -> None:
    ids = [f"{n * 2654435761:016x}" for n in range(300)]
    parts = [Shard(n, 3) for n in (1, 2, 3)]
    owners = [[part for part in parts if part.includes(row_id)] for row_id in ids]
    assert all(len(owner) == 1 for owner in owners)
    assert {owner[0] for owner in owners} == set(parts)


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2", "1/0"])
def test_wrong_shard_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--shard"):
        parse_shard(text)


def test_shard_is_read() -> None:
    assert parse_shard("2/4") == Shard(2, 4)
    assert os.path.basename(parse_shard("2/4").manifest) == "manifest-2-of-4.jsonl"


def state_is_a_link(folder: Path, others: Path) -> None:
    (folder / ".t2i").symlink_to(others)


def state_is_a_dangling_link(folder: Path, others: Path) -> None:
    (folder / ".t2i").symlink_to(others / "nowhere")


def lock_is_a_link(folder: Path, others: Path) -> None:
    (folder / ".t2i").mkdir()
    (folder / ".t2i/lock").symlink_to(others / "unfinished/precious.txt")


def lock_is_anothers(folder: Path, others: Path) -> None:
    (folder / ".t2i").mkdir()
    os.link(others / "unfinished/precious.txt", folder / ".t2i/lock")


def lock_is_a_pipe(folder: Path, others: Path) -> None:
    (folder / ".t2i").mkdir()
    os.mkfifo(folder / ".t2i/lock")


def scratch_is_a_link(folder: Path, others: Path) -> None:
    with lock_folder(folder, None):
        pass
    (folder / ".t2i/unfinished").symlink_to(others / "unfinished")


def scratch_was_there_before(folder: Path, others: Path) -> None:
    (others / "unfinished").rename(folder / "moved")
    (folder / ".t2i").mkdir()
    (folder / "moved").rename(folder / ".t2i/unfinished")
    (others / "unfinished").symlink_to(folder / ".t2i/unfinished")


def scratch_holds_a_folder(folder: Path, others: Path) -> None:
    with lock_folder(folder, None):
        pass
    (folder / ".t2i/unfinished").mkdir()
    (others / "unfinished").rename(folder / ".t2i/unfinished/deep")
    (others / "unfinished").symlink_to(folder / ".t2i/unfinished/deep")


PLANTED = [
    *(state_is_a_link, state_is_a_dangling_link, lock_is_a_link, lock_is_anothers, lock_is_a_pipe),
    *(scratch_is_a_link, scratch_was_there_before, scratch_holds_a_folder),
]


@pytest.mark.parametrize("plant", PLANTED)
def test_what_t2i_did_not_make_is_refused_and_stays(
    plant: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    folder, others = tmp_path / "out", tmp_path / "others"
    folder.mkdir()
    (others / "unfinished").mkdir(parents=True)
    precious = others / "unfinished/precious.txt"
    precious.write_text("precious")
    plant(folder, others)
    with pytest.raises(InputError, match=r"\.t2i"):
        with lock_folder(folder, None):
            pass
    assert precious.read_text() == "precious"
    assert sorted(path.name for path in precious.parent.iterdir()) == ["precious.txt"]
    assert not (others / "nowhere").exists()


def test_a_folder_of_an_earlier_version_is_held(tmp_path: Path) -> None:
    state = tmp_path / ".t2i"
    (state / "unfinished").mkdir(parents=True)
    (state / "unfinished/.t2i-0123456789abcdef.tmp").write_bytes(b"half")
    (state / "lock").write_text("process 12345 on some.host-name\n")
    with lock_folder(tmp_path, None) as scratch:
        assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    "said", [b"process 7 on \x1b[31mred", b"process 7 on \xff\xfe" + b"x" * 99]
)
def test_who_holds_the_folder_is_told_without_what_steers_a_terminal(
    tmp_path: Path, other: subprocess.Popen[str], said: bytes
) -> None:
    (tmp_path / ".t2i/lock").write_bytes(said)
    with pytest.raises(InputError, match="at work in .*process 7 on ") as raised:
        with lock_folder(tmp_path, None):
            pass
    assert raised.value.message.isprintable()
