"""Removes deployments, verifies that they are gone, and says what is left or was not seen."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from t2i_cli.errors import QuotaError, RemoteError, StorageError, T2IError, TimedOutError
from t2i_cli.net.google_http import (
    ConflictError,
    NotFoundError,
    PreconditionError,
    UnimplementedError,
)
from t2i_cli.net.retry import RetryableError, RetryPolicy, call_with_retry, retryable
from t2i_cli.terminal.console import Console
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
) -> list[str]:
    """Remove a deployment, with its weights if `artifacts`, and verify the removal.

    Continues after a failed step; at the end raises a T2IError naming what is left. Returns a
    sentence for each thing that could not be looked at.
    """
    failures: list[T2IError] = []

    steps: list[tuple[str, Callable[[], None]]] = [
        *(("endpoint", partial(_remove_endpoint, client, one, report)) for one in found.endpoints),
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
    unseen = verify_removed(client, found, failures, artifacts=artifacts, buckets=buckets)
    if artifacts:
        for text in found.retention_text():
            report(text)
    for endpoint in found.endpoints:
        try:
            endpoint_store.forget_endpoint(endpoint["name"])
        except StorageError as error:
            report(error.message)
    return unseen


def remove_deployments(
    client: GoogleClient,
    found: Inventory,
    chosen: Sequence[Deployment],
    console: Console,
    *,
    artifacts: bool,
    bucket: str | None,
    all_: bool,
) -> None:
    """Remove the `chosen` ones of `found`; after all of them, raises the first T2IError.

    With `all_`, all that there are were meant: then that the endpoints could not be listed is an
    error, too.
    """
    failures: list[T2IError] = []
    unlisted = found.unlisted_text()
    for one in chosen:
        try:
            unlisted += remove_deployment(
                client, one, console.note, artifacts=artifacts, bucket=bucket
            )
        except T2IError as error:
            failures.append(error)
            if len(chosen) > 1:
                console.warn(error.message)
    if artifacts:
        empty_buckets(client, found, console.note)
        for sentence in found.unseen:
            console.warn(f"Weights may still be there: {sentence}")
    else:
        for weights in (text for one in chosen for text in one.weights_text()):
            console.note(f"Its weights stay: {weights}; with --bucket they go as well.")
    for sentence in dict.fromkeys(unlisted):
        console.warn(f"Something may be left: {sentence}")
    if failures:
        raise failures[0]
    if all_ and (reason := found.unlisted.get("endpoints")):
        raise type(reason)(
            f"The endpoints could not be listed, and some may still be paid for: {reason.message}",
            hint=reason.hint,
        ) from reason


def remove_other_endpoint(
    client: GoogleClient, endpoint: dict[str, Any], report: ReportProgress
) -> None:
    """Remove an endpoint that t2i did not create, as it was listed; its models stay.

    Raises T2IError if it is still there.
    """
    name = endpoint["name"]
    _run_with_retry(partial(_remove_endpoint, client, endpoint, report))
    try:
        left = client.call("GET", "aiplatform", name)
    except NotFoundError:
        pass
    except T2IError as error:
        report(f"Whether {name} is gone cannot be looked at: {error.message}")
    else:
        paid = " and paid for" if left.get("deployedModels") else ""
        raise RemoteError(
            f"The endpoint {name} is still there{paid}.",
            hint=f"`t2i remote down {name} --yes` tries again.",
        )
    endpoint_store.forget_endpoint(name)


def verify_removed(
    client: GoogleClient,
    removed: Deployment,
    failures: list[T2IError],
    *,
    artifacts: bool,
    buckets: Iterable[str | None],
) -> list[str]:
    """Check that a deployment is gone; raise a T2IError naming what is left.

    `failures` are the errors of the removal: the first one gives the error's type and reason.
    Returns a sentence for each thing that could not be looked at.
    """
    name = removed.name
    endpoints = [endpoint["name"] for endpoint in removed.endpoints]
    after = inventory.list_deployments(client, *buckets, partial=True, known=endpoints)
    left = after.deployments.get(name)
    if left and not artifacts:
        left.files = []
    parts = left.parts_text() if left else []
    unseen = after.unlisted_text()
    if parts or (failures and unseen):
        kind = type(failures[0]) if failures else RemoteError
        reason = f" {failures[0].message}" if failures else ""
        there = f"Of {name} there is still: {'; '.join(parts)}."
        raise kind(
            f"{there if parts else f'Of {name} something may be left.'}{reason}",
            hint=f"`t2i remote down {name}` tries again.",
        )
    return unseen


def raise_if_temporary(existing: Inventory, name: str) -> None:
    """Raise the error of a list of `existing` that another try may give."""
    for what, error in existing.unlisted.items():
        passes = isinstance(error, RemoteError | TimedOutError | QuotaError)
        if passes and not isinstance(error, UnimplementedError):
            raise type(error)(
                f"Whether anything of {name} is left cannot be told: "
                f"{what} cannot be looked at: {error.message}",
                hint=f"`t2i remote down {name} --bucket` removes it; "
                "until then it may be paid for.",
            ) from error


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


def _remove_endpoint(client: GoogleClient, known: dict[str, Any], report: ReportProgress) -> None:
    """Cancel running operations on an endpoint, undeploy its models, delete it.

    `known` is the Endpoint as it was listed, for the case that it cannot be read again.
    """
    told: set[str] = set()

    def report_once(sentence: str) -> None:
        if sentence not in told:
            told.add(sentence)
            report(sentence)

    seen = operations.cancel_all(client, known["name"], "what is under way", report_once)

    def attempt(_left: float) -> None:
        nonlocal seen
        try:
            seen = _undeploy_all(client, known, report_once) and seen
            _delete(client, known["name"], report_once)
        except (ConflictError, PreconditionError) as error:
            if seen:
                raise
            # Something that is not seen is under way, and an endpoint cannot be deleted meanwhile.
            report_once(f"{error.message} The removal waits for the end of that.")
            raise RetryableError(error, cold_start=True) from error

    patience = RetryPolicy(
        retries=0, timeout=operations.DEPLOYMENT_TIMEOUT, first_pause=1.0, longest_pause=10.0
    )
    call_with_retry(attempt, patience)


def _undeploy_all(client: GoogleClient, known: dict[str, Any], report: ReportProgress) -> bool:
    """Undeploy an endpoint's models; whether each undeployment was seen to end."""
    name = known["name"]
    try:
        endpoint = client.call("GET", "aiplatform", name)
    except NotFoundError:
        return True
    except T2IError as error:
        report(f"endpoint {name}: cannot be looked at: {error.message} The removal goes on.")
        endpoint = known
    return undeploy_models(client, endpoint, report)


def undeploy_models(
    client: GoogleClient, endpoint: Mapping[str, Any], report: ReportProgress
) -> bool:
    """Undeploy every model of an Endpoint resource, which ends its cost. Raises T2IError.

    Returns whether the end of each undeployment was seen.
    """
    name, seen = endpoint["name"], True
    traffic = endpoint.get("trafficSplit", {})
    models = sorted(endpoint.get("deployedModels", []), key=lambda one: traffic.get(one["id"], 0))
    for deployed in models:
        body: dict[str, Any] = {"deployedModelId": deployed["id"]}
        if traffic.get(deployed["id"]) and deployed is not models[-1]:
            # A model with traffic can be undeployed only as the last one.
            body["trafficSplit"] = {models[-1]["id"]: 100}
        # It may be undeployed already.
        with suppress(NotFoundError):
            operation = client.call("POST", "aiplatform", f"{name}:undeployModel", json=body)
            if not operations.wait_for_removal(client, operation, "undeployment", report):
                seen = False
    return seen


def _delete(client: GoogleClient, name: str, report: ReportProgress) -> None:
    operations.wait_for_removal(
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
