"""The plan of `t2i remote deploy --dry-run`, with an account or without."""

from contextlib import ExitStack

from t2i_cli.errors import AccessError
from t2i_cli.settings.options import DeploymentSpec, LocationOptions
from t2i_cli.vertex import lifecycle, location
from t2i_cli.vertex.plan import DeploymentPlan, plan_deployment, plan_without_account


def preview_plan(spec: DeploymentSpec, options: LocationOptions) -> DeploymentPlan:
    """The plan; without usable credentials, as far as it can be told. Raises T2IError."""
    with ExitStack() as stack:
        try:
            session = stack.enter_context(lifecycle.connect_to_deploy(spec, options))
        except AccessError as error:
            where = location.location_without_account(options)
            return plan_without_account(spec, where, error.message)
        return plan_deployment(spec, session.client, session.account)
