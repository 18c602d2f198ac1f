"""The options that commands share, each declared once."""

import math
from typing import Annotated

import typer

from t2i_cli.errors import InputError
from t2i_cli.models.catalog import DEFAULT_MODEL
from t2i_cli.net.defaults import CALLS_A_REPLICA, CONCURRENCY, RETRIES, TIMEOUT
from t2i_cli.request_fields import MAX_SEED, SERVINGS
from t2i_cli.settings.schema import SETTINGS, join_choices
from t2i_cli.vertex.location import DEFAULT_REGION


def finite(value: float | None) -> float | None:
    """Refuse what no range of numbers keeps out: nan, and infinity where there is no upper end."""
    if value is not None and not math.isfinite(value):
        raise InputError(f"{value} is not a number of seconds.")
    return value


def _takes(key: str) -> str:
    """What the setting of the same name takes."""
    return SETTINGS[key].takes


JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON Lines, errors included.")]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result.")]
VerboseOpt = Annotated[bool, typer.Option("--verbose", "-v", help="Tell more on stderr.")]
YesOpt = Annotated[bool, typer.Option("--yes", "-y", help="Agree to everything asked.")]
LenientOpt = Annotated[
    bool, typer.Option("--lenient", help="Warn of what cannot be honoured, and go on.")
]
OfflineOpt = Annotated[
    bool, typer.Option("--offline", help="Contact nothing; use what is downloaded.")
]

ModelOpt = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help=f"Alias, repository on the Hub, or folder. [default: {DEFAULT_MODEL}]",
    ),
]
RevisionOpt = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of the repository.")
]
PromptArg = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="What the image should show; - reads standard input."),
]
PromptOpt = Annotated[
    str | None, typer.Option("--prompt", "-p", help="The prompt, in place of the argument.")
]
NegativePromptOpt = Annotated[
    str | None, typer.Option("--negative-prompt", help="What the image should not show.")
]
StepsOpt = Annotated[
    int | None, typer.Option("--steps", help="Denoising steps. [default: the model's]")
]
GuidanceOpt = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        "--guidance-scale",
        "--cfg-scale",
        help="How closely to follow the prompt. [default: the model's]",
    ),
]
SeedOpt = Annotated[
    list[int] | None,
    typer.Option(
        "--seed",
        "-s",
        metavar="<int>",
        help=f"Seed, 0 to {MAX_SEED}; may be repeated. [default: random]",
    ),
]
CountOpt = Annotated[
    int, typer.Option("--count", "-n", help="Images to make, with seeds counting up.")
]
WidthOpt = Annotated[
    int | None, typer.Option("--width", "-W", help="Pixels. [default: the model's]")
]
HeightOpt = Annotated[
    int | None, typer.Option("--height", "-H", help="Pixels. [default: the model's]")
]
SizeOpt = Annotated[str | None, typer.Option("--size", help="Width and height, as 512x768.")]
SchedulerOpt = Annotated[
    str | None,
    typer.Option("--scheduler", help="Sampler by short name, as euler. [default: the model's]"),
]
OutputOpt = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="File, folder/, template with {index} {seed} {slug} {model} {ext}, or - for stdout."
        " [default: {slug}-{seed}.{ext}]",
    ),
]
FormatOpt = Annotated[
    str | None,
    typer.Option("--format", help=f"{_takes('format')}. [default: from the name, else png]"),
]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
BackendOpt = Annotated[
    str | None,
    typer.Option("--backend", help=f"Where images are made: {_takes('backend')}. [default: local]"),
]
UrlOpt = Annotated[
    str | None, typer.Option("--url", help="http: the images API, as http://host:port/v1.")
]
DialectOpt = Annotated[
    str | None,
    typer.Option(
        "--dialect",
        help=f"http: {_takes('http_dialect')}. [default: as the server says]",
    ),
]
EndpointOpt = Annotated[
    str | None,
    typer.Option(
        "--endpoint", help="vertex: number or full name. [default: the one deployed last]"
    ),
]
ProjectOpt = Annotated[
    str | None, typer.Option("--project", help="vertex: the project. [default: the credentials']")
]
RegionOpt = Annotated[
    str | None, typer.Option("--region", help=f"vertex: the region. [default: {DEFAULT_REGION}]")
]
ApiEndpointOpt = Annotated[
    str | None,
    typer.Option("--api-endpoint", help="vertex: a URL in place of Google's own hosts."),
]
ServingOpt = Annotated[
    str | None,
    typer.Option(
        "--serving",
        help=f"vertex: {join_choices(SERVINGS)}. [default: as the endpoint's label says]",
    ),
]
RetriesOpt = Annotated[
    int | None,
    typer.Option(
        "--retries",
        min=0,
        max=999,
        help=f"http, vertex: tries after the first. [default: {RETRIES}]",
    ),
]
TimeoutOpt = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0.001,
        callback=finite,
        help=f"http, vertex: seconds for one image, retries included. [default: {TIMEOUT}]",
    ),
]
ConcurrencyOpt = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        min=1,
        max=256,
        help=f"http, vertex: calls in flight. [default: {CONCURRENCY};"
        f" vertex: {CALLS_A_REPLICA} for each replica]",
    ),
]
DeviceOpt = Annotated[
    str | None, typer.Option("--device", help="cuda, cuda:1, xpu, mps or cpu. [default: the best]")
]
DtypeOpt = Annotated[
    str | None,
    typer.Option("--dtype", help=f"{_takes('dtype')}. [default: what suits the device]"),
]
MemoryOpt = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="auto fits the model to the memory; fast never trades speed; low saves all it can."
        " [default: auto]",
    ),
]
AttentionSlicingOpt = Annotated[
    bool | None,
    typer.Option(
        "--attention-slicing/--no-attention-slicing",
        help="Compute attention in slices: less memory, slower. [default: where memory is short]",
    ),
]
KeepAliveOpt = Annotated[
    str | None,
    typer.Option(
        "--keep-alive",
        help="Keep the model warm in the background for so long after the image, as 90s or 10m;"
        " 0 for not. [default: 0]",
    ),
]
ClearCacheOpt = Annotated[
    bool, typer.Option("--clear-cache", help="Empty the device's cache after every image.")
]
TrustRemoteCodeOpt = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that the repository brings."),
]
NoSafetyCheckerOpt = Annotated[
    bool, typer.Option("--no-safety-checker", help="Leave out the model's safety checker.")
]
ShowOpt = Annotated[bool, typer.Option("--show", help="Draw the image in the terminal.")]
DryRunOpt = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would happen; load no weight, write no file."),
]
