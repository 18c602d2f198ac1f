"""`t2i batch`: every image of a prompts file, by any backend."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from t2i_cli.cli.options import (
    ConsoleOptions,
    FormatOpt,
    RequestOptions,
    RunOptions,
    ShowOpt,
    YesOpt,
)
from t2i_cli.errors import InputError
from t2i_cli.settings import defaults, store
from t2i_cli.settings.options import BackendOptions, DeploymentSpec, EndpointOptions
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from collections.abc import Callable

    from t2i_cli.backend import Backend
    from t2i_cli.batch.plan import SelectionOptions
    from t2i_cli.batch.session import BatchConfig


@dataclass(frozen=True, kw_only=True)
class RowsOptions:
    """The prompts file, and the images of each of its rows."""

    PANEL: ClassVar = "Rows"

    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE", help="Prompts: .txt, .jsonl or .csv; - reads standard input."
        ),
    ] = None
    input_format: Annotated[
        str | None,
        typer.Option(
            "--input-format", help="txt, jsonl or csv. [default: by the name; stdin: txt]"
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", "-s", help="The first row's; the next rows count on. [default: derived]"
        ),
    ] = None
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Make every row with each of these, as 1-4,9.")
    ] = None
    count: Annotated[
        int, typer.Option("--count", "-n", help="Images of each row, with seeds counting up.")
    ] = 1
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", help="Make every row with each value, as steps=10,20; repeatable."),
    ] = None
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Make the good rows, list the bad ones, exit 8.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """The folder, and what is put into it beside the images."""

    PANEL: ClassVar = "Output"

    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the images.")] = (
        Path("t2i-out")
    )
    name: Annotated[
        str | None,
        typer.Option("--name", help="File names. [default: {index:05d}-{slug}-{seed}.{ext}]"),
    ] = None
    format: FormatOpt = None
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Draw sheet.png; a grid where --vary gives two axes.")
    ] = False
    show: ShowOpt = False


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Which images a run makes, and when it stops."""

    PANEL: ClassVar = "Selection"

    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Try those again that failed for their own reason."),
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Make everything again.")] = False
    verify_files: Annotated[
        bool, typer.Option("--verify-files", help="Compare finished files with their sha256.")
    ] = False
    max_failures: Annotated[
        str | None, typer.Option("--max-failures", help="Stop once so many failed, as 10 or 5%.")
    ] = None
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Make at most so many images now.")
    ] = None
    shard: Annotated[
        str | None,
        typer.Option("--shard", help="Make part I of N, as 1/4, beside others in one folder."),
    ] = None
    merge: Annotated[
        Path | None,
        typer.Option("--merge", help="Join the shards of this folder; makes no image."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class PassOptions:
    """How many images this machine makes at once."""

    PANEL: ClassVar = "This machine"

    batch_size: Annotated[
        str, typer.Option("--batch-size", help="Images of one pass: a number, or auto.")
    ] = "auto"
    strict: Annotated[
        bool, typer.Option("--strict", help="One image a pass: the same bits as alone.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class EphemeralOptions:
    """An endpoint for the batch alone."""

    PANEL: ClassVar = "Vertex AI"

    ephemeral: Annotated[
        bool,
        typer.Option("--ephemeral", help="vertex: deploy an endpoint for this batch alone."),
    ] = False
    ttl: Annotated[
        str | None,
        typer.Option(
            "--ttl", help=f"ephemeral: how long the endpoint may live. [default: {defaults.TTL}]"
        ),
    ] = None
    max_cost: Annotated[
        float | None,
        typer.Option(
            "--max-cost", help="ephemeral: refuse if it could cost more USD until its TTL."
        ),
    ] = None
    yes: YesOpt = False


@dataclass(frozen=True, kw_only=True)
class BatchConsoleOptions(ConsoleOptions):
    """What is printed, and how."""

    events: Annotated[
        bool, typer.Option("--events", help="Write NDJSON events on stderr, and nothing else.")
    ] = False


_BESIDE_MERGE = {"merge", "json", "quiet", "verbose", "events"}


def batch(
    context: typer.Context,
    rows: RowsOptions,
    request: RequestOptions,
    folder: FolderOptions,
    selection: ResumeOptions,
    backend: BackendOptions,
    passes: PassOptions,
    ephemeral: EphemeralOptions,
    run: RunOptions,
    shown: BatchConsoleOptions,
) -> None:
    """Make every image of a prompts file; run it again to make what is missing."""
    console.configure(**vars(shown))
    from t2i_cli.backends.factory import create_backend, default_model
    from t2i_cli.batch import session
    from t2i_cli.batch.options import BatchOptions, parse_batch_size, parse_seeds, parse_vary
    from t2i_cli.batch.row_filenames import (
        DEFAULT_NAME_TEMPLATE,
        check_template,
        parse_name_template,
    )

    if selection.merge is not None:
        _refuse_beside_merge(context)
        session.merge_shards(selection.merge, console)
        return
    if rows.file is None:
        raise InputError("There is no prompts file.", hint="Give one, as t2i batch prompts.txt")
    given, model = request.given(), request.model
    varied = parse_vary(rows.vary or [])
    if ephemeral.ephemeral:
        # An endpoint made for these rows has the one model that they are for.
        given.pop("model", None)
    elif model is None and "model" not in dict(varied) and (own := default_model(backend.backend)):
        given["model"] = own
    template = folder.name or DEFAULT_NAME_TEMPLATE
    check_template(template, folder.format)
    task = session.BatchConfig(
        source=rows.file,
        input_format=rows.input_format,
        folder=folder.output,
        wishes=BatchOptions(
            defaults=given,
            vary=varied,
            seed=rows.seed,
            seeds=parse_seeds(rows.seeds) if rows.seeds else (),
            count=rows.count,
            lenient=run.lenient,
        ),
        choice=_selection(template, folder.format, selection),
        skip_invalid=rows.skip_invalid,
        max_failures=selection.max_failures,
        dry_run=run.dry_run,
        sheet=folder.sheet,
        show=folder.show,
    )
    images = parse_batch_size(passes.batch_size, strict=passes.strict)

    def engine(made: str | None) -> "Backend":
        endpoint = replace(backend.endpoint, endpoint=made or backend.endpoint.endpoint)
        place = "vertex" if ephemeral.ephemeral else backend.backend
        return create_backend(
            replace(backend, backend=place, endpoint=endpoint),
            batch_size=images,
            strict=passes.strict,
            lenient=run.lenient,
            format=parse_name_template(template, task.choice.format).format,
        )

    if not ephemeral.ephemeral:
        _refuse_without_ephemeral(ephemeral)
        chosen = engine(None)
        session.run_batch(task, chosen, console)
        return
    if backend.endpoint.endpoint or run.dry_run or backend.backend not in (None, "vertex"):
        raise InputError("--ephemeral takes no --endpoint, --dry-run or other --backend.")
    _on_ephemeral(task, engine, model, backend.endpoint, ephemeral)


def _selection(template: str, format: str | None, asked: ResumeOptions) -> "SelectionOptions":
    from t2i_cli.batch.lock import parse_shard
    from t2i_cli.batch.plan import SelectionOptions

    return SelectionOptions(
        template=template,
        format=format or store.get_setting("format"),
        shard=parse_shard(asked.shard) if asked.shard else None,
        limit=asked.limit,
        force=asked.force,
        retry_failed=asked.retry_failed,
        verify_files=asked.verify_files,
    )


def _on_ephemeral(
    task: "BatchConfig",
    engine: "Callable[[str | None], Backend]",
    model: str | None,
    place: EndpointOptions,
    asked: EphemeralOptions,
) -> None:
    """Run the batch on an endpoint of its own, if there is an image to be made."""
    from t2i_cli.backends.vertex.planned_endpoint import PlannedEndpoint
    from t2i_cli.batch import session
    from t2i_cli.vertex import lifecycle

    if not task.wishes.lenient:
        engine("0")  # calls nothing yet, and refuses options that mean nothing there
    planned = PlannedEndpoint(model, place.serving)
    read, missing = session.validate(task, planned, console)
    wanted = DeploymentSpec(
        model=model,
        serving=place.serving,
        ttl=asked.ttl or defaults.TTL,
        max_cost=asked.max_cost,
    )
    deployment: AbstractContextManager[str | None] = nullcontext()
    if missing:
        deployment = lifecycle.ephemeral_endpoint(wanted, place, console, yes=asked.yes)
    with deployment as made:
        chosen = planned if made is None else engine(made)
        session.run_batch(task, chosen, console, read)


def _refuse_beside_merge(context: typer.Context) -> None:
    """Raise InputError for what a merge has no use for."""
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if source and source.name == "COMMANDLINE" and name not in _BESIDE_MERGE:
            what = "prompts file" if name == "file" else parameter.opts[0]
            raise InputError(f"--merge takes no {what}.", field="merge")


def _refuse_without_ephemeral(asked: EphemeralOptions) -> None:
    """Raise InputError for an option that only a deployment has a use for."""
    for one in fields(asked):
        if one.name != "ephemeral" and getattr(asked, one.name) != one.default:
            raise InputError(
                f"--{one.name.replace('_', '-')} means nothing without --ephemeral.",
                field=one.name,
            )
