"""Files that appear whole or not at all."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from t2i_cli.files import atomic


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """No umask: a file's mode is what is asked for."""
    before = os.umask(0)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_replaces_whole_with_the_mode_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    atomic.write_text(file, "one\r\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o666
    atomic.write_text(file, "two\n", mode=0o600, sync=True)
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"two\n", 0o600)
    assert names(tmp_path) == ["state.json"]


def test_until_the_end_the_old_one_is_there(tmp_path: Path) -> None:
    file, scratch = tmp_path / "a", tmp_path / "scratch"
    scratch.mkdir()
    file.write_bytes(b"old")
    with atomic.open_atomic(file, scratch=scratch) as stream:
        stream.write(b"new")
        stream.flush()
        assert file.read_bytes() == b"old"
        assert len(names(scratch)) == 1
        assert names(tmp_path) == ["a", "scratch"]
    assert file.read_bytes() == b"new"
    assert names(scratch) == []


@pytest.mark.parametrize("end", [OSError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_ends_it_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, end: type[BaseException]
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"old")
    with pytest.raises(end), atomic.open_atomic(file) as stream:
        stream.write(b"half")
        raise end
    assert (file.read_bytes(), names(tmp_path)) == (b"old", ["a"])


def no_links(*_: object) -> None:
    raise PermissionError("no links on FAT")


@pytest.mark.parametrize("link", [os.link, no_links])
def test_what_is_exclusive_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: Callable[..., None]
) -> None:
    monkeypatch.setattr(os, "link", link)
    file = tmp_path / "a"
    atomic.write_bytes(file, b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        atomic.write_bytes(file, b"second", exclusive=True)
    assert (file.read_bytes(), names(tmp_path)) == (b"first", ["a"])


def test_a_planted_link_is_not_followed_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    # Even somebody who foresees the name gains nothing.
    monkeypatch.setattr(os, "urandom", bytes)
    planted = tmp_path / f".t2i-{'00' * 8}.tmp"
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError):
        atomic.write_bytes(tmp_path / "a", b"new")
    with pytest.raises(FileExistsError):
        atomic.probe_folder(tmp_path)
    assert victim.read_bytes() == b"mine"
    assert planted.is_symlink()


def test_a_probe_leaves_nothing_and_tells_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    atomic.probe_folder(tmp_path)
    assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        atomic.probe_folder(tmp_path / "none")
