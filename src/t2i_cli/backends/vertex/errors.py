"""Map failed predictions to t2i's errors, and decide whether a retry makes sense."""

import re

from t2i_cli.backends.vertex import payload
from t2i_cli.backends.vertex.endpoint import Endpoint
from t2i_cli.errors import InputError, QuotaError, RemoteError, T2IError, TimedOutError
from t2i_cli.image_formats import ImageFormat
from t2i_cli.net import error_body, google_http
from t2i_cli.net.http_client import HttpResponse
from t2i_cli.net.retry import RetryableError
from t2i_cli.request import ResolvedRequest

SHARED_TIMEOUT = 60.0
"""Seconds after which Vertex AI ends calls of shared endpoints, whatever the client's timeout."""
WAKING = "The endpoint has no replica yet and wakes up, which takes minutes."

_TOO_LARGE = re.compile(r"response (payload )?size", re.IGNORECASE)
_UNDEPLOYED = re.compile(r"deployed[ _]?model|not deployed|no model", re.IGNORECASE)
_WAKING = re.compile(rb"not\s+(yet\s+)?ready for inference|not yet ready", re.IGNORECASE)
"""What Vertex AI answers for a model without a replica, as JSON, text or a page."""
_LOG_HINT = (
    "Its log is in the Cloud console: Vertex AI, Online prediction, the endpoint, View logs."
)
_SPOT_HINT = (
    "It runs on spot machines, which Google may have taken back: `t2i remote status` tells."
)


def error_from_prediction(
    response: HttpResponse, target: Endpoint, request: ResolvedRequest, format: ImageFormat
) -> T2IError | RetryableError:
    """The error for a response without a prediction; RetryableError if it may be temporary."""
    body = error_body.parse_error_body(response)
    message = error_body.with_full_stop(body.message)
    reason = f" {message}" if message else ""
    match response.status:
        case 401 | 403:
            return _access_error(response, target)
        case 400 if not body.t2i_error and _TOO_LARGE.search(body.message):
            return _too_large_error(target, request, format)
        case 429 | 503 if body.t2i_error is None and _WAKING.search(response.body):
            spot = f" {_SPOT_HINT}" if target.record.spot else ""
            error = RemoteError(WAKING, hint=f"A longer --timeout waits for it.{spot}")
            return RetryableError(error, after=response.retry_after, pause=10.0, cold_start=True)
        case 429:
            quota = QuotaError(
                f"The endpoint or its quota has no room for the call.{reason}",
                hint="A smaller --concurrency, more replicas, or a larger quota.",
            )
            return RetryableError(quota, after=response.retry_after, overloaded=True)
        case 408 | 504 if not body.t2i_error:
            return timeout_error(target, response.seconds)
    if body.t2i_error is not None:
        return body.t2i_error
    if response.status == 503 and body.kind != "InternalServerException":
        busy = RemoteError(f"The endpoint is overloaded.{reason}", hint=_failure_hint(target))
        return RetryableError(busy, after=response.retry_after, overloaded=True)
    if response.status == 502:
        return RetryableError(
            RemoteError(f"The endpoint cannot be reached.{reason}", hint=_failure_hint(target))
        )
    if response.status in {400, 413, 422}:
        return InputError(
            f"The endpoint refuses the request:{reason or f' status {response.status}.'}",
            hint=_hint(target),
        )
    if response.status == 503:
        return RemoteError(
            f"The endpoint's handler failed:{reason or ' it says nothing more.'}", hint=_LOG_HINT
        )
    return RemoteError(
        f"The endpoint failed with status {response.status}.{reason}",
        hint=_failure_hint(target),
    )


def _failure_hint(target: Endpoint) -> str:
    """What to look at after a failure on Google's side."""
    return f"{_SPOT_HINT} {_LOG_HINT}" if target.record.spot else _LOG_HINT


def says_undeployed(response: HttpResponse) -> bool:
    """Whether a 400 says that the endpoint has no deployed model."""
    return bool(_UNDEPLOYED.search(error_body.parse_error_body(response).message))


def timeout_error(target: Endpoint, seconds: float) -> TimedOutError:
    """The error for a call that Vertex AI ended after `seconds`."""
    if target.dedicated:
        return TimedOutError(
            f"Vertex AI cut the call after {seconds:.0f} s.", hint="Fewer --steps take less time."
        )
    return TimedOutError(
        f"Vertex AI cut the call after {seconds:.0f} s: it ends calls of shared endpoints "
        f"after {SHARED_TIMEOUT:.0f} s.",
        hint="`t2i remote deploy` makes a dedicated endpoint, which has 600 s and more; "
        "fewer --steps take less time.",
    )


def _access_error(response: HttpResponse, target: Endpoint) -> T2IError:
    error = google_http.error_from_google(response.status, response.body)
    error.message = error_body.sanitise(error.message)
    error.hint = error.hint or _hint(target)
    return error


def _too_large_error(target: Endpoint, request: ResolvedRequest, format: ImageFormat) -> T2IError:
    can_choose = target.serving in payload.TRANSFER_FORMATS
    fits = payload.smaller_format(request, format, target.limit) if can_choose else None
    hint = f"--format {fits} fits." if fits else "A smaller --size fits."
    if not target.dedicated:
        most = payload.DEDICATED_LIMIT / 1e6
        hint += f" `t2i remote deploy` makes a dedicated endpoint, which answers with {most:g} MB."
    return InputError(
        f"The image is larger, in base64 of {format}, than the {target.limit / 1e6:g} MB that the "
        "endpoint may answer with.",
        hint=hint,
        field="size",
    )


def _hint(target: Endpoint) -> str | None:
    """The hint for a refused call: check --serving, or name the host that was not looked up."""
    if target.looked_up:
        return "Does --serving say what is deployed there?" if target.serving else None
    return (
        "A dedicated endpoint answers only at its own host, and the permission to look that up, "
        "aiplatform.endpoints.get, is missing: --api-endpoint https://ITS-DNS-NAME goes there."
    )
