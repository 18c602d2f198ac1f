"""One `t2i batch`, from the prompts file to the exit code."""

import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from t2i_cli import prompts
from t2i_cli.backend import Backend, GeneratedImage
from t2i_cli.batch import contact_sheet, gallery, lock, manifest, plan, rows, runner, summary
from t2i_cli.batch.events import EventWriter
from t2i_cli.batch.executor import LocalExecutor
from t2i_cli.batch.interrupt import StopSignal, handle_signals
from t2i_cli.batch.manifest import Manifest, ManifestState
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.plan import BatchPlan, SelectionOptions
from t2i_cli.batch.progress import BatchProgress, ShowImage
from t2i_cli.batch.rows import ModelRevision
from t2i_cli.batch.runner import BatchWriter, RunStats
from t2i_cli.errors import InputError, InterruptedRunError, T2IError, TerminatedError
from t2i_cli.output import filenames
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.prompts import PromptsError, PromptsFile
from t2i_cli.prompts.entries import PromptProblem
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.preview import terminal_viewer

_NAMES = {"gallery": gallery.GALLERY_NAME, "sheet": contact_sheet.SHEET_NAME}


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """What the command line asks a batch for. `max_failures` is a number, or per cent."""

    source: str
    input_format: str | None
    folder: Path
    wishes: BatchOptions
    choice: SelectionOptions
    skip_invalid: bool = False
    max_failures: str | None = None
    dry_run: bool = False
    sheet: bool = False
    show: bool = False


def check_config(task: BatchConfig, console: Console) -> None:
    """Raise what can be told to be wrong without a backend."""
    if task.show and console.events:
        raise InputError("--events has stderr to itself, where --show would draw.", field="show")
    _max_failures(task.max_failures, 0)


def validate(task: BatchConfig, backend: Backend, console: Console) -> tuple[PromptsFile, bool]:
    """Raise whatever can be told to be wrong before the backend that is meant costs anything.

    Returns the prompts, which may come from a pipe and be gone, and whether an image is missing.
    """
    check_config(task, console)
    terminal_viewer(task.show, task.wishes.lenient, console)
    target = task.folder
    there = filenames.existing_parent(target)
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"Cannot write to the folder {target}.", hint="-o names another one.")
    read = _read(task)
    composed = _composer(task, read, backend, lambda _: None)
    found, _ = composed(manifest.load_manifests(target))
    if os.path.lexists(target / lock.STATE_FOLDER):
        with lock.lock_folder(target, task.choice.shard):
            pass  # nobody else is at work there
    _warn_of_disk(found, console)
    return read, bool(found.jobs)


def _read(task: BatchConfig) -> PromptsFile:
    return prompts.read_prompts(task.source, prompts.prompts_format(task.source, task.input_format))


def _warn_of_disk(found: BatchPlan, console: Console) -> None:
    if found.disk_bytes > found.free_bytes:
        console.warn("the disk may be too small for all of them.")


def _composer(
    task: BatchConfig, read: PromptsFile, backend: Backend, on_note: Callable[[str], None]
) -> Callable[[ManifestState], tuple[BatchPlan, dict[ModelRevision, str]]]:
    """What plans the rows for a state of the folder, with new pins. Both raise PromptsError."""
    if not read.entries:
        raise PromptsError(read.name, read.problems, skipped=task.skip_invalid)
    asked, wrong = rows.expand_rows(read.entries, task.wishes, backend, on_note=on_note)
    problems = [*read.problems, *wrong]
    if problems and (not task.skip_invalid or not asked):
        raise PromptsError(read.name, problems, skipped=task.skip_invalid)

    def composed(state: ManifestState) -> tuple[BatchPlan, dict[ModelRevision, str]]:
        moved, pins = rows.pin_revisions(asked, state.pins, backend.resolve_revision)
        found = plan.build_plan(moved, problems, task.folder, state, task.choice, backend.estimate)
        if len(found.problems) > len(problems) and not task.skip_invalid:
            raise PromptsError(read.name, found.problems)
        return found, pins

    return composed


def run_batch(
    task: BatchConfig,
    backend: Backend,
    console: Console,
    read: PromptsFile | None = None,
) -> None:
    """Make what is missing of the rows, `read` before or now.

    Raises the error that tells how it ended, if not all is done.
    """
    check_config(task, console)
    show = terminal_viewer(task.show, task.wishes.lenient, console)
    read = read or _read(task)
    composed = _composer(task, read, backend, console.warn)
    if task.dry_run:
        found, _ = composed(manifest.load_manifests(task.folder))
        console.result_json(found.to_json()) if console.json else console.result(found.text())
        return
    # A refusal should leave nothing where there was no batch.
    known = os.path.lexists(task.folder / lock.STATE_FOLDER)
    first = None if known else composed(manifest.load_manifests(task.folder))
    with lock.lock_folder(task.folder, task.choice.shard) as scratch:
        state = manifest.load_manifests(task.folder)
        found, pins = composed(state) if first is None or state.rows else first
        _warn_of_damage(state, console)
        shard = task.choice.shard
        book = Manifest(task.folder / (shard.manifest if shard else manifest.MAIN_MANIFEST))
        try:
            book.append([*_pin_lines(pins), *_invalid_lines(read, found, state)])
            _make(task, found, backend, book, scratch, console, show)
        finally:
            book.close()


def merge_shards(target: Path, console: Console) -> None:
    """Make one manifest and one gallery of what several shards made."""
    if not manifest.manifest_files(target):
        raise InputError(f"There is no manifest in '{target}'.")
    with lock.lock_folder(target, None) as scratch:
        _warn_of_damage(manifest.load_manifests(target), console)
        shards = manifest.merge_manifests(target, scratch)
        page = gallery.write_gallery(target, scratch)
        _tell_of_name(page, gallery.GALLERY_NAME, console)
    state = manifest.load_manifests(target)
    counts = Counter(known.status for known in state.rows.values())
    if console.json:
        console.result_json({"folder": str(target), "shards": shards, "images": dict(counts)})
    else:
        console.result(str(target / manifest.MAIN_MANIFEST))
        told = ", ".join(f"{number:,} {status}" for status, number in sorted(counts.items()))
        console.note(f"{shards} shards merged: {told or 'no image'}; {page}")


def _make(
    task: BatchConfig,
    found: BatchPlan,
    backend: Backend,
    book: Manifest,
    scratch: Path,
    console: Console,
    show: ShowImage | None,
) -> None:
    """Make the plan's images and tell how it went; raises if not all is done."""
    stop = StopSignal()
    limit = _max_failures(task.max_failures, len(found.jobs))
    if console.events:
        console.event("planned", **found.to_json())
        console.event("started", to_make=len(found.jobs))
    else:
        console.note(found.text())
        _warn_of_disk(found, console)
    listener = (
        EventWriter(console, found) if console.events else BatchProgress(console, found, show)
    )
    keep = BatchWriter(found, scratch)

    def save(generated: GeneratedImage) -> SavedImage:
        saved = keep(generated)
        if isinstance(listener, BatchProgress) and show:
            listener.latest = generated
        return saved

    try:
        with console.redirect_stderr(), console.redirect_stdout(), handle_signals(stop):
            executor = LocalExecutor(backend)
            tally = runner.run_plan(found, executor, save, book, listener, stop, max_failures=limit)
    finally:
        listener.close()
    ended = _ended(found, tally, stop)
    drawn, ended = _drawn(task, found, scratch, console, ended)
    account = summary.summarise(found, tally, ended) | {"manifest": str(book.path), **drawn}
    if console.events:
        console.event("finished", **account)
    if console.json:
        console.result_json(account)
    elif not console.events:
        console.note(summary.format_summary(account))
    if ended:
        raise ended


def _drawn(
    task: BatchConfig, found: BatchPlan, scratch: Path, console: Console, ended: T2IError | None
) -> tuple[dict[str, str | None], T2IError | None]:
    """Where gallery and sheet are, and the error of one that is not there, if no other came."""
    drawn: dict[str, str | None] = {"gallery": None, "sheet": None}
    for kind in ("gallery", "sheet") if task.sheet else ("gallery",):
        try:
            page = kind == "gallery"
            path = (
                gallery.write_gallery(task.folder, scratch)
                if page
                else _sheet(found, scratch, console)
            )
        except T2IError as error:
            # The images count, and the next run draws both anew.
            if ended:
                console.warn(error.message)
            else:
                ended = type(error)(error.message, hint=_again())
        else:
            drawn[kind] = str(path)
            _tell_of_name(path, _NAMES[kind], console)
    return drawn, ended


def _sheet(found: BatchPlan, scratch: Path, console: Console) -> Path:
    if len(found.rows) > contact_sheet.MAX_IMAGES:
        shown = f"the first {contact_sheet.MAX_IMAGES:,} of {len(found.rows):,} images"
        console.warn(f"{contact_sheet.SHEET_NAME} shows {shown}.")
    return contact_sheet.write_sheet(found, scratch)


def _warn_of_damage(state: ManifestState, console: Console) -> None:
    if state.damaged:
        console.warn(f"{state.damaged} lines of the manifest cannot be read; they are left out.")


def _tell_of_name(path: Path, usual: str, console: Console) -> None:
    """Say where a gallery or sheet is that could not have its usual name."""
    if path.name != usual:
        console.note(f"'{path.with_name(usual)}' is not t2i's and stays as it is; see '{path}'.")


def _again() -> str:
    return "Run the same command again to go on: " + shlex.join(["t2i", *sys.argv[1:]])


def _ended(found: BatchPlan, tally: RunStats, stop: StopSignal) -> T2IError | None:
    """The error that tells how the run ended, with what to do next."""
    if stop.signal is None:
        return summary.error_for(found, tally, _again())
    kind = InterruptedRunError if stop.signal == signal.SIGINT else TerminatedError
    word = "Interrupted" if stop.signal == signal.SIGINT else "Terminated"
    left = len(found.jobs) - tally.made
    return kind(f"{word}; {left:,} of {len(found.rows):,} images are missing.", hint=_again())


def _max_failures(text: str | None, jobs: int) -> int | None:
    """A number of failures, given as such or as per cent of the images to make."""
    if text is None:
        return None
    number = text.removesuffix("%")
    if not number.isdecimal() or len(number) > 9 or (number == text and int(number) < 1):
        raise InputError(f"--max-failures {text} is neither a number nor per cent, as 10 or 5%.")
    if number == text:
        return int(number)
    if int(number) > 100:
        raise InputError(f"--max-failures {text} is more than all.")
    return max(1, jobs * int(number) // 100)


def _pin_lines(pins: Mapping[ModelRevision, str]) -> list[dict[str, object]]:
    return [
        {"model": model, "revision": asked, "pin": commit}
        for (model, asked), commit in pins.items()
    ]


def _invalid_lines(
    read: PromptsFile, found: BatchPlan, state: ManifestState
) -> Sequence[dict[str, object]]:
    """The rows that --skip-invalid leaves out, as far as the manifest does not list them yet."""

    def is_new(problem: PromptProblem) -> bool:
        return (problem.line, problem.field, problem.message) not in state.invalid

    return [
        {"status": "invalid", "source": read.name, **asdict(problem)}
        for problem in found.problems
        if is_new(problem)
    ]
