"""`t2i remote deploy` and `t2i remote run`: an endpoint for a while, or for one command."""

from typing import Annotated

import typer

from t2i_cli.cli import options
from t2i_cli.settings.options import DeploymentSpec, LocationOptions
from t2i_cli.terminal.console import console

DryRunOpt = Annotated[bool, typer.Option("--dry-run", help="Print the plan; change nothing.")]
CommandArg = Annotated[
    list[str], typer.Argument(metavar="COMMAND...", help="What to run, after --.")
]


def deploy(
    wanted: DeploymentSpec,
    place: LocationOptions,
    yes: options.YesOpt = False,
    dry_run: DryRunOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
) -> None:
    """Deploy a model to an endpoint of its own; run it again to go on after a failure."""
    console.configure(json=json, quiet=quiet)
    from t2i_cli.vertex import lifecycle, plan

    with lifecycle.connect(place) as cloud:
        if dry_run:
            settled = plan.plan_deployment(wanted, cloud.rest, cloud.account)
            if json:
                console.result_json(settled.to_json())
            else:
                console.result(settled.text())
            return
        settled = lifecycle.confirm_plan(wanted, cloud, console, yes=yes, offer=True)
        found = lifecycle.deploy_plan(settled, cloud, console)
    if json:
        console.result_json({"endpoint": found.name, "dns": found.dns} | settled.to_json())
    else:
        console.result(found.name)


def run(
    command: CommandArg,
    wanted: DeploymentSpec,
    place: LocationOptions,
    yes: options.YesOpt = False,
    quiet: options.QuietOpt = False,
) -> None:
    """Deploy, run a command with the endpoint in its environment, take it down whatever happens."""
    console.configure(quiet=quiet)
    from t2i_cli.vertex import lifecycle

    with lifecycle.connect(place) as cloud:
        code = lifecycle.run_command(wanted, cloud, console, command, yes=yes)
    raise typer.Exit(code)
