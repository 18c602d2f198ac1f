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
    headers: dict[str, str] = field(default_factory=dict)
    stall: float = 0.0
    """Seconds without an answer; the connection is then closed."""
    cut: bool = False
    """Do what is asked, and close the connection in the middle of the answer."""
    answer: Any = None
    """Predictions to give in place of the container's."""
    times: int = 1


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
