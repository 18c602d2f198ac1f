"""Which pictures of a folder are current: changed settings, formats, prompts; --prune."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from t2i_cli.batch import gallery, manifest
from tests.conftest import T2I
from tests.fakes.images_server import FakeImages, running_images

PROMPTS = "a red star\na blue house\na green hill\n"


@pytest.fixture
def server() -> Iterator[FakeImages]:
    """A server whose images have the size and seed that are asked for."""
    with running_images() as running:
        running.owner = "sglang"
        yield running


class Folder:
    """Runs `t2i batch` as a process into the folder `out`."""

    def __init__(self, t2i: T2I, server: FakeImages, folder: Path) -> None:
        self._t2i, self._server = t2i, server
        self.prompts = folder / "prompts.txt"
        self.prompts.write_text(PROMPTS)
        self.out = folder / "out"

    def run(self, *options: str, code: int = 0) -> dict[str, Any]:
        """The summary of a run."""
        before = len(self._server.asked)
        done = self._t2i(
            *("batch", self.prompts, "-o", self.out, "-m", "painter", "--json"),
            *("--backend", "http", "--dialect", "sglang", "--size", "64x64", *options),
            env={"T2I_HTTP_URL": self._server.url},
        )
        assert done.returncode == code, done.stderr
        self.stderr = done.stderr
        self.asked = len(self._server.asked) - before
        summary: dict[str, Any] = json.loads(done.stdout or "{}")
        return summary

    def pictures(self) -> dict[str, bytes]:
        """The images by name."""
        return {
            path.relative_to(self.out).as_posix(): path.read_bytes()
            for path in sorted(self.out.rglob("*"))
            if path.suffix in {".png", ".jpg", ".webp"}
        }

    def shown(self) -> tuple[set[str], set[str]]:
        """Files that the gallery shows as current, and as of earlier requests."""
        text = (self.out / "index.html").read_text()
        entries = json.loads(text.partition("const entries = ")[2].partition(";\n")[0])
        assert entries == sorted(entries, key=lambda entry: bool(entry.get("earlier")))
        current = {entry["file"] for entry in entries if not entry.get("earlier")}
        return current, {entry["file"] for entry in entries if entry.get("earlier")}

    def marked(self) -> tuple[set[str], set[str]]:
        """Files that the manifest's lines record as current, and as of earlier requests."""
        state = manifest.load_manifests(self.out)
        current = {str(entry.file) for entry in state.rows.values()}
        return current, {file for _, file in state.earlier}


@pytest.fixture
def folder(t2i: T2I, server: FakeImages, tmp_path: Path) -> Folder:
    """A folder of three images."""
    return Folder(t2i, server, tmp_path)


def test_a_changed_setting_makes_new_pictures_beside_the_old_ones(folder: Folder) -> None:
    folder.run("--steps", "20")
    old = folder.pictures()
    summary = folder.run("--steps", "10")
    assert (summary["made"], summary["done"], folder.asked) == (3, 3, 3)
    files = folder.pictures()
    new = files.keys() - old.keys()
    assert {name: files[name] for name in old} == old
    assert len(new) == 3
    # The same names with a part of the row's id.
    assert {name.rpartition("-")[0] for name in new} == {name[:-4] for name in old}
    assert folder.shown() == folder.marked() == (new, set(old))
    # Going back makes nothing.
    assert folder.run("--steps", "20")["made"] == folder.asked == 0
    assert folder.shown() == folder.marked() == (set(old), new)
    assert folder.pictures() == files
    # A run that changes nothing writes no line.
    size = (folder.out / "manifest.jsonl").stat().st_size
    folder.run("--steps", "20")
    assert (folder.out / "manifest.jsonl").stat().st_size == size


def test_another_format_makes_files_of_that_format(folder: Folder) -> None:
    folder.run()
    png = folder.pictures()
    summary = folder.run("--format", "jpeg")
    assert (summary["made"], summary["done"]) == (3, 3)
    files = folder.pictures()
    jpeg = {name for name in files if name.endswith(".jpg")}
    assert {name[:-4] for name in jpeg} == {name[:-4] for name in png}
    assert all(files[name].startswith(b"\xff\xd8") for name in jpeg)
    assert folder.shown() == folder.marked() == (jpeg, set(png))
    ids = [row["id"] for row in records(folder.out) if row["status"] == "done"]
    assert len(set(ids)) == 3, "ids do not depend on the format"
    assert folder.run("--format", "jpeg")["made"] == 0
    assert folder.run("--format", "png")["made"] == 0
    assert folder.shown() == folder.marked() == (set(png), jpeg)
    # A row is done only with a whole file of the format.
    (folder.out / min(jpeg)).write_bytes(b"cut")
    assert folder.run("--format", "jpeg")["made"] == 1
    assert folder.pictures() == files


def test_prune_removes_what_is_of_an_earlier_request_and_unchanged(folder: Folder) -> None:
    folder.run("--steps", "20")
    first = folder.pictures()
    folder.run("--steps", "10")
    second = folder.pictures().keys() - first.keys()
    foreign = folder.out / "mine.png"
    foreign.write_bytes(b"mine")
    changed, linked, *_ = sorted(first)
    (folder.out / changed).write_bytes(b"edited")
    outside = folder.out.parent / "outside.png"
    outside.write_bytes(first[linked])
    (folder.out / linked).unlink()
    (folder.out / linked).symlink_to(outside)
    plan = folder.run("--steps", "10", "--prune", "--dry-run")
    gone = first.keys() - {changed, linked}
    assert set(plan["prune"]["remove"]) == gone
    assert set(plan["prune"]["changed"]) == {changed, linked}
    assert folder.pictures().keys() == first.keys() | second | {"mine.png"}
    summary = folder.run("--steps", "10", "--prune")
    assert (summary["made"], summary["pruned"]) == (0, 1)
    assert f"{changed}' was changed since it was made" in folder.stderr
    assert folder.pictures().keys() == second | {changed, linked, "mine.png"}
    assert outside.read_bytes() == first[linked]
    assert folder.shown() == folder.marked() == (second, {changed, linked})
    # What was removed is made again when it is asked for again.
    assert folder.run("--steps", "20", "--limit", "9")["made"] == 3


def test_prune_waits_until_every_image_is_done(folder: Folder, server: FakeImages) -> None:
    from tests.fakes.images_server import Fault

    folder.run("--steps", "20")
    old = folder.pictures()
    server.faults.append(Fault(status=400, times=1))
    folder.run("--steps", "10", "--prune", code=8)
    assert old.keys() <= folder.pictures().keys()
    assert "not every image is done" in folder.stderr
    assert folder.run("--steps", "10", "--prune", "--retry-failed")["pruned"] == 3
    assert not old.keys() & folder.pictures().keys()


def test_prune_for_people_lists_the_files(t2i: T2I, folder: Folder, server: FakeImages) -> None:
    folder.run("--steps", "20")
    old = folder.pictures()
    command = (
        *("batch", folder.prompts, "-o", folder.out, "-m", "painter", "--backend", "http"),
        *("--dialect", "sglang", "--size", "64x64", "--steps", "10", "--prune"),
    )
    done = t2i(*command, "--dry-run", env={"T2I_HTTP_URL": server.url})
    assert all(f"would remove {folder.out / name}" in done.stdout for name in old)
    done = t2i(*command, env={"T2I_HTTP_URL": server.url})
    assert "3 pictures of earlier requests are removed." in done.stderr


def test_rows_that_are_gone_or_fixed_are_of_an_earlier_request(folder: Folder) -> None:
    folder.prompts = folder.prompts.with_suffix(".jsonl")
    rows = [{"prompt": "a"}, {"prompt": "b", "steps": 0}, {"prompt": "c"}]
    folder.prompts.write_text("\n".join(map(json.dumps, rows)))
    folder.run("--skip-invalid", code=8)
    first, _ = folder.marked()
    rows = [{"prompt": "a"}, {"prompt": "b", "steps": 5}]
    folder.prompts.write_text("\n".join(map(json.dumps, rows)))
    folder.run()
    current, earlier = folder.marked()
    assert (len(current & first), len(current), len(earlier)) == (1, 2, 1)
    assert manifest.load_manifests(folder.out).invalid == set()
    assert folder.shown() == (current, earlier)
    folder.prompts.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "c"}])))
    assert folder.run()["made"] == 0
    assert folder.marked() == folder.shown() == (current | earlier, set())


def test_the_sheet_and_the_merge_agree_with_the_plan(t2i: T2I, folder: Folder) -> None:
    for steps in ("20", "10"):
        for shard in ("1/2", "2/2"):
            folder.run("--steps", steps, "--shard", shard)
    current, earlier = folder.marked()
    assert (len(current), len(earlier)) == (3, 3)
    assert folder.shown() == (current, earlier)
    done = t2i("batch", "--merge", folder.out, "--json")
    assert json.loads(done.stdout)["images"] == {"done": 3}
    assert folder.marked() == folder.shown() == (current, earlier)
    lines = records(folder.out)
    assert {line["file"] for line in lines if line.get("earlier")} == earlier
    # And the other way round, in shards over a manifest that is whole.
    for shard in ("1/2", "2/2"):
        assert folder.run("--steps", "20", "--shard", shard)["made"] == 0
    assert folder.marked() == folder.shown() == (earlier, current)
    # A run without --shard joins what the shards wrote.
    folder.run("--steps", "10")
    assert [path.name for path in manifest.manifest_files(folder.out)] == ["manifest.jsonl"]
    assert folder.marked() == folder.shown() == (current, earlier)


def test_forced_pictures_keep_their_names_in_both_requests(folder: Folder) -> None:
    folder.run("--steps", "20")
    folder.run("--steps", "10")
    files = folder.pictures().keys()
    assert folder.run("--steps", "10", "--force")["made"] == 3
    assert folder.run("--steps", "20", "--force")["made"] == 3
    assert folder.pictures().keys() == files


def test_an_unlisted_image_of_another_request_is_left_alone(folder: Folder) -> None:
    folder.run("--steps", "20")
    old = folder.pictures()
    (folder.out / "manifest.jsonl").unlink()
    assert folder.run("--steps", "10")["made"] == 3
    files = folder.pictures()
    assert {name: files[name] for name in old} == old
    assert len(files) == 6
    # They are taken over by their rows when those are asked for.
    assert folder.run("--steps", "20")["made"] == 0
    assert folder.marked()[0] == old.keys()


def test_an_image_that_a_killed_run_left_is_taken_over_under_any_name(folder: Folder) -> None:
    folder.run()
    files = folder.pictures()
    path = folder.out / "manifest.jsonl"
    kept = [line for line in path.read_text().splitlines() if '"a blue house"' not in line]
    path.write_text("\n".join(kept) + "\n")
    # Its row has another number by now.
    folder.prompts.write_text("a new one\n" + PROMPTS)
    assert folder.run("--dry-run")["to_make"] == 1
    summary = folder.run()
    assert (summary["made"], summary["done"], folder.asked) == (1, 4, 1)
    assert files.items() <= folder.pictures().items()
    assert len(folder.pictures()) == 4
    assert folder.shown() == folder.marked() == (set(folder.pictures()), set())


def plant_link_to_file(out: Path, outside: Path) -> None:
    """A finished image is a link to an equal file elsewhere."""
    (outside / "x.png").write_bytes((out / "sub/1.png").read_bytes())
    (out / "sub/1.png").unlink()
    (out / "sub/1.png").symlink_to(outside / "x.png")


def plant_link_to_folder(out: Path, outside: Path) -> None:
    """The folder of the images is a link to one elsewhere."""
    for path in (out / "sub").iterdir():
        path.rename(outside / path.name)
    (out / "sub").rmdir()
    (out / "sub").symlink_to(outside)


@pytest.mark.parametrize(
    ("plant", "code"), [(plant_link_to_file, 0), (plant_link_to_folder, 2)], ids=["file", "folder"]
)
def test_links_inside_the_folder_are_not_followed(
    folder: Folder, plant: Callable[[Path, Path], None], code: int, tmp_path: Path
) -> None:
    name = ("--name", "sub/{index}.png")
    folder.run(*name)
    outside = tmp_path / "outside"
    outside.mkdir()
    plant(folder.out, outside)
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    folder.run(*name, "--sheet", code=code)
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before
    if code:
        assert "it is a link" in folder.stderr
        assert folder.asked == 0
    else:
        assert folder.asked == 1
        assert not (folder.out / "sub/1.png").is_symlink()


@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_strangers_under_both_names_of_a_page_are_found_before_work(
    folder: Folder, kind: str
) -> None:
    folder.out.mkdir()
    plants: dict[str, Callable[[Path], object]] = {
        "folder": Path.mkdir,
        "link": lambda path: path.symlink_to("nowhere"),
        "file": lambda path: path.write_text("mine"),
    }
    names = ("sheet.png", "t2i-sheet.png", *gallery.GALLERY_NAMES)
    for name in names:
        plants[kind](folder.out / name)
        if name in {"sheet.png", "index.html"}:
            continue
        folder.run("--sheet", code=2)
        assert folder.asked == 0
        assert name in json.loads(folder.stderr.splitlines()[-1])["error"]["message"]
        assert set(os.listdir(folder.out)) <= set(names), "nothing is left behind"
        path = folder.out / name
        path.rmdir() if kind == "folder" else path.unlink()
    summary = folder.run("--sheet")
    assert summary["gallery"].endswith("gallery.html")
    assert summary["sheet"].endswith("t2i-sheet.png")


def records(out: Path) -> list[dict[str, Any]]:
    """The manifest's lines about images."""
    lines = (out / "manifest.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "id" in record]


def removed(out: Path) -> None:
    """The manifest is deleted."""
    (out / "manifest.jsonl").unlink()


def replaced(out: Path) -> None:
    """Another manifest stands in its place."""
    (out / "new").write_bytes(manifest.MANIFEST_HEADER)
    (out / "new").rename(out / "manifest.jsonl")


def cut(out: Path) -> None:
    """The manifest loses its end."""
    os.truncate(out / "manifest.jsonl", 40)


def overwritten(out: Path) -> None:
    """Something longer is written over the manifest."""
    (out / "manifest.jsonl").write_bytes(manifest.MANIFEST_HEADER + b"x" * 9999)


def folder_removed(out: Path) -> None:
    """The whole folder is gone."""
    shutil.rmtree(out)


def folder_anew(out: Path) -> None:
    """An empty folder stands in its place."""
    out.rename(out.with_name("away"))
    out.mkdir()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (removed, None),
        (replaced, "was replaced by another program"),
        (cut, "was changed by another program"),
        (overwritten, "was changed by another program"),
        (folder_removed, "was removed or replaced during the run"),
        (folder_anew, "was removed or replaced during the run"),
    ],
)
def test_a_manifest_harmed_during_the_run_is_written_again_or_told(
    folder: Folder,
    server: FakeImages,
    harm: Callable[[Path], None],
    said: str | None,
) -> None:
    moment = 2

    def fault(_: object) -> None:
        if len(server.asked) == moment and "harmed" not in server.files:
            server.files["harmed"] = b""
            while len(records(folder.out)) < moment - 1:
                time.sleep(0.02)
            harm(folder.out)

    server.fault = fault
    if said is None:
        summary = folder.run("--concurrency", "1")
        assert summary["done"] == 3
        assert "was removed during the run, and is written again" in folder.stderr
        assert len(folder.shown()[0]) == len(folder.marked()[0]) == len(records(folder.out)) == 3
    else:
        summary = folder.run("--concurrency", "1", code=8)
        assert summary["exit"] != 0
        assert said in folder.stderr
