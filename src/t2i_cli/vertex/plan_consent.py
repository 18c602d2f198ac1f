"""Prints the plan of a deployment, offers what ends it by itself, and asks whether to go on."""

from collections.abc import Sequence
from dataclasses import replace

from t2i_cli.errors import AccessError
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import cloud_scheduler, containers, flex_start, region_fallback
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.plan import DeploymentPlan
from t2i_cli.vertex.region_fallback import RegionPlans


def confirm_plans(
    spec: DeploymentSpec,
    clients: Sequence[GoogleClient],
    account: str | None,
    console: Console,
    *,
    yes: bool,
    offer: bool = False,
    ephemeral: bool = False,
) -> RegionPlans:
    """Plan the deployment in each region, print it, and ask to confirm it unless `yes`.

    The plan of an `ephemeral` deployment says that the command removes it. With `offer`, also
    offers flex-start, or a Cloud Scheduler job, if none was requested. Raises AccessError where
    permissions are missing, QuotaError where the quota is too low.
    """
    plans = region_fallback.plan_regions(spec, clients, account, console.note, check_quota=True)
    plans = region_fallback.continue_earlier_run(spec, plans, console.warn)
    plans = plans.as_ephemeral() if ephemeral else plans
    console.note(plans.text())
    _check_plan(plans.first, plans.plans[0].client, console)
    if yes:
        return plans
    if offer and console.interactive:
        changed = _offer_end(spec, plans, account, console)
        if changed != spec:
            plans = region_fallback.plan_regions(
                changed, clients, account, console.note, check_quota=True
            )
            plans = region_fallback.continue_earlier_run(changed, plans, lambda _: None)
            console.note(plans.end_text())
    console.confirm(plans.question())
    return plans


def confirm_plan(
    plan: DeploymentPlan, client: GoogleClient, console: Console, *, yes: bool
) -> None:
    """Print one region's plan, and ask to confirm it unless `yes`.

    Raises AccessError where permissions are missing, QuotaError where the quota is too low.
    """
    console.note(plan.text())
    _check_plan(plan, client, console)
    if not yes:
        console.confirm(plan.question())


def _check_plan(plan: DeploymentPlan, client: GoogleClient, console: Console) -> None:
    """Print what to know of a plan. Raises AccessError and QuotaError for what is lacking."""
    if warning := containers.serving_warning(plan.labels.serving):
        console.warn(warning)
    if missing := plan.permissions.blocking:
        raise AccessError(
            f"These permissions are missing in {client.location.project}: {', '.join(missing)}.",
            hint="docs/remote.md names a role for each step.",
        )
    plan.quota.check(client.location.project)


def _offer_end(
    spec: DeploymentSpec, plans: RegionPlans, account: str | None, console: Console
) -> DeploymentSpec:
    """Offer what ends the deployment by itself: flex-start, else a Cloud Scheduler job."""
    first = plans.plans[0]
    if first.plan.provisioning.flex_start or spec.scheduler_account:
        return spec
    # What is deployed already keeps its machines.
    there = first.existing is not None and bool(first.existing.deployed())
    if not there and flex_start.offer_flex_start(spec, first.plan, console):
        return replace(spec, flex_start=True)
    found = cloud_scheduler.prompt_for_account(first.client, account, console)
    return replace(spec, scheduler_account=found) if found else spec
