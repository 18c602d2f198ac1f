"""`t2i batch`: all images of a prompts file, on any backend."""

import os
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import typer

from t2i_cli.buckets.bucket_url import parse_place
from t2i_cli.cli.batch_options import (
    BatchConsentOptions,
    BatchConsoleOptions,
    EphemeralOptions,
    FolderOptions,
    ResumeOptions,
    RowsOptions,
)
from t2i_cli.cli.options import BatchSizeOptions, RequestOptions, RunOptions
from t2i_cli.errors import InputError
from t2i_cli.files.user_paths import expand_home, expand_option
from t2i_cli.request import parse_seeds
from t2i_cli.request_fields import FIELDS
from t2i_cli.settings import defaults, store
from t2i_cli.settings.options import (
    BackendOptions,
    CostOptions,
    DeploymentSpec,
    LocationOptions,
)
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from collections.abc import Callable

    from t2i_cli.backend import Backend
    from t2i_cli.batch.plan import SelectionOptions
    from t2i_cli.batch.session import BatchConfig


_MERGE_OPTIONS = {"merge", "json", "quiet", "verbose", "events"}


def batch(
    context: typer.Context,
    rows: RowsOptions,
    request: RequestOptions,
    folder: FolderOptions,
    selection: ResumeOptions,
    backend: BackendOptions,
    batch_sizes: BatchSizeOptions,
    ephemeral: EphemeralOptions,
    run: RunOptions,
    consent: BatchConsentOptions,
    console_options: BatchConsoleOptions,
) -> None:
    """Make every image of a prompts file; run it again to make what is missing."""
    console.configure(**vars(console_options))
    from t2i_cli.backends.factory import create_backend
    from t2i_cli.batch import session
    from t2i_cli.batch.row_filenames import parse_name_template

    if selection.merge is not None:
        _refuse_with_merge(context)
        session.merge_shards(parse_place(selection.merge), console)
        return
    config = _batch_config(rows, request, folder, selection, backend, ephemeral.ephemeral, run)
    max_cost = backend.cost.max_cost
    config = replace(config, yes=consent.yes, max_cost=None if ephemeral.ephemeral else max_cost)
    batch_size = batch_sizes.largest()

    def create(endpoint_name: str | None) -> "Backend":
        endpoint = replace(backend.endpoint, endpoint=endpoint_name or backend.endpoint.endpoint)
        options = replace(backend, endpoint=endpoint)
        if ephemeral.ephemeral:
            # Its --max-cost is of the deployment.
            options = replace(options, backend="vertex", cost=CostOptions())
        return create_backend(
            options,
            batch_size=batch_size,
            strict=batch_sizes.strict,
            lenient=run.lenient,
            plan_only=run.dry_run,
            format=parse_name_template(config.selection.template, config.selection.format).format,
        )

    if not ephemeral.ephemeral:
        _refuse_without_ephemeral(ephemeral)
        with closing(create(None)) as image_backend:
            session.run_batch(config, image_backend, console)
        return
    if backend.endpoint.endpoint or backend.backend not in (None, "vertex"):
        raise InputError("--ephemeral takes no --endpoint or other --backend.")
    _run_on_ephemeral(config, create, request.model, backend, ephemeral, yes=consent.yes)


def _batch_config(
    rows: RowsOptions,
    request: RequestOptions,
    folder: FolderOptions,
    selection: ResumeOptions,
    backend: BackendOptions,
    ephemeral: bool,
    run: RunOptions,
) -> "BatchConfig":
    """Combine the options to a batch's configuration. Raises InputError."""
    from t2i_cli.backends.factory import backend_name, default_model
    from t2i_cli.batch.options import BatchOptions, parse_vary
    from t2i_cli.batch.row_filenames import DEFAULT_NAME_TEMPLATE, check_template
    from t2i_cli.batch.session import BatchConfig
    from t2i_cli.cli.style_option import chosen_styles
    from t2i_cli.prompts.wildcards import WildcardFolder

    if rows.file is None:
        raise InputError("There is no prompts file.", hint="Give one, as t2i batch prompts.txt")
    row_defaults = request.given()
    lora_dir = store.resolve_setting("lora_dir", backend.device.lora_dir)
    varied = parse_vary(rows.vary or [])
    if ephemeral:
        # An ephemeral endpoint serves this model alone; rows need not name it.
        row_defaults.pop("model", None)
    elif (
        request.model is None
        and "model" not in dict(varied)
        and (configured := default_model(backend_name(backend)))
    ):
        row_defaults["model"] = configured
    template = folder.name or DEFAULT_NAME_TEMPLATE
    check_template(template, folder.format)
    return BatchConfig(
        source=expand_option(rows.file),
        input_format=rows.input_format,
        folder=parse_place(folder.output),
        options=BatchOptions(
            defaults=row_defaults,
            vary=varied,
            seed=None if FIELDS["seed"].is_unset(rows.seed) else rows.seed,
            seeds=parse_seeds(rows.seeds) if rows.seeds else (),
            count=rows.count,
            lenient=run.lenient,
            wildcards=WildcardFolder(rows.wildcards) if rows.wildcards else None,
            styles=chosen_styles(rows.styles),
        ),
        selection=_selection_options(template, folder.format, selection),
        skip_invalid=rows.skip_invalid,
        max_failures=selection.max_failures,
        dry_run=run.dry_run,
        sheet=folder.sheet,
        show=folder.show,
        lora_dir=lora_dir and os.path.abspath(expand_home(lora_dir)),
    )


def _selection_options(
    template: str, format: str | None, options: ResumeOptions
) -> "SelectionOptions":
    from t2i_cli.batch.lock import parse_shard
    from t2i_cli.batch.plan import SelectionOptions

    return SelectionOptions(
        template=template,
        format=format or store.get_setting("format"),
        shard=parse_shard(options.shard) if options.shard else None,
        limit=options.limit,
        force=options.force,
        retry_failed=options.retry_failed,
        verify_files=options.verify_files,
        prune=options.prune,
    )


def _run_on_ephemeral(
    config: "BatchConfig",
    create: "Callable[[str | None], Backend]",
    model: str | None,
    backend: BackendOptions,
    options: EphemeralOptions,
    *,
    yes: bool,
) -> None:
    """Run the batch on an ephemeral endpoint, deployed only if any image is to be made."""
    from t2i_cli.backends.vertex.planned_endpoint import PlannedEndpoint
    from t2i_cli.batch import session
    from t2i_cli.vertex import deployment_options, lifecycle

    spec = DeploymentSpec(
        model=model,
        serving=backend.endpoint.serving,
        ttl=options.ttl or defaults.TTL,
        max_cost=backend.cost.max_cost,
        service_account=options.service_account,
        flex_start=options.flex_start or None,
        spot=options.spot,
    )
    deployment_options.check_values(spec)
    if not config.options.lenient:
        create("0").close()  # sends no request; raises for options that vertex does not support
    if config.dry_run:
        _show_ephemeral_plan(config, spec, backend.endpoint)
        return
    planned = PlannedEndpoint(model, backend.endpoint.serving)
    prompts_file, missing = session.validate(config, planned, console)
    deployment: AbstractContextManager[str | None] = nullcontext()
    if missing:
        deployment = lifecycle.ephemeral_endpoint(spec, backend.endpoint, console, yes=yes)
    with deployment as endpoint_name:
        image_backend = planned if endpoint_name is None else create(endpoint_name)
        with closing(image_backend):
            session.run_batch(config, image_backend, console, prompts_file)


def _show_ephemeral_plan(
    config: "BatchConfig", spec: DeploymentSpec, place: LocationOptions
) -> None:
    """Print the plans of the deployment and of the batch; both need no account."""
    from t2i_cli.backends.vertex.planned_endpoint import PlannedEndpoint
    from t2i_cli.batch import session
    from t2i_cli.vertex.dry_run import plan_dry_run

    deployment = plan_dry_run(spec, place, console.note).as_ephemeral()
    planned = PlannedEndpoint(spec.model, spec.serving, deployment.to_json())
    with closing(planned):
        prompts_file, _ = session.validate(config, planned, console)  # what is wrong comes alone
        if not console.json:
            console.result(deployment.text())
        session.run_batch(config, planned, console, prompts_file)


def _refuse_with_merge(context: typer.Context) -> None:
    """Raise InputError for options that do not apply to --merge."""
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if source and source.name == "COMMANDLINE" and name not in _MERGE_OPTIONS:
            argument = "prompts file" if name == "file" else parameter.opts[0]
            raise InputError(f"--merge takes no {argument}.", field="merge")


def _refuse_without_ephemeral(options: EphemeralOptions) -> None:
    """Raise InputError for options that apply only to --ephemeral."""
    for field in fields(options):
        if field.name != "ephemeral" and getattr(options, field.name) != field.default:
            raise InputError(
                f"--{field.name.replace('_', '-')} means nothing without --ephemeral.",
                field=field.name,
            )
