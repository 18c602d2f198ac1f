"""The keys that Google's other services know, for bodies and queries; anything else is refused.

Storage: https://cloud.google.com/storage/docs/json_api/v1; Scheduler:
https://cloud.google.com/scheduler/docs/reference/rest/v1/projects.locations.jobs; Monitoring:
https://cloud.google.com/monitoring/api/ref_v3/rest/v3/projects.timeSeries/list; Resource Manager:
https://cloud.google.com/resource-manager/reference/rest/v3/projects.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from tests.fakes.google_rules import check_keys, check_query, invalid

_JOBS = r"/v1/projects/[^/]+/locations/[^/]+/jobs"
_JOB = _JOBS + r"/[\w-]{1,500}"
_BUCKET = "/storage/v1/b/[^/]+"
_MATCHES = "ifGenerationMatch ifGenerationNotMatch ifMetagenerationMatch ifMetagenerationNotMatch "
_OBJECT = {
    **dict.fromkeys(("name", "contentType", "contentEncoding", "cacheControl"), str),
    **dict.fromkeys(("crc32c", "md5Hash", "storageClass"), str),
    "metadata": None,
}
_BUCKET_BODY = {
    **dict.fromkeys(("name", "location", "storageClass", "rpo"), str),
    "labels": None,
    "iamConfiguration": {
        "uniformBucketLevelAccess": {"enabled": bool},
        "publicAccessPrevention": str,
    },
    "softDeletePolicy": {"retentionDurationSeconds": str},
    "lifecycle": {"rule": None},
    "versioning": {"enabled": bool},
}
_RETRY = ("maxRetryDuration", "minBackoffDuration", "maxBackoffDuration")
_TOKEN = {"serviceAccountEmail": str}
_JOB_BODY = {
    **dict.fromkeys(("name", "description", "schedule", "timeZone", "attemptDeadline"), str),
    "retryConfig": dict.fromkeys(_RETRY, str) | {"retryCount": int, "maxDoublings": int},
    "httpTarget": {
        **dict.fromkeys(("uri", "httpMethod", "body"), str),
        "headers": None,
        "oauthToken": _TOKEN | {"scope": str},
        "oidcToken": _TOKEN | {"audience": str},
    },
}
_SERIES = (
    "filter interval.startTime interval.endTime aggregation.alignmentPeriod "
    "aggregation.perSeriesAligner aggregation.crossSeriesReducer aggregation.groupByFields "
    "orderBy view pageSize pageToken"
)
_ASKED = {"permissions": str}
_PAGES = "pageSize pageToken"

_KNOWN: tuple[tuple[str, str, str, str, Mapping[str, Any] | None], ...] = (
    # Method, path, keys of the query, those of them that are required, the tree of the body.
    ("GET", "/storage/v1/b", "project prefix maxResults pageToken projection", "project", None),
    ("POST", "/storage/v1/b", "project projection", "project", _BUCKET_BODY),
    ("GET", _BUCKET, "projection generation softDeleted " + _MATCHES, "", None),
    ("PATCH", _BUCKET, "projection " + _MATCHES, "", _BUCKET_BODY),
    ("DELETE", _BUCKET, _MATCHES, "", None),
    (
        "GET",
        _BUCKET + "/o",
        "prefix delimiter pageToken maxResults versions softDeleted projection startOffset "
        "endOffset matchGlob",
        "",
        None,
    ),
    ("GET", _BUCKET + "/o/.+", "generation projection softDeleted " + _MATCHES, "", None),
    ("DELETE", _BUCKET + "/o/.+", "generation " + _MATCHES, "", None),
    ("POST", "/upload" + _BUCKET + "/o", "uploadType name " + _MATCHES, "uploadType", _OBJECT),
    ("PUT", "/upload" + _BUCKET + "/o", "upload_id uploadType name", "upload_id", None),
    ("GET", _JOBS, _PAGES, "", None),
    ("POST", _JOBS, "", "", _JOB_BODY),
    ("GET", _JOB, "", "", None),
    ("PATCH", _JOB, "updateMask", "updateMask", _JOB_BODY),
    ("DELETE", _JOB, "", "", None),
    ("GET", "/v3/projects/[^/]+/timeSeries", _SERIES, "filter interval.endTime", None),
    ("GET", "/v3/projects/[^/:]+", "", "", None),
    ("POST", "/v3/projects/[^/]+:testIamPermissions", "", "", _ASKED),
    ("POST", "/v1/projects/-/serviceAccounts/[^/]+:testIamPermissions", "", "", _ASKED),
)


def check_request(method: str, path: str, query: Mapping[str, str], content: bytes) -> None:
    """Raise Refused for a request of these services that has a wrong or a missing key."""
    for known, pattern, keys, required, tree in _KNOWN:
        if known != method or not re.fullmatch(pattern, path):
            continue
        check_query(query, frozenset(keys.split()))
        for key in required.split():
            if not query.get(key):
                raise invalid(f"Required parameter: {key}")
        if tree is None:
            if content and method != "PUT":
                raise invalid("This method takes no body.")
            return
        body = json.loads(content or b"{}")
        check_keys(body, tree)
        check = _CHECKS.get(pattern)
        if check:
            check(body, query)
        return


def _check_job(job: dict[str, Any], query: Mapping[str, str]) -> None:
    for name in filter(None, query.get("updateMask", "").split(",")):
        if name not in _JOB_BODY or name not in job:
            raise invalid(f"The update mask's {name} is not in the job.")
    if len(job.get("description", "")) > 500:
        raise invalid("The description is longer than 500 characters.")
    if not 0 <= job.get("retryConfig", {}).get("retryCount", 0) <= 5:
        raise invalid("retryCount must be from 0 to 5.")
    target = job.get("httpTarget", {})
    if target and not re.fullmatch(r"https?://[^/]+/.*", target.get("uri", "")):
        raise invalid("httpTarget.uri is required, with https://.")
    token = target.get("oauthToken", {})
    if token and not re.fullmatch(
        r"[^@\s]+@[^@\s]+\.gserviceaccount\.com", token.get("serviceAccountEmail", "")
    ):
        raise invalid("oauthToken.serviceAccountEmail must be a service account.")


def _check_bucket(bucket: dict[str, Any], query: Mapping[str, str]) -> None:
    if "project" in query and not re.fullmatch(
        r"(?!goog)(?!.*\.\.)[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", bucket.get("name", "")
    ):
        raise invalid(f"Invalid bucket name: '{bucket.get('name')}'")
    for key, value in bucket.get("labels", {}).items():
        if not re.fullmatch("[a-z][a-z0-9_-]{0,62}", key) or len(value) > 63:
            raise invalid(f"Invalid label: {key}={value}")
    seconds = bucket.get("softDeletePolicy", {}).get("retentionDurationSeconds", "0")
    # 0 turns it off; else from 7 to 90 days.
    if int(seconds) and not 7 * 86400 <= int(seconds) <= 90 * 86400:
        raise invalid("softDeletePolicy.retentionDurationSeconds must be 0, or 7 to 90 days.")


def _check_permissions(body: dict[str, Any], _query: Mapping[str, str]) -> None:
    for permission in body.get("permissions", []):
        if not re.fullmatch(r"[a-z]+(\.[A-Za-z]+){2}", permission):
            raise invalid(f"Permission {permission} is not valid for this resource.")


_CHECKS = {
    _JOBS: _check_job,
    _JOB: _check_job,
    "/storage/v1/b": _check_bucket,
    _BUCKET: _check_bucket,
    "/v3/projects/[^/]+:testIamPermissions": _check_permissions,
    "/v1/projects/-/serviceAccounts/[^/]+:testIamPermissions": _check_permissions,
}
