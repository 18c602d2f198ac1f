"""`t2i batch`: every image of a prompts file, by any backend."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from t2i_cli.backend import Backend
from t2i_cli.cli import options
from t2i_cli.console import console
from t2i_cli.errors import InputError
from t2i_cli.prompts import Value
from t2i_cli.request import resolve_size
from t2i_cli.settings import store
from t2i_cli.vertex import DEFAULT_TTL

FileArg = Annotated[
    str | None,
    typer.Argument(metavar="FILE", help="Prompts: .txt, .jsonl or .csv; - reads standard input."),
]
InputFormatOpt = Annotated[
    str | None,
    typer.Option("--input-format", help="txt, jsonl or csv. [default: by the name; stdin: txt]"),
]
SeedOpt = Annotated[
    int | None,
    typer.Option(
        "--seed", "-s", help="The first row's; the next rows count on. [default: derived]"
    ),
]
SeedsOpt = Annotated[
    str | None, typer.Option("--seeds", help="Make every row with each of these, as 1-4,9.")
]
CountOpt = Annotated[
    int, typer.Option("--count", "-n", help="Images of each row, with seeds counting up.")
]
VaryOpt = Annotated[
    list[str] | None,
    typer.Option("--vary", help="Make every row with each value, as steps=10,20; repeatable."),
]
FolderOpt = Annotated[Path, typer.Option("--output", "-o", help="The folder of the images.")]
NameOpt = Annotated[
    str | None,
    typer.Option("--name", help="File names. [default: {index:05d}-{slug}-{seed}.{ext}]"),
]
SkipInvalidOpt = Annotated[
    bool, typer.Option("--skip-invalid", help="Make the good rows, list the bad ones, exit 8.")
]
RetryOpt = Annotated[
    bool, typer.Option("--retry-failed", help="Try those again that failed for their own reason.")
]
ForceOpt = Annotated[bool, typer.Option("--force", help="Make everything again.")]
VerifyOpt = Annotated[
    bool, typer.Option("--verify-files", help="Compare finished files with their sha256.")
]
MaxFailuresOpt = Annotated[
    str | None, typer.Option("--max-failures", help="Stop once so many failed, as 10 or 5%.")
]
LimitOpt = Annotated[
    int | None, typer.Option("--limit", min=1, help="Make at most so many images now.")
]
ShardOpt = Annotated[
    str | None,
    typer.Option("--shard", help="Make part I of N, as 1/4, beside others in one folder."),
]
MergeOpt = Annotated[
    Path | None,
    typer.Option("--merge", help="Join the shards of this folder; makes no image."),
]
BatchSizeOpt = Annotated[
    str, typer.Option("--batch-size", help="Images of one pass: a number, or auto.")
]
StrictOpt = Annotated[
    bool, typer.Option("--strict", help="One image a pass: the same bits as alone.")
]
SheetOpt = Annotated[
    bool, typer.Option("--sheet", help="Draw sheet.png; a grid where --vary gives two axes.")
]
EventsOpt = Annotated[
    bool, typer.Option("--events", help="Write NDJSON events on stderr, and nothing else.")
]
EphemeralOpt = Annotated[
    bool,
    typer.Option("--ephemeral", help="vertex: deploy an endpoint for this batch alone."),
]
MaxCostOpt = Annotated[
    float | None,
    typer.Option("--max-cost", help="ephemeral: refuse if it could cost more USD until its TTL."),
]
TtlOpt = Annotated[
    str | None,
    typer.Option(
        "--ttl", help=f"ephemeral: how long the endpoint may live. [default: {DEFAULT_TTL}]"
    ),
]

_BESIDE_MERGE = {"merge", "json", "quiet", "verbose", "events"}


def batch(
    context: typer.Context,
    file: FileArg = None,
    input_format: InputFormatOpt = None,
    model: options.ModelOpt = None,
    negative_prompt: options.NegativePromptOpt = None,
    steps: options.StepsOpt = None,
    guidance: options.GuidanceOpt = None,
    seed: SeedOpt = None,
    seeds: SeedsOpt = None,
    count: CountOpt = 1,
    vary: VaryOpt = None,
    width: options.WidthOpt = None,
    height: options.HeightOpt = None,
    size: options.SizeOpt = None,
    scheduler: options.SchedulerOpt = None,
    output: FolderOpt = Path("t2i-out"),
    name: NameOpt = None,
    format: options.FormatOpt = None,
    skip_invalid: SkipInvalidOpt = False,
    retry_failed: RetryOpt = False,
    force: ForceOpt = False,
    verify_files: VerifyOpt = False,
    max_failures: MaxFailuresOpt = None,
    limit: LimitOpt = None,
    shard: ShardOpt = None,
    merge: MergeOpt = None,
    sheet: SheetOpt = False,
    batch_size: BatchSizeOpt = "auto",
    strict: StrictOpt = False,
    backend: options.BackendOpt = None,
    url: options.UrlOpt = None,
    dialect: options.DialectOpt = None,
    endpoint: options.EndpointOpt = None,
    project: options.ProjectOpt = None,
    region: options.RegionOpt = None,
    api_endpoint: options.ApiEndpointOpt = None,
    serving: options.ServingOpt = None,
    retries: options.RetriesOpt = None,
    timeout: options.TimeoutOpt = None,
    concurrency: options.ConcurrencyOpt = None,
    ephemeral: EphemeralOpt = False,
    ttl: TtlOpt = None,
    max_cost: MaxCostOpt = None,
    yes: options.YesOpt = False,
    device: options.DeviceOpt = None,
    dtype: options.DtypeOpt = None,
    memory: options.MemoryOpt = None,
    attention_slicing: options.AttentionSlicingOpt = None,
    clear_cache: options.ClearCacheOpt = False,
    revision: options.RevisionOpt = None,
    trust_remote_code: options.TrustRemoteCodeOpt = False,
    no_safety_checker: options.NoSafetyCheckerOpt = False,
    offline: options.OfflineOpt = False,
    show: options.ShowOpt = False,
    dry_run: options.DryRunOpt = False,
    lenient: options.LenientOpt = False,
    events: EventsOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    verbose: options.VerboseOpt = False,
) -> None:
    """Make every image of a prompts file; run it again to make what is missing."""
    console.configure(json=json, quiet=quiet, verbose=verbose, events=events)
    from t2i_cli.backends.factory import create_backend, default_model
    from t2i_cli.batch import session
    from t2i_cli.batch.executor import LocalExecutor
    from t2i_cli.batch.lock import parse_shard
    from t2i_cli.batch.options import BatchOptions, parse_batch_size, parse_seeds, parse_vary
    from t2i_cli.batch.plan import SelectionOptions
    from t2i_cli.batch.row_filenames import (
        DEFAULT_NAME_TEMPLATE,
        check_template,
        parse_name_template,
    )

    if merge is not None:
        _refuse_beside_merge(context)
        session.merge_shards(merge, console)
        return
    if file is None:
        raise InputError("There is no prompts file.", hint="Give one, as t2i batch prompts.txt")
    width, height = resolve_size(width, height, size)
    varied = parse_vary(vary or [])
    if model is None and not ephemeral and "model" not in dict(varied):
        model = default_model(backend)
    template = name or DEFAULT_NAME_TEMPLATE
    check_template(template, format)
    given: dict[str, Value | None] = {
        "negative_prompt": negative_prompt,
        # An endpoint made for these rows has the one model that they are for.
        "model": None if ephemeral else model,
        "revision": revision,
        "steps": steps,
        "guidance_scale": guidance,
        "width": width,
        "height": height,
        "scheduler": scheduler,
    }
    wishes = BatchOptions(
        defaults={field: value for field, value in given.items() if value is not None},
        vary=varied,
        seed=seed,
        seeds=parse_seeds(seeds) if seeds else (),
        count=count,
        lenient=lenient,
    )
    choice = SelectionOptions(
        template=template,
        format=format or store.get_setting("format"),
        shard=parse_shard(shard) if shard else None,
        limit=limit,
        force=force,
        retry_failed=retry_failed,
        verify_files=verify_files,
    )
    task = session.BatchConfig(
        source=file,
        input_format=input_format,
        folder=output,
        wishes=wishes,
        choice=choice,
        skip_invalid=skip_invalid,
        max_failures=max_failures,
        dry_run=dry_run,
        sheet=sheet,
        show=show,
    )
    images = parse_batch_size(batch_size, strict=strict)

    def engine(made: str | None) -> Backend:
        return create_backend(
            backend="vertex" if ephemeral else backend,
            url=url,
            dialect=dialect,
            endpoint=made or endpoint,
            project=project,
            region=region,
            api_endpoint=api_endpoint,
            serving=serving,
            retries=retries,
            timeout=timeout,
            concurrency=concurrency,
            device=device,
            dtype=dtype,
            memory=memory,
            attention_slicing=attention_slicing,
            clear_cache=clear_cache,
            trust_remote_code=trust_remote_code,
            no_safety_checker=no_safety_checker,
            offline=offline,
            lenient=lenient,
            batch_size=images,
            strict=strict,
            format=parse_name_template(template, choice.format).format,
        )

    deployment: AbstractContextManager[str | None] = nullcontext()
    stand_in, read = None, None
    if not ephemeral:
        _refuse_without_ephemeral(ttl=ttl is not None, max_cost=max_cost is not None, yes=yes)
    else:
        if endpoint or dry_run or backend not in (None, "vertex"):
            raise InputError("--ephemeral takes no --endpoint, --dry-run or other --backend.")
        from t2i_cli.backends.vertex.planned_endpoint import PlannedEndpoint
        from t2i_cli.vertex import lifecycle
        from t2i_cli.vertex.plan import DeploymentSpec

        if not lenient:
            engine("0")  # calls nothing yet, and refuses options that mean nothing there
        stand_in = PlannedEndpoint(model, serving)
        read, missing = session.validate(task, stand_in, console)
        if missing:
            deployment = lifecycle.ephemeral_endpoint(
                DeploymentSpec(
                    model=model, serving=serving, ttl=ttl or DEFAULT_TTL, max_cost=max_cost
                ),
                console,
                yes=yes,
                project=project,
                region=region,
                api_endpoint=api_endpoint,
            )
    with deployment as made:
        chosen = stand_in if stand_in and made is None else engine(made)
        session.run_batch(task, chosen, LocalExecutor(chosen), console, read)


def _refuse_beside_merge(context: typer.Context) -> None:
    """Raise InputError for what a merge has no use for."""
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if source and source.name == "COMMANDLINE" and name not in _BESIDE_MERGE:
            what = "prompts file" if name == "file" else parameter.opts[0]
            raise InputError(f"--merge takes no {what}.", field="merge")


def _refuse_without_ephemeral(**given: bool) -> None:
    """Raise InputError for an option that only a deployment has a use for."""
    for name in (name for name, there in given.items() if there):
        raise InputError(
            f"--{name.replace('_', '-')} means nothing without --ephemeral.", field=name
        )
