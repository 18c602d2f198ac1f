"""Deploys a model as planned; every step reuses what an earlier run created."""

from typing import Any

from t2i_cli.errors import InputError, T2IError
from t2i_cli.vertex import (
    cloud_scheduler,
    concurrent_deployments,
    containers,
    cuda_builds,
    inventory,
    machine_types,
    operations,
    provisioning,
    resource_bodies,
    stored_deployment,
    weights_bucket,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.inventory import Deployment
from t2i_cli.vertex.labels import decode_label, format_time
from t2i_cli.vertex.operations import OperationRunner
from t2i_cli.vertex.plan import DeploymentPlan
from t2i_cli.vertex.resource_bodies import ApiVersion
from t2i_cli.vertex.stored_deployment import StoredDeployment
from t2i_cli.vertex.weights_bucket import OnBytes

INFERENCE_SECONDS = 600
"""Time limit of one call to a dedicated endpoint; on a shared endpoint it is 60 seconds."""


def run_deployment(
    plan: DeploymentPlan, existing: Deployment | None, runner: OperationRunner, on_bytes: OnBytes
) -> EndpointRecord:
    """Create the resources of the plan that `existing` lacks; `on_bytes` gets upload progress.

    Raises T2IError and then leaves what it has created, but for ConcurrentDeploymentError.
    """
    if plan.source.needs_upload:
        _ensure_weights(plan, runner, on_bytes)
    model = _ensure_model(plan, runner, existing)
    endpoint = _ensure_endpoint(plan, runner, existing)
    if not (existing and existing.endpoints):
        concurrent_deployments.check_no_other_endpoint(plan, runner, endpoint)
    deployed = _ensure_deployed(plan, runner, endpoint, model, existing.jobs if existing else [])
    return EndpointRecord(
        # With the project id that the user gave; Google's response has the project number.
        name=runner.client.location.endpoint(endpoint["name"].split("/")[-1]),
        dns=endpoint.get("dedicatedEndpointDns", ""),
        serving=plan.labels.serving,
        model=plan.labels.model,
        deployed_model=deployed["id"],
        replicas=plan.max_replicas,
        machine=plan.hardware.spec(),
        expires=plan.labels.expires,
        spot=plan.provisioning.spot,
    )


def find_existing(plan: DeploymentPlan, client: GoogleClient) -> Deployment | None:
    """The deployment with the plan's name. Raises InputError if it differs from the plan."""
    existing = inventory.list_deployments(client, plan.bucket).deployments.get(plan.labels.name)
    if existing is None:
        return None
    wanted = plan.labels.encoded()
    for label, what in (
        ("t2i-by", "was made by"),
        ("t2i-model", "serves"),
        ("t2i-serving", "is served by"),
    ):
        here = existing.raw_labels.get(label, "")
        if here != wanted[label]:
            raise InputError(
                f"There is a deployment {existing.name} already, and it {what} "
                f"{decode_label(here) or 'unknown'}, not {decode_label(wanted[label])}.",
                hint="--name gives yours another name; "
                f"`t2i remote down {existing.name}` removes it.",
            )
    for model in existing.models:
        container = model.get("containerSpec", {})
        if plan.image:
            _require_same(plan, "image", container.get("imageUri"), plan.image)
        weights = {plan.artifacts} if plan.artifacts else set()
        _require_same(plan, "weights", inventory.weight_addresses(model), weights)
    for deployed in existing.deployed():
        _require_same_resources(plan, deployed, existing.labels.google_end is not None)
    return existing


def _require_same_resources(
    plan: DeploymentPlan, deployed: dict[str, Any], flex_start: bool
) -> None:
    """Raise InputError if a DeployedModel's resources differ from the plan.

    `flex_start` is what is known besides, as in `provisioning_from_api`.
    """
    resources = deployed.get("dedicatedResources", {})
    low = int(resources.get("minReplicaCount") or 0)
    high = int(resources.get("maxReplicaCount") or max(low, 1))
    wanted = 0 if plan.idle else plan.min_replicas
    hardware = machine_types.hardware_from_api(resources)
    _require_same(plan, "machine", hardware.text(), plan.hardware.text())
    had = provisioning.provisioning_from_api(resources, flex_start=flex_start)
    _require_same(plan, "way to get machines", had.name, plan.provisioning.name)
    _require_same(
        plan, "number of replicas", f"{low} to {high}", f"{wanted} to {plan.max_replicas}"
    )
    # The answer to an update is v1's, without fields of v1beta1.
    if idle := resources.get("scaleToZeroSpec", {}).get("idleScaledownPeriod"):
        _require_same(plan, "idle time", idle, f"{plan.idle}s")
    _require_same(plan, "service account", deployed.get("serviceAccount"), plan.service_account)


def _require_same(plan: DeploymentPlan, what: str, here: object, wanted: object) -> None:
    """Raise InputError if the existing value `here` is not the planned one."""
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


def _ensure_weights(plan: DeploymentPlan, runner: OperationRunner, on_bytes: OnBytes) -> None:
    """Create the bucket if needed, and upload the weights. Raises T2IError."""
    client, bucket = runner.client, str(plan.bucket)
    if weights_bucket.bucket_labels(client, bucket) is None:
        weights_bucket.make_bucket(client, bucket, plan.labels.encoded())
        runner.report(f"bucket gs://{bucket}: made")
    elif bucket == weights_bucket.default_bucket(client.location):
        weights_bucket.check_owner(client, bucket)
    # Before the weights, so that a partial upload can be found and removed.
    weights_bucket.write_marker(client, bucket, plan.labels)
    # Only t2i's server finds weights by fp16 variant names.
    half = plan.labels.serving == "t2i" and plan.hardware.count > 0
    folder = containers.local_weights(plan.source, dtype="float16" if half else "float32")
    prefix = weights_bucket.weights_prefix(plan.labels.name)
    weights_bucket.upload_folder(client, folder, bucket, prefix, on_bytes)
    runner.report(f"weights gs://{bucket}/{prefix}: there")


def _ensure_model(
    plan: DeploymentPlan, runner: OperationRunner, existing: Deployment | None
) -> str:
    """Create the Model resource if needed; its full resource name."""
    if existing and existing.models:
        runner.report(f"model {plan.title}: there already")
        return str(existing.models[0]["name"])
    resource = containers.model_resource(
        plan.labels.serving,
        plan.source,
        plan.image,
        plan.artifacts,
        gpu=plan.hardware.count > 0,
    )
    body = {"displayName": plan.title, "labels": plan.labels.encoded()} | resource
    path = f"{runner.client.location.parent}/models:upload"
    response = runner.run_operation(path, resource_bodies.upload_body(body), f"model {plan.title}")
    runner.report(f"model {plan.title}: made")
    return str(response["model"])


def _ensure_endpoint(
    plan: DeploymentPlan, runner: OperationRunner, existing: Deployment | None
) -> dict[str, Any]:
    """Create the Endpoint resource, or update its labels; the resource."""
    labels = plan.labels.encoded()
    if existing and existing.endpoints:
        name = existing.endpoints[0]["name"]
        runner.report(
            f"endpoint {plan.title}: there already; "
            f"its TTL ends {format_time(plan.labels.expires)} now"
        )
        body = resource_bodies.endpoint_body({"labels": labels})
        return runner.client.call(
            "PATCH", "aiplatform", name, json=body, params={"updateMask": "labels"}
        )
    body = resource_bodies.endpoint_body(
        {
            "displayName": plan.title,
            "labels": labels,
            "dedicatedEndpointEnabled": True,
            "clientConnectionConfig": {"inferenceTimeout": f"{INFERENCE_SECONDS}s"},
        }
    )
    response = runner.run_operation(
        f"{runner.client.location.parent}/endpoints", body, f"endpoint {plan.title}"
    )
    runner.report(f"endpoint {plan.title}: made")
    return runner.client.call("GET", "aiplatform", response["name"])


def _ensure_deployed(
    plan: DeploymentPlan,
    runner: OperationRunner,
    endpoint: dict[str, Any],
    model: str,
    jobs: list[str],
) -> dict[str, Any]:
    """The DeployedModel: existing, in progress from an earlier run, or created now.

    `model` is the Model's resource name, `jobs` the scheduler jobs of earlier runs.
    Raises InputError if the TTL has ended or the existing one differs, or T2IError.
    """
    client, title = runner.client, f"deployment {plan.title}"
    if under_way := _pending_deployment(runner, endpoint["name"], title):
        runner.report(f"{title}: under way already")
        operations.wait_for_operation(
            client, under_way, title, runner.report, seconds=deployment_timeout(plan, client)
        )
        endpoint = client.call("GET", "aiplatform", f"{inventory.ENDPOINTS_API}{endpoint['name']}")
    models: list[dict[str, Any]] = endpoint.get("deployedModels", [])
    existing = [one for one in models if one["model"] == model]
    for deployed_model in existing:
        _require_same_resources(
            plan, deployed_model, not under_way and plan.provisioning.flex_start
        )
    if client.server_time() >= plan.labels.expires:
        raise InputError(
            f"The TTL of {plan.labels.name} ended before it was deployed.",
            hint="A longer --ttl leaves time for the upload and the deployment.",
        )
    number = existing[0]["id"] if existing else str(int(client.server_time()))
    replace_undeploy_job(plan, runner, endpoint["name"], number, jobs)
    if existing:
        runner.report(f"{title}: there already")
        return existing[0]
    return _deploy_model(plan, runner, endpoint["name"], model, number)


def _pending_deployment(
    runner: OperationRunner, endpoint: str, title: str
) -> dict[str, Any] | None:
    """An earlier run's deployment under way; None, and told, where operations cannot be listed."""
    try:
        return operations.pending_operation(runner.client, endpoint)
    except T2IError as error:
        # The permission may be missing, and a service need not have the list (501).
        runner.report(f"{title}: whether one is under way cannot be told: {error.message}")
        return None


def replace_undeploy_job(
    plan: DeploymentPlan, runner: OperationRunner, endpoint: str, number: str, jobs: list[str]
) -> None:
    """Create the undeploy job if the plan has one, else delete the `jobs` of earlier runs."""
    if plan.scheduler_account:
        cloud_scheduler.create_undeploy_job(plan, runner.client, endpoint, number)
        end = format_time(plan.labels.expires)
        runner.report(f"scheduler job {plan.title}: will undeploy at {end}")
        return
    for job in jobs:
        # It would undeploy at the end of the earlier run's TTL.
        runner.client.call("DELETE", "cloudscheduler", job)
        runner.report(f"scheduler job {plan.title}: removed")


def _dedicated_resources(plan: DeploymentPlan, seconds: float) -> tuple[ApiVersion, dict[str, Any]]:
    """Vertex AI's DedicatedResources, and the version of the API that has all of its fields.

    `seconds` are left until the TTL ends.
    """
    machine = plan.hardware.spec() | plan.provisioning.machine_fields()
    resources: dict[str, Any] = {
        "machineSpec": machine,
        "minReplicaCount": plan.min_replicas,
        "maxReplicaCount": plan.max_replicas,
    }
    if plan.idle:
        idle = f"{plan.idle}s"
        resources |= {
            "minReplicaCount": 0,
            "scaleToZeroSpec": {"minScaleupPeriod": idle, "idleScaledownPeriod": idle},
        }
    resources |= plan.provisioning.resource_fields(seconds)
    image = plan.image if plan.hardware.count else None
    # Scale to zero, flex-start and the least driver are in Preview, and only in v1beta1.
    preview = (
        plan.idle or plan.provisioning.needs_preview_api or cuda_builds.needs_newer_driver(image)
    )
    if image and preview:
        machine["minGpuDriverVersion"] = cuda_builds.least_driver(image)
    return "v1beta1" if preview else "v1", resources


def _deploy_model(
    plan: DeploymentPlan, runner: OperationRunner, endpoint: str, model: str, number: str
) -> dict[str, Any]:
    """Deploy a Model to an endpoint as DeployedModel `number`, and wait. Raises T2IError."""
    client, title = runner.client, f"deployment {plan.title}"
    version, resources = _dedicated_resources(plan, plan.labels.expires - client.server_time())
    body: dict[str, object] = {
        "id": number,
        "model": model,
        "displayName": plan.title,
        "dedicatedResources": resources,
    }
    if plan.service_account:
        body["serviceAccount"] = plan.service_account
    stored = StoredDeployment(
        deployed_model={name: value for name, value in body.items() if name != "id"},
        version=version,
        scheduler_account=plan.scheduler_account,
    )
    # Before the deployment, so that its price is known while it is under way.
    stored_deployment.store_deployment(client, endpoint, stored)
    queue = " once there is a machine" if plan.provisioning.flex_start else ""
    runner.report(f"{title}: starts; it takes 5 to 30 minutes{queue}")
    runner.note_deployment(endpoint, number)
    operation = concurrent_deployments.start_deployment(
        runner,
        endpoint,
        f"/{version}/{endpoint}:deployModel",
        resource_bodies.deployment_body(version, body),
        name=plan.labels.name,
    )
    response = operations.wait_for_operation(
        client, operation, title, runner.report, seconds=deployment_timeout(plan, client)
    )
    runner.report(f"{title}: ready")
    deployed: dict[str, Any] = response["deployedModel"]
    return deployed


def deployment_timeout(plan: DeploymentPlan, client: GoogleClient) -> float:
    """Seconds to wait for a deployment: by flex-start until the TTL, since it waits in a queue."""
    if not plan.provisioning.flex_start:
        return operations.DEPLOYMENT_TIMEOUT
    return max(operations.DEPLOYMENT_TIMEOUT, plan.labels.expires - client.server_time())
