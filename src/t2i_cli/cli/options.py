"""Options and option groups shared by several commands."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from t2i_cli.cli.option_groups import field_help
from t2i_cli.errors import InputError
from t2i_cli.part_source import PART_FIELDS, PartSource, parse_part_source
from t2i_cli.request import parse_seeds, resolve_size
from t2i_cli.request_fields import (
    DEFAULT_MODEL,
    FIELDS,
    MAX_SEED,
    PARTS_PANEL,
    PROMPT_PANEL,
    RequestFields,
)
from t2i_cli.settings.schema import SETTINGS

JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON Lines, errors included.")]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result.")]
VerboseOpt = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Tell the plan, timings, files read, requests sent."),
]
YesOpt = Annotated[bool, typer.Option("--yes", "-y", help="Agree to everything asked.")]
LenientOpt = Annotated[
    bool, typer.Option("--lenient", help="Warn of what cannot be honoured, and go on.")
]
DryRunOpt = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would happen; load no weight, write no file."),
]
ModelOpt = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help=f"{FIELDS['model'].help} [default: {DEFAULT_MODEL}]",
    ),
]
RevisionOpt = Annotated[str | None, typer.Option("--revision", help=FIELDS["revision"].help)]
QuantizeOpt = Annotated[str | None, typer.Option("--quantize", help=FIELDS["quantize"].help)]
FormatOpt = Annotated[
    str | None,
    typer.Option(
        "--format", help=f"{SETTINGS['format'].takes}. [default: from the name, else png]"
    ),
]
ShowOpt = Annotated[bool, typer.Option("--show", help="Draw the image in the terminal.")]

WildcardsOpt = Annotated[
    Path | None,
    typer.Option(
        "--wildcards", help="Folder of NAME.txt files, whose lines are the values of __NAME__."
    ),
]
StylesOpt = Annotated[
    str | None,
    typer.Option(
        "--styles",
        help="CSV file of styles: name,prompt,negative_prompt.",
        rich_help_panel=PROMPT_PANEL,
    ),
]


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Consent to downloads."""

    PANEL: ClassVar = "This machine"

    yes: Annotated[
        bool,
        typer.Option(
            "--yes", "-y", help="Download a model of gigabytes without a question; as T2I_YES=1."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class ConsentOptions:
    """Consent to downloads and to the price of images."""

    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            "-y",
            help="Agree to all that is asked: a download of gigabytes (as T2I_YES=1 does), the "
            "price of images.",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions:
    """Console output; the arguments of `console.configure()`."""

    json: JsonOpt = False
    quiet: QuietOpt = False
    verbose: VerboseOpt = False


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """The prompt, seeds, and number of images."""

    PANEL: ClassVar = "Request"

    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help=f"{FIELDS['prompt'].help[:-1]}; - reads standard input."
        ),
    ] = None
    prompt_option: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt, in place of the argument.")
    ] = None
    seed: Annotated[
        list[int] | None,
        typer.Option(
            "--seed",
            "-s",
            help=f"Seed, 0 to {MAX_SEED}; may be repeated; -1 is none. "
            f"[default: {FIELDS['seed'].default}]",
        ),
    ] = None
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Make an image with each of these, as 1-4,9.")
    ] = None
    count: Annotated[
        int, typer.Option("--count", "-n", help="Images to make, with seeds counting up.")
    ] = 1
    wildcards: WildcardsOpt = None
    styles: StylesOpt = None

    def given_seeds(self) -> list[int]:
        """The seeds that are given; none if the only one stands for no seed. Raises InputError."""
        if self.seeds is not None:
            if self.seed:
                raise InputError("Give --seed or --seeds, not both.", field="seeds")
            return parse_seeds(self.seeds)
        given = self.seed or []
        return [] if len(given) == 1 and FIELDS["seed"].is_unset(given[0]) else given


@dataclass(frozen=True, kw_only=True)
class RequestOptions(RequestFields):
    """The request fields that all commands share; see the table of request fields."""

    PANEL: ClassVar = "Request"

    size: Annotated[
        str | None, typer.Option("--size", help="Width and height, as 512x768 or 512.")
    ] = None

    def given(self) -> dict[str, Any]:
        """The fields that are set, parsed; raises InputError."""
        width, height = resolve_size(self.width, self.height, self.size)
        values = {name: getattr(self, name) for name in FIELDS} | {"width": width, "height": height}
        return {
            name: parse(value) if (parse := FIELDS[name].parse) else value
            for name, value in values.items()
            if not FIELDS[name].is_unset(value)
        }


def _part_option(name: str) -> Any:  # noqa: ANN401 - Typer's option
    return typer.Option(*FIELDS[name].flags, help=field_help(FIELDS[name]))


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """The parts that a server's model has from elsewhere."""

    PANEL: ClassVar = PARTS_PANEL

    base: Annotated[str | None, _part_option("base")] = None
    vae: Annotated[str | None, _part_option("vae")] = None
    text_encoder: Annotated[str | None, _part_option("text_encoder")] = None
    transformer: Annotated[str | None, _part_option("transformer")] = None

    def given(self) -> dict[str, PartSource]:
        """The parts that are named, by field. Raises InputError."""
        values = ((name, getattr(self, name)) for name in PART_FIELDS)
        found = ((name, value and parse_part_source(value)) for name, value in values)
        return {name: source for name, source in found if source}


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Output paths and format."""

    PANEL: ClassVar = "Output"

    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="File, folder/, template with {index} {seed} {slug} {model} {ext}, a URL of one "
            "(s3://bucket/folder/), or - for stdout. [default: {slug}-{seed}.{ext}]",
        ),
    ] = None
    format: FormatOpt = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = (
        False
    )
    show: ShowOpt = False


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Dry run and leniency."""

    dry_run: DryRunOpt = False
    lenient: LenientOpt = False


@dataclass(frozen=True, kw_only=True)
class BatchSizeOptions:
    """The batch size on this machine, and whether its images must come out bit by bit alike."""

    PANEL: ClassVar = "This machine"

    batch_size: Annotated[
        str, typer.Option("--batch-size", help="Images of one pass: a number, or auto.")
    ] = "auto"
    strict: Annotated[
        bool,
        typer.Option("--strict", help="One image a pass, one thread of a CPU: the same bits."),
    ] = False

    def largest(self) -> int | None:
        """The largest batch size; `None` lets the device decide. Raises InputError."""
        if self.batch_size == "auto":
            return 1 if self.strict else None
        text = self.batch_size
        if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= 256:
            raise InputError(f"--batch-size {text} is neither auto nor from 1 to 256.")
        if self.strict and text != "1":
            raise InputError("--strict makes one image a pass; leave --batch-size out.")
        return int(text)
