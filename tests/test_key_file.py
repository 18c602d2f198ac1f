"""Files with the server's API key: whose they may be, and what they may hold."""

import os
from pathlib import Path

import pytest

from t2i_cli.errors import InputError
from t2i_cli.server import key_file

KEY = "0123456789abcdef"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    return path


def test_a_file_of_the_owner_alone_is_read_through_a_link_as_well(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    for path in (file, link):
        assert key_file.read_key_file(path) == KEY
    file.chmod(0o400)
    assert key_file.read_key_file(file) == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_file_of_others_too_is_taken_only_where_it_must_be(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(InputError, match="Others can read or change") as caught:
        key_file.read_key_file(file)
    assert caught.value.hint == f"chmod 600 '{file}'; --insecure-key-file takes it all the same."
    assert key_file.read_key_file(file, insecure=True) == KEY


def test_another_users_file_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.getuid()
    os_fstat = os.fstat

    def anothers(descriptor: int) -> os.stat_result:
        found = list(os_fstat(descriptor))
        found[4] = me + 1
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", anothers)
    with pytest.raises(InputError, match="Others can read or change"):
        key_file.read_key_file(file)


def test_a_short_key_is_taken_only_where_it_must_be(file: Path) -> None:
    file.write_text(KEY[:-1])
    with pytest.raises(InputError, match="has fewer than 16 characters"):
        key_file.read_key_file(file)
    assert key_file.read_key_file(file, insecure=True) == KEY[:-1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no key"),
        (b"0123456789 abcdef", "holds no key"),
        ("0123456789abcdé".encode(), "holds no key"),
        (b"\xff" * 20, "it is no text"),
        (b"a" * 70_000, "it is too large"),
    ],
)
def test_what_is_no_key_is_refused_always(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    for insecure in (False, True):
        with pytest.raises(InputError, match=said):
            key_file.read_key_file(file, insecure=insecure)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="Cannot read the key"):
        key_file.read_key_file(tmp_path / "pipe")
