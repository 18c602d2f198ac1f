"""Prints the plan of a deployment, and asks whether to go on."""

from t2i_cli.errors import AccessError
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import containers
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.plan import DeploymentPlan


def agree_to_plan(
    plan: DeploymentPlan, client: GoogleClient, console: Console, *, yes: bool
) -> None:
    """Print a plan and ask to confirm it unless `yes`. Raises AccessError and InputError."""
    show_deployment_plan(plan, client, console)
    if not yes:
        console.confirm(plan.question())


def show_deployment_plan(plan: DeploymentPlan, client: GoogleClient, console: Console) -> None:
    """Print a plan with its warnings. Raises AccessError and QuotaError for what is lacking."""
    console.note(plan.text())
    check_deployment_plan(plan, client, console)


def check_deployment_plan(plan: DeploymentPlan, client: GoogleClient, console: Console) -> None:
    """Print what to know of a plan. Raises AccessError and QuotaError for what is lacking."""
    if warning := containers.serving_warning(plan.labels.serving):
        console.warn(warning)
    if missing := plan.permissions.blocking:
        raise AccessError(
            f"These permissions are missing in {client.location.project}: {', '.join(missing)}.",
            hint="docs/remote.md names a role for each step.",
        )
    plan.quota.check(client.location.project)
