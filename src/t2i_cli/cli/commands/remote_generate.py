"""`t2i remote generate`: `t2i generate` on the endpoint in use."""

from t2i_cli.cli import options
from t2i_cli.cli.commands import generate as anywhere


def generate(
    prompt: options.PromptArg = None,
    prompt_option: options.PromptOpt = None,
    model: options.ModelOpt = None,
    negative_prompt: options.NegativePromptOpt = None,
    steps: options.StepsOpt = None,
    guidance: options.GuidanceOpt = None,
    seed: options.SeedOpt = None,
    count: options.CountOpt = 1,
    width: options.WidthOpt = None,
    height: options.HeightOpt = None,
    size: options.SizeOpt = None,
    scheduler: options.SchedulerOpt = None,
    output: options.OutputOpt = None,
    format: options.FormatOpt = None,
    overwrite: options.OverwriteOpt = False,
    endpoint: options.EndpointOpt = None,
    project: options.ProjectOpt = None,
    region: options.RegionOpt = None,
    api_endpoint: options.ApiEndpointOpt = None,
    serving: options.ServingOpt = None,
    retries: options.RetriesOpt = None,
    timeout: options.TimeoutOpt = None,
    concurrency: options.ConcurrencyOpt = None,
    show: options.ShowOpt = False,
    dry_run: options.DryRunOpt = False,
    lenient: options.LenientOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    verbose: options.VerboseOpt = False,
) -> None:
    """Make an image from a prompt on the endpoint: `t2i generate --backend vertex`, for short."""
    anywhere.generate(backend="vertex", **locals())
