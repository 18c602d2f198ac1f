"""Back to zero cost: remove a deployment, look whether it is gone, and say what is not."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from t2i_cli.errors import RemoteError, StorageError, T2IError
from t2i_cli.net.google_http import NotFoundError
from t2i_cli.net.retry import RetryPolicy, call_with_retry, retryable
from t2i_cli.vertex import endpoint_store, inventory, operations, weights_bucket
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.inventory import Deployment, Inventory
from t2i_cli.vertex.operations import ReportProgress

VERIFY_ATTEMPTS = 5
"""Of one step: what was just released can be held a little longer."""
_POLICY = RetryPolicy(retries=VERIFY_ATTEMPTS - 1, first_pause=0.7)


def remove_deployment(
    rest: GoogleClient,
    found: Deployment,
    say: ReportProgress,
    *,
    artifacts: bool,
    bucket: str | None = None,
) -> None:
    """Remove a deployment, with its weights in the bucket if `artifacts`, and verify that.

    Goes on past what fails; then raises the T2IError that names what is left.
    """
    failures: list[T2IError] = []

    steps: list[tuple[str, Callable[[], None]]] = [
        *(("endpoint", partial(_endpoint, rest, one["name"], say)) for one in found.endpoints),
        *(("scheduler job", partial(_job, rest, job)) for job in found.jobs),
        # A model names the bucket of its weights: they go first.
        *([("weights", partial(_files, rest, found))] if artifacts and found.files else []),
        *(("model", partial(_delete, rest, one["name"], say)) for one in found.models),
    ]
    for what, action in steps:
        try:
            _until_done(action)
            say(f"{what} {found.name}: removed")
        except T2IError as error:
            failures.append(error)
            say(f"{what} {found.name}: {error.message}")
    buckets = {bucket, *(where for where, _ in found.files)}
    verify_removed(rest, found.name, failures, artifacts=artifacts, buckets=buckets)
    for endpoint in found.endpoints:
        try:
            endpoint_store.forget_endpoint(endpoint["name"])
        except StorageError as error:
            say(error.message)


def verify_removed(
    rest: GoogleClient,
    name: str,
    failures: list[T2IError],
    *,
    artifacts: bool,
    buckets: Iterable[str | None],
) -> None:
    """Look whether a deployment is gone; raise the T2IError that names what is left."""
    after = inventory.list_deployments(rest, *buckets)
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


def empty_buckets(rest: GoogleClient, found: Inventory, say: ReportProgress) -> None:
    """Delete the buckets that t2i made, where nothing is in them any more."""
    for bucket in found.buckets:
        try:
            if not weights_bucket.list_blobs(rest, bucket, ""):
                weights_bucket.storage(rest).remove_bucket(bucket)
                say(f"bucket gs://{bucket}: removed")
        except T2IError as error:
            # An empty bucket costs nothing.
            say(f"bucket gs://{bucket}: {error.message}")


def _endpoint(rest: GoogleClient, name: str, say: ReportProgress) -> None:
    """End what is under way on an endpoint, undeploy all models, delete it."""
    operations.cancel_all(rest, name, "what is under way", say)
    endpoint = rest.call("GET", "aiplatform", name)
    traffic = endpoint.get("trafficSplit", {})
    # Only the last model may go while it has all the traffic.
    models = sorted(endpoint.get("deployedModels", []), key=lambda one: traffic.get(one["id"], 0))
    for deployed in models:
        operation = rest.call(
            "POST", "aiplatform", f"{name}:undeployModel", json={"deployedModelId": deployed["id"]}
        )
        operations.wait_for_operation(rest, operation, "undeployment", say)
    _delete(rest, name, say)


def _delete(rest: GoogleClient, name: str, say: ReportProgress) -> None:
    operations.wait_for_operation(rest, rest.call("DELETE", "aiplatform", name), "deletion", say)


def _job(rest: GoogleClient, name: str) -> None:
    rest.call("DELETE", "cloudscheduler", name)


def _files(rest: GoogleClient, found: Deployment) -> None:
    """The weights first, and what tells whose they are at the end."""
    marker = weights_bucket.marker_name(found.name)
    for bucket, file in sorted(found.files, key=lambda entry: entry[1].name == marker):
        try:
            weights_bucket.storage(rest).delete(bucket, file.name)
        except NotFoundError:
            continue


def _until_done(action: Callable[[], None]) -> None:
    """Do it, again where a refusal may be of the moment; what is not there is done."""

    def attempt(_left: float) -> None:
        with suppress(NotFoundError), retryable():
            action()

    call_with_retry(attempt, _POLICY)
