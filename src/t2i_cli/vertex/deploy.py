"""From a plan to an endpoint that answers; every step finds what an earlier run made."""

from typing import Any

from t2i_cli.errors import InputError
from t2i_cli.vertex import (
    cloud_scheduler,
    containers,
    inventory,
    machine_types,
    operations,
    weights_bucket,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.inventory import Deployment
from t2i_cli.vertex.labels import decode_label, format_time
from t2i_cli.vertex.operations import OperationRunner
from t2i_cli.vertex.plan import DeploymentPlan
from t2i_cli.vertex.weights_bucket import OnBytes

INFERENCE_SECONDS = 600
"""How long a dedicated endpoint lets one call take; a shared one cuts it at 60."""


def run_deployment(
    plan: DeploymentPlan, there: Deployment | None, work: OperationRunner, on_bytes: OnBytes
) -> EndpointRecord:
    """Make what is missing of the plan, `there` being what exists already.

    Raises T2IError; what was made until then stays.
    """
    if plan.source.needs_upload:
        _weights(plan, work, on_bytes)
    model = _model(plan, work, there)
    endpoint = _endpoint(plan, work, there)
    deployed = _deployed(plan, work, endpoint, model, there.jobs if there else [])
    return EndpointRecord(
        # With the project as the user names it; Google's own answer has its number.
        name=work.rest.place.endpoint(endpoint["name"].split("/")[-1]),
        dns=endpoint.get("dedicatedEndpointDns", ""),
        serving=plan.labels.serving,
        model=plan.labels.model,
        deployed_model=deployed["id"],
        replicas=plan.max_replicas,
        machine=plan.hardware.spec(),
        expires=plan.labels.expires,
    )


def find_existing(plan: DeploymentPlan, rest: GoogleClient) -> Deployment | None:
    """What there is under the plan's name. Raises InputError if that is something else."""
    there = inventory.list_deployments(rest, plan.bucket).deployments.get(plan.labels.name)
    if there is None:
        return None
    wanted = plan.labels.encoded()
    for label, what in (
        ("t2i-by", "was made by"),
        ("t2i-model", "serves"),
        ("t2i-serving", "is served by"),
    ):
        here = there.written.get(label, "")
        if here != wanted[label]:
            raise InputError(
                f"There is a deployment {there.name} already, and it {what} {decode_label(here)}, "
                f"not {decode_label(wanted[label])}.",
                hint=f"--name gives yours another name; `t2i remote down {there.name}` removes it.",
            )
    for model in there.models:
        container = model.get("containerSpec", {})
        if plan.image:
            _same(plan, "image", container.get("imageUri"), plan.image)
        weights = {plan.artifacts} if plan.artifacts else set()
        _same(plan, "weights", inventory.weight_addresses(model), weights)
    for deployed in there.deployed():
        _same_resources(plan, deployed)
    return there


def _same_resources(plan: DeploymentPlan, deployed: dict[str, Any]) -> None:
    """Raise InputError if a deployed model runs otherwise than planned."""
    resources = deployed.get("dedicatedResources", {})
    low = int(resources.get("minReplicaCount") or 0)
    high = int(resources.get("maxReplicaCount") or max(low, 1))
    wanted = 0 if plan.idle else plan.min_replicas
    _same(plan, "machine", machine_types.hardware_from_api(resources).text(), plan.hardware.text())
    _same(plan, "number of replicas", f"{low} to {high}", f"{wanted} to {plan.max_replicas}")
    # The stable interface may keep to itself what only the preview knows.
    if idle := resources.get("scaleToZeroSpec", {}).get("idleScaledownPeriod"):
        _same(plan, "idle time", idle, f"{plan.idle}s")
    _same(plan, "service account", deployed.get("serviceAccount"), plan.service_account)


def _same(plan: DeploymentPlan, what: str, here: object, wanted: object) -> None:
    if (here or None) == (wanted or None):
        return
    here, wanted = (
        ", ".join(sorted(value)) if isinstance(value, set) else value for value in (here, wanted)
    )
    raise InputError(
        f"{plan.labels.name} is there already with another {what}: {here or 'none'}, not "
        f"{wanted or 'none'}.",
        hint=f"`t2i remote down {plan.labels.name}` first, or give yours another --name.",
    )


def _weights(plan: DeploymentPlan, work: OperationRunner, on_bytes: OnBytes) -> None:
    rest, bucket = work.rest, str(plan.bucket)
    if weights_bucket.bucket_labels(rest, bucket) is None:
        weights_bucket.make_bucket(rest, bucket, plan.labels.encoded())
        work.say(f"bucket gs://{bucket}: made")
    elif bucket == weights_bucket.default_bucket(rest.place):
        weights_bucket.check_owner(rest, bucket)
    # Before the weights, so that whatever arrives can be found and removed.
    weights_bucket.write_marker(rest, bucket, plan.labels)
    # Only t2i's own server looks for weights by the names that fp16 ones have.
    half = plan.labels.serving == "t2i" and plan.hardware.count > 0
    folder = containers.local_weights(plan.source, half=half)
    prefix = weights_bucket.weights_prefix(plan.labels.name)
    weights_bucket.upload_folder(rest, folder, bucket, prefix, on_bytes)
    work.say(f"weights gs://{bucket}/{prefix}: there")


def _model(plan: DeploymentPlan, work: OperationRunner, there: Deployment | None) -> str:
    """The full name of the Model resource."""
    if there and there.models:
        work.say(f"model {plan.title}: there already")
        return str(there.models[0]["name"])
    resource = containers.model_resource(
        plan.labels.serving,
        plan.source,
        plan.image,
        plan.artifacts,
        gpu=plan.hardware.count > 0,
    )
    body = {"displayName": plan.title, "labels": plan.labels.encoded()} | resource
    path = f"{work.rest.place.parent}/models:upload"
    response = work.run_operation(path, {"model": body}, f"model {plan.title}")
    work.say(f"model {plan.title}: made")
    return str(response["model"])


def _endpoint(
    plan: DeploymentPlan, work: OperationRunner, there: Deployment | None
) -> dict[str, Any]:
    """The Endpoint resource, with the plan's labels."""
    labels = plan.labels.encoded()
    if there and there.endpoints:
        name = there.endpoints[0]["name"]
        work.say(
            f"endpoint {plan.title}: there already; "
            f"its TTL ends {format_time(plan.labels.expires)} now"
        )
        return work.rest.call(
            "PATCH", "aiplatform", name, json={"labels": labels}, params={"updateMask": "labels"}
        )
    body = {
        "displayName": plan.title,
        "labels": labels,
        "dedicatedEndpointEnabled": True,
        "clientConnectionConfig": {"inferenceTimeout": f"{INFERENCE_SECONDS}s"},
    }
    response = work.run_operation(
        f"{work.rest.place.parent}/endpoints", body, f"endpoint {plan.title}"
    )
    work.say(f"endpoint {plan.title}: made")
    return work.rest.call("GET", "aiplatform", response["name"])


def _deployed(
    plan: DeploymentPlan,
    work: OperationRunner,
    endpoint: dict[str, Any],
    model: str,
    jobs: list[str],
) -> dict[str, Any]:
    """The DeployedModel, whether it was there, on its way, or is made now.

    `jobs` are those of the scheduler that an earlier run made.
    """
    rest, title = work.rest, f"deployment {plan.title}"
    if under_way := operations.pending_operation(rest, endpoint["name"]):
        work.say(f"{title}: under way already")
        operations.wait_for_operation(
            rest, under_way, title, work.say, seconds=operations.DEPLOYMENT
        )
        endpoint = rest.call("GET", "aiplatform", endpoint["name"])
    models: list[dict[str, Any]] = endpoint.get("deployedModels", [])
    there = [one for one in models if one["model"] == model]
    for one in there:
        _same_resources(plan, one)
    if rest.server_time() >= plan.labels.expires:
        raise InputError(
            f"The TTL of {plan.labels.name} ended before it was deployed.",
            hint="A longer --ttl leaves time for the upload and the deployment.",
        )
    number = there[0]["id"] if there else str(int(rest.server_time()))
    if plan.scheduler_account:
        cloud_scheduler.create_undeploy_job(plan, rest, endpoint["name"], number)
        work.say(f"scheduler job {plan.title}: will undeploy at {format_time(plan.labels.expires)}")
    else:
        for job in jobs:
            # It would undeploy at the time of the earlier run.
            rest.call("DELETE", "cloudscheduler", job)
            work.say(f"scheduler job {plan.title}: removed")
    if there:
        work.say(f"{title}: there already")
        return there[0]
    resources: dict[str, object] = {
        "machineSpec": plan.hardware.spec(),
        "minReplicaCount": plan.min_replicas,
        "maxReplicaCount": plan.max_replicas,
    }
    if plan.idle:
        idle = f"{plan.idle}s"
        resources |= {
            "minReplicaCount": 0,
            "scaleToZeroSpec": {"minScaleupPeriod": idle, "idleScaledownPeriod": idle},
        }
    body: dict[str, object] = {
        "id": number,
        "model": model,
        "displayName": plan.title,
        "dedicatedResources": resources,
    }
    if plan.service_account:
        body["serviceAccount"] = plan.service_account
    # Scaling to zero is in Preview, and known to v1beta1 only.
    version = "v1beta1" if plan.idle else "v1"
    work.say(f"{title}: starts; it takes 5 to 30 minutes")
    operation = rest.call(
        "POST",
        "aiplatform",
        f"/{version}/{endpoint['name']}:deployModel",
        json={"deployedModel": body, "trafficSplit": {"0": 100}},
    )
    response = operations.wait_for_operation(
        rest, operation, title, work.say, seconds=operations.DEPLOYMENT
    )
    work.say(f"{title}: ready")
    deployed: dict[str, Any] = response["deployedModel"]
    return deployed
