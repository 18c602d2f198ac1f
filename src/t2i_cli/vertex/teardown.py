"""Removes a deployment, verifies that it is gone, and reports what is left."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from t2i_cli.errors import RemoteError, StorageError, T2IError
from t2i_cli.net.google_http import NotFoundError
from t2i_cli.net.retry import RetryPolicy, call_with_retry, retryable
from t2i_cli.vertex import endpoint_store, inventory, operations, weights_bucket
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.inventory import Deployment, Inventory
from t2i_cli.vertex.operations import ReportProgress

VERIFY_ATTEMPTS = 5
"""Attempts of one step: a resource can be in use shortly after its last user is gone."""
_POLICY = RetryPolicy(retries=VERIFY_ATTEMPTS - 1, first_pause=0.7)


def remove_deployment(
    client: GoogleClient,
    found: Deployment,
    report: ReportProgress,
    *,
    artifacts: bool,
    bucket: str | None = None,
) -> None:
    """Remove a deployment, with its weights if `artifacts`, and verify the removal.

    Continues after a failed step; at the end raises a T2IError naming what is left.
    """
    failures: list[T2IError] = []

    steps: list[tuple[str, Callable[[], None]]] = [
        *(
            ("endpoint", partial(_remove_endpoint, client, one["name"], report))
            for one in found.endpoints
        ),
        *(("scheduler job", partial(_remove_job, client, job)) for job in found.jobs),
        # Weights before the model: it names the bucket they are found by.
        *(
            [("weights", partial(_remove_weights, client, found))]
            if artifacts and found.files
            else []
        ),
        *(("model", partial(_delete, client, one["name"], report)) for one in found.models),
    ]
    for what, action in steps:
        try:
            _run_with_retry(action)
            report(f"{what} {found.name}: removed")
        except T2IError as error:
            failures.append(error)
            report(f"{what} {found.name}: {error.message}")
    buckets = {bucket, *(where for where, _ in found.files)}
    verify_removed(client, found.name, failures, artifacts=artifacts, buckets=buckets)
    if artifacts:
        for text in found.retention_text():
            report(text)
    for endpoint in found.endpoints:
        try:
            endpoint_store.forget_endpoint(endpoint["name"])
        except StorageError as error:
            report(error.message)


def remove_other_endpoint(client: GoogleClient, name: str, report: ReportProgress) -> None:
    """Remove an endpoint that t2i did not create, by its full name; its models stay.

    Raises T2IError if it is still there.
    """
    _run_with_retry(partial(_remove_endpoint, client, name, report))
    with suppress(NotFoundError):
        left = client.call("GET", "aiplatform", name)
        paid = " and paid for" if left.get("deployedModels") else ""
        raise RemoteError(
            f"The endpoint {name} is still there{paid}.",
            hint=f"`t2i remote down {name} --yes` tries again.",
        )
    endpoint_store.forget_endpoint(name)


def verify_removed(
    client: GoogleClient,
    name: str,
    failures: list[T2IError],
    *,
    artifacts: bool,
    buckets: Iterable[str | None],
) -> None:
    """Check that a deployment is gone; raise a T2IError naming what is left.

    `failures` are the errors of the removal: the first one gives the error's type and reason.
    """
    after = inventory.list_deployments(client, *buckets)
    left = after.deployments.get(name)
    if left and not artifacts:
        left.files = []
    parts = left.parts_text() if left else []
    if parts:
        kind = type(failures[0]) if failures else RemoteError
        reason = f" {failures[0].message}" if failures else ""
        raise kind(
            f"Of {name} there is still: {'; '.join(parts)}.{reason}",
            hint=f"`t2i remote down {name}` tries again.",
        )


def empty_buckets(client: GoogleClient, found: Inventory, report: ReportProgress) -> None:
    """Delete the empty buckets among those that t2i created; failures are only reported."""
    for bucket in found.buckets:
        try:
            if not weights_bucket.list_blobs(client, bucket, ""):
                weights_bucket.storage(client).remove_bucket(bucket)
                report(f"bucket gs://{bucket}: removed")
        except T2IError as error:
            # An empty bucket costs nothing.
            report(f"bucket gs://{bucket}: {error.message}")


def _remove_endpoint(client: GoogleClient, name: str, report: ReportProgress) -> None:
    """Cancel running operations on an endpoint, undeploy its models, delete it."""
    operations.cancel_all(client, name, "what is under way", report)
    undeploy_models(client, client.call("GET", "aiplatform", name), report)
    _delete(client, name, report)


def undeploy_models(
    client: GoogleClient, endpoint: Mapping[str, Any], report: ReportProgress
) -> None:
    """Undeploy every model of an Endpoint resource, which ends its cost. Raises T2IError."""
    traffic = endpoint.get("trafficSplit", {})
    # A model with traffic can be undeployed only as the last one.
    models = sorted(endpoint.get("deployedModels", []), key=lambda one: traffic.get(one["id"], 0))
    for deployed in models:
        operation = client.call(
            "POST",
            "aiplatform",
            f"{endpoint['name']}:undeployModel",
            json={"deployedModelId": deployed["id"]},
        )
        operations.wait_for_operation(client, operation, "undeployment", report)


def _delete(client: GoogleClient, name: str, report: ReportProgress) -> None:
    operations.wait_for_operation(
        client, client.call("DELETE", "aiplatform", name), "deletion", report
    )


def _remove_job(client: GoogleClient, name: str) -> None:
    client.call("DELETE", "cloudscheduler", name)


def _remove_weights(client: GoogleClient, found: Deployment) -> None:
    """Delete the weights, then the marker object."""
    marker = weights_bucket.marker_name(found.name)
    for bucket, file in sorted(found.files, key=lambda entry: entry[1].name == marker):
        try:
            weights_bucket.storage(client).delete(bucket, file.name)
        except NotFoundError:
            continue


def _run_with_retry(action: Callable[[], None]) -> None:
    """Run a removal with retries on transient errors; NotFoundError counts as success."""

    def attempt(_left: float) -> None:
        with suppress(NotFoundError), retryable():
            action()

    call_with_retry(attempt, _POLICY)
