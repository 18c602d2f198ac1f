"""`t2i doctor`: what there is, what works, and what to fix."""

import typer

from t2i_cli.cli.options import JsonOpt
from t2i_cli.terminal.console import console

_MARKS = {"ok": "ok  ", "note": "note", "problem": "FIX "}


def doctor(json: JsonOpt = False) -> None:
    """Look at this installation; exit 0 if it can make a picture, else with the problem's code."""
    console.configure(json=json)
    from t2i_cli import diagnostics

    worst = 0
    for found in diagnostics.run_diagnostics():
        worst = worst or found.exit_code
        if json:
            console.result_json(found.to_json())
        else:
            console.result(f"{_MARKS[found.status]}  {found.name}: {found.detail}")
            if found.fix:
                console.result(f"      {found.fix}")
    if worst:
        raise typer.Exit(worst)
