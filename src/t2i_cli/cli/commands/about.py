"""`t2i version` and `t2i help`."""

from typing import Annotated

import typer

from t2i_cli import __version__
from t2i_cli.cli.options import JsonOpt
from t2i_cli.cli.usage_errors import usage_error
from t2i_cli.terminal.console import console


def version(json: JsonOpt = False) -> None:
    """Print the version."""
    console.configure(json=json)
    if json:
        console.result_json({"version": __version__})
    else:
        console.result(f"t2i {__version__}")


def help_(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="Such as generate, or models pull."),
    ] = None,
) -> None:
    """Show how a command is used."""
    path = words or []
    try:
        root = context.find_root().command
        root.main([*path, "--help"], prog_name="t2i", standalone_mode=False)
    except typer.TyperException as error:
        raise usage_error(error, path) from error
