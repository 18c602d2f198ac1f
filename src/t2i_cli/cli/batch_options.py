"""Option groups of `t2i batch`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from t2i_cli.cli.options import ConsoleOptions, FormatOpt, ShowOpt, StylesOpt, WildcardsOpt
from t2i_cli.settings import defaults


@dataclass(frozen=True, kw_only=True)
class RowsOptions:
    """The prompts file, and the seeds and variations of its rows."""

    PANEL: ClassVar = "Rows"

    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="Prompts: .txt, .jsonl, .json, .csv or .tsv; - reads standard input.",
        ),
    ] = None
    input_format: Annotated[
        str | None,
        typer.Option(
            "--input-format",
            help="txt, jsonl, json, csv or tsv. [default: by the name; stdin: txt]",
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
    wildcards: WildcardsOpt = None
    styles: StylesOpt = None
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Make the good rows, list the bad ones, exit 8.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """The folder, file names and contact sheet."""

    PANEL: ClassVar = "Output"

    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="PLACE",
            help="The folder of the images, or a URL: s3://bucket/folder, gs://…, hf://datasets/….",
        ),
    ] = "t2i-out"
    name: Annotated[
        str | None,
        typer.Option("--name", help="File names. [default: {index:05d}-{slug}-{seed}.{ext}]"),
    ] = None
    format: FormatOpt = None
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Draw sheet.png; --vary gives its axes.")
    ] = False
    show: ShowOpt = False


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Which images a run makes, when it stops, and sharding."""

    PANEL: ClassVar = "Selection"

    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Try those again that failed for their own reason."),
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Make everything again.")] = False
    verify_files: Annotated[
        bool, typer.Option("--verify-files", help="Compare finished files with their sha256.")
    ] = False
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Then remove unchanged pictures of earlier requests."),
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
        str | None,
        typer.Option(
            "--merge",
            metavar="PLACE",
            help="Join the shards of this folder, or URL; makes no image.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class EphemeralOptions:
    """An endpoint that exists for this batch only."""

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
    service_account: Annotated[
        str | None,
        typer.Option("--service-account", help="ephemeral: the container runs as this one."),
    ] = None
    flex_start: Annotated[
        bool,
        typer.Option("--flex-start", help="ephemeral: have Google itself end it, by flex-start."),
    ] = False
    spot: Annotated[
        bool, typer.Option("--spot", help="ephemeral: machines that Google may take back.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class BatchConsoleOptions(ConsoleOptions):
    """Console output, and events."""

    events: Annotated[
        bool, typer.Option("--events", help="Write NDJSON events on stderr, and nothing else.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class BatchConsentOptions:
    """Consent to downloads and to the price of images or of an endpoint."""

    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            "-y",
            help="Agree to all that is asked: a download of gigabytes (as T2I_YES=1 does), the "
            "price of images, the price of an ephemeral endpoint.",
        ),
    ] = False
