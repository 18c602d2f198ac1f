"""The Typer app with all commands, and `main()`, which turns errors into exit codes."""

import os
import signal
import sys
import traceback
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Annotated, NoReturn

import typer

from t2i_cli import library_environment, signals
from t2i_cli.cli.commands import (
    about,
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
from t2i_cli.cli.option_groups import HELP_NAMES, command, examples
from t2i_cli.cli.usage_errors import prepare_commands, usage_error, walk_commands
from t2i_cli.errors import (
    EXIT_STDOUT_CLOSED,
    InputError,
    InternalError,
    InterruptedRunError,
    OutOfMemoryError,
    T2IError,
    Terminated,
    TerminatedError,
)
from t2i_cli.known_secrets import scrub_secrets
from t2i_cli.terminal import streams
from t2i_cli.terminal.console import console

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
command(app, "t2i version", "t2i version --json")(about.version)
command(app, "t2i help generate", "t2i help models pull", name="help")(about.help_)


def _version(wanted: bool) -> None:
    if wanted:
        about.version()
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Make images from text."""


def command_paths() -> list[tuple[str, ...]]:
    """Paths of all commands but second names; `()` is t2i itself. For docs and benchmarks."""
    return [
        path
        for path, found in walk_commands((), typer.main.get_command(app))
        if not getattr(found, "hidden", False)
    ]


def _log_for_vertex() -> None:
    """In a container that Vertex AI runs, write what Google's Cloud Logging reads."""
    from t2i_cli.server import vertex_container

    if vertex_container.is_vertex_container(os.environ):
        console.use_structured_log()


def _on_sigterm(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def _run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        # The command configures the console later; errors before that need the format, too.
        console.configure(json="--json" in arguments, events="--events" in arguments)
        if arguments[:1] == ["serve"] and not console.events:
            _log_for_vertex()
        root_command = typer.main.get_command(app)
        prepare_commands(root_command)
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
        failure: T2IError = usage_error(error, arguments)
    except T2IError as error:
        failure = error
        console.cause(error)
    except (KeyboardInterrupt, typer.Abort):
        failure = InterruptedRunError("Interrupted.")
    except Terminated:
        failure = TerminatedError("Terminated.")
    except MemoryError:
        failure = OutOfMemoryError("The memory of this machine is used up.")
    except Exception as raised:  # noqa: BLE001 - a bug, but for what an environment variable breaks
        fault = library_environment.import_fault(raised)
        if not fault:
            console.bug(raised)
            return InternalError.exit_code
        fault.__cause__ = raised
        failure = fault
        console.cause(fault)
    console.error(failure)
    return failure.exit_code


def _print_bug(
    _kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
) -> None:
    """Print the traceback of a bug, without the secrets that an exception's text may quote."""
    sys.stderr.write(scrub_secrets("".join(traceback.format_exception(error))))


def main() -> NoReturn:
    """Run `t2i` with the process's arguments and exit with its exit code."""
    for number in signals.termination_signals() - {signal.SIGINT}:
        signal.signal(number, _on_sigterm)
    streams.open_standard_streams()
    sys.excepthook = _print_bug
    code = _run(sys.argv[1:])
    console.trace(f"ended with exit code {code}")
    # Skip the interpreter's shutdown: with torch it takes about a second.
    with suppress(OSError):  # a closed terminal
        sys.stderr.flush()
    os._exit(code)
