"""`t2i remote generate`: `t2i generate --backend vertex`."""

from t2i_cli.cli.commands import generate as generate_command
from t2i_cli.cli.options import (
    BatchSizeOptions,
    ConsentOptions,
    ConsoleOptions,
    OutputOptions,
    PromptOptions,
    RequestOptions,
    RunOptions,
)
from t2i_cli.settings.options import (
    BackendOptions,
    CallOptions,
    EndpointOptions,
    KeepAliveOptions,
)


def generate(
    prompt: PromptOptions,
    request: RequestOptions,
    output: OutputOptions,
    endpoint: EndpointOptions,
    calls: CallOptions,
    run: RunOptions,
    console_options: ConsoleOptions,
) -> None:
    """Make an image from a prompt on the endpoint: `t2i generate --backend vertex`, for short."""
    vertex = BackendOptions(backend="vertex", endpoint=endpoint, calls=calls)
    generate_command.generate(
        *(prompt, request, output, vertex, BatchSizeOptions()),
        *(KeepAliveOptions(), ConsentOptions(), run, console_options),
    )
