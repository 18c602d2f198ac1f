"""What Vertex AI's refusal of a prediction means, and whether to ask again."""

import re

from t2i_cli.backends.vertex import payload
from t2i_cli.backends.vertex.endpoint import Endpoint
from t2i_cli.errors import InputError, QuotaError, RemoteError, T2IError, TimedOutError
from t2i_cli.image_formats import ImageFormat
from t2i_cli.net import error_body, google_http
from t2i_cli.net.http_client import HttpResponse
from t2i_cli.net.retry import RetryableError
from t2i_cli.request import ResolvedRequest

SHARED_CUT = 60.0
"""Seconds after which a shared endpoint's calls are cut, whatever the client says."""
WAKING = "The endpoint has no replica yet and wakes up, which takes minutes."

_TOO_LARGE = re.compile(r"response (payload )?size", re.IGNORECASE)
_LOG = "Its log is in the Cloud console: Vertex AI, Online prediction, the endpoint, View logs."


def error_from_prediction(
    answer: HttpResponse, target: Endpoint, request: ResolvedRequest, format: ImageFormat
) -> T2IError | RetryableError:
    """The error for an answer that is no prediction; RetryableError where it may pass."""
    told = error_body.parse_error_body(answer)
    message = error_body.with_full_stop(told.message)
    match answer.status:
        case 401 | 403:
            return _not_allowed(answer, target)
        case 400 if not told.own and _TOO_LARGE.search(told.message):
            return _too_large(target, request, format)
        case 429 if "not yet ready" in message:
            error = RemoteError(WAKING, hint="A longer --timeout waits for it.")
            return RetryableError(error, after=answer.retry_after, pause=10.0, waking=True)
        case 429:
            quota = QuotaError(
                f"The endpoint or its quota has no room for the call. {message}",
                hint="A smaller --concurrency, more replicas, or a larger quota.",
            )
            return RetryableError(quota, after=answer.retry_after, crowded=True)
        case 408 | 504 if not told.own:
            return timeout_error(target, answer.seconds)
    if told.own is not None:
        return told.own
    if answer.status == 503 and told.kind != "InternalServerException":
        busy = RemoteError(f"The endpoint is overloaded. {message}", hint=_LOG)
        return RetryableError(busy, after=answer.retry_after, crowded=True)
    if answer.status == 502:
        return RetryableError(RemoteError(f"The endpoint cannot be reached. {message}", hint=_LOG))
    if answer.status in {400, 413, 422}:
        return InputError(
            f"The endpoint refuses the request: {message or answer.status}", hint=_way(target)
        )
    if answer.status == 503:
        return RemoteError(f"The endpoint's handler failed: {message}", hint=_LOG)
    return RemoteError(f"The endpoint failed with status {answer.status}. {message}", hint=_LOG)


def timeout_error(target: Endpoint, seconds: float) -> TimedOutError:
    """The call was ended on Google's side."""
    if target.dedicated:
        return TimedOutError(
            f"Vertex AI cut the call after {seconds:.0f} s.", hint="Fewer --steps take less time."
        )
    return TimedOutError(
        f"Vertex AI cut the call after {seconds:.0f} s: it ends calls of shared endpoints "
        f"after {SHARED_CUT:.0f} s.",
        hint="`t2i remote deploy` makes a dedicated endpoint, which has 600 s and more; "
        "fewer --steps take less time.",
    )


def _not_allowed(answer: HttpResponse, target: Endpoint) -> T2IError:
    error = google_http.error_from_google(answer.status, answer.body)
    error.message = error_body.sanitise(error.message)
    error.hint = error.hint or _way(target)
    return error


def _too_large(target: Endpoint, request: ResolvedRequest, format: ImageFormat) -> T2IError:
    choice = target.serving in payload.TRANSFER_FORMATS
    fits = payload.smaller_format(request, format, target.limit) if choice else None
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


def _way(target: Endpoint) -> str | None:
    """What to do where the endpoint's own host could not be looked up."""
    if target.looked_up:
        return "Does --serving say what is deployed there?" if target.serving else None
    return (
        "A dedicated endpoint answers only at its own host, and the permission to look that up, "
        "aiplatform.endpoints.get, is missing: --api-endpoint https://ITS-DNS-NAME goes there."
    )
