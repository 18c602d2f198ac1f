"""Flex-start of Vertex AI: offered where Google has it, and kept when deploying again."""

from dataclasses import replace

from t2i_cli.durations import format_duration
from t2i_cli.errors import InputError
from t2i_cli.settings.options import DeploymentSpec
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import provisioning
from t2i_cli.vertex.inventory import Deployment
from t2i_cli.vertex.plan import DeploymentPlan
from t2i_cli.vertex.provisioning import Provisioning

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


def resumption_ends(
    found: Deployment, had: Provisioning, ttl: int, now: int
) -> tuple[int, int | None]:
    """When a resumed deployment's TTL ends, and when Google undeploys it, in unix seconds.

    `had` is how its machines are had; Google's end of what is deployed cannot be moved. Raises
    InputError for a `ttl` in seconds that flex-start does not have.
    """
    if not had.flex_start:
        return now + ttl, None
    if not found.deployed():
        if ttl > provisioning.FLEX_START_LIMIT:
            limit = format_duration(provisioning.FLEX_START_LIMIT)
            raise InputError(
                f"{found.name} was deployed by flex-start, which ends after {limit} at most, and "
                f"--ttl is {format_duration(ttl)}.",
                hint=f"--ttl {limit}, or shorter.",
            )
        return now + ttl, now + ttl
    end = found.labels.google_end or now + ttl
    if end <= now:
        raise InputError(
            f"The time of {found.name} by flex-start is over, and Google undeploys it.",
            hint="Once it is undeployed, the same command deploys it again.",
        )
    return min(now + ttl, end), end
