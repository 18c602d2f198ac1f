"""Two runs that deploy under one name at once: one of them stops, and neither pays twice.

Vertex AI does not keep names of endpoints unique. So each run makes its own, and then looks whether
there is another: of two runs the one that looks last sees both.
"""

from contextlib import suppress
from typing import Any

from t2i_cli.errors import InputError, T2IError
from t2i_cli.net.google_http import NotFoundError
from t2i_cli.vertex import inventory, operations
from t2i_cli.vertex.operations import OperationRunner
from t2i_cli.vertex.plan import DeploymentPlan


class ConcurrentDeploymentError(InputError):
    """Another run deploys under the same name; what this one made is not to be removed by name."""


def check_no_other_endpoint(
    plan: DeploymentPlan, runner: OperationRunner, made: dict[str, Any]
) -> None:
    """Raise ConcurrentDeploymentError if another run has made an endpoint of the plan's name.

    Of two runs that see each other the one with the later endpoint stops, and so does whoever sees
    that the other's is being deployed already. The endpoint of the one that stops is deleted.
    """
    found = inventory.list_endpoints(runner.client).deployments.get(plan.labels.name)
    own = made["name"].split("/")[-1]
    others = [one for one in found.endpoints if one["name"].split("/")[-1] != own] if found else []
    if not others:
        return
    first = min(others, key=_order)
    # A description is written just before the deployment.
    begun = any(one.get("deployedModels") or one.get("description") for one in others)
    if not begun and _order(made) < _order(first):
        runner.report(
            f"endpoint {plan.title}: another run has made {first['name']} by the same name just "
            "now; it is to stop, and this one goes on"
        )
        return
    left = _delete_endpoint(runner, made["name"])
    raise ConcurrentDeploymentError(
        f"Another run deploys {plan.labels.name} at the same time, as {first['name']}: "
        f"this one stops before it costs anything.{left}",
        hint=_hint(plan.labels.name),
    )


def start_deployment(
    runner: OperationRunner, endpoint: str, path: str, body: dict[str, Any], *, name: str
) -> dict[str, Any]:
    """Start the deployment by `body` to an endpoint; the operation.

    Raises ConcurrentDeploymentError, and cancels it, if another run's began on the endpoint before.
    `name` is the deployment's.
    """
    with operations.block_signals():
        started = runner.client.call("POST", "aiplatform", path, json=body)
    try:
        under_way = operations.pending_deployments(runner.client, endpoint)
    except T2IError:
        return started  # not every service has the list (501), nor every account the permission
    earlier = [
        one
        for one in under_way
        if one.get("name") != started.get("name")
        and _operation_order(one) < _operation_order(started)
    ]
    if not earlier:
        return started
    runner.report(f"deployment {name}: another run's is under way already; this one is cancelled")
    raise ConcurrentDeploymentError(
        f"Another run deploys {name} to the same endpoint: {_cancel(runner, started, name)}",
        hint=_hint(name),
    )


def _order(endpoint: dict[str, Any]) -> tuple[str, str]:
    """Which of two endpoints was made first; both runs see the same."""
    return str(endpoint.get("createTime", "")), endpoint["name"].split("/")[-1]


def _operation_order(operation: dict[str, Any]) -> tuple[str, str]:
    """Which of two operations was begun first; both runs see the same."""
    return operations.started_at(operation) or "", str(operation.get("name")).split("/")[-1]


def _delete_endpoint(runner: OperationRunner, name: str) -> str:
    """Delete an endpoint on which nothing is deployed; what is left of it, as a sentence."""
    try:
        with suppress(NotFoundError):
            operation = runner.client.call("DELETE", "aiplatform", name)
            operations.wait_for_removal(runner.client, operation, "deletion", runner.report)
    except T2IError as error:
        return f" Its own endpoint {name}, which costs nothing, is left: {error.message}"
    return ""


def _cancel(runner: OperationRunner, operation: dict[str, Any], name: str) -> str:
    """Cancel a deployment; what came of it, as the end of a sentence."""
    client = runner.client
    with suppress(T2IError):
        client.call("POST", "aiplatform", f"{operation['name']}:cancel", json={})
    title = f"deployment {name}"
    try:
        deployed = operations.wait_for_operation(
            client, operation, title, runner.report, seconds=operations.DEPLOYMENT_TIMEOUT
        )
    except operations.OperationCancelledError:
        return "this one's deployment is cancelled, and costs nothing."
    except T2IError as error:
        return f"this one's ended otherwise ({error.message}), `t2i remote status {name}` shows it."
    model = deployed.get("deployedModel", {})
    return (
        f"this one's, {model.get('id', 'deployed')}, could not be cancelled and is paid for, too, "
        f"until `t2i remote down {name}`."
    )


def _hint(name: str) -> str:
    return (
        f"`t2i remote status {name}` shows the other one; the same command, run again, waits for "
        "it and uses it. --name gives yours another name."
    )
