"""Plans a batch: the rows of its prompts file, and what a backend says of their models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from t2i_cli.backend import Backend
from t2i_cli.batch import plan, rows
from t2i_cli.batch.batch_folder import BatchFolder
from t2i_cli.batch.manifest import ManifestState
from t2i_cli.batch.model_cache import OnBug, row_error
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.plan import BatchPlan, SelectionOptions
from t2i_cli.batch.revision_pins import ModelRevision, pin_revisions
from t2i_cli.batch.rows import BatchRow
from t2i_cli.buckets.bucket_url import BucketUrl
from t2i_cli.errors import T2IError
from t2i_cli.image_costs import ImageCosts, check_cost_limit
from t2i_cli.prompts import PromptsError, PromptsFile
from t2i_cli.prompts.entries import PromptProblem
from t2i_cli.prompts.literal_syntax import literal_syntax_notes
from t2i_cli.request import ResolvedRequest
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.cost_consent import confirm_costs
from t2i_cli.terminal.download_consent import confirm_download

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Configuration of a batch; `max_failures` is a number or `5%`.

    `yes` agrees to downloads and to the price of images; `max_cost` limits the latter, in USD.
    `lora_dir` is the folder whose LoRAs have names.
    """

    source: str
    input_format: str | None
    folder: Path | BucketUrl
    options: BatchOptions
    selection: SelectionOptions
    skip_invalid: bool = False
    max_failures: str | None = None
    dry_run: bool = False
    yes: bool = False
    max_cost: float | None = None
    sheet: bool = False
    show: bool = False
    lora_dir: str | None = None


def make_planner(
    config: BatchConfig,
    folder: BatchFolder,
    prompts_file: PromptsFile,
    backend: Backend,
    console: Console,
    *,
    with_console: bool = True,
) -> Callable[[ManifestState], tuple[BatchPlan, dict[ModelRevision, str]]]:
    """Expand the rows; returns a function from a manifest state to the plan and its new pins.

    Notes on the rows go to the console, `with_console`, and a download is asked for there; with
    --verbose the cause of an unexpected exception goes there in any case.
    Both raise PromptsError, and T2IError for what no row causes.
    """
    name = prompts_file.name  # what follows keeps no entries in memory
    if not prompts_file.entries:
        raise PromptsError(name, prompts_file.problems, skipped=config.skip_invalid)
    on_bug = console.cause
    expanded, row_problems = rows.expand_rows(
        prompts_file.entries,
        config.options,
        backend,
        on_note=console.warn if with_console else lambda _: None,
        on_bug=on_bug,
        on_size_note=console.note if with_console else lambda _: None,
    )
    problems = [*prompts_file.problems, *row_problems]
    _refuse_problems(config, name, problems, expanded)
    if with_console:
        requests = [row.request for row in expanded]
        for note in literal_syntax_notes(requests, expanded=prompts_file.format == "txt"):
            console.note(note)

    def make_plan(state: ManifestState) -> tuple[BatchPlan, dict[ModelRevision, str]]:
        asked = _ModelErrors(on_bug)
        pinned, pins = pin_revisions(
            expanded, state.pins, asked.guard(backend.resolve_revision, lambda *key: key, None)
        )
        found = list(problems)
        if asked.errors:
            usable, more = _usable_rows(expanded, asked.errors)
            lines = {row.line for row in usable}
            pinned, found = [row for row in pinned if row.line in lines], [*found, *more]
        while True:
            planned = _ModelErrors(on_bug)
            estimate = planned.guard(backend.estimate, ResolvedRequest.model_key, {})
            batch_plan = plan.build_plan(
                *(pinned, found, folder, state, config.selection, estimate),
                backend.image_price,
            )
            if not planned.errors:
                break
            pinned, more = _usable_rows(pinned, planned.errors)
            found += more
        if len(batch_plan.problems) > len(problems):
            _refuse_problems(config, name, batch_plan.problems, pinned)
        if config.max_cost is not None:
            check_cost_limit(batch_plan.prices, config.max_cost)
            batch_plan = replace(batch_plan, max_cost=config.max_cost)
        if with_console and not config.dry_run:
            confirm_download(batch_plan.estimates, console, yes=config.yes)
            agreed = config.yes or config.max_cost is not None
            confirm_costs(ImageCosts(batch_plan.prices), console, agreed=agreed)
        return batch_plan, pins

    return make_plan


def _usable_rows(
    all_rows: Sequence[BatchRow], errors: Mapping[tuple[object, ...], T2IError]
) -> tuple[list[BatchRow], list[PromptProblem]]:
    """The rows of lines without a model that has an error, and a problem for each other line.

    The keys of errors are a model and its revision, with its parts from elsewhere or without.
    Raises the error itself where it is the one of every row.
    """
    found = (
        PromptProblem(row.line, "model", rows.error_text(errors[key]))
        for row in all_rows
        for key in (row.request.model_key(), row.request.model_key()[:2])
        if key in errors
    )
    problems = list(dict.fromkeys(found))
    invalid_lines = {problem.line for problem in problems}
    usable = [row for row in all_rows if row.line not in invalid_lines]
    if all_rows and not usable and len(errors) == 1:
        raise next(iter(errors.values()))
    return usable, problems


class _ModelErrors:
    """What a backend raised about models while a batch is planned: each fails the model's rows."""

    def __init__(self, on_bug: OnBug) -> None:
        self.errors: dict[tuple[object, ...], T2IError] = {}
        self._on_bug = on_bug

    def guard(
        self,
        ask: Callable[Asked, Answer],
        key: Callable[Asked, tuple[object, ...]],
        default: Answer,
    ) -> Callable[Asked, Answer]:
        """`ask`, but `default` where it raises; an error that no row causes is raised all the same.

        `key` is the model and revision that a call asks about.
        """

        def guarded(*args: Asked.args, **kwargs: Asked.kwargs) -> Answer:
            try:
                return ask(*args, **kwargs)
            except Exception as raised:  # noqa: BLE001 - becomes the problem of its rows
                self.errors[key(*args, **kwargs)] = row_error(raised, self._on_bug)
                return default

        return guarded


def _refuse_problems(
    config: BatchConfig,
    name: str,
    problems: Sequence[PromptProblem],
    valid: Sequence[BatchRow],
) -> None:
    """Raise PromptsError for problems, unless the valid rows shall be made without them."""
    if problems and (not config.skip_invalid or not valid):
        raise PromptsError(name, problems, skipped=config.skip_invalid)
