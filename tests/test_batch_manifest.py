"""The manifest: what is written lasts, and what is torn is repaired."""

import errno
import json
import os
from pathlib import Path

import pytest

from t2i_cli.batch import manifest
from t2i_cli.batch.manifest import HEADER, MAIN, Known, Manifest, State
from t2i_cli.errors import InputError, StorageError


def line(number: int, status: str = "done", **values: object) -> dict[str, object]:
    """An image's line."""
    file = {"file": f"{number}.png", "bytes": number, "sha256": "s"} if status == "done" else {}
    return {"id": f"{number:016x}", "status": status, **file, **values}


def write(path: Path, *lines: dict[str, object]) -> None:
    """Append lines to a manifest."""
    book = Manifest(path)
    book.append(lines)
    book.close()


def test_lines_are_there_when_append_returns(tmp_path: Path) -> None:
    book = Manifest(tmp_path / MAIN)
    book.append([line(1), line(2, "failed", error={"code": "model", "message": "m"})])
    content = (tmp_path / MAIN).read_bytes()
    book.close()
    assert content.startswith(HEADER)
    assert [json.loads(text)["id"][-1] for text in content.splitlines()[1:]] == ["1", "2"]
    state = manifest.load(tmp_path)
    assert state.rows == {
        f"{1:016x}": Known("done", "1.png", 1, "s", None),
        f"{2:016x}": Known("failed", None, None, "None", "model"),
    }
    assert state.owners == {"1.png": f"{1:016x}"}


def test_every_line_is_synced_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    book = Manifest(tmp_path / MAIN)
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    book.append([line(1), line(2)])
    book.close()
    assert synced == [(tmp_path / MAIN).stat().st_size]


def test_the_last_line_of_an_image_holds(tmp_path: Path) -> None:
    failure = {"code": "model", "message": "m"}
    write(tmp_path / MAIN, line(1, "failed", error=failure), line(1), line(2))
    write(tmp_path / MAIN, line(2, "withheld", error={"code": "withheld", "message": ""}))
    state = manifest.load(tmp_path)
    assert [known.status for known in state.rows.values()] == ["done", "withheld"]


def test_manifest_cut_at_every_byte_of_its_last_two_lines_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / MAIN
    write(path, *(line(n) for n in range(1, 6)))
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for cut in range(ends[-3], len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = max(end for end in ends if end <= cut)
        before = manifest.load(tmp_path)
        assert path.read_bytes() == whole[:cut], "looking changes nothing"
        write(path, line(9))
        assert path.read_bytes()[:kept] == whole[:kept]
        after = manifest.load(tmp_path)
        assert after.damaged == before.damaged == 0
        assert after.rows.keys() == before.rows.keys() | {f"{9:016x}"}
        assert len(before.rows) == ends.index(kept)


def test_manifest_cut_in_its_header_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / MAIN
    for cut in range(len(HEADER) + 1):
        path.write_bytes(HEADER[:cut])
        write(path, line(1))
        assert path.read_bytes().startswith(HEADER + b'{"id"')


def test_long_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / MAIN
    write(path, line(1))
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * 200_000)
    write(path, line(2))
    assert path.read_bytes().startswith(whole + b'{"id"')


def test_damaged_line_inside_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / MAIN
    write(path, line(1), line(2), line(3))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * 20 + b"\n"
    path.write_bytes(b"".join(lines))
    state = manifest.load(tmp_path)
    assert (len(state.rows), state.damaged) == (2, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n', "is no manifest"),
        (b"hello", "is no manifest"),
        (b"[1]\n", "is no manifest"),
        (b'{"t2i_manifest": 2}\n', "a newer t2i"),
    ],
)
def test_strangers_file_is_neither_read_nor_changed(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / MAIN
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        manifest.load(tmp_path)
    with pytest.raises(InputError, match=message):
        Manifest(path)
    assert path.read_bytes() == content


def test_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Manifest(tmp_path / MAIN)
    book.append([line(1)])
    before = (tmp_path / MAIN).read_bytes()
    real = os.write
    left = [30]

    def full(handle: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(handle, bytes(data)[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left"):
        book.append([line(2), line(3)])
    assert (tmp_path / MAIN).read_bytes() == before
    monkeypatch.undo()
    book.append([line(2)])
    book.close()
    assert len(manifest.load(tmp_path).rows) == 2


def test_shards_are_read_together_and_merged(tmp_path: Path) -> None:
    (tmp_path / ".t2i").mkdir()
    failure = {"code": "model", "message": "m"}
    write(tmp_path / MAIN, line(1))
    write(
        tmp_path / manifest.shard_name(1, 2),
        {"model": "a/b", "revision": None, "pin": "c" * 40},
        line(2),
        line(3, "failed", error=failure),
    )
    write(tmp_path / manifest.shard_name(2, 2), line(3), line(1, "failed", error=failure))
    before = manifest.load(tmp_path)
    assert len(before.rows) == 3
    assert manifest.merge(tmp_path) == 2
    assert [path.name for path in manifest.files(tmp_path)] == [MAIN]
    after = manifest.load(tmp_path)
    assert {row: known.status for row, known in after.rows.items()} == {
        f"{n:016x}": "done" for n in (1, 2, 3)
    }
    assert after.pins == {("a/b", None): "c" * 40}
    assert manifest.merge(tmp_path) == 0
    assert manifest.load(tmp_path) == after


def test_shard_that_is_still_writing_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / manifest.shard_name(1, 2)
    write(path, line(1))
    with path.open("ab") as file:
        file.write(b'{"id": "half')
    state = manifest.load(tmp_path)
    assert (len(state.rows), state.damaged) == (1, 0)


def test_folder_without_manifest_says_nothing(tmp_path: Path) -> None:
    assert manifest.load(tmp_path / "none") == State()
