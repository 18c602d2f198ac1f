"""The ways in which the fake of Vertex AI fails on demand."""

from dataclasses import dataclass, field
from typing import Any

from tests.fakes.google import refusal


@dataclass(kw_only=True)
class Fault:
    """One way to fail, for requests whose `METHOD /path` matches `where`; `times` of them."""

    where: str = ":predict"
    status: int = 0
    body: object = None
    """Any JSON, or bytes that are sent as they are, with `headers` alone."""
    text: str | None = None
    """A body that is no JSON, in place of `body`; its type is text/plain unless `headers` say."""
    headers: dict[str, str] = field(default_factory=dict)
    stall: float = 0.0
    """Seconds without an answer; the connection is then closed."""
    cut: bool = False
    """Do what is asked, and close the connection in the middle of the answer."""
    answer: Any = None
    """Predictions to give in place of the container's."""
    times: int = 1
    after: int = 0
    """So many such requests are served before it."""


def bad_request() -> Fault:
    """400: what the container's check says of a wrong field."""
    return Fault(status=400, body=refusal(400, "INVALID_ARGUMENT", "steps must be a number."))


def forbidden(permission: str = "aiplatform.endpoints.predict") -> Fault:
    """403, as Google words it."""
    return Fault(
        status=403, body=refusal(403, "PERMISSION_DENIED", denied(permission, "//the/resource"))
    )


def not_found() -> Fault:
    """404 for any endpoint."""
    return Fault(status=404, body=refusal(404, "NOT_FOUND", "Endpoint is not found."))


def quota(retry_after: int | str | None = None, times: int = 1) -> Fault:
    """429 of a rate limit, with or without Retry-After."""
    body = refusal(429, "RESOURCE_EXHAUSTED", "Quota exceeded for aiplatform.googleapis.com.")
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Fault(status=429, body=body, headers=headers, times=times)


def asleep(times: int = 1) -> Fault:
    """429 of an endpoint that was scaled to zero and now wakes."""
    message = "Model is not yet ready for inference. Please wait and then try your request again."
    return Fault(status=429, body=refusal(429, "RESOURCE_EXHAUSTED", message), times=times)


def overloaded(times: int = 1) -> Fault:
    """503 that is worth a retry."""
    message = "The service is currently unavailable."
    return Fault(status=503, body=refusal(503, "UNAVAILABLE", message), times=times)


def asleep_in_text(times: int = 1) -> Fault:
    """The same of a waking endpoint, as plain text: what stands before the container answers so."""
    text = "Model is not yet ready for inference. Please wait and then try your request again."
    return Fault(status=429, text=text, times=times)


def overloaded_in_text(times: int = 1) -> Fault:
    """503 of the proxy before the container, as plain text."""
    text = "upstream connect error or disconnect/reset before headers. reset reason: overflow"
    return Fault(status=503, text=text, times=times)


def polling_fails(status: int = 500, times: int = 1) -> Fault:
    """500 or 504 for a look at an operation, which itself goes on."""
    name, message = {
        500: ("INTERNAL", "Internal error encountered."),
        504: ("DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
    }[status]
    where = r"GET .*/operations/\d+$"
    return Fault(where=where, status=status, body=refusal(status, name, message), times=times)


def operations_unimplemented(method: str = "list", times: int = 1000) -> Fault:
    """501 for `list` or `cancel` of operations: a service need not have them."""
    where = {"list": "GET .*/operations$", "cancel": r"POST .*/operations/\d+:cancel$"}[method]
    message = "Operation is not implemented, or supported, or enabled."
    return Fault(where=where, status=501, body=refusal(501, "UNIMPLEMENTED", message), times=times)


def session_expired(times: int = 1, after: int = 0, status: int = 410) -> Fault:
    """410 or 404: the session of a resumable upload has expired, and the upload begins anew."""
    return Fault(where="PUT /upload/", status=status, text="", times=times, after=after)


def stock_out(region: str = "us-central1") -> dict[str, Any]:
    """The error of a deployment for which the region has no machine: for `operation_errors`."""
    message = (
        f"Resources are insufficient in region: {region}. Please try a different region or use a "
        "different machine type."
    )
    return {"code": 8, "message": message}


def quota_metric(metric: str = "custom_model_serving_nvidia_l4_gpus") -> dict[str, Any]:
    """The error of a deployment that passes a quota of the project: for `operation_errors`."""
    message = f"The following quota metrics exceed quota limits: aiplatform.googleapis.com/{metric}"
    return {"code": 8, "message": message}


def handler_exception() -> Fault:
    """503 that is not: TorchServe's handler raised."""
    body = {"code": 503, "type": "InternalServerException", "message": "Prediction failed"}
    return Fault(status=503, body=body)


def cut_off() -> Fault:
    """The connection breaks in the middle of the answer."""
    return Fault(cut=True)


def truncated_base64() -> Fault:
    """A prediction that breaks off."""
    return Fault(answer=["iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAA"])


def not_an_image() -> Fault:
    """A prediction that is good base64 of no image."""
    return Fault(answer=["aGVsbG8sIHdvcmxk"])


def denied(permission: str, resource: str) -> str:
    """Google's sentence for a missing permission."""
    return f"Permission '{permission}' denied on resource '{resource}' (or it may not exist)."
