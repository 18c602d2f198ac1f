"""Flex-start of Vertex AI: offered where Google has it, and kept when deploying again."""

from dataclasses import replace

from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import provisioning
from t2i_cli.vertex.inventory import Deployment
from t2i_cli.vertex.plan import DeploymentPlan

QUESTION = (
    "Have Google itself undeploy it at the end of the TTL, by flex-start "
    "(Preview; a machine may be waited for)?"
)


def offer_flex_start(spec: DeploymentSpec, plan: DeploymentPlan, console: Console) -> bool:
    """Ask for flex-start where it is available and no option says how machines are had."""
    given = (spec.flex_start, spec.reservation, spec.scheduler_account)
    if spec.spot or any(value is not None for value in given):
        return False
    if provisioning.flex_start_obstacle(spec, plan.hardware, plan.ttl):
        return False
    return console.ask(QUESTION, default=True)


def keep_google_end(
    spec: DeploymentSpec, plan: DeploymentPlan, existing: Deployment | None, now: float
) -> DeploymentPlan:
    """The plan, by flex-start if what is there is and no option says otherwise.

    Google's end of what is deployed cannot be moved: the TTL ends with it at the latest. `now` is
    in unix seconds.
    """
    end = existing.labels.google_end if existing else None
    if existing is None or end is None or end <= now or spec.flex_start is False:
        return plan
    if plan.provisioning.name not in {provisioning.ON_DEMAND, provisioning.FLEX_START}:
        return plan
    if existing.deployed():
        expires = min(plan.labels.expires, end)
    elif provisioning.flex_start_obstacle(spec, plan.hardware, plan.ttl):
        return plan
    else:
        expires = end = plan.labels.expires  # an earlier run was interrupted
    had = replace(plan.provisioning, flex_start=True)
    return replace(
        plan,
        ttl=expires - round(now),
        labels=replace(plan.labels, expires=expires, google_end=end),
        provisioning=had,
        hourly=had.hourly_price(plan.hardware, plan.prices),
    )
