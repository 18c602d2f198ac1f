"""`t2i batch`: every image of a prompts file, by any backend."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import typer

from t2i_cli.cli.batch_options import (
    BatchConsoleOptions,
    EphemeralOptions,
    FolderOptions,
    PassOptions,
    ResumeOptions,
    RowsOptions,
)
from t2i_cli.cli.options import RequestOptions, RunOptions
from t2i_cli.errors import InputError
from t2i_cli.settings import defaults, store
from t2i_cli.settings.options import BackendOptions, DeploymentSpec, EndpointOptions
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from collections.abc import Callable

    from t2i_cli.backend import Backend
    from t2i_cli.batch.options import BatchOptions
    from t2i_cli.batch.plan import SelectionOptions
    from t2i_cli.batch.session import BatchConfig


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
    from t2i_cli.backends.factory import create_backend
    from t2i_cli.batch import session
    from t2i_cli.batch.options import parse_batch_size
    from t2i_cli.batch.row_filenames import parse_name_template

    if selection.merge is not None:
        _refuse_beside_merge(context)
        session.merge_shards(selection.merge, console)
        return
    task = _task(rows, request, folder, selection, run)
    task = replace(task, options=_with_model(task.options, backend.backend, ephemeral.ephemeral))
    images = parse_batch_size(passes.batch_size, strict=passes.strict)

    def engine(made: str | None) -> "Backend":
        endpoint = replace(backend.endpoint, endpoint=made or backend.endpoint.endpoint)
        place = "vertex" if ephemeral.ephemeral else backend.backend
        return create_backend(
            replace(backend, backend=place, endpoint=endpoint),
            batch_size=images,
            strict=passes.strict,
            lenient=run.lenient,
            format=parse_name_template(task.selection.template, task.selection.format).format,
        )

    if not ephemeral.ephemeral:
        _refuse_without_ephemeral(ephemeral)
        chosen = engine(None)
        session.run_batch(task, chosen, console)
        return
    if backend.endpoint.endpoint or run.dry_run or backend.backend not in (None, "vertex"):
        raise InputError("--ephemeral takes no --endpoint, --dry-run or other --backend.")
    _on_ephemeral(task, engine, request.model, backend.endpoint, ephemeral)


def _task(
    rows: RowsOptions,
    request: RequestOptions,
    folder: FolderOptions,
    selection: ResumeOptions,
    run: RunOptions,
) -> "BatchConfig":
    """What is asked for; raises InputError for what can be told to be wrong at once."""
    from t2i_cli.batch.options import BatchOptions, parse_seeds, parse_vary
    from t2i_cli.batch.row_filenames import DEFAULT_NAME_TEMPLATE, check_template
    from t2i_cli.batch.session import BatchConfig

    if rows.file is None:
        raise InputError("There is no prompts file.", hint="Give one, as t2i batch prompts.txt")
    given, varied = request.given(), parse_vary(rows.vary or [])
    template = folder.name or DEFAULT_NAME_TEMPLATE
    check_template(template, folder.format)
    return BatchConfig(
        source=rows.file,
        input_format=rows.input_format,
        folder=folder.output,
        options=BatchOptions(
            defaults=given,
            vary=varied,
            seed=rows.seed,
            seeds=parse_seeds(rows.seeds) if rows.seeds else (),
            count=rows.count,
            lenient=run.lenient,
        ),
        selection=_selection(template, folder.format, selection),
        skip_invalid=rows.skip_invalid,
        max_failures=selection.max_failures,
        dry_run=run.dry_run,
        sheet=folder.sheet,
        show=folder.show,
    )


def _with_model(options: "BatchOptions", backend: str | None, ephemeral: bool) -> "BatchOptions":
    """The same with the model of the settings where none is named, which is this machine's."""
    from t2i_cli.backends.factory import default_model

    values = dict(options.defaults)
    if ephemeral:
        # An endpoint made for these rows has the one model that they are for.
        values.pop("model", None)
    elif "model" not in {*values, *dict(options.vary)} and (own := default_model(backend)):
        values["model"] = own
    return replace(options, defaults=values)


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

    if not task.options.lenient:
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
