"""Digests of weight files: what they are, and when a remembered one counts."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from t2i_cli.errors import ModelError
from t2i_cli.files.user_folders import user_folder
from t2i_cli.models.file_digests import autov2, sha256_of

_OLD = time.time() - 1000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return user_folder("cache") / "digests.json"


def _large_file(path: Path, content: bytes, changed: float = _OLD) -> str:
    """Write a file large enough to be remembered; returns its digest."""
    data = content * (2**20 // len(content) + 1)
    path.write_bytes(data)
    os.utime(path, (changed, changed))
    return hashlib.sha256(data).hexdigest()


def test_digest_is_that_of_the_content_and_autov2_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"abc")
    digest = sha256_of(tmp_path / "small")
    assert digest == hashlib.sha256(b"abc").hexdigest()
    assert autov2(digest) == "ba7816bf8f"


def test_large_file_is_read_once_and_again_after_each_change(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "model.safetensors"
    first = _large_file(file, b"first ")
    assert sha256_of(file) == first
    entry = json.loads(cache.read_text())["files"][str(file)]
    assert entry["sha256"] == first
    # A marked entry shows that the file is not read again, also through a link.
    marked = cache.read_text().replace(first, "0" * 64)
    cache.write_text(marked)
    (tmp_path / "link").symlink_to(file)
    assert sha256_of(file) == sha256_of(tmp_path / "link") == "0" * 64
    # Another time, another inode with the same time and size.
    os.utime(file, (_OLD + 10, _OLD + 10))
    assert sha256_of(file) == first
    second = _large_file(tmp_path / "new", b"second", _OLD + 10)
    os.replace(tmp_path / "new", file)
    assert sha256_of(file) == second


def test_file_changed_just_now_is_not_remembered(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "model.safetensors"
    digest = _large_file(file, b"first ", time.time())
    assert sha256_of(file) == digest
    assert not cache.exists()


@pytest.mark.parametrize(
    "damage",
    ["", "[]", '{"format": 1, "files": []}', '{"format": 1, "files": {"FILE": {"sha256": 1}}}'],
)
def test_damaged_cache_counts_as_empty(tmp_path: Path, cache: Path, damage: str) -> None:
    file = tmp_path / "model.safetensors"
    digest = _large_file(file, b"first ")
    cache.parent.mkdir(parents=True)
    cache.write_text(damage.replace("FILE", str(file)))
    assert sha256_of(file) == digest


def test_cache_that_is_a_link_is_left_alone(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "model.safetensors"
    digest = _large_file(file, b"first ")
    cache.parent.mkdir(parents=True)
    (tmp_path / "other").write_text("mine")
    cache.symlink_to(tmp_path / "other")
    assert sha256_of(file) == digest
    assert (tmp_path / "other").read_text() == "mine"


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no file"):
        sha256_of(tmp_path / "none")
    with pytest.raises(ModelError, match="it is a folder"):
        sha256_of(tmp_path)
