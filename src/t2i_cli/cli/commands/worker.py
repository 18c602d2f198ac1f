"""`t2i worker`: status and end of the process that keeps a model loaded."""

import typer

from t2i_cli.cli.option_groups import command, examples
from t2i_cli.cli.options import JsonOpt, QuietOpt
from t2i_cli.terminal.console import console

app = typer.Typer(
    help="See and end the process that keeps a model warm.",
    no_args_is_help=True,
    epilog=examples("t2i worker status", "t2i worker stop"),
    rich_markup_mode=None,
)


@command(app, "t2i worker status", "t2i worker status --json")
def status(json: JsonOpt = False) -> None:
    """Say whether a worker runs, with which model, and how long it stays."""
    console.configure(json=json)
    from t2i_cli.worker import control

    found = control.worker_status()
    if json:
        console.result_json(found.to_json())
    else:
        console.result(found.sentence())


@command(app, "t2i worker stop", "t2i worker stop --quiet")
def stop(json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """End the worker; an image that it is at has 30 seconds."""
    console.configure(json=json, quiet=quiet)
    from t2i_cli.worker import control

    pid = control.stop_worker()
    if json:
        console.result_json({"stopped": pid is not None, "pid": pid or None})
    elif pid is None:
        console.note("No worker runs.")
    else:
        console.note(f"The worker{f' (process {pid})' if pid else ''} has ended.")
