"""The Typer app with all commands, and `main()`, which turns errors into exit codes."""

import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import FrameType
from typing import Annotated, NoReturn

import typer
from typer.core import TyperCommand, TyperOption

from t2i_cli import __version__, signals
from t2i_cli.cli.commands import (
    batch,
    config,
    doctor,
    generate,
    inspect,
    login,
    models,
    remote,
    serve,
    worker,
)
from t2i_cli.cli.option_groups import HELP_NAMES, command, examples, group_help
from t2i_cli.errors import (
    EXIT_STDOUT_CLOSED,
    InputError,
    InterruptedRunError,
    T2IError,
    Terminated,
    TerminatedError,
)
from t2i_cli.terminal.console import console

_EMPTY_ALLOWED = {"negative_prompt"}
"""Options for which an empty value is valid: an empty negative prompt."""

app = typer.Typer(
    name="t2i",
    help="Text to images: on this machine, on Vertex AI, or on any OpenAI-compatible server.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=HELP_NAMES,
    epilog=examples(
        't2i generate "a red star" -m postcard',
        "t2i batch prompts.txt -m sdxl -o images",
        "t2i serve -m postcard",
    ),
)
command(
    app,
    't2i generate "a red star on a white background" -m postcard',
    't2i generate "a lighthouse in a storm" -m sdxl -n 4 -o storm/',
    'echo "a blue house" | t2i generate - -o - > house.png',
)(generate.generate)
command(
    app,
    "t2i batch prompts.txt -m postcard -o images",
    "t2i batch covers.jsonl -m sdxl --vary steps=20,40 --sheet",
    "t2i batch prompts.csv --dry-run --json",
)(batch.batch)
command(
    app,
    "t2i serve -m postcard",
    "t2i serve -m sdxl --host 0.0.0.0 --api-key-file key.txt",
    "t2i serve --uds ~/t2i/socket",
)(serve.serve)
command(app, "t2i inspect star.png", "t2i inspect --json images/", "t2i inspect - < star.png")(
    inspect.inspect
)
app.add_typer(remote.app, name="remote")
app.add_typer(models.app, name="models")
app.add_typer(login.app, name="login")
command(app, "t2i logout", "t2i logout --quiet")(login.logout)
app.add_typer(worker.app, name="worker")
app.add_typer(config.app, name="config")
command(app, "t2i doctor", "t2i doctor --json")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        console.result(f"t2i {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make images from text."""


def command_paths() -> list[tuple[str, ...]]:
    """Paths of all commands, as tuples of words; `()` is t2i itself. For docs and benchmarks."""
    return [path for path, _ in _walk_commands((), typer.main.get_command(app))]


def _walk_commands(
    path: tuple[str, ...], command: object
) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield a command and all its subcommands, each with its path."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _walk_commands((*path, name), child)


def _refuse_empty_values(parameters: Iterable[object]) -> None:
    """Make options refuse empty values: an unset shell variable must not select the default."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.name not in _EMPTY_ALLOWED:
            _refuse_empty(parameter)


def _refuse_empty(option: TyperOption) -> None:
    original = option.handle_parse_result

    def handle_parse_result(
        context: typer.Context, values: Mapping[str, object], arguments: list[str]
    ) -> tuple[object, list[str]]:
        value = values.get(option.name)
        if "" in (value if isinstance(value, list) else [value]) and not context.resilient_parsing:
            flag = max(option.opts, key=len)
            raise InputError(
                f"{flag} is empty.", hint="Give it a value, or leave it away.", field=option.name
            )
        return original(context, values, arguments)

    option.handle_parse_result = handle_parse_result  # type: ignore[method-assign, assignment]


def _on_sigterm(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def _run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; unexpected exceptions propagate."""
    try:
        # The command configures the console later; errors before that need the format, too.
        console.configure(json="--json" in arguments, events="--events" in arguments)
        root_command = typer.main.get_command(app)
        for _, part in _walk_commands((), root_command):
            _refuse_empty_values(getattr(part, "params", ()))
            if isinstance(part, TyperCommand):
                group_help(part)
        code = root_command(arguments, prog_name="t2i", standalone_mode=False)
        if code == InterruptedRunError.exit_code:  # Typer's exit code for Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        return EXIT_STDOUT_CLOSED
    except SystemExit as error:
        # Typer exits with 1 if standard output is closed.
        if isinstance(error.__context__, BrokenPipeError):
            return EXIT_STDOUT_CLOSED
        raise
    except typer.TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # a command group called without a command
            console.note(message)
            return InputError.exit_code
        failure: T2IError = InputError(message, hint="--help lists what is taken.")
    except T2IError as error:
        failure = error
        console.cause(error)
    except (KeyboardInterrupt, typer.Abort):
        failure = InterruptedRunError("Interrupted.")
    except Terminated:
        failure = TerminatedError("Terminated.")
    console.error(failure)
    return failure.exit_code


def main() -> NoReturn:
    """Run `t2i` with the process's arguments and exit with its exit code."""
    for number in signals.termination_signals() - {signal.SIGINT}:
        signal.signal(number, _on_sigterm)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name may be any bytes: print undecodable ones unchanged.
            stream.reconfigure(errors="surrogateescape")
    code = _run(sys.argv[1:])
    # Skip the interpreter's shutdown: with torch it takes about a second.
    with suppress(OSError):  # a closed terminal
        sys.stderr.flush()
    os._exit(code)
