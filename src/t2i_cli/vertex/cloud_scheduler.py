"""Cloud Scheduler's part: the job that undeploys after the TTL even if no machine of ours is on.

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
from t2i_cli.vertex.plan import DeploymentPlan, is_service_account

ONE_MINUTE = 60


def prompt_for_account(rest: GoogleClient, account: str | None, console: Console) -> str | None:
    """The service account for a job that the person at the terminal wants, if one can be made.

    `account` is whose credentials there are: a service account that may do all of it is offered.
    """
    tested = permissions.check_permissions(rest, ["scheduler", "service account"])
    if tested.blocking:
        return None
    question = "Have a Cloud Scheduler job undeploy it after the TTL"
    if account and is_service_account(account) and not (tested.missing or tested.unknown):
        return account if console.ask(f"{question}, as {account}?", default=True) else None
    return console.answer(f"{question}? The service account for it [none]:").strip() or None


def create_undeploy_job(
    plan: DeploymentPlan, rest: GoogleClient, endpoint: str, deployed: str
) -> None:
    """Have Cloud Scheduler undeploy the model when the TTL ends: that ends what is paid for."""
    at = time.gmtime(plan.labels.expires + ONE_MINUTE - 1)
    body = json.dumps({"deployedModelId": deployed}).encode()
    name = f"{rest.place.parent}/jobs/{plan.title}"
    job = {
        "name": name,
        "description": urlencode(plan.labels.encoded()),
        "schedule": f"{at.tm_min} {at.tm_hour} {at.tm_mday} {at.tm_mon} *",
        "timeZone": "Etc/UTC",
        "retryConfig": {"retryCount": 5, "minBackoffDuration": "300s"},
        "httpTarget": {
            # Google's own host: the scheduler cannot go by way of --api-endpoint.
            "uri": f"https://{rest.place.region}-aiplatform.googleapis.com/v1/{endpoint}:undeployModel",
            "httpMethod": "POST",
            "headers": {"Content-Type": "application/json"},
            "body": base64.b64encode(body).decode(),
            "oauthToken": {"serviceAccountEmail": plan.scheduler_account, "scope": SCOPE},
        },
    }
    try:
        rest.call("POST", "cloudscheduler", f"{rest.place.parent}/jobs", json=job)
    except ConflictError:
        mask = {"updateMask": "description,schedule,httpTarget"}
        rest.call("PATCH", "cloudscheduler", name, json=job, params=mask)
