"""`t2i batch`: every image of a prompts file, on this machine."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from t2i_cli import naming, options, settings
from t2i_cli.backends import Backend
from t2i_cli.console import console
from t2i_cli.errors import InputError
from t2i_cli.prompts import Value
from t2i_cli.request import chosen_size
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


def batch(
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
    from t2i_cli.backends.choice import choose, default_model
    from t2i_cli.batch import session
    from t2i_cli.batch.executor import InProcess
    from t2i_cli.batch.folder import parse_shard
    from t2i_cli.batch.names import DEFAULT_TEMPLATE
    from t2i_cli.batch.plan import Choice
    from t2i_cli.batch.wishes import Wishes, parse_seeds, parse_vary

    if merge is not None:
        if file is not None:
            raise InputError("--merge takes no prompts file.", field="merge")
        session.merge(merge, console)
        return
    if file is None:
        raise InputError("There is no prompts file.", hint="Give one, as t2i batch prompts.txt")
    width, height = chosen_size(width, height, size)
    given: dict[str, Value | None] = {
        "negative_prompt": negative_prompt,
        # An endpoint made for these rows has the one model that they are for.
        "model": None if ephemeral else model or default_model(backend),
        "revision": revision,
        "steps": steps,
        "guidance_scale": guidance,
        "width": width,
        "height": height,
        "scheduler": scheduler,
    }
    wishes = Wishes(
        defaults={field: value for field, value in given.items() if value is not None},
        vary=parse_vary(vary or []),
        seed=seed,
        seeds=parse_seeds(seeds) if seeds else (),
        count=count,
        lenient=lenient,
    )
    choice = Choice(
        template=name or DEFAULT_TEMPLATE,
        format=format or settings.get("format"),
        shard=parse_shard(shard) if shard else None,
        limit=limit,
        force=force,
        retry_failed=retry_failed,
        verify_files=verify_files,
    )
    task = session.Task(
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
    images = _batch_size(batch_size, strict)

    def engine(made: str | None) -> Backend:
        return choose(
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
            format=_format(choice.format or naming.suffix(choice.template)),
        )

    deployment: AbstractContextManager[str | None] = nullcontext()
    if not ephemeral:
        _refuse_without_ephemeral(ttl=ttl is not None, max_cost=max_cost is not None, yes=yes)
    else:
        if endpoint or dry_run or backend not in (None, "vertex"):
            raise InputError("--ephemeral takes no --endpoint, --dry-run or other --backend.")
        session.check_early(task, console)
        if not lenient:
            engine("0")  # calls nothing yet, and refuses options that mean nothing there
        from t2i_cli.vertex import lifetime
        from t2i_cli.vertex.plan import Wanted

        deployment = lifetime.for_one(
            Wanted(model=model, serving=serving, ttl=ttl or DEFAULT_TTL, max_cost=max_cost),
            console,
            yes=yes,
            project=project,
            region=region,
            api_endpoint=api_endpoint,
        )
    with deployment as made:
        chosen = engine(made)
        session.run(task, chosen, InProcess(chosen), console)


def _refuse_without_ephemeral(**given: bool) -> None:
    """Raise InputError for an option that only a deployment has a use for."""
    for name in (name for name, there in given.items() if there):
        raise InputError(
            f"--{name.replace('_', '-')} means nothing without --ephemeral.", field=name
        )


def _format(named: str | None) -> naming.Format:
    """The format of most images; a wrong name is told of where the plan is made."""
    return naming.FORMATS.get((named or "").lower(), "png")


def _batch_size(text: str, strict: bool) -> int | None:
    """Images of one pass at most, `None` for as many as the device gains by."""
    if text == "auto":
        return 1 if strict else None
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise InputError(f"--batch-size {text} is neither auto nor from 1 to 256.")
    if strict and text != "1":
        raise InputError("--strict makes one image a pass; leave --batch-size out.")
    return int(text)
