"""A whole batch in this process, with a stub backend for a backend: what is made, kept and told."""

import errno
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from t2i_cli import saver_threads
from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.batch import contact_sheet, interrupt, manifest, runner, session
from t2i_cli.batch.executor import LocalExecutor
from t2i_cli.batch.interrupt import StopSignal
from t2i_cli.batch.lock import Shard
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.plan import SelectionOptions
from t2i_cli.batch.runner import FAILURES_IN_A_ROW, BatchWriter
from t2i_cli.batch.session import BatchConfig
from t2i_cli.errors import (
    ContentFilteredError,
    InputError,
    InternalError,
    InterruptedRunError,
    ModelError,
    OutOfMemoryError,
    PartialError,
    RemoteError,
    StorageError,
    T2IError,
    TerminatedError,
)
from t2i_cli.events import OnEvent, Step
from t2i_cli.image_formats import ImageFormat
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.output import metadata
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.prompts import PromptsError
from t2i_cli.request import ResolvedRequest
from t2i_cli.terminal.console import Console
from tests.fakes.stub_backend import StubBackend, painted

PROMPTS = "".join(f"a red star number {n}\n" for n in range(1, 13))


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings go to a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


class Batch:
    """Runs batches on `out` with a stub backend."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder / "out"
        self.prompts = folder / "prompts.txt"
        self.prompts.write_text(PROMPTS)
        self._capsys = capsys

    def __call__(
        self,
        stub: StubBackend | None = None,
        *,
        selection: SelectionOptions | None = None,
        options: BatchOptions | None = None,
        events: bool = False,
        needs: Callable[[ResolvedRequest], dict[str, object]] = lambda _: {},
        commit: Callable[[str, str | None], str | None] = lambda model, asked: None,
        **task: object,
    ) -> tuple[StubBackend, T2IError | None, dict[str, object]]:
        """The stub backend, how it ended, and the summary."""
        backend = stub or StubBackend()
        console = Console()
        console.configure(json=True, events=events)
        wanted = BatchConfig(
            source=str(self.prompts),
            input_format=None,
            folder=self.folder,
            options=options or BatchOptions(),
            selection=selection or SelectionOptions(),
            **task,  # type: ignore[arg-type]
        )
        backend.told, backend.commits = needs, commit
        self._capsys.readouterr()
        ended = None
        try:
            session.run_batch(wanted, backend, console)
        except T2IError as error:
            ended = error
        captured = self._capsys.readouterr()
        self.stderr = captured.err
        return backend, ended, json.loads(captured.out) if captured.out else {}

    def files(self) -> dict[str, bytes]:
        """Images by name."""
        return {path.name: path.read_bytes() for path in self.folder.glob("*.png")}

    def lines(self) -> list[dict[str, object]]:
        """The manifest's lines, its header aside."""
        text = (self.folder / manifest.MAIN_MANIFEST).read_text()
        return [json.loads(line) for line in text.splitlines()[1:]]


@pytest.fixture
def batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Batch:
    """A batch of twelve prompts."""
    return Batch(tmp_path, capsys)


def failing(*numbers: int, error: T2IError) -> StubBackend:
    """A stub backend that fails for prompts of these numbers."""
    return StubBackend(
        fails=lambda request: error if int(request.prompt.split()[-1]) in numbers else None
    )


def test_everything_is_made_once_and_recorded(batch: Batch) -> None:
    stub, ended, summary = batch()
    assert ended is None
    assert len(stub.made) == len(batch.files()) == 12
    assert {key: summary[key] for key in ("images", "done", "made", "failed", "left", "exit")} == {
        "images": 12,
        "done": 12,
        "made": 12,
        "failed": 0,
        "left": 0,
        "exit": 0,
    }
    for line in batch.lines():
        data = batch.files()[str(line["file"])]
        assert line["bytes"] == len(data)
        assert line["status"] == "done"
        assert line["lock"]["device"] == "cpu"  # type: ignore[index]
        assert line["request"]["prompt"].startswith("a red star")  # type: ignore[index]
    before = batch.files()
    stub, ended, summary = batch()
    assert stub.made == []
    assert (ended, summary["made"], summary["done"]) == (None, 0, 12)
    assert batch.files() == before
    assert len(batch.lines()) == 12


def test_new_and_reordered_rows_leave_done_images_as_they_are(batch: Batch) -> None:
    batch()
    before = batch.files()
    batch.prompts.write_text("a new one\n" + "".join(reversed(PROMPTS.splitlines(keepends=True))))
    stub, ended, _ = batch()
    assert ended is None
    assert [request.prompt for request in stub.made] == ["a new one"]
    assert {name: data for name, data in batch.files().items() if name in before} == before


def test_a_changed_setting_makes_new_pictures_under_names_of_their_own(batch: Batch) -> None:
    batch(options=BatchOptions(seed=1))
    before = batch.files()
    stub, ended, summary = batch(options=BatchOptions(seed=1, defaults={"steps": 5}))
    assert (ended, len(stub.made), summary["done"]) == (None, 12, 12)
    files = batch.files()
    assert {name: files[name] for name in before} == before
    assert len(files) == 24


def test_strangers_file_is_not_replaced(batch: Batch) -> None:
    batch.folder.mkdir()
    batch.prompts.write_text('{"prompt": "a", "name": "mine.png"}')
    batch.prompts = batch.prompts.rename(batch.prompts.with_suffix(".jsonl"))
    mine = batch.folder / "mine.png"
    mine.write_bytes(b"mine")
    stub, ended, _ = batch()
    assert isinstance(ended, PromptsError)
    assert "not of this batch" in ended.message
    assert (stub.made, mine.read_bytes()) == ([], b"mine")
    assert list(batch.folder.iterdir()) == [mine], "a refusal leaves nothing"


def test_image_that_no_line_was_written_for_is_taken_over(batch: Batch) -> None:
    batch()
    path = batch.folder / manifest.MAIN_MANIFEST
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    before = batch.files()
    stub, ended, summary = batch()
    assert (ended, len(stub.made), summary["done"]) == (None, 0, 12)
    assert batch.files() == before
    last = batch.lines()[-1]
    assert hashlib.sha256(before[str(last["file"])]).hexdigest() == last["sha256"]
    assert {"id", "index", "line", "bytes", "lock", "request", "time"} <= last.keys()
    assert batch()[0].made == []


@pytest.mark.parametrize("damage", ["delete", "truncate", "extend", "folder"])
def test_file_damaged_behind_its_back_is_made_again(batch: Batch, damage: str) -> None:
    batch()
    before = batch.files()
    victim = sorted(batch.folder.glob("*.png"))[3]
    data = victim.read_bytes()
    if damage == "truncate":
        victim.write_bytes(data[:-1])
    elif damage == "extend":
        victim.write_bytes(data + b"x")
    else:
        victim.unlink()
    if damage == "folder":
        # Not even t2i's folder of state is needed to go on.
        (batch.folder / ".t2i" / "lock").unlink()
        (batch.folder / ".t2i").rmdir()
    stub, ended, _ = batch()
    assert (ended, len(stub.made)) == (None, 1)
    assert batch.files() == before


def test_flipped_byte_is_found_with_verify_files(batch: Batch) -> None:
    batch()
    before = batch.files()
    victim = sorted(batch.folder.glob("*.png"))[3]
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.write_bytes(data)
    assert batch()[0].made == []
    stub, ended, _ = batch(selection=SelectionOptions(verify_files=True))
    assert (ended, len(stub.made)) == (None, 1)
    assert batch.files() == before


def test_failures_are_kept_until_retry_failed(batch: Batch) -> None:
    bad = OutOfMemoryError("too large")
    stub, ended, summary = batch(failing(2, 5, error=bad))
    assert isinstance(ended, PartialError)
    assert (ended.exit_code, summary["failed"], summary["failures"]) == (
        8,
        2,
        {"out_of_memory": 2},
    )
    assert "2 of 12 images failed. too large" in ended.message
    stub, ended, summary = batch()
    assert stub.made == []
    assert isinstance(ended, PartialError)
    assert ended.hint == "--retry-failed tries those again that failed before."
    stub, ended, summary = batch(selection=SelectionOptions(retry_failed=True))
    assert (len(stub.made), ended, summary["done"]) == (2, None, 12)


def test_withheld_is_told_apart_and_ends_with_8_or_10(batch: Batch) -> None:
    _, ended, summary = batch(failing(2, error=ContentFilteredError("withheld")))
    assert isinstance(ended, PartialError)
    assert (summary["withheld"], summary["failed"]) == (1, 0)
    batch.folder = batch.folder.with_name("all")
    _, ended, summary = batch(failing(*range(1, 13), error=ContentFilteredError("withheld")))
    assert isinstance(ended, ContentFilteredError)
    assert (summary["withheld"], summary["exit"]) == (12, 10)


def test_all_failed_for_one_reason_has_its_code_and_for_two_8(batch: Batch) -> None:
    _, ended, _ = batch(failing(*range(1, 13), error=ModelError("broken")))
    assert isinstance(ended, ModelError)
    assert "None of 12 images could be made. broken" in ended.message
    batch.folder = batch.folder.with_name("two")
    reasons = [ModelError("broken"), OutOfMemoryError("large")]
    stub = StubBackend(fails=lambda request: reasons[int(request.prompt.split()[-1]) % 2])
    _, ended, summary = batch(stub)
    assert isinstance(ended, PartialError)
    assert summary["failures"] == {"model": 6, "out_of_memory": 6}


def test_passing_trouble_stops_the_run_and_is_tried_again_by_the_next(batch: Batch) -> None:
    stub = failing(*range(4, 13), error=RemoteError("down"))
    stub.pause = 0.05  # what was saved is told of before the next fails
    _, ended, summary = batch(stub)
    assert isinstance(ended, PartialError)
    assert summary["done"] == 3
    assert "in a row failed for a reason that the next would meet" in str(summary["stopped"])
    failed, left = summary["failed"], summary["left"]
    assert isinstance(failed, int)
    assert failed >= FAILURES_IN_A_ROW
    assert (summary["images"], left) == (12, 9 - failed)
    stub, ended, summary = batch()
    assert (ended, len(stub.made), summary["done"]) == (None, 9, 12)


@pytest.mark.parametrize(("text", "most"), [("2", 2), ("25%", 3), ("1%", 1)])
def test_max_failures_stops_the_run(batch: Batch, text: str, most: int) -> None:
    stub = failing(*range(1, 13), error=ModelError("broken"))
    stub.pause = 0.05
    _, ended, summary = batch(stub, max_failures=text)
    assert isinstance(ended, ModelError)
    assert most <= int(str(summary["failed"])) <= most + 2
    assert "as many as --max-failures allows" in str(summary["stopped"])


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "101%", "5%%", "1.5"])
def test_wrong_max_failures_is_refused(batch: Batch, text: str) -> None:
    stub, ended, _ = batch(max_failures=text)
    assert isinstance(ended, InputError)
    assert stub.made == []
    assert not batch.folder.exists()


def test_limit_makes_the_first_and_the_next_run_goes_on(batch: Batch) -> None:
    stub, ended, summary = batch(selection=SelectionOptions(limit=5))
    assert ended is None
    assert [r.prompt.split()[-1] for r in stub.made] == ["1", "2", "3", "4", "5"]
    assert (summary["done"], summary["left"], summary["exit"]) == (5, 7, 0)
    stub, _, summary = batch(selection=SelectionOptions(limit=5))
    assert [r.prompt.split()[-1] for r in stub.made] == ["6", "7", "8", "9", "10"]


def test_force_makes_everything_again_under_the_same_names(batch: Batch) -> None:
    batch()
    before = batch.files()
    stub, ended, _ = batch(selection=SelectionOptions(force=True))
    assert (len(stub.made), ended) == (12, None)
    assert batch.files() == before


def test_shards_make_each_row_once_and_merge(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Batch(batch.folder.parent, capsys)
    whole.folder = batch.folder.with_name("whole")
    whole()
    made = [batch(selection=SelectionOptions(shard=Shard(n, 3)))[0].made for n in (1, 2, 3)]
    assert sum(map(len, made)) == len({r.prompt for part in made for r in part}) == 12
    assert sum(map(bool, made)) > 1  # twelve rows need not reach all three
    assert batch.files() == whole.files()
    assert not (batch.folder / manifest.MAIN_MANIFEST).exists()
    session.merge_shards(batch.folder, Console())
    assert len(batch.lines()) == 12
    stub, ended, summary = batch()
    assert (stub.made, ended, summary["done"]) == ([], None, 12)


def test_merge_needs_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no manifest in"):
        session.merge_shards(tmp_path, Console())
    assert list(tmp_path.iterdir()) == []


def test_invalid_rows_stop_everything_or_are_listed(batch: Batch) -> None:
    batch.prompts.write_text("good\n{bad\nalso good\n")
    stub, ended, _ = batch()
    assert isinstance(ended, PromptsError)
    assert "prompts.txt:2: prompt: the brace" in ended.message
    assert stub.made == []
    assert not batch.folder.exists()
    for _ in range(2):
        stub, ended, summary = batch(skip_invalid=True)
        assert isinstance(ended, PartialError)
        assert ended.exit_code == 8
        assert (summary["done"], summary["invalid"], summary["exit"]) == (2, 1, 8)
    listed = [line for line in batch.lines() if line["status"] == "invalid"]
    assert [(line["line"], line["field"]) for line in listed] == [(2, "prompt")]


def test_bad_names_stop_everything_and_leave_no_folder(batch: Batch) -> None:
    stub, ended, _ = batch(selection=SelectionOptions(template="../{index}.png"))
    assert isinstance(ended, PromptsError)
    assert stub.made == []
    assert not batch.folder.exists()


def test_nothing_good_is_an_error_even_with_skip_invalid(batch: Batch) -> None:
    batch.prompts.write_text("{bad\n")
    _, ended, _ = batch(skip_invalid=True)
    assert isinstance(ended, PromptsError)


def test_dry_run_tells_the_plan_and_leaves_nothing(batch: Batch) -> None:
    def needs(request: ResolvedRequest) -> dict[str, object]:
        return {"device": "cpu", "download_mib": 7}

    stub, ended, plan = batch(
        dry_run=True, needs=needs, options=BatchOptions(vary=[("steps", [5, 10])])
    )
    assert (stub.made, ended, batch.folder.exists()) == ([], None, False)
    assert plan["images"] == plan["to_make"] == 24
    assert [(g["steps"], g["images"]) for g in plan["groups"]] == [(5, 12), (10, 12)]  # type: ignore[attr-defined]
    assert plan["models"] == [{"model": "postcard", "device": "cpu", "download_mib": 7}]
    assert plan["disk_bytes"] == 24 * 128 * 128 * 2
    assert plan["free_bytes"] > 0  # type: ignore[operator]
    assert plan["estimated_seconds"] is None
    batch(options=BatchOptions(vary=[("steps", [5, 10])]), selection=SelectionOptions(limit=13))
    *_, plan = batch(dry_run=True, needs=needs, options=BatchOptions(vary=[("steps", [5, 10])]))
    assert (plan["done"], plan["to_make"]) == (13, 11)
    # The stub backend says that an image takes half a second, whose last one had ten steps.
    assert plan["estimated_seconds"] == pytest.approx(11 * 0.5, rel=0.6)


def test_model_is_pinned_at_the_first_run(batch: Batch) -> None:
    commits = iter(["c" * 40, "d" * 40])
    hub = {"options": BatchOptions(defaults={"model": "sd15", "width": 64, "height": 64})}
    first, *_ = batch(
        commit=lambda model, asked: next(commits),
        selection=SelectionOptions(limit=6),
        **hub,  # type: ignore[arg-type]
    )
    second, ended, summary = batch(commit=lambda model, asked: next(commits), **hub)  # type: ignore[arg-type]
    assert {r.revision for r in [*first.made, *second.made]} == {"c" * 40}
    assert (ended, summary["done"], len(second.made)) == (None, 12, 6)


def test_failed_save_is_that_rows_failure(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    real = BatchWriter.__call__

    def save(self: BatchWriter, generated: GeneratedImage) -> SavedImage:
        if generated.index == 4:
            raise StorageError("Cannot write: Input/output error.")
        return real(self, generated)

    monkeypatch.setattr(BatchWriter, "__call__", save)
    _, ended, summary = batch()
    assert isinstance(ended, PartialError)
    assert (summary["done"], summary["failures"]) == (11, {"storage": 1})
    monkeypatch.undo()
    stub, ended, _ = batch()
    assert (len(stub.made), ended) == (1, None)


def broken(*numbers: int, error: type[Exception] = ZeroDivisionError) -> StubBackend:
    """A stub backend that raises what nobody expects for prompts of these numbers."""

    def fails(request: ResolvedRequest) -> T2IError | None:
        if (number := int(request.prompt.split()[-1])) in numbers:
            raise error(f"it broke\nat number {number if error is OSError else 'n'}")
        return None

    return StubBackend(fails=fails)


def bugs(batch: Batch) -> dict[str, object]:
    """The errors that the manifest has of failed rows, by prompt."""
    lines = [line for line in batch.lines() if line["status"] == "failed"]
    return {line["request"]["prompt"]: line["error"] for line in lines}  # type: ignore[index]


@pytest.mark.parametrize("steps", [False, True])
def test_what_a_backend_raises_is_that_rows_failure(batch: Batch, steps: bool) -> None:
    stub = broken(1, 7, 12)
    stub.steps = steps
    _, ended, summary = batch(stub)
    assert isinstance(ended, PartialError)
    assert (summary["done"], summary["failures"], summary["stopped"]) == (9, {"bug": 3}, None)
    assert len(batch.files()) == 9
    assert (batch.folder / "index.html").exists()
    assert bugs(batch) == dict.fromkeys(
        (f"a red star number {n}" for n in (1, 7, 12)),
        {
            "code": "bug",
            "exit": 1,
            "message": "An unexpected ZeroDivisionError: it broke at number n",
            "hint": "-v shows the traceback; please report it.",
        },
    )
    stub, ended, summary = batch()
    assert (stub.made, summary["failed"], type(ended)) == ([], 3, PartialError)
    stub, ended, summary = batch(selection=SelectionOptions(retry_failed=True))
    assert (len(stub.made), ended, summary["done"]) == (3, None, 12)


def test_what_fails_for_every_row_at_once_ends_the_run_after_three(batch: Batch) -> None:
    stub, ended, summary = batch(broken(*range(1, 13)))
    assert isinstance(ended, InternalError)
    assert ended.exit_code == 1
    assert len(stub.made) == summary["failed"] == 3
    assert (summary["left"], summary["exit"]) == (9, 1)
    assert "The first 3 images failed alike and unexpectedly" in str(summary["stopped"])
    assert "An unexpected ZeroDivisionError: it broke at number n" in ended.message
    # The next run begins with those that were left.
    stub, _, summary = batch()
    assert (len(stub.made), summary["failed"]) == (9, 3)


@pytest.mark.parametrize(
    "stub",
    [broken(*range(1, 13), error=OSError), broken(*range(2, 13)), broken(1, 2, *range(4, 13))],
    ids=["of several kinds", "not the first", "not in a row"],
)
def test_unexpected_failures_that_may_be_the_rows_do_not_end_the_run(
    batch: Batch, stub: StubBackend
) -> None:
    made = set(range(12))
    _, ended, summary = batch(stub)
    assert summary["stopped"] is None
    assert int(str(summary["done"])) + int(str(summary["failed"])) == len(made)
    assert ended


def test_a_pass_that_raises_fails_those_in_hand_and_no_other(batch: Batch) -> None:
    class Passes(StubBackend):
        """Makes three at a time, and raises in the middle of those with number 5."""

        def run(
            self,
            requests: Sequence[ResolvedRequest],
            on_event: OnEvent,
            cancel: threading.Event,
            previews: Sequence[int] = (),
        ) -> Iterator[GeneratedImage | Failure]:
            for start in range(0, len(requests), 3):
                members = [*enumerate(requests)][start : start + 3]
                on_event(Step(indices=tuple(index for index, _ in members), step=1, steps=1))
                if any(request.prompt.endswith(" 5") for _, request in members):
                    raise ZeroDivisionError
                for index, request in members:
                    self.made.append(request)
                    yield painted(index, request)

    stub, _, summary = batch(Passes())
    assert (len(stub.made), summary["done"], summary["failed"]) == (9, 9, 3)
    assert bugs(batch).keys() == {f"a red star number {n}" for n in (4, 5, 6)}
    assert len({str(line["id"]) for line in batch.lines()}) == 12


def test_what_saving_raises_is_that_rows_failure(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.image_file_bytes

    def encoded(generated: GeneratedImage, format: ImageFormat) -> bytes:
        if generated.index == 4:
            raise ZeroDivisionError
        return real(generated, format)

    monkeypatch.setattr(metadata, "image_file_bytes", encoded)
    _, ended, summary = batch()
    assert isinstance(ended, PartialError)
    assert (summary["done"], summary["failures"]) == (11, {"bug": 1})
    assert list((batch.folder / ".t2i").glob("*/*")) == []


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_no_rows_failure_ends_the_run(batch: Batch, error: type[BaseException]) -> None:
    def fails(request: ResolvedRequest) -> T2IError | None:
        if request.prompt.endswith("7"):
            raise error
        return None

    with pytest.raises(error):
        batch(StubBackend(fails=fails))
    assert len(batch.lines()) == len(batch.files()) == 6


def test_failures_of_an_unknown_kind_are_still_told(batch: Batch) -> None:
    batch(failing(*range(1, 13), error=ModelError("broken")))
    path = batch.folder / manifest.MAIN_MANIFEST
    path.write_text(path.read_text().replace('"code": "model"', '"code": "of a later version"'))
    _, ended, summary = batch()
    assert isinstance(ended, PartialError)
    assert summary["failures"] == {"of a later version": 12}


def test_page_that_cannot_be_written_costs_no_account(batch: Batch) -> None:
    page, other = (batch.folder / name for name in ("index.html", "gallery.html"))

    def plant(request: ResolvedRequest) -> T2IError | None:
        for path in (page, other):
            path.mkdir(exist_ok=True)
        return ModelError("broken") if request.prompt.endswith(" 2") else None

    _, ended, summary = batch(StubBackend(fails=plant))
    assert isinstance(ended, PartialError)
    assert (summary["done"], summary["failed"], summary["gallery"]) == (11, 1, None)
    assert "warning: Neither index.html nor gallery.html" in batch.stderr
    stub, ended, summary = batch(selection=SelectionOptions(retry_failed=True))
    assert isinstance(ended, InputError)
    assert "is t2i's: no gallery without a place" in ended.message
    assert (stub.made, summary) == ([], {}), "it is found before any image is made"
    other.rmdir()
    _, ended, summary = batch()
    assert isinstance(ended, PartialError)
    assert (summary["gallery"], page.is_dir()) == (str(other), True)
    other.unlink()
    page.rmdir()
    stub = StubBackend(fails=lambda request: plant(request) and None)
    _, ended, summary = batch(stub, selection=SelectionOptions(retry_failed=True))
    assert isinstance(ended, InputError)
    assert str(ended.hint).startswith("Run the same command again")
    assert (summary["done"], summary["exit"], summary["gallery"]) == (12, 2, None)


@pytest.mark.parametrize(
    ("harm", "kind"),
    [(Path.unlink, None), (lambda path: os.truncate(path, 30), StorageError)],
    ids=["removed", "cut"],
)
def test_manifest_harmed_after_the_last_image_leaves_no_empty_gallery(
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], None],
    kind: type[T2IError] | None,
) -> None:
    real = runner.run_plan

    def run_plan(*args: object, **options: object) -> object:
        stats = real(*args, **options)  # type: ignore[arg-type]
        harm(batch.folder / manifest.MAIN_MANIFEST)
        return stats

    monkeypatch.setattr(runner, "run_plan", run_plan)
    _, ended, summary = batch()
    assert type(ended) is (kind or type(None))
    assert summary["exit"] == (ended.exit_code if ended else 0)
    if not ended:
        assert len(batch.lines()) == 12
        assert (batch.folder / "index.html").read_text().count('"file":') == 12


def test_sheet_of_some_images_says_so(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    batch(sheet=True)
    assert "sheet.png shows" not in batch.stderr
    monkeypatch.setattr(contact_sheet, "MAX_IMAGES", 5)
    batch(sheet=True)
    assert "warning: sheet.png shows the first 5 of 12 images." in batch.stderr


def test_manifest_that_cannot_be_written_ends_the_run(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = manifest.Manifest.append
    calls = [0]

    def append(self: manifest.Manifest, *args: LibraryObject) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise StorageError("Cannot write the manifest: No space left on device.")
        real(self, *args)

    monkeypatch.setattr(manifest.Manifest, "append", append)
    stub = StubBackend(pause=0.05)
    _, ended, summary = batch(stub)
    assert isinstance(ended, PartialError)
    assert "Cannot write the manifest: No space left on device." in ended.message
    assert summary["stopped"] == "The manifest cannot be written."
    # What no line tells of is not done, though its file may be there.
    assert summary["done"] == len(batch.lines()) < 12
    assert summary["failures"].keys() == {"storage"}  # type: ignore[attr-defined]
    monkeypatch.undo()
    _, ended, summary = batch()
    assert (ended, summary["done"]) == (None, 12)


class Telling(StubBackend):
    """Tells when a pass has begun."""

    def __init__(self, pause: float) -> None:
        super().__init__(pause=pause, steps=True)
        self.begun = threading.Event()

    def _denoise(self, members: Sequence[int], on_event: OnEvent) -> None:
        self.begun.set()
        super()._denoise(members, on_event)


@contextmanager
def asked_to_stop(number: int, times: int, stub: Telling) -> Iterator[None]:
    """Sends this process a signal, as often, once the first image is made."""

    def send() -> None:
        assert stub.begun.wait(60)
        for _ in range(times):
            time.sleep(0.3)  # its step has come, or what is done about the signal before
            os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        sender.join()


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(signal.SIGINT, InterruptedRunError, 130), (signal.SIGTERM, TerminatedError, 143)],
)
def test_signal_once_finishes_the_image_in_hand_and_says_how_to_go_on(
    batch: Batch, number: int, kind: type[T2IError], code: int
) -> None:
    stub = Telling(pause=0.4)
    with asked_to_stop(number, 1, stub):
        _, ended, summary = batch(stub)
    assert isinstance(ended, kind)
    assert ended.exit_code == code
    assert "images are missing" in ended.message
    assert ended.hint is not None
    assert ended.hint.startswith("Run the same command again")
    # The image whose step had come was finished, and no other was begun.
    assert len(stub.made) == len(batch.files()) == len(batch.lines()) == summary["done"]
    assert 0 < len(stub.made) < 12
    before = batch.files()
    _, ended, summary = batch()
    assert (ended, summary["done"]) == (None, 12)
    assert before.items() <= batch.files().items()


def test_signal_twice_leaves_the_image_in_hand(batch: Batch) -> None:
    stub = Telling(pause=4.0)
    with asked_to_stop(signal.SIGINT, 2, stub):
        _, ended, summary = batch(stub)
    assert isinstance(ended, InterruptedRunError)
    assert (stub.made, summary["done"]) == ([], 0)
    (backend,) = [thread for thread in threading.enumerate() if thread.name == "backend"]
    backend.join(10)
    assert not backend.is_alive()
    assert len(stub.made) == 1, "it begins no other"
    assert batch.files() == {}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class _SlowlyHandled(StopSignal):
    """Its handler returns when the wait that the signal interrupted is over."""

    def request(self, number: int, _frame: object = None) -> None:
        """Handle a signal, longer than the executor waits for an outcome."""
        super().request(number)
        time.sleep(0.3)


def test_a_signal_at_the_end_of_a_wait_is_not_the_last_that_is_noticed() -> None:
    stop, begun, release = _SlowlyHandled(), threading.Event(), threading.Event()

    class Holding(StubBackend):
        def _denoise(self, members: Sequence[int], on_event: OnEvent) -> None:
            super()._denoise(members, on_event)
            release.wait(20)

    def send_both() -> None:
        assert begun.wait(20)
        for _ in range(2):
            time.sleep(0.5)  # the executor waits again
            os.kill(os.getpid(), signal.SIGTERM)

    began = time.monotonic()
    with interrupt.handle_signals(stop):
        sender = threading.Thread(target=send_both)
        made = LocalExecutor(Holding(steps=True), savers=2).run(
            [_request(0)], lambda _: pytest.fail("nothing is saved"), lambda _: begun.set(), stop
        )
        sender.start()
        assert [outcome for group in made for outcome in group] == []
        took = time.monotonic() - began
        release.set()
        sender.join()
    assert took < 15


def test_device_does_not_wait_for_files_until_the_queue_is_full(batch: Batch) -> None:
    release = threading.Event()
    stub = StubBackend()
    saved: list[int] = []

    def save(generated: GeneratedImage) -> SavedImage:
        release.wait(10)
        saved.append(generated.index)
        raise StorageError("not kept")

    requests = [_request(n) for n in range(30)]
    made = LocalExecutor(stub, savers=2).run(requests, save, lambda _: None, StopSignal())
    threading.Timer(0.5, release.set).start()
    first = next(made)
    # Two are being saved, four wait at most, and one is in the backend's hand.
    assert len(stub.made) >= 5
    rest = [outcome for group in made for outcome in group]
    assert len(first) + len(rest) == 30
    assert sorted(saved) == list(range(30))


def test_queue_is_bounded(batch: Batch) -> None:
    release = threading.Event()
    stub = StubBackend()

    def save(generated: GeneratedImage) -> SavedImage:
        release.wait(10)
        raise StorageError("not kept")

    made = LocalExecutor(stub, savers=2).run(
        [_request(n) for n in range(30)], save, lambda _: None, StopSignal()
    )
    threading.Timer(1.0, lambda: (counts.append(len(stub.made)), release.set())).start()  # type: ignore[func-returns-value]
    counts: list[int] = []
    assert sum(len(group) for group in made) == 30
    assert counts == [5]
    assert saver_threads.SAVER_THREADS == 4
    assert [saver_threads.saver_thread_count(n) for n in (1, 8, 64, 256)] == [4, 4, 8, 16]


def _request(number: int) -> ResolvedRequest:
    return ResolvedRequest(
        prompt=f"number {number}",
        negative_prompt=None,
        model="postcard",
        revision=None,
        seed=number,
        steps=1,
        guidance_scale=4.0,
        width=16,
        height=16,
        scheduler=None,
    )


def test_disk_full_in_the_middle_then_space_and_again(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Batch(batch.folder.parent, batch._capsys)
    undisturbed.folder = batch.folder.with_name("undisturbed")
    undisturbed()
    real = os.fsync
    calls = [0]

    def full(handle: int) -> None:
        calls[0] += 1
        if calls[0] > 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    _, ended, _ = batch()
    assert isinstance(ended, StorageError | PartialError)
    assert "No space left" in ended.message
    monkeypatch.setattr(os, "fsync", real)
    _, ended, summary = batch()
    assert (ended, summary["done"]) == (None, 12)
    assert batch.files() == undisturbed.files()
    assert list((batch.folder / ".t2i").glob("*/*")) == []


def test_a_failure_that_a_newer_version_recorded_is_told(batch: Batch) -> None:
    batch(failing(*range(1, 13), error=ModelError("broken")))
    path = batch.folder / manifest.MAIN_MANIFEST
    path.write_text(path.read_text().replace('"code": "model"', '"code": "melted"'))
    _, ended, summary = batch()
    assert isinstance(ended, PartialError)
    assert summary["failures"] == {"melted": 12}


def test_a_pipe_in_the_place_of_an_image_is_not_waited_for(batch: Batch) -> None:
    batch(selection=SelectionOptions(limit=1))
    [image] = batch.folder.glob("*.png")
    line = batch.lines()[0] | {"bytes": 0}
    path = batch.folder / manifest.MAIN_MANIFEST
    path.write_bytes(manifest.MANIFEST_HEADER + json.dumps(line).encode() + b"\n")
    image.unlink()
    os.mkfifo(image)
    _, ended, summary = batch(selection=SelectionOptions(verify_files=True))
    assert ended is None
    assert summary["made"] == 12
    [other] = [job for job in batch.folder.glob("00012-*.png")]
    other.unlink()
    path.unlink()
    os.mkfifo(other)
    _, ended, _ = batch()
    assert isinstance(ended, InputError)
    assert "not of this batch" in ended.message


def test_a_sheet_of_what_is_no_image_is_one_sentence(batch: Batch) -> None:
    batch()
    image = min(batch.folder.glob("*.png"))
    image.write_bytes(b"x" * image.stat().st_size)
    _, ended, summary = batch(sheet=True)
    assert isinstance(ended, StorageError)
    assert f"Cannot read '{image}'" in ended.message
    assert summary["gallery"]
    assert not summary["sheet"]
