"""`t2i doctor`: runs the diagnostics and prints their findings."""

import typer

from t2i_cli.cli.options import JsonOpt
from t2i_cli.terminal.colours import painted
from t2i_cli.terminal.console import console

_LABELS = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "problem": ("FIX ", "red")}
"""How a finding begins, and in which colour on a terminal."""


def doctor(json: JsonOpt = False) -> None:
    """Look at this installation; exit 0 if it can make a picture, else with the problem's code."""
    console.configure(json=json)
    from t2i_cli import diagnostics

    exit_code = 0
    for found in diagnostics.run_diagnostics():
        exit_code = exit_code or found.exit_code
        if json:
            console.result_json(found.to_json())
        else:
            label = painted(*_LABELS[found.status], console.stdout)
            console.result(f"{label}  {found.name}: {found.detail}")
            if found.fix:
                console.result(f"      {found.fix}")
    if exit_code:
        raise typer.Exit(exit_code)
