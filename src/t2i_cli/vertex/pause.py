"""Pauses a deployment, which ends its cost, and resumes it as it was.

The endpoint and its model stay; the configuration is stored in the endpoint's description.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from t2i_cli.durations import parse_duration
from t2i_cli.errors import InputError, RemoteError, T2IError, Terminated
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models.catalog import find_in_catalog
from t2i_cli.net.google_http import NotFoundError
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import (
    accelerator_quota,
    concurrent_deployments,
    deploy,
    endpoint_store,
    flex_start,
    inventory,
    machine_types,
    model_memory,
    operations,
    permissions,
    provisioning,
    removal,
    resource_bodies,
)
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.cloud_session import CloudSession
from t2i_cli.vertex.deployment_options import is_service_account
from t2i_cli.vertex.deployment_planning import check_cost
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.inventory import Deployment
from t2i_cli.vertex.labels import format_time
from t2i_cli.vertex.model_source import ModelSource
from t2i_cli.vertex.operations import OperationRunner, ReportProgress
from t2i_cli.vertex.plan import DeploymentPlan
from t2i_cli.vertex.stored_deployment import (
    StoredDeployment,
    store_deployment,
    stored_deployment,
    stored_from_api,
)

_PAUSED = {"t2i-paused": "yes"}


@dataclass(frozen=True, kw_only=True)
class ResumptionOptions:
    """A requested resumption; `ttl` is in seconds, `max_cost` in USD."""

    ttl: int
    max_cost: float | None
    scheduler_account: str | None


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """A paused deployment, its configuration, and the plan of its resumption."""

    found: Deployment
    stored: StoredDeployment
    plan: DeploymentPlan


def parse_ttl(text: str) -> int:
    """The seconds of --ttl. Raises InputError."""
    seconds = parse_duration(text)
    if not seconds:
        raise InputError(f"--ttl {text} is no duration; write it as 90m or 2h.")
    return seconds


def resumption_options(
    ttl: str, max_cost: float | None, scheduler_account: str | None
) -> ResumptionOptions:
    """The options of `t2i remote resume`, checked. Raises InputError."""
    if max_cost is not None and not 0 <= max_cost < math.inf:
        raise InputError("--max-cost must be USD, as 5 or 2.50.")
    if scheduler_account and not is_service_account(scheduler_account):
        raise InputError(
            f"{scheduler_account} is no service account: they end in .gserviceaccount.com."
        )
    return ResumptionOptions(
        ttl=parse_ttl(ttl), max_cost=max_cost, scheduler_account=scheduler_account
    )


def pause_deployment(
    client: GoogleClient, found: Deployment, report: ReportProgress, *, ttl: int | None = None
) -> None:
    """Store the configuration and undeploy; with `ttl`, the paused endpoint lives so long.

    Run again it goes on where it was. Raises T2IError where something is still paid for.
    """
    name = _endpoint(found)["name"]
    seen = operations.cancel_all(client, name, "what is under way", report)
    endpoint = client.call("GET", "aiplatform", name)
    stored = _configuration(client, found, endpoint)
    labels = dict(endpoint.get("labels", {})) | _PAUSED
    if ttl is not None:
        labels["t2i-expires"] = str(round(client.server_time()) + ttl)
    # Before the undeployment, so that what is stopped in between can be resumed.
    store_deployment(client, name, stored, labels)
    removal.undeploy_models(client, endpoint, report)
    if client.call("GET", "aiplatform", name).get("deployedModels"):
        raise RemoteError(
            f"{found.name} is still deployed, and paid for.",
            hint=f"`t2i remote pause {found.name}` tries again.",
        )
    if not seen and not endpoint.get("deployedModels"):
        raise RemoteError(
            f"Whether {found.name} is being deployed, and will be paid for, cannot be told.",
            hint=f"`t2i remote pause {found.name}` tries again; "
            f"`t2i remote down {found.name}` removes it, whatever is under way.",
        )
    for job in found.jobs:
        with suppress(NotFoundError):
            client.call("DELETE", "cloudscheduler", job)
            report(f"scheduler job {found.name}: removed")


def plan_resumption(
    found: Deployment, session: CloudSession, options: ResumptionOptions
) -> Resumption:
    """The plan to deploy again as it was; changes nothing. Raises T2IError."""
    client, endpoint = session.client, _endpoint(found)
    stored = stored_deployment(endpoint)
    if stored is None:
        raise InputError(
            f"How {found.name} was deployed is not stored in its endpoint.",
            hint=f"`t2i remote deploy --name {found.name}` with its options deploys it again.",
        )
    wanted = stored.deployed_model["model"].split("/")[-1].split("@")[0]
    model = next((one for one in found.models if one["name"].split("/")[-1] == wanted), None)
    if model is None:
        raise InputError(
            f"The model that {found.name} had is not there any more.",
            hint=f"`t2i remote down {found.name}`, then deploy it anew.",
        )
    resources = stored.deployed_model["dedicatedResources"]
    hardware, prices = machine_types.hardware_from_api(resources), machine_types.load_prices()
    had = provisioning.provisioning_from_api(resources)
    now = round(client.server_time())
    expires, google_end = flex_start.resumption_ends(found, had, options.ttl, now)
    fewest = int(resources.get("minReplicaCount") or 0)
    account = options.scheduler_account or stored.scheduler_account
    service_account = stored.deployed_model.get("serviceAccount")
    idle = resources.get("scaleToZeroSpec", {}).get("idleScaledownPeriod", "")
    steps = ["predict", "deploy", "remove"]
    steps += ["service account"] if service_account or account else []
    steps += ["scheduler"] if account else []
    spec = find_in_catalog(found.labels.model) or ModelSpec(name=found.labels.model)
    plan = DeploymentPlan(
        parent=client.location.parent,
        labels=replace(
            found.labels,
            expires=expires,
            google_end=google_end,
            paused=False,
        ),
        source=ModelSource(
            spec=spec,
            uri=next(iter(sorted(inventory.weight_addresses(model))), None),
        ),
        upload_bytes=0,
        bucket=None,
        image=model.get("containerSpec", {}).get("imageUri"),
        hardware=hardware,
        min_replicas=max(fewest, 1),
        max_replicas=int(resources.get("maxReplicaCount") or max(fewest, 1)),
        idle=None if fewest else parse_duration(idle),
        ttl=expires - now,
        hourly=had.hourly_price(hardware, prices),
        prices=prices,
        service_account=service_account,
        scheduler_account=account,
        permissions=permissions.check_permissions(client, steps),
        memory=model_memory.catalog_memory(spec),
        quota=accelerator_quota.ask_quota(
            client, hardware, max(fewest, 1), spot=had.spot or had.flex_start
        ),
        reader="",
        provisioning=had,
    )
    if options.max_cost is not None:
        check_cost(plan, options.max_cost)
    return Resumption(found=found, stored=stored, plan=plan)


def resume_deployment(
    resumption: Resumption, session: CloudSession, console: Console
) -> EndpointRecord:
    """Deploy again as planned, and store the endpoint as the one in use. Raises T2IError.

    Run again after a failure it goes on with the deployment that is under way.
    """
    plan, client = resumption.plan, session.client
    runner = OperationRunner(client, console.note)
    name = _endpoint(resumption.found)["name"]
    try:
        endpoint = _deploy_again(resumption, runner, name)
    except (T2IError, KeyboardInterrupt, Terminated):
        console.warn(
            f"{plan.labels.name} may be deployed, or be deployed soon, and then it is paid for: "
            f"the same command goes on, `t2i remote pause {plan.labels.name}` ends it."
        )
        raise
    found = endpoint_store.record_from_api(client.location.endpoint(name.split("/")[-1]), endpoint)
    endpoint_store.remember_endpoint(found, current=True)
    console.note(f"{found.name} is ready.")
    return found


def _deploy_again(resumption: Resumption, runner: OperationRunner, name: str) -> dict[str, Any]:
    """The Endpoint resource with a deployed model, whose TTL is the plan's. Raises T2IError."""
    plan, client, title = resumption.plan, runner.client, f"deployment {resumption.plan.title}"
    labels = dict(client.call("GET", "aiplatform", name).get("labels", {}))
    labels = {key: value for key, value in labels.items() if key not in _PAUSED}
    labels["t2i-expires"] = str(plan.labels.expires)
    if plan.labels.google_end is not None:
        labels["t2i-google-end"] = str(plan.labels.google_end)
    # First: whatever happens then, `reap` finds what is past its TTL.
    client.call(
        "PATCH", "aiplatform", name, json={"labels": labels}, params={"updateMask": "labels"}
    )
    runner.report(f"endpoint {plan.title}: its TTL ends {format_time(plan.labels.expires)} now")
    limit = deploy.deployment_timeout(plan, client)
    if under_way := operations.pending_deployment(client, name):
        runner.report(f"{title}: under way already")
        operations.wait_for_operation(client, under_way, title, runner.report, seconds=limit)
    existing = client.call("GET", "aiplatform", name).get("deployedModels", [])
    number = existing[0]["id"] if existing else str(int(client.server_time()))
    deploy.replace_undeploy_job(plan, runner, name, number, resumption.found.jobs)
    if existing:
        runner.report(f"{title}: there already")
    else:
        model = dict(resumption.stored.deployed_model) | {"id": number}
        # Google's own end is counted anew.
        left = plan.labels.expires - client.server_time()
        model["dedicatedResources"] = dict(
            model["dedicatedResources"]
        ) | plan.provisioning.resource_fields(left)
        body = resource_bodies.deployment_body(resumption.stored.version, model)
        runner.report(f"{title}: starts; it takes 5 to 30 minutes")
        path = f"/{resumption.stored.version}/{name}:deployModel"
        operation = concurrent_deployments.start_deployment(
            runner, name, path, body, name=plan.labels.name
        )
        operations.wait_for_operation(client, operation, title, runner.report, seconds=limit)
        runner.report(f"{title}: ready")
    return client.call("GET", "aiplatform", name)


def _endpoint(found: Deployment) -> dict[str, Any]:
    """The deployment's endpoint. Raises InputError if it has none, or several."""
    if not found.endpoints:
        raise InputError(
            f"{found.name} has no endpoint: only {'; '.join(found.parts_text())}.",
            hint="`t2i remote deploy` makes one.",
        )
    if len(found.endpoints) > 1:
        names = ", ".join(one["name"] for one in found.endpoints)
        raise InputError(
            f"{found.name} has several endpoints, as two runs at once make them: {names}.",
            hint=f"`t2i remote down {found.name}` removes them all.",
        )
    return found.endpoints[0]


def _configuration(
    client: GoogleClient, found: Deployment, endpoint: Mapping[str, Any]
) -> StoredDeployment:
    """How an endpoint is deployed, or was if it is paused. Raises InputError."""
    models = endpoint.get("deployedModels", [])
    stored = stored_deployment(endpoint)
    if not models:
        if stored is None:
            raise InputError(f"Nothing is deployed on {found.name}: there is nothing to pause.")
        return stored
    if len(models) > 1 or "dedicatedResources" not in models[0]:
        raise InputError(
            f"{found.name} has what t2i did not deploy, and could not deploy again: "
            f"{', '.join(one.get('displayName') or one['id'] for one in models)}.",
            hint=f"`t2i remote down {found.name}` removes all of it.",
        )
    shown, resources = models[0], models[0]["dedicatedResources"]
    if stored is None or not _same_deployment(stored.deployed_model, shown):
        # Only the v1beta1 API shows all of its fields.
        every = client.call("GET", "aiplatform", f"/v1beta1/{endpoint['name']}")["deployedModels"]
        stored = stored_from_api(next(one for one in every if one["id"] == shown["id"]))
    # The replicas may have been changed since, as in the Cloud console.
    counts = ("minReplicaCount", "maxReplicaCount")
    now = {name: resources[name] for name in counts if name in resources}
    model = dict(stored.deployed_model)
    model["dedicatedResources"] = dict(model["dedicatedResources"]) | now
    return replace(
        stored,
        deployed_model=model,
        scheduler_account=_job_account(client, found) or stored.scheduler_account,
    )


def _same_deployment(stored: Mapping[str, Any], shown: Mapping[str, Any]) -> bool:
    """Whether a stored DeployedModel is the one that the API shows."""
    here, there = stored["dedicatedResources"], shown["dedicatedResources"]
    hardware = machine_types.hardware_from_api
    same = stored["model"].split("/")[-1].split("@")[0] == shown["model"].split("/")[-1]
    return same and hardware(here) == hardware(there)


def _job_account(client: GoogleClient, found: Deployment) -> str | None:
    """The service account of the job that would have undeployed it, None without one."""
    for job in found.jobs:
        with suppress(T2IError):
            target = client.call("GET", "cloudscheduler", job).get("httpTarget")
            token = target.get("oauthToken") if isinstance(target, dict) else None
            account = token.get("serviceAccountEmail") if isinstance(token, dict) else None
            if isinstance(account, str) and is_service_account(account):
                return account
    return None
