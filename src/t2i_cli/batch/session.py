"""Runs one `t2i batch`: reads prompts, plans, makes the images, writes the pages, and reports."""

import shlex
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from t2i_cli import prompts
from t2i_cli.backend import Backend, GeneratedImage
from t2i_cli.batch import (
    gallery,
    manifest,
    pages,
    prune,
    runner,
    summary,
)
from t2i_cli.batch.batch_folder import ManifestLog
from t2i_cli.batch.events import EventWriter
from t2i_cli.batch.executor import LocalExecutor
from t2i_cli.batch.folder_opening import open_batch_folder
from t2i_cli.batch.interrupt import StopSignal, handle_signals
from t2i_cli.batch.manifest import ManifestState
from t2i_cli.batch.opening_lines import opening_lines
from t2i_cli.batch.options import parse_max_failures
from t2i_cli.batch.plan import BatchPlan
from t2i_cli.batch.planner import BatchConfig as BatchConfig
from t2i_cli.batch.planner import make_planner
from t2i_cli.batch.progress import BatchProgress, ShowImage
from t2i_cli.batch.runner import BatchWriter, RunStats
from t2i_cli.buckets.bucket_url import BucketUrl
from t2i_cli.cost_limit import limit_costs
from t2i_cli.errors import InputError, InterruptedRunError, T2IError, TerminatedError
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.prompts import PromptsFile
from t2i_cli.settings import store
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.preview import terminal_viewer


def check_config(config: BatchConfig, console: Console) -> None:
    """Raise InputError for invalid options that need no backend to be checked."""
    if config.show and console.events:
        raise InputError("--events has stderr to itself, where --show would draw.", field="show")
    parse_max_failures(config.max_failures, 0)


def validate(config: BatchConfig, backend: Backend, console: Console) -> tuple[PromptsFile, bool]:
    """Check a batch before an endpoint is deployed for it. Raises T2IError.

    Returns the prompts, as standard input can be read only once, and whether any image is missing.
    """
    check_config(config, console)
    folder = open_batch_folder(config.folder)
    folder.check()
    terminal_viewer(config.show, config.options.lenient, console)
    prompts_file = _read_prompts(config)
    make_plan = make_planner(config, folder, prompts_file, backend, console, with_console=False)
    pages.check_page_names(folder, sheet=config.sheet)
    batch_plan, _ = make_plan(manifest.load_manifests(folder))
    if folder.has_lock():
        with folder.lock(config.selection.shard):
            pass  # raises if another run holds the lock
    _warn_of_small_disk(batch_plan, console)
    return prompts_file, bool(batch_plan.jobs)


def _read_prompts(config: BatchConfig) -> PromptsFile:
    prompts.check_source(config.source)
    return prompts.read_prompts(
        config.source, prompts.prompts_format(config.source, config.input_format)
    )


def _warn_of_small_disk(batch_plan: BatchPlan, console: Console) -> None:
    if batch_plan.free_bytes is not None and batch_plan.disk_bytes > batch_plan.free_bytes:
        console.warn("the disk may be too small for all of them.")


def run_batch(
    config: BatchConfig,
    backend: Backend,
    console: Console,
    prompts_file: PromptsFile | None = None,
) -> None:
    """Make the missing images of a batch; reads the prompts unless `prompts_file` is given.

    Raises T2IError if any image is not done.
    """
    check_config(config, console)
    folder = open_batch_folder(config.folder)
    folder.check()
    show = terminal_viewer(config.show, config.options.lenient, console)
    prompts_file = prompts_file or _read_prompts(config)
    make_plan = make_planner(config, folder, prompts_file, backend, console)
    # A row has all that its entry had: of a million they would take a quarter of a gigabyte.
    prompts_file = replace(prompts_file, entries=())
    pages.check_page_names(folder, sheet=config.sheet)
    if config.dry_run:
        batch_plan, _ = make_plan(manifest.load_manifests(folder))
        prune.show_plan(batch_plan, console, prune=config.selection.prune)
        return
    # In a new folder, plan before anything is created: an invalid batch leaves nothing behind.
    early_plan = None if folder.has_lock() else make_plan(manifest.load_manifests(folder))
    shard = config.selection.shard
    with folder.lock(shard):
        _warn_of_damaged_lines(manifest.load_manifests(folder), console)
        if shard is None:
            # No shard is at work now. From here on the main manifest is the newest.
            folder.merge()
        state = manifest.load_manifests(folder)
        batch_plan, pins = make_plan(state) if early_plan is None or state.rows else early_plan
        manifest_file = folder.open_manifest(shard)
        try:
            manifest_file.append(opening_lines(prompts_file, batch_plan, state, pins))
            _make_images(config, batch_plan, backend, manifest_file, console, show)
        finally:
            manifest_file.close()


def merge_shards(place: Path | BucketUrl, console: Console) -> None:
    """Merge the manifests of several shards, and write one gallery for them."""
    folder = open_batch_folder(place)
    if next(folder.manifest_records(), None) is None:
        raise InputError(f"There is no manifest in '{folder.location()}'.")
    with folder.lock(None):
        _warn_of_damaged_lines(manifest.load_manifests(folder), console)
        shards = folder.merge()
        page = gallery.write_gallery(folder, store.get_setting("lora_dir"))
        pages.note_unusual_name(folder, page, gallery.GALLERY_NAME, console)
        folder.finish(merge=True)
    state = manifest.load_manifests(folder)
    counts = Counter(entry.status for entry in state.rows.values())
    if console.json:
        console.result_json({"folder": folder.location(), "shards": shards, "images": dict(counts)})
    else:
        console.result(folder.location(manifest.MAIN_MANIFEST))
        counts_text = ", ".join(f"{number:,} {status}" for status, number in sorted(counts.items()))
        page = folder.location(page)
        console.note(f"{shards} shards merged: {counts_text or 'no image'}; {page}")


def _make_images(
    config: BatchConfig,
    batch_plan: BatchPlan,
    backend: Backend,
    manifest_file: ManifestLog,
    console: Console,
    show: ShowImage | None,
) -> None:
    """Make the plan's images and report the result; raises T2IError if any is not done."""
    stop = StopSignal()
    folder = batch_plan.folder
    folder.stop_retries_on(stop.now)
    max_failures = parse_max_failures(config.max_failures, len(batch_plan.jobs))
    if console.events:
        console.event("planned", **batch_plan.to_json())
        console.event("started", to_make=len(batch_plan.jobs))
    else:
        console.note(batch_plan.text())
        _warn_of_small_disk(batch_plan, console)
    listener = (
        EventWriter(console, batch_plan)
        if console.events
        else BatchProgress(console, batch_plan, show)
    )
    limited = limit_costs(backend, batch_plan.prices, batch_plan.max_cost)
    writer = BatchWriter(batch_plan)

    def save(generated: GeneratedImage) -> SavedImage:
        saved = writer(generated)
        if isinstance(listener, BatchProgress) and show:
            listener.latest = generated
        return saved

    try:
        with console.redirect_stderr(), console.redirect_stdout(), handle_signals(stop):
            executor = LocalExecutor(limited or backend, folder.saver_threads, idle_groups=True)
            stats = runner.run_plan(
                batch_plan, executor, save, manifest_file, listener, stop, max_failures=max_failures
            )
    finally:
        listener.close()
    if limited and limited.reached:
        stats.over_limit = True
        stats.stop_reason = stats.stop_reason or summary.limit_reason(limited.limit, stats)
    error = _run_error(batch_plan, stats, stop)
    pruned: list[str] = []
    if config.selection.prune:
        try:
            pruned = prune.prune_folder(batch_plan, manifest_file, console, error)
        except T2IError as prune_error:
            error = error or prune_error
    error = _finish_manifest(manifest_file, summary.cost_lines(stats), console, error)
    paths, error = pages.write_pages(
        *(batch_plan, console, error),
        sheet=config.sheet,
        lora_dir=config.lora_dir,
        hint=_resume_hint(),
    )
    try:
        folder.finish(merge=config.selection.shard is None and stop.signal is None)
    except T2IError as finish_error:
        error = error or finish_error
    counts = summary.summarise(batch_plan, stats, error) | {
        "pruned": len(pruned),
        "manifest": manifest_file.location,
        **paths,
    }
    if console.events:
        console.event("finished", **counts)
    if console.json:
        console.result_json(counts)
    elif not console.events:
        console.note(summary.format_summary(counts, stats.costs))
    if error:
        raise error


def _finish_manifest(
    manifest_file: ManifestLog,
    lines: Sequence[Mapping[str, object]],
    console: Console,
    error: T2IError | None,
) -> T2IError | None:
    """Append the last lines, and have a removed manifest written again.

    Returns `error`, or that of a changed manifest.
    """
    try:
        manifest_file.append(lines)
    except T2IError as manifest_error:
        return error or manifest_error
    if manifest_file.restored:
        console.warn(
            f"'{manifest_file.location}' was removed during the run, and is written again."
        )
    return error


def _warn_of_damaged_lines(state: ManifestState, console: Console) -> None:
    if state.damaged:
        console.warn(f"{state.damaged} lines of the manifest cannot be read; they are left out.")


def _resume_hint() -> str:
    return "Run the same command again to go on: " + shlex.join(["t2i", *sys.argv[1:]])


def _run_error(batch_plan: BatchPlan, stats: RunStats, stop: StopSignal) -> T2IError | None:
    """The error for the result of the run, with a hint how to resume; `None` if all is done."""
    if stop.signal is None:
        return summary.error_for(batch_plan, stats, _resume_hint())
    kind = InterruptedRunError if stop.signal == signal.SIGINT else TerminatedError
    word = "Interrupted" if stop.signal == signal.SIGINT else "Terminated"
    left = len(batch_plan.jobs) - stats.made
    return kind(
        f"{word}; {left:,} of {len(batch_plan.rows):,} images are missing.", hint=_resume_hint()
    )
