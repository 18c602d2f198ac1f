"""The plan of `t2i remote deploy --dry-run`, with an account or without."""

from contextlib import ExitStack

from t2i_cli.errors import InputError
from t2i_cli.net.unreachable import ACCOUNT_OR_NETWORK_ERRORS
from t2i_cli.settings.options import DeploymentSpec, LocationOptions
from t2i_cli.vertex import cloud_session, location, region_fallback
from t2i_cli.vertex.deployment_planning import plan_without_account
from t2i_cli.vertex.operations import ReportProgress
from t2i_cli.vertex.plan import DeploymentPlan
from t2i_cli.vertex.region_fallback import RegionPlans


def plan_dry_run(
    spec: DeploymentSpec, options: LocationOptions, report: ReportProgress
) -> DeploymentPlan | RegionPlans:
    """The plan; without credentials or network, as far as it can be told. Raises T2IError."""
    with ExitStack() as stack:
        try:
            session = stack.enter_context(cloud_session.connect_to_deploy(spec, options))
        except ACCOUNT_OR_NETWORK_ERRORS as error:
            return _plan_without_account(spec, options, error.message)
        return region_fallback.plan_regions(spec, session.clients, session.account, report)


def _plan_without_account(
    spec: DeploymentSpec, options: LocationOptions, why: str
) -> DeploymentPlan:
    """The plan of the first region that can have it. Raises that of the first if none can."""
    failures: list[InputError] = []
    for place in location.locations_without_account(options):
        try:
            return plan_without_account(spec, place, why)
        except InputError as error:
            failures.append(error)
    raise failures[0]
