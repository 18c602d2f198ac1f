"""The pages over a folder: index.html, sheet.png, and the live line."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.batch import manifest, progress
from t2i_cli.batch.local_folder import LocalFolder
from t2i_cli.batch.manifest import Manifest, ManifestState
from t2i_cli.batch.options import BatchOptions, parse_vary
from t2i_cli.batch.plan import BatchPlan, SelectionOptions, build_plan
from t2i_cli.batch.progress import BatchProgress, progress_text
from t2i_cli.batch.rows import expand_rows
from t2i_cli.batch.runner import RunStats
from t2i_cli.batch.sheet_drawing import _wrapped_captions
from t2i_cli.batch.sheet_grids import distinct_texts, sheet_grids
from t2i_cli.durations import format_estimate
from t2i_cli.errors import InputError, ModelError
from t2i_cli.events import Loading, MemoryMeasure, Notice, Step
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.prompts.entries import PromptEntry
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.throughput import ThroughputMeter
from tests.factories import written_gallery, written_sheet
from tests.fakes.stub_backend import StubBackend, painted

NASTY = '</script><script>alert("&amp;\u2028")</script><!-- <img src=x onerror=alert(1)>'


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where what is unfinished lies, which the next run empties."""
    folder = tmp_path / ".t2i" / "unfinished"
    folder.mkdir(parents=True)
    return folder


class Page(HTMLParser):
    """What a browser would take from a page: its scripts, elements and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"] and data.strip():
            self.scripts.append(data)


def entries(page: Path) -> list[dict[str, object]]:
    """The data of a page."""
    (script,) = Page(page.read_text()).scripts
    found = re.search(r"^const entries = (.*);$", script, re.MULTILINE)
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


def line(number: int, prompt: str, **values: object) -> dict[str, object]:
    """An image's line in the manifest."""
    request = {"prompt": prompt, "seed": 3, "steps": 4, "scheduler": None}
    return {"id": f"{number:016x}", "index": number, "request": request, **values}


def test_page_holds_every_image_in_order_and_escapes_every_prompt(
    tmp_path: Path, scratch: Path
) -> None:
    book = Manifest(tmp_path / manifest.MAIN_MANIFEST)
    failure = {"code": "model", "message": NASTY}
    book.append(
        [
            line(2, NASTY, status="done", file="a/<b> #1?.png", seconds=1.5),
            line(1, "first", status="failed", error=failure),
            {"status": "invalid", "line": 7, "field": "steps", "message": "bad"},
            line(1, "first", status="done", file="1.png", seconds=2),
            line(3, "third", status="withheld", error=failure),
        ]
    )
    book.close()
    page = written_gallery(tmp_path, scratch)
    told = entries(page)
    assert [(entry["index"], entry["status"]) for entry in told] == [
        (None, "invalid"),
        (1, "done"),
        (2, "done"),
        (3, "withheld"),
    ]
    assert told[2]["prompt"] == NASTY
    assert told[2]["settings"] == {"seed": 3, "steps": 4}
    assert told[0]["prompt"] == "line 7 of the prompts file"
    parsed = Page(page.read_text())
    assert parsed.tags.count("script") == 1
    assert parsed.tags.count("img") == 1
    # Nothing comes from elsewhere, and nothing else may act.
    assert parsed.addresses == []
    assert "http:" not in page.read_text()
    assert "https:" not in page.read_text()
    digest = hashlib.sha256(parsed.scripts[0].encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}';" in page.read_text()
    assert "default-src 'none'; img-src 'self' file:;" in page.read_text()


def test_page_of_an_empty_folder_is_a_page(tmp_path: Path, scratch: Path) -> None:
    assert entries(written_gallery(tmp_path, scratch)) == []


@pytest.mark.parametrize("what", ["page", "sheet"])
def test_what_a_killed_run_began_is_where_the_next_one_clears(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    plan = plan_of(tmp_path, "a")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(os, "replace", killed)
    # Who is killed clears nothing up.
    monkeypatch.setattr(Path, "unlink", lambda _: None)
    with pytest.raises(KilledError):
        written_gallery(tmp_path, scratch) if what == "page" else written_sheet(plan, scratch)
    assert sorted(tmp_path.iterdir()) == before
    assert len(list(scratch.iterdir())) == 1


def plan_of(
    folder: Path, *prompts: str, vary: list[str] | None = None, count: int = 1
) -> BatchPlan:
    """A plan of prompts, whose images the manifest calls done; cells have a grey of their own."""
    rows, _ = expand_rows(
        [PromptEntry(n, {"prompt": p}) for n, p in enumerate(prompts, 1)],
        BatchOptions(vary=parse_vary(vary or []), count=count),
        StubBackend(),
    )
    folder.mkdir(exist_ok=True)
    plan = build_plan(rows, [], LocalFolder(folder), ManifestState(), SelectionOptions())
    book = Manifest(folder / manifest.MAIN_MANIFEST)
    for job in plan.jobs:
        shade = 10 * job.row.index % 250
        Image.new("RGB", (128, 128), (shade, shade, shade)).save(folder / job.file)
        book.append([{"id": job.row.id, "status": "done", "file": job.file}])
    book.close()
    return plan


def greys(picture: Image.Image) -> dict[int, tuple[int, int]]:
    """Where each grey stands: the upper left corner of its area."""
    found: dict[int, tuple[int, int]] = {}
    pixels = picture.convert("RGB")
    for y in range(0, pixels.height, 4):
        for x in range(0, pixels.width, 4):
            red, green, blue = pixels.getpixel((x, y))  # type: ignore[misc]
            if red == green == blue and red % 10 == 0 and 0 < red < 250:
                area = pixels.crop((x, y, x + 100, y + 100))
                if area.getextrema() == ((red, red),) * 3:
                    found.setdefault(red // 10, (x, y))
    return found


def test_two_axes_make_a_grid(tmp_path: Path, scratch: Path) -> None:
    plan = plan_of(tmp_path, "a", vary=["steps=10,20,30", "guidance_scale=5,7.5"])
    (block,) = sheet_grids(plan.rows)
    assert list(block.across) == ["steps 10", "steps 20", "steps 30"]
    assert list(block.down) == ["guidance_scale 5.0", "guidance_scale 7.5"]
    assert block.title.startswith("a (seed ")
    assert written_sheet(plan, scratch) == tmp_path / "sheet.png"
    with Image.open(tmp_path / "sheet.png") as drawn:
        corner = greys(drawn)
    # Steps run across, guidance down: 1 3 5 over 2 4 6.
    assert sorted(corner) == [1, 2, 3, 4, 5, 6]
    assert corner[1][0] < corner[3][0] < corner[5][0]
    assert corner[1][1] == corner[3][1] == corner[5][1] < corner[2][1] == corner[6][1]
    assert corner[1][0] == corner[2][0]


def test_each_prompt_and_seed_has_a_grid_of_its_own(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "a", "b", vary=["steps=10,20", "width=64,128"], count=2)
    blocks = sheet_grids(plan.rows)
    assert len(blocks) == 4
    assert all(len(block.cells) == 2 and len(block.cells[0]) == 2 for block in blocks)


def test_other_batches_are_captioned_and_missing_images_crossed(
    tmp_path: Path, scratch: Path
) -> None:
    plan = plan_of(tmp_path, *"abcde")
    (block,) = sheet_grids(plan.rows)
    assert [len(cells) for cells in block.cells] == [2, 2, 1]
    Manifest(tmp_path / manifest.MAIN_MANIFEST).append(
        [{"id": plan.rows[0].id, "status": "failed"}]
    )
    written_sheet(plan, scratch)
    with Image.open(tmp_path / "sheet.png") as drawn:
        assert sorted(greys(drawn)) == [2, 3, 4, 5]
        # Under each image stands text.
        left, top = greys(drawn)[2]
        caption = drawn.crop((left, top + 192, left + 150, top + 230)).convert("L")
    assert caption.getextrema()[0] < 128  # type: ignore[operator]


def painted_sheet(
    folder: Path,
    scratch: Path,
    sizes: list[tuple[int, int]],
    prompts: Sequence[str],
    vary: list[str] | None = None,
) -> tuple[list[tuple[int, int, int, int]], Image.Image]:
    """The boxes of pictures of these sizes on their sheet, in order, and the sheet."""
    plan = plan_of(folder, *prompts, vary=vary)
    jobs = sorted(plan.jobs, key=lambda job: job.row.index)
    for job, size in zip(jobs, sizes, strict=True):
        level = 20 * job.row.index
        Image.new("RGB", size, (level, 255, 255 - level)).save(folder / job.file)
    with Image.open(written_sheet(plan, scratch)) as sheet:
        drawn = sheet.convert("RGB")
    boxes = []
    for job in jobs:
        level = 20 * job.row.index
        flat = Image.new("RGB", drawn.size, (level, 255, 255 - level))
        difference = ImageChops.difference(drawn, flat).convert("L")
        box = difference.point(lambda value: 255 if value == 0 else 0).getbbox()
        assert box is not None
        boxes.append(box)
    return boxes, drawn


def extents(boxes: list[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
    """Width and height of each box."""
    return [(right - left, bottom - top) for left, top, right, bottom in boxes]


def ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> tuple[int, int, int, int] | None:
    """Where the text within a box stands."""
    left, top, *_ = box
    dark = sheet.crop(box).convert("L").point(lambda value: 255 if value < 128 else 0).getbbox()
    return dark and (left + dark[0], top + dark[1], left + dark[2], top + dark[3])


@pytest.mark.parametrize(
    ("sizes", "drawn"),
    [
        ([(64, 64)] * 4, [(192, 192)] * 4),
        ([(512, 768)] * 4, [(128, 192)] * 4),
        ([(1024, 256)] * 4, [(192, 48)] * 4),
        # Of one aspect in each column, or in each line.
        ([(64, 64), (128, 64)] * 2, [(96, 96), (192, 96)] * 2),
        ([(64, 64)] * 2 + [(64, 128)] * 2, [(192, 192)] * 2 + [(192, 384)] * 2),
        ([(8, 800)] + [(64, 64)] * 3, [(4, 384)] + [(192, 192)] * 3),
    ],
)
def test_pictures_fill_their_cells_whatever_their_aspect(
    tmp_path: Path, scratch: Path, sizes: list[tuple[int, int]], drawn: list[tuple[int, int]]
) -> None:
    boxes, _ = painted_sheet(tmp_path, scratch, sizes, "abcd")
    assert extents(boxes) == drawn


def test_one_axis_is_one_line_a_prompt_with_labels_over_the_columns(
    tmp_path: Path, scratch: Path
) -> None:
    prompts = ["a red star", "a blue house on green hills by day"]
    boxes, sheet = painted_sheet(
        tmp_path, scratch, [(64, 96)] * 6, prompts, vary=["steps=10,20,30"]
    )
    assert extents(boxes) == [(128, 192)] * 6
    lines = [{box[1] for box in boxes[:3]}, {box[1] for box in boxes[3:]}]
    assert [len(line) for line in lines] == [1, 1]
    for upper, lower in zip(boxes[:3], boxes[3:], strict=True):
        assert upper[0] == lower[0], "a value has one column"
        # Its label stands over the middle, and the next begins behind it.
        left, top, right, _ = upper
        label = ink(sheet, (left, 0, right, top))
        assert label is not None
        assert abs((label[0] + label[2]) - (left + right)) <= 6
    for box in boxes[0], boxes[3]:
        # The prompt stands beside its pictures.
        assert ink(sheet, (0, box[1], box[0], box[3])) is not None
    (block,) = sheet_grids(plan_of(tmp_path / "x", *prompts, vary=["steps=10,20,30"]).rows)
    assert list(block.across) == ["steps 10", "steps 20", "steps 30"]
    assert [label.partition(" (seed ")[0] for label in block.down] == prompts
    assert (block.title, block.captions) == ("", {})


def test_captions_keep_what_varies_and_leave_out_what_does_not(tmp_path: Path) -> None:
    rows, _ = expand_rows(
        [
            PromptEntry(1, {"prompt": "a " * 300, "steps": 10, "seed": 4}),
            PromptEntry(2, {"prompt": "a " * 300, "steps": 20, "seed": 4}),
            PromptEntry(3, {"prompt": "a b", "steps": 10, "seed": 4, "negative_prompt": "c"}),
        ],
        BatchOptions(),
        StubBackend(),
    )
    (block,) = sheet_grids(rows)
    assert [fields for _, fields in block.captions.values()] == [
        *("steps 10", "steps 20", "negative_prompt c, steps 10"),
    ]
    drawn = [_wrapped_captions(block, [112] * 2)[row.id].splitlines() for row in rows]
    assert [lines[-1] for lines in drawn] == ["steps 10", "steps 20", "steps 10"]
    assert all(len(lines) <= 5 for lines in drawn)


def test_a_caption_that_is_cut_begins_where_prompts_differ(tmp_path: Path) -> None:
    start = "a very long beginning that every one of these prompts has, as lists of words do: "
    (block,) = sheet_grids(plan_of(tmp_path, f"{start} a red star", f"{start} a blue house").rows)
    drawn = _wrapped_captions(block, [192] * 2).values()
    assert [text.partition("\n")[0] for text in drawn] == ["… red star", "… blue house"]
    assert distinct_texts(["one", "one"]) == ["one", "one"]
    assert distinct_texts(["red star", "red house"]) == ["… star", "… house"]


def test_a_tall_sheet_has_smaller_pictures(tmp_path: Path, scratch: Path) -> None:
    plan = plan_of(tmp_path, "a", vary=["steps=10,20"], count=300)
    with Image.open(written_sheet(plan, scratch)) as sheet:
        assert sheet.height < 40_000


def tally_of(made: int, seconds_an_image: float) -> RunStats:
    """Counts of a run whose images took that long each."""
    now = 0.0
    tally = RunStats(throughput=ThroughputMeter(lambda: now))
    for index in range(made):
        now += seconds_an_image
        tally.made += 1
        tally.throughput.outcome(index)
    return tally


def test_progress_tells_rate_time_left_and_failures() -> None:
    assert progress_text(tally_of(10, 0.5), 100) == "10 of 100, 2.0 images/s, 45 s left"
    tally = tally_of(2, 10.0)
    tally.failed["model"] = 1
    assert (
        progress_text(tally, 1000)
        == "3 of 1,000, 10.0 s an image, 3 h left".replace("3 h", "2.8 h") + ", 1 failed"
    )
    assert progress_text(RunStats(), 5) == "0 of 5"
    seconds = (0, 0.3, 5, 90, 3600, 7200)
    assert [format_estimate(s) for s in seconds] == [
        *("0 s", "0.3 s", "5 s", "2 min", "60 min", "2.0 h"),
    ]


def test_plain_display_prints_paths_failures_and_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_INTERVAL", 0.0)
    plan = plan_of(tmp_path, "a", "b" * 100)
    shown = BatchProgress(Console(), plan)
    for event in (
        Notice(message="a note"),
        MemoryMeasure(name="vae-tiling", reason="memory ran out"),
        Loading(model="m", device="cpu"),
        Step(indices=(0,), step=1, steps=2),
    ):
        shown.event(event)
    request = plan.rows[1].request
    tally = tally_of(2, 0.5)
    tally.made, tally.failed["model"] = 1, 1
    error = ModelError("broken")
    shown.failed(plan.jobs[1], Failure(index=1, request=request, error=error), tally)
    shown.close()
    err = capsys.readouterr().err.splitlines()
    assert err[:3] == ["a note", "memory ran out: vae-tiling", "loading m on cpu"]
    assert err[3].startswith("warning: line 2 ('bbb")
    assert err[3].endswith("…'): broken")
    assert err[4] == "2 of 2, 2.0 images/s, 0 s left, 1 failed"


def test_last_picture_is_shown_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path, "a", "b")
    drawn: list[object] = []
    shown = BatchProgress(Console(), plan, drawn.append)
    made = [painted(index, job.row.request) for index, job in enumerate(plan.jobs)]
    for job, shown.latest in zip(plan.jobs, made, strict=True):
        shown.image(job, saved(tmp_path / job.file, shown.latest), RunStats(made=1))
    shown.close()
    assert drawn == [made[0].image], "not every picture, or the terminal would fall behind"
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / job.file) for job in plan.jobs]


def saved(path: Path, generated: GeneratedImage) -> SavedImage:
    """An image as it would lie in its file."""
    return SavedImage(
        index=generated.index,
        path=path,
        format="png",
        width=16,
        height=16,
        size_bytes=1,
        sha256="0" * 64,
        seconds=1.0,
        request=generated.request,
        info=generated.info,
    )


STRANGERS = [
    "<!doctype html><title>My holiday</title><p>precious",
    '<!doctype html><title>t2i batch</title><meta name="generator" content="Hugo"><p>how to use it',
    "",
]


@pytest.mark.parametrize("page", STRANGERS)
def test_a_strangers_page_stays(tmp_path: Path, scratch: Path, page: str) -> None:
    (tmp_path / "index.html").write_text(page)
    assert written_gallery(tmp_path, scratch) == tmp_path / "gallery.html"
    assert (tmp_path / "index.html").read_text() == page
    # Its own one is replaced, there as well.
    Manifest(tmp_path / manifest.MAIN_MANIFEST).append([line(1, "a", status="failed")])
    assert len(entries(written_gallery(tmp_path, scratch))) == 1
    (tmp_path / "gallery.html").write_text(page)
    with pytest.raises(InputError, match=r"Neither index\.html nor gallery\.html in .* is t2i's"):
        written_gallery(tmp_path, scratch)
    assert (tmp_path / "gallery.html").read_text() == page


def test_a_link_for_a_page_stays_a_link(tmp_path: Path, scratch: Path) -> None:
    written_gallery(tmp_path, scratch).rename(tmp_path / "elsewhere.html")
    (tmp_path / "index.html").symlink_to("elsewhere.html")
    before = (tmp_path / "elsewhere.html").stat()
    assert written_gallery(tmp_path, scratch) == tmp_path / "gallery.html"
    assert (tmp_path / "index.html").is_symlink()
    assert (tmp_path / "elsewhere.html").stat() == before


EARLIER_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>t2i batch</title>
</head>
<body>
<script>
"use strict";
const entries = [];
</script>
"""


def test_an_earlier_versions_page_is_replaced(tmp_path: Path, scratch: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text(EARLIER_PAGE)
    assert written_gallery(tmp_path, scratch) == page
    assert 'content="t2i"' in page.read_text()


def pictured(folder: Path, *arguments: str, vary: list[str] | None = None) -> BatchPlan:
    """A plan whose images are more than one colour."""
    plan = plan_of(folder, *arguments, vary=vary)
    for job in plan.jobs:
        slope = Image.linear_gradient("L").rotate(9 * job.row.index)
        Image.merge("RGB", [slope, slope.rotate(90), slope]).save(folder / job.file)
    return plan


VARIED = [None, ["steps=10,20,30", "guidance_scale=5,7.5"]]


def earlier_sheet(plan: BatchPlan) -> Image.Image:
    """A sheet as versions without a marker drew it, but for its texts."""
    varied = bool(plan.rows[0].varied)
    size, left, top, height = ((704, 1340), 104, 52, 200) if varied else ((408, 492), 8, 8, 242)
    sheet = Image.new("RGB", size, "white")
    columns = 3 if varied else 2
    for number, job in enumerate(plan.jobs[:6]):
        line, column = divmod(number, columns)
        with Image.open(plan.folder.location(job.file)) as image:
            image.thumbnail((192, 192))
            sheet.paste(image, (left + column * 200, top + line * height))
    return sheet


@pytest.mark.parametrize("vary", VARIED)
def test_an_earlier_versions_sheet_is_replaced(
    tmp_path: Path, scratch: Path, vary: list[str] | None
) -> None:
    plan = pictured(tmp_path, "a", "b", "c", vary=vary)
    drawn = tmp_path / "sheet.png"
    earlier_sheet(plan).save(drawn)
    assert written_sheet(plan, scratch) == drawn
    with Image.open(drawn) as picture:
        assert picture.info["Software"] == "t2i"
    # Its own, marked one is known whatever it shows.
    assert written_sheet(plan, scratch) == drawn


@pytest.mark.parametrize("what", ["size of a sheet", "another size", "white", "text", "link"])
def test_a_strangers_picture_stays(tmp_path: Path, scratch: Path, what: str) -> None:
    plan = pictured(tmp_path, "a", "b", "c") if what != "white" else plan_of(tmp_path, "a")
    target = tmp_path / "sheet.png"
    side = {"another size": (640, 480), "white": (208, 250)}.get(what, (408, 492))
    if what == "white":
        Image.new("RGB", (128, 128), "white").save(tmp_path / plan.jobs[0].file)
    if what == "text":
        target.write_text("precious")
    elif what == "link":
        written_sheet(plan, scratch).rename(tmp_path / "elsewhere.png")
        target.symlink_to("elsewhere.png")
    elif what == "white":
        Image.new("RGB", side, "white").save(target)
    else:
        Image.radial_gradient("L").resize(side).convert("RGB").save(target)
    before = target.read_bytes()
    assert written_sheet(plan, scratch) == tmp_path / "t2i-sheet.png"
    assert target.read_bytes() == before
    assert target.is_symlink() == (what == "link")
    (tmp_path / "t2i-sheet.png").write_text("precious")
    with pytest.raises(InputError, match=r"Neither sheet\.png nor t2i-sheet\.png in .* is t2i's"):
        written_sheet(plan, scratch)
