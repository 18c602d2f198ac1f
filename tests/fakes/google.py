"""What t2i uses of Google Cloud beside Vertex AI: tokens, IAM, storage, scheduler, builds.

`tests.fakes.vertex.FakeVertex` is this with Vertex AI's own methods, behind one server.
"""

# ruff: noqa: ANN401 - bodies are any JSON

import base64
import binascii
import hashlib
import io
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import quote

from google_crc32c import Checksum

PERSON = "ya29.person"
"""The beginning of a person's token; the others are of service accounts."""
_NO_QUOTA_PROJECT = (
    "Your application is authenticating by using local Application Default Credentials. The "
    "aiplatform.googleapis.com API requires a quota project, which is not set by default. To learn "
    "how to set your quota project, see "
    "https://cloud.google.com/docs/authentication/adc-troubleshooting/user-creds ."
)
UPLOAD_STEP = 256 * 1024
"""Bytes: the pieces of a resumable upload are multiples of it, the last one aside."""
SOFT_DELETE_SECONDS = 604_800
"""How long a bucket keeps deleted objects where nothing else is asked for."""


def refusal(status: int, name: str, message: str) -> dict[str, Any]:
    """An error's body in Google's form."""
    return {"error": {"code": status, "message": message, "status": name}}


class Refused(Exception):
    """An error to answer with."""

    def __init__(self, status: int, name: str, message: str, body: object = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = refusal(status, name, message) if body is None else body


@dataclass
class Upload:
    """A resumable upload on its way."""

    bucket: str
    metadata: dict[str, Any]
    data: bytearray = field(default_factory=bytearray)


@dataclass
class Google:
    """The state of one project; `granted` None means that every permission is."""

    url: str = ""
    granted: set[str] | None = None
    require_token: bool = True
    buckets: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[tuple[str, str], tuple[dict[str, Any], bytes]] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    soft_deleted: list[tuple[str, float]] = field(default_factory=list)
    """Deleted objects that a bucket keeps, and until when (unix seconds); they are paid for."""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    quotas: dict[str, int] = field(default_factory=dict)
    payers: set[str] = field(default_factory=lambda: {"gallery", "123456789"})
    """Projects that may pay for the quota of a call."""
    """Limits by region, of every accelerator; 8 where none is set."""
    builds: list[dict[str, Any]] = field(default_factory=list)
    cut_uploads: int = 0
    """So many pieces of uploads are taken by half, and then the connection breaks."""
    damaged_uploads: int = 0
    """So many files arrive with their first byte changed."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    seen_headers: list[dict[str, str]] = field(default_factory=list)
    offset: float = 0.0
    lock: threading.RLock = field(default_factory=threading.RLock)
    closing: threading.Event = field(default_factory=threading.Event)

    def now(self) -> float:
        """Unix seconds, by the fake's own clock."""
        return time.time() + self.offset

    def advance(self, seconds: float) -> None:
        """Put the clock forward."""
        self.offset += seconds

    def google_left(self) -> dict[str, list[str]]:
        """What exists of all this, by kind."""
        return {
            "buckets": list(self.buckets),
            "objects": [name for _, name in self.objects],
            "soft-deleted": [name for name, end in self.soft_deleted if end > self.now()],
            "jobs": list(self.jobs),
        }

    def allow(self, handler: BaseHTTPRequestHandler, permission: str, resource: str) -> None:
        """Raise 401 without a token that was issued here, 403 without the permission.

        Also 403 for a person's token without a project that pays the quota, or with another's.
        """
        token = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.require_token and not token.startswith("ya29."):
            raise Refused(401, "UNAUTHENTICATED", "Request had invalid credentials.")
        payer = handler.headers.get("x-goog-user-project")
        # Storage alone takes a person's token without one.
        if token.startswith(PERSON) and not payer and "storage/v1/" not in resource:
            raise Refused(403, "PERMISSION_DENIED", _NO_QUOTA_PROJECT)
        if payer is not None and payer not in self.payers:
            message = (
                f"Caller does not have required permission to use project {payer}. Grant the "
                "caller the roles/serviceusage.serviceUsageConsumer role, or a custom role with "
                "the serviceusage.services.use permission."
            )
            raise Refused(403, "PERMISSION_DENIED", message)
        if permission and self.granted is not None and permission not in self.granted:
            message = (
                f"Permission '{permission}' denied on resource '{resource}' (or it may not exist)."
            )
            raise Refused(403, "PERMISSION_DENIED", message)

    def google_route(self, handler: Any, path: str, query: dict[str, str], content: bytes) -> bool:
        """Answer, if the path is one of these services'."""
        for method, pattern, name, permission in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == handler.command:
                if name not in {"token", "metadata"}:
                    self.allow(handler, permission, path)
                with self.lock:
                    status, headers, body = getattr(self, f"_{name}")(
                        match, query, content, handler.headers
                    )
                handler.send(status, headers, body)
                return True
        return False

    def _token(self, _match: Any, _query: Any, content: bytes, _headers: Any) -> Any:
        token = PERSON if b"grant_type=refresh_token" in content else "ya29.secret"
        return _json({"access_token": token, "expires_in": 3600, "token_type": "Bearer"})

    def _metadata(self, match: re.Match[str], *rest: Any) -> Any:
        """What the metadata server of a machine of Google's tells of its account."""
        if match["what"] == "token":
            return self._token(match, *rest)
        return _json({"email": "machine@gallery.iam.gserviceaccount.com", "scopes": []})

    def _test_permissions(self, _match: Any, _query: Any, content: bytes, _headers: Any) -> Any:
        asked = json.loads(content)["permissions"]
        return _json(
            {"permissions": [p for p in asked if self.granted is None or p in self.granted]}
        )

    def _project(self, match: re.Match[str], *_: object) -> Any:
        return _json({"name": "projects/123456789", "projectId": "gallery", "state": "ACTIVE"})

    def _quota_info(self, match: re.Match[str], *_: object) -> Any:
        """QuotaInfo of Cloud Quotas; an int64 is text, and zero is left out."""
        regions = {"us-central1": 8, "europe-west4": 8, **self.quotas}
        infos = [
            {
                "dimensions": {"region": region},
                "details": {"value": str(limit)} if limit else {},
                "applicableLocations": [region],
            }
            for region, limit in regions.items()
        ]
        info = {"quotaId": match["quota"], "service": match["service"], "dimensionsInfos": infos}
        return _json(info | {"dimensions": ["region"], "containerType": "PROJECT"})

    def _get_bucket(self, match: re.Match[str], *_: object) -> Any:
        return _json(self._bucket(match["bucket"]))

    def _bucket(self, name: str) -> dict[str, Any]:
        if name not in self.buckets:
            raise Refused(404, "NOT_FOUND", "The specified bucket does not exist.")
        return self.buckets[name]

    def _list_buckets(self, _match: Any, query: dict[str, str], *_: object) -> Any:
        prefix = query.get("prefix", "")
        return _json({"items": [b for n, b in self.buckets.items() if n.startswith(prefix)]})

    def _create_bucket(self, _match: Any, _query: Any, content: bytes, _headers: Any) -> Any:
        bucket = json.loads(content)
        if bucket["name"] in self.buckets:
            raise Refused(409, "CONFLICT", "Your previous request to create it succeeded.")
        # Google's default: what is deleted stays, and is paid for, for 7 days.
        default = {"softDeletePolicy": {"retentionDurationSeconds": str(SOFT_DELETE_SECONDS)}}
        self.buckets[bucket["name"]] = default | bucket | {"projectNumber": "123456789"}
        return _json(self.buckets[bucket["name"]])

    def _delete_bucket(self, match: re.Match[str], *_: object) -> Any:
        self._bucket(match["bucket"])
        if any(bucket == match["bucket"] for bucket, _ in self.objects):
            raise Refused(409, "CONFLICT", "The bucket you tried to delete is not empty.")
        del self.buckets[match["bucket"]]
        return 204, {}, b""

    def _list_objects(self, match: re.Match[str], query: dict[str, str], *_: object) -> Any:
        """Two a page, so that a client must ask for the next one."""
        self._bucket(match["bucket"])
        found = [
            metadata
            for (bucket, name), (metadata, _) in sorted(self.objects.items())
            if bucket == match["bucket"] and name.startswith(query.get("prefix", ""))
        ]
        start = int(query.get("pageToken") or 0)
        page: dict[str, Any] = {"items": found[start : start + 2]}
        if len(found) > start + 2:
            page["nextPageToken"] = str(start + 2)
        return _json(page)

    def _get_object(self, match: re.Match[str], query: dict[str, str], *_: object) -> Any:
        metadata, data = self._object(match)
        if query.get("alt") == "media":
            return 200, {"Content-Type": "application/octet-stream"}, data
        return _json(metadata)

    def _delete_object(self, match: re.Match[str], *_: object) -> Any:
        self._object(match)
        del self.objects[match["bucket"], match["name"]]
        policy = self._bucket(match["bucket"]).get("softDeletePolicy", {})
        if seconds := int(policy.get("retentionDurationSeconds", 0)):
            self.soft_deleted.append((match["name"], self.now() + seconds))
        return 204, {}, b""

    def _object(self, match: re.Match[str]) -> tuple[dict[str, Any], bytes]:
        key = match["bucket"], match["name"]
        if key not in self.objects:
            raise Refused(404, "NOT_FOUND", f"No such object: {'/'.join(key)}")
        return self.objects[key]

    def _start_upload(
        self, match: re.Match[str], query: dict[str, str], content: bytes, _headers: Any
    ) -> Any:
        self._bucket(match["bucket"])
        metadata = {"name": query["name"]} if "name" in query else {}
        metadata |= json.loads(content or b"{}")
        number = str(len(self.uploads) + 1)
        self.uploads[number] = Upload(match["bucket"], metadata)
        where = f"{self.url}/upload/storage/v1/b/{quote(match['bucket'])}/o?upload_id={number}"
        return 200, {"Location": where}, b""

    def _upload(
        self, match: re.Match[str], query: dict[str, str], content: bytes, headers: Any
    ) -> Any:
        """A piece of an upload, or the question of how much is there (`bytes */TOTAL`)."""
        upload = self.uploads.get(query["upload_id"])
        if upload is None:
            raise Refused(410, "NOT_FOUND", "The upload is gone.")
        span = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)", headers["Content-Range"])
        if span is None:
            raise Refused(400, "INVALID_ARGUMENT", "Content-Range is wrong.")
        total = int(span[3])
        if span[1] is not None:
            if int(span[1]) != len(upload.data) or int(span[2]) - int(span[1]) + 1 != len(content):
                raise Refused(400, "INVALID_ARGUMENT", "The piece does not fit.")
            if int(span[2]) + 1 < total and len(content) % UPLOAD_STEP:
                raise Refused(400, "INVALID_ARGUMENT", "The piece is no multiple of 256 KiB.")
            if self.cut_uploads > 0 and len(content) > 1:
                self.cut_uploads -= 1
                upload.data += content[: len(content) // 2]
                raise ConnectionError
            upload.data += content
        if len(upload.data) < total:
            got = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
            return 308, got, b""
        if self.damaged_uploads and upload.data:
            self.damaged_uploads -= 1
            upload.data[0] ^= 1
        data = bytes(upload.data)
        metadata = upload.metadata | {
            "bucket": upload.bucket,
            "size": str(len(data)),
            "md5Hash": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
            "crc32c": _crc32c(data),
            "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.now())),
        }
        self.objects[upload.bucket, metadata["name"]] = (metadata, data)
        return _json(metadata)

    def _create_job(self, _match: Any, _query: Any, content: bytes, _headers: Any) -> Any:
        job = json.loads(content)
        if job["name"] in self.jobs:
            raise Refused(409, "ALREADY_EXISTS", f"Job {job['name']} already exists.")
        if not re.fullmatch(r"\d+ \d+ \d+ \d+ \*", job["schedule"]):
            raise Refused(400, "INVALID_ARGUMENT", "The schedule is not a cron line.")
        try:
            base64.b64decode(job["httpTarget"].get("body", ""), validate=True)
        except binascii.Error as error:
            raise Refused(400, "INVALID_ARGUMENT", "The body is not base64.") from error
        self.jobs[job["name"]] = job
        return _json(job)

    def _get_job(self, match: re.Match[str], *_: object) -> Any:
        return _json(self._job(match))

    def _patch_job(self, match: re.Match[str], query: Any, content: bytes, _headers: Any) -> Any:
        job = self._job(match)
        body = json.loads(content)
        for name in query["updateMask"].split(","):
            job[name] = body[name]
        return _json(job)

    def _delete_job(self, match: re.Match[str], *_: object) -> Any:
        del self.jobs[self._job(match)["name"]]
        return _json({})

    def _list_jobs(self, *_: object) -> Any:
        return _json({"jobs": list(self.jobs.values())})

    def _job(self, match: re.Match[str]) -> dict[str, Any]:
        if match["name"] not in self.jobs:
            raise Refused(404, "NOT_FOUND", "Job not found.")
        return self.jobs[match["name"]]


def _crc32c(data: bytes) -> str:
    checksum = Checksum(data)  # type: ignore[no-untyped-call]
    return base64.b64encode(checksum.digest()).decode()  # type: ignore[no-untyped-call]


def painted_png(body: dict[str, Any]) -> str:
    """Base64 of a PNG in one colour that follows from what is asked."""
    from PIL import Image

    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (digest[0], digest[1], digest[2])).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


_JOBS = r"/v1/(?P<parent>projects/[^/]+/locations/[^/]+)/jobs"
_JOB = r"/v1/(?P<name>projects/[^/]+/locations/[^/]+/jobs/[^/]+)"
_BUCKET = r"/storage/v1/b/(?P<bucket>[^/]+)"
_OBJECTS = "/upload" + _BUCKET + "/o"
_OBJECT = _BUCKET + "/o/(?P<name>.+)"
_ROUTES: tuple[tuple[str, str, str, str], ...] = (
    ("POST", "/token", "token", ""),
    ("GET", "/computeMetadata/v1/instance/service-accounts/[^/]+/(?P<what>.*)", "metadata", ""),
    ("POST", r"/v3/projects/[^/]+:testIamPermissions", "test_permissions", ""),
    ("POST", r"/v1/projects/-/serviceAccounts/[^/]+:testIamPermissions", "test_permissions", ""),
    ("GET", r"/v3/projects/[^/:]+", "project", "resourcemanager.projects.get"),
    (
        "GET",
        r"/v1/projects/[^/]+/locations/global/services/(?P<service>[^/]+)/quotaInfos/(?P<quota>.+)",
        "quota_info",
        "cloudquotas.quotas.get",
    ),
    ("GET", "/storage/v1/b", "list_buckets", "storage.buckets.list"),
    ("POST", "/storage/v1/b", "create_bucket", "storage.buckets.create"),
    ("GET", _BUCKET, "get_bucket", "storage.buckets.get"),
    ("DELETE", _BUCKET, "delete_bucket", "storage.buckets.delete"),
    ("GET", _BUCKET + "/o", "list_objects", "storage.objects.list"),
    ("GET", _OBJECT, "get_object", "storage.objects.get"),
    ("DELETE", _OBJECT, "delete_object", "storage.objects.delete"),
    ("POST", _OBJECTS, "start_upload", "storage.objects.create"),
    ("PUT", _OBJECTS, "upload", ""),
    ("POST", _JOBS, "create_job", "cloudscheduler.jobs.create"),
    ("GET", _JOBS, "list_jobs", "cloudscheduler.jobs.list"),
    ("GET", _JOB, "get_job", "cloudscheduler.jobs.get"),
    ("PATCH", _JOB, "patch_job", "cloudscheduler.jobs.update"),
    ("DELETE", _JOB, "delete_job", "cloudscheduler.jobs.delete"),
)
