"""`t2i remote deploy` and `t2i remote run`: deploy an endpoint, or deploy it for one command."""

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
    spec: DeploymentSpec,
    location: LocationOptions,
    yes: options.YesOpt = False,
    dry_run: DryRunOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
) -> None:
    """Deploy a model to an endpoint of its own; run it again to go on after a failure."""
    console.configure(json=json, quiet=quiet)
    from t2i_cli.vertex import cloud_session, lifecycle, plan_consent
    from t2i_cli.vertex.dry_run import plan_dry_run

    if dry_run:
        planned = plan_dry_run(spec, location, console.note)
        if json:
            console.result_json(planned.to_json())
        else:
            console.result(planned.text())
        return
    with cloud_session.connect_to_deploy(spec, location) as session:
        plans = plan_consent.confirm_plans(
            spec, session.clients, session.account, console, yes=yes, offer=True
        )
        endpoint, plan = lifecycle.deploy_plans(plans, session, console)
    if json:
        console.result_json({"endpoint": endpoint.name, "dns": endpoint.dns} | plan.to_json())
    else:
        console.result(endpoint.name)


def run(
    command: CommandArg,
    spec: DeploymentSpec,
    location: LocationOptions,
    yes: options.YesOpt = False,
    quiet: options.QuietOpt = False,
) -> None:
    """Deploy, run a command with the endpoint in its environment, take it down whatever happens."""
    console.configure(quiet=quiet)
    from t2i_cli.vertex import cloud_session, lifecycle

    lifecycle.check_command(command)
    with cloud_session.connect_to_deploy(spec, location) as session:
        code = lifecycle.run_command(spec, session, console, command, yes=yes)
    raise typer.Exit(code)
