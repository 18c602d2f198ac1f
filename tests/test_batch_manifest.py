"""The manifest: what is written lasts, and what is torn is repaired."""

import errno
import json
import os
import stat
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i_cli.batch import manifest, manifest_lines, manifest_merge
from t2i_cli.batch.manifest import (
    MAIN_MANIFEST,
    MANIFEST_HEADER,
    Manifest,
    ManifestEntry,
    ManifestState,
)
from t2i_cli.errors import InputError, StorageError, T2IError
from tests.factories import written_gallery


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
    book = Manifest(tmp_path / MAIN_MANIFEST)
    book.append([line(1), line(2, "failed", error={"code": "model", "message": "m"})])
    content = (tmp_path / MAIN_MANIFEST).read_bytes()
    book.close()
    assert content.startswith(MANIFEST_HEADER)
    assert [json.loads(text)["id"][-1] for text in content.splitlines()[1:]] == ["1", "2"]
    state = manifest.load_manifests(tmp_path)
    assert state.rows == {
        f"{1:016x}": ManifestEntry("done", "1.png", 1, "s", None),
        f"{2:016x}": ManifestEntry("failed", None, None, "None", "model"),
    }
    assert state.owners == {"1.png": f"{1:016x}"}


def test_every_line_is_synced_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    book = Manifest(tmp_path / MAIN_MANIFEST)
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    book.append([line(1), line(2)])
    book.close()
    assert synced == [(tmp_path / MAIN_MANIFEST).stat().st_size]


def test_the_last_line_of_an_image_holds(tmp_path: Path) -> None:
    failure = {"code": "model", "message": "m"}
    write(tmp_path / MAIN_MANIFEST, line(1, "failed", error=failure), line(1), line(2))
    write(tmp_path / MAIN_MANIFEST, line(2, "withheld", error={"code": "withheld", "message": ""}))
    state = manifest.load_manifests(tmp_path)
    assert [known.status for known in state.rows.values()] == ["done", "withheld"]


def test_manifest_cut_at_every_byte_of_its_last_two_lines_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / MAIN_MANIFEST
    write(path, *(line(n) for n in range(1, 6)))
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for cut in range(ends[-3], len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = max(end for end in ends if end <= cut)
        before = manifest.load_manifests(tmp_path)
        assert path.read_bytes() == whole[:cut], "looking changes nothing"
        write(path, line(9))
        assert path.read_bytes()[:kept] == whole[:kept]
        after = manifest.load_manifests(tmp_path)
        assert after.damaged == before.damaged == 0
        assert after.rows.keys() == before.rows.keys() | {f"{9:016x}"}
        assert len(before.rows) == ends.index(kept)


def test_manifest_cut_in_its_header_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / MAIN_MANIFEST
    for cut in range(len(MANIFEST_HEADER) + 1):
        path.write_bytes(MANIFEST_HEADER[:cut])
        write(path, line(1))
        assert path.read_bytes().startswith(MANIFEST_HEADER + b'{"id"')


def test_long_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / MAIN_MANIFEST
    write(path, line(1))
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * 200_000)
    write(path, line(2))
    assert path.read_bytes().startswith(whole + b'{"id"')


def test_damaged_line_inside_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / MAIN_MANIFEST
    write(path, line(1), line(2), line(3))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * 20 + b"\n"
    path.write_bytes(b"".join(lines))
    state = manifest.load_manifests(tmp_path)
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
    path = tmp_path / MAIN_MANIFEST
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        manifest.load_manifests(tmp_path)
    with pytest.raises(InputError, match=message):
        Manifest(path)
    assert path.read_bytes() == content


def test_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Manifest(tmp_path / MAIN_MANIFEST)
    book.append([line(1)])
    before = (tmp_path / MAIN_MANIFEST).read_bytes()
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
    assert (tmp_path / MAIN_MANIFEST).read_bytes() == before
    monkeypatch.undo()
    book.append([line(2)])
    book.close()
    assert len(manifest.load_manifests(tmp_path).rows) == 2


def test_shards_are_read_together_and_merged(tmp_path: Path) -> None:
    (tmp_path / ".t2i").mkdir()
    failure = {"code": "model", "message": "m"}
    write(tmp_path / MAIN_MANIFEST, line(1))
    write(
        tmp_path / manifest.shard_manifest_name(1, 2),
        {"model": "a/b", "revision": None, "pin": "c" * 40},
        line(2),
        line(3, "failed", error=failure),
    )
    write(tmp_path / manifest.shard_manifest_name(2, 2), line(3), line(1, "failed", error=failure))
    before = manifest.load_manifests(tmp_path)
    assert len(before.rows) == 3
    assert manifest_merge.merge_manifests(tmp_path) == 2
    assert [path.name for path in manifest.manifest_files(tmp_path)] == [MAIN_MANIFEST]
    after = manifest.load_manifests(tmp_path)
    assert {row: known.status for row, known in after.rows.items()} == {
        f"{n:016x}": "done" for n in (1, 2, 3)
    }
    assert after.pins == {("a/b", None): "c" * 40}
    assert manifest_merge.merge_manifests(tmp_path) == 0
    assert manifest.load_manifests(tmp_path) == after


def test_shard_that_is_still_writing_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / manifest.shard_manifest_name(1, 2)
    write(path, line(1))
    with path.open("ab") as file:
        file.write(b'{"id": "half')
    state = manifest.load_manifests(tmp_path)
    assert (len(state.rows), state.damaged) == (1, 0)


def test_folder_without_manifest_says_nothing(tmp_path: Path) -> None:
    assert manifest.load_manifests(tmp_path / "none") == ManifestState()


FULL: dict[str, object] = {
    **line(1),
    "index": 1,
    "line": 1,
    "seconds": 1.5,
    "request": {"prompt": "a red star", "seed": 3, "steps": 4},
    "error": {"code": "model", "message": "m"},
    "lock": {"device": "cpu"},
    "time": "2026-01-01T00:00:00+00:00",
}
PIN: dict[str, object] = {"model": "a/b", "revision": None, "pin": "c" * 40}
INVALID: dict[str, object] = {"status": "invalid", "line": 7, "field": "steps", "message": "bad"}

WRONG: list[object] = [
    [],
    {},
    True,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    10**400,
    "x" * 5000,
    "a\0b",
    "\ud800",
    "../../x",
    "/etc/passwd",
    "C:\\x",
    "",
]


def spoilt() -> list[dict[str, object]]:
    """Lines with one value that is not what t2i writes there, or that does not matter."""
    found = []
    for whole in (FULL, PIN, INVALID):
        for name in whole:
            found += [whole | {name: wrong} for wrong in WRONG]
            found.append({key: value for key, value in whole.items() if key != name})
    for name, inner in (("request", "prompt"), ("request", "steps"), ("error", "code")):
        for wrong in WRONG:
            deep = deepcopy(FULL)
            deep[name][inner] = wrong  # type: ignore[index]
            found.append(deep)
    return found


def readers(folder: Path) -> None:
    """Whoever reads manifests; only T2IError may leave them."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    for read in (
        lambda: manifest.load_manifests(folder),
        lambda: written_gallery(folder, scratch),
        lambda: manifest_merge.merge_manifests(folder, scratch),
    ):
        try:
            read()
        except T2IError as error:
            assert error.message


def test_no_line_of_any_kind_is_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / manifest.shard_manifest_name(1, 2)
    for record in spoilt():
        path.write_bytes(
            MANIFEST_HEADER + json.dumps(record).encode() + b"\n" + json.dumps(FULL).encode()
        )
        with path.open("ab") as file:
            file.write(b"\n")
        readers(tmp_path)
        assert not path.exists()
        assert f"{1:016x}" in manifest.load_manifests(tmp_path).rows, (
            "the sound line counts all the same"
        )
        (tmp_path / MAIN_MANIFEST).unlink()


DAMAGED: list[dict[str, object]] = [
    FULL | {"status": []},
    FULL | {"status": {}},
    FULL | {"index": "x"},
    FULL | {"index": True},
    FULL | {"bytes": "12"},
    FULL | {"seconds": "1"},
    FULL | {"seconds": float("nan")},
    FULL | {"file": None},
    FULL | {"file": "../x.png"},
    FULL | {"file": "a\0.png"},
    FULL | {"request": []},
    FULL | {"request": {"prompt": ["a"]}},
    FULL | {"error": "bad"},
    FULL | {"request": {"prompt": "\ud800"}},
    FULL | {"id": 1},
    INVALID | {"line": []},
    {"pin": "c" * 40},
    PIN | {"pin": "../../x"},
    PIN | {"revision": []},
]


@pytest.mark.parametrize("record", DAMAGED)
def test_a_line_that_t2i_did_not_write_is_damaged(
    record: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / MAIN_MANIFEST).write_bytes(MANIFEST_HEADER + json.dumps(record).encode() + b"\n")
    assert manifest.load_manifests(tmp_path) == ManifestState(damaged=1)


@pytest.mark.parametrize("depth", [40, 900, 100_000])
@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_deep_lines_are_damaged(depth: int, bracket: str, tmp_path: Path) -> None:
    end = {"[": "]", '{"a":': "}"}[bracket]
    deep = f'{{"id": "1", "status": "failed", "lock": {bracket * depth}1{end * depth}}}\n'
    (tmp_path / MAIN_MANIFEST).write_bytes(MANIFEST_HEADER + deep.encode())
    assert manifest.load_manifests(tmp_path) == ManifestState(damaged=1)
    readers(tmp_path)


def test_lines_that_never_end_are_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_lines, "MAX_LINE", 1000)
    long = json.dumps(FULL | {"request": {"prompt": "x" * 5000}}).encode()
    (tmp_path / MAIN_MANIFEST).write_bytes(
        MANIFEST_HEADER + long + b"\n" + json.dumps(line(2)).encode() + b"\n"
    )
    state = manifest.load_manifests(tmp_path)
    assert (list(state.rows), state.damaged) == ([f"{2:016x}"], 1)
    (tmp_path / MAIN_MANIFEST).write_bytes(b"\0" * 100_000)
    with pytest.raises(InputError, match="is no manifest"):
        manifest.load_manifests(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from([*FULL, "pin", "model", "field"]), VALUES)))
def test_whatever_lines_say_is_read_or_left_out(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.mktemp("batch")
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / manifest.shard_manifest_name(1, 2)).write_bytes(MANIFEST_HEADER + text.encode())
    readers(folder)


@given(st.binary(max_size=200), st.booleans())
def test_whatever_bytes_a_manifest_has_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, headed: bool
) -> None:
    folder = tmp_path_factory.mktemp("batch")
    (folder / MAIN_MANIFEST).write_bytes(MANIFEST_HEADER * headed + data)
    readers(folder)


def a_link(path: Path) -> None:
    write(path.with_name("elsewhere"), line(1))
    path.symlink_to("elsewhere")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("plant", [a_link, a_dangling_link, os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", [MAIN_MANIFEST, manifest.shard_manifest_name(1, 2)])
def test_what_is_no_file_is_neither_read_nor_written(
    plant: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    plant(path)
    elsewhere = tmp_path / "elsewhere"
    before = elsewhere.read_bytes() if elsewhere.exists() else None
    kind = stat.S_IFMT(path.lstat().st_mode)
    for act in (manifest.load_manifests, manifest_merge.merge_manifests):
        with pytest.raises(InputError, match="Cannot read .*: it is "):
            act(tmp_path)
    with pytest.raises(InputError, match="Cannot write .*: it is "):
        Manifest(path)
    assert (elsewhere.read_bytes() if elsewhere.exists() else None) == before
    assert not (tmp_path / "nowhere").exists()
    assert stat.S_IFMT(path.lstat().st_mode) == kind


def test_a_torn_line_behind_a_link_is_not_cut_off(tmp_path: Path) -> None:
    a_link(tmp_path / MAIN_MANIFEST)
    with (tmp_path / "elsewhere").open("ab") as file:
        file.write(b"torn")
    with pytest.raises(InputError, match="it is a link"):
        Manifest(tmp_path / MAIN_MANIFEST)
    assert (tmp_path / "elsewhere").read_bytes().endswith(b"torn")


def test_only_what_is_called_as_a_shards_is_one(tmp_path: Path) -> None:
    (tmp_path / "manifest-old-of-mine.jsonl").write_text("precious")
    write(tmp_path / manifest.shard_manifest_name(1, 1), line(1))
    assert manifest_merge.merge_manifests(tmp_path) == 1
    assert (tmp_path / "manifest-old-of-mine.jsonl").read_text() == "precious"


@pytest.mark.parametrize(
    ("file", "inside"),
    [
        ("a", True),
        ("X/a.png", True),
        ("a/b:c.png", True),
        ("..a/b..", True),
        ("a" * 4096, True),
        ("a" * 4097, False),
        ("", False),
        ("/a", False),
        ("\\a", False),
        ("C:a", False),
        ("a/../b", False),
        ("a\\..", False),
        ("..", False),
        ("a\0b", False),
        (5, False),
    ],
)
def test_a_file_lies_inside_the_folder(file: object, inside: bool) -> None:
    assert manifest_lines.is_inside_folder(file) is inside
    assert manifest_lines.is_valid_record(line(1, file=file)) is inside


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("record", "valid"),
    [
        ({"note": 5}, True),
        ({"status": "newer"}, True),
        ({"status": "newer", "id": 5}, True),
        ({"status": 5}, False),
        ({"status": "s" * 41}, False),
        (line(1, id=None), False),
        (line(1, id="i" * 201), False),
        (line(1, id="i" * 200), True),
        (line(1, file=None), False),
        (line(1, "failed"), True),
        (line(1, "failed", error={"code": "c", "message": "m"}), True),
        (line(1, "failed", error={"code": 5, "message": "m"}), False),
        (line(1, "failed", error={"code": "c", "message": 5}), False),
        (line(1, "failed", error={"code": None}), True),
        (line(1, "failed", error="e"), False),
        (line(1, request={"prompt": "a"}), True),
        (line(1, request={"prompt": None}), True),
        (line(1, request={}), True),
        (line(1, request={"prompt": 5}), False),
        (line(1, request="a"), False),
        *((line(1) | {name: 0}, True) for name in ("index", "line", "bytes")),
        *((line(1) | {name: -1}, False) for name in ("index", "line", "bytes")),
        *((line(1) | {name: 0.5}, False) for name in ("index", "line", "bytes")),
        *((line(1) | {name: 0.5}, True) for name in ("seconds", "round_trip_seconds")),
        *((line(1) | {name: "1"}, False) for name in ("seconds", "round_trip_seconds")),
        *((line(1) | {name: "t"}, True) for name in ("sha256", "field", "message", "time")),
        *((line(1) | {name: 5}, False) for name in ("sha256", "field", "message", "time")),
        ({"pin": COMMIT, "model": "m"}, True),
        ({"pin": COMMIT + "0" * 24, "model": "m", "revision": "r"}, True),
        ({"pin": COMMIT + "0" * 24, "model": "m", "revision": None}, True),
        ({"pin": COMMIT, "model": "m", "revision": 5}, False),
        ({"pin": COMMIT, "model": 5}, False),
        ({"pin": COMMIT}, False),
        ({"pin": COMMIT[1:], "model": "m"}, False),
        ({"pin": 5, "model": "m"}, False),
    ],
)
def test_every_field_that_is_read_has_its_kind(record: dict[str, object], valid: bool) -> None:
    assert manifest_lines.is_valid_record(record) is valid
    assert manifest_lines.read_line(json.dumps(record).encode()) == (record if valid else None)


def test_half_of_a_surrogate_pair_is_damage() -> None:
    assert manifest_lines.read_line(b'{"a": "\\ud83c\\udfa8"}') == {"a": "🎨"}
    assert manifest_lines.read_line(b'{"a": "\\uD83C"}') is None
    assert manifest_lines.read_line(b'{"a": "\\ud83c"}') is None
    assert manifest_lines.read_line(b"[1]") is None
    assert manifest_lines.read_line(b"{") is None


def records(path: Path) -> list[dict[str, object]]:
    """The lines of a manifest, its header aside."""
    return [json.loads(text) for text in path.read_bytes().splitlines()[1:]]


def test_a_merge_keeps_one_line_of_each_kind_and_what_is_done(tmp_path: Path) -> None:
    pin: dict[str, object] = {"model": "a", "revision": "r", "pin": "c" * 40}
    other: dict[str, object] = {"model": "a", "revision": None, "pin": "d" * 40}
    later = line(1, "failed", error={"code": "model", "message": "m"})
    again = line(3, seconds=2.5)
    invalid: list[dict[str, object]] = [
        {"status": "invalid", "line": n, "field": None, "message": "m"} for n in (1, 2)
    ]
    write(tmp_path / MAIN_MANIFEST, pin, line(1), line(2, "failed"), invalid[0])
    shard = tmp_path / manifest.shard_manifest_name(1, 1)
    write(shard, pin | {"pin": "e" * 40}, other, later, line(2, "withheld"), line(3), again)
    write(shard, *invalid)
    assert manifest_merge.merge_manifests(tmp_path) == 1
    assert records(tmp_path / MAIN_MANIFEST) == [
        *(pin, other, *invalid, line(1), line(2, "withheld"), again)
    ]
    assert manifest.load_manifests(tmp_path).pins == {("a", "r"): "c" * 40, ("a", None): "d" * 40}


def test_a_merge_is_on_the_disk_before_its_shards_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = tmp_path / manifest.shard_manifest_name(1, 1)
    write(shard, line(1))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    seen: list[tuple[int, bool]] = []
    real = os.replace

    def replace(source: str, target: str) -> None:
        seen.append((Path(source).is_relative_to(scratch), shard.exists()))
        real(source, target)

    synced: list[bool] = []
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(shard.exists()))
    assert manifest_merge.merge_manifests(tmp_path, scratch) == 1
    assert seen == [(True, True)]
    assert len(synced) >= 2 and all(synced)
    assert not shard.exists()
    # Without a place for it the unfinished one lies in the folder itself.
    write(shard, line(2))
    seen.clear()
    assert manifest_merge.merge_manifests(tmp_path) == 1
    assert seen == [(False, True)]


def test_a_merge_that_cannot_be_written_names_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = tmp_path / manifest.shard_manifest_name(1, 1)
    write(shard, line(1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError) as caught:
        manifest_merge.merge_manifests(tmp_path)
    assert caught.value.message == (
        f"Cannot write '{tmp_path / MAIN_MANIFEST}': No space left on device."
    )
    assert shard.exists()


def test_the_names_of_images_are_durable_before_their_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(manifest, "sync_folder", synced.append)
    for durable in (True, False):
        book = Manifest(tmp_path / f"{durable}.jsonl", durable=durable)
        synced.clear()
        book.append([line(1)], [tmp_path / "a", tmp_path / "b"])
        book.close()
        assert synced == ([tmp_path / "a", tmp_path / "b"] if durable else [])
        assert len(records(book.path)) == 1


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Manifest(tmp_path / MAIN_MANIFEST)

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", fails)
    monkeypatch.setattr(os, "ftruncate", fails)
    with pytest.raises(StorageError) as caught:
        book.append([line(1)])
    monkeypatch.undo()
    book.close()
    assert caught.value.message == f"Cannot write '{book.path}': No space left on device."
    assert caught.value.hint == (
        "Free some space, then run the same command again: what is done stays done."
    )


def test_a_manifest_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / MAIN_MANIFEST
    path.write_bytes(b"no manifest\n")
    with pytest.raises(InputError) as caught:
        Manifest(path)
    assert caught.value.message == f"'{path}' is no manifest of t2i."
    with pytest.raises(InputError, match=f"^Cannot write '{tmp_path / 'none' / MAIN_MANIFEST}': "):
        Manifest(tmp_path / "none" / MAIN_MANIFEST)


def test_a_number_that_is_none_is_not_known(tmp_path: Path) -> None:
    write(tmp_path / MAIN_MANIFEST, line(1, bytes=None))
    [known] = manifest.load_manifests(tmp_path).rows.values()
    assert known.bytes is None


def test_a_line_of_16_mib_is_read_and_a_longer_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / MAIN_MANIFEST
    frame = b'{"note": ""}\n'
    note = b"x" * (16 * 2**20 - len(frame))
    for more, read in ((b"", True), (b"x", False)):
        path.write_bytes(MANIFEST_HEADER + frame.replace(b'""', b'"%s"' % (note + more)))
        [record] = manifest.read_records(path)
        assert (record is not None) is read


def test_invalid_rows_are_known_and_damaged_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / MAIN_MANIFEST
    write(path, {"status": "invalid", "line": 3, "field": "steps", "message": "no."}, line(1))
    with path.open("ab") as file:
        file.write(b"{\n[]\n")
    state = manifest.load_manifests(tmp_path)
    assert state.invalid == {(3, "steps", "no.")}
    assert state.damaged == 2
    assert len(state.rows) == 1


def test_a_file_to_read_that_is_no_manifest_is_named(tmp_path: Path) -> None:
    path = tmp_path / MAIN_MANIFEST
    path.write_bytes(b'{"t2i_manifest": 99}\n')
    with pytest.raises(InputError) as caught:
        manifest.load_manifests(tmp_path)
    assert caught.value.message == f"'{path}' was written by a newer t2i."
    assert caught.value.hint == "Upgrade: pip install -U t2i-cli"
