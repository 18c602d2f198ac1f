"""Cloud Scheduler job that undeploys a model after its TTL, whether or not t2i is running.

https://cloud.google.com/scheduler/docs/reference/rest/v1/projects.locations.jobs
"""

import base64
import json
import time
from urllib.parse import urlencode

from t2i_cli.net.google_credentials import SCOPE
from t2i_cli.net.google_http import ConflictError
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import permissions
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.deployment_options import is_service_account
from t2i_cli.vertex.plan import DeploymentPlan

ONE_MINUTE = 60


def prompt_for_account(client: GoogleClient, account: str | None, console: Console) -> str | None:
    """Ask whether to create the undeploy job; its service account, or None.

    `account` is the caller's own: a service account with all permissions is the default answer.
    Does not ask where permissions are missing.
    """
    check = permissions.check_permissions(client, ["scheduler", "service account"])
    if check.blocking:
        return None
    question = "Have a Cloud Scheduler job undeploy it after the TTL"
    if account and is_service_account(account) and not (check.missing or check.unknown):
        return account if console.ask(f"{question}, as {account}?", default=True) else None
    return console.answer(f"{question}? The service account for it [none]:").strip() or None


def create_undeploy_job(
    plan: DeploymentPlan, client: GoogleClient, endpoint: str, deployed: str
) -> None:
    """Create or update the job that undeploys the model when the TTL ends, which ends its cost.

    `endpoint` is a full resource name, `deployed` the DeployedModel's id. Raises T2IError.
    """
    at = time.gmtime(plan.labels.expires + ONE_MINUTE - 1)
    body = json.dumps({"deployedModelId": deployed}).encode()
    name = f"{client.location.parent}/jobs/{plan.title}"
    job = {
        "name": name,
        "description": urlencode(plan.labels.encoded()),
        "schedule": f"{at.tm_min} {at.tm_hour} {at.tm_mday} {at.tm_mon} *",
        "timeZone": "Etc/UTC",
        "retryConfig": {"retryCount": 5, "minBackoffDuration": "300s"},
        "httpTarget": {
            # Always Google's host: the scheduler cannot reach an --api-endpoint.
            "uri": f"https://{client.location.region}-aiplatform.googleapis.com/v1/{endpoint}:undeployModel",
            "httpMethod": "POST",
            "headers": {"Content-Type": "application/json"},
            "body": base64.b64encode(body).decode(),
            "oauthToken": {"serviceAccountEmail": plan.scheduler_account, "scope": SCOPE},
        },
    }
    try:
        client.call("POST", "cloudscheduler", f"{client.location.parent}/jobs", json=job)
    except ConflictError:
        mask = {"updateMask": "description,schedule,httpTarget"}
        client.call("PATCH", "cloudscheduler", name, json=job, params=mask)
