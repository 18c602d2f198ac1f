"""Map failed calls of generateContent to t2i's errors, and decide whether a retry makes sense.

Google bills answers with status 200 only, so one with another status may be asked for again. A call
without an answer may have made an image that is billed: it is not sent again.
"""

from t2i_cli.backends.gemini.image_models import IMAGE_MODELS
from t2i_cli.errors import InputError, ModelError, QuotaError, RemoteError, T2IError, TimedOutError
from t2i_cli.net import error_body, google_http
from t2i_cli.net.billed_calls import error_of_billed_call
from t2i_cli.net.http_client import FailedCall, HttpResponse
from t2i_cli.net.retry import RetryableError
from t2i_cli.settings.defaults import GEMINI_REGION
from t2i_cli.vertex.location import Location

_RESUME_HINT = "An image that Google made all the same is billed; run the command again to go on."


def error_from_answer(
    response: HttpResponse, model: str, location: Location
) -> T2IError | RetryableError:
    """The error for another status than 200; RetryableError if it may be temporary."""
    body = error_body.parse_error_body(response)
    said = f" {error_body.with_full_stop(body.message)}" if body.message else ""
    status, after = response.status, response.retry_after
    if status == 429 or body.kind == "RESOURCE_EXHAUSTED":
        quota = QuotaError(
            f"Google has no room for the call, or its quota is used up.{said}",
            hint="A smaller --concurrency, a later try, or a larger quota: "
            "https://console.cloud.google.com/iam-admin/quotas",
        )
        return RetryableError(quota, after=after, overloaded=True)
    if status == 404:
        return _not_found_error(model, location, said)
    if status in {408, 504}:
        return TimedOutError(
            f"Google gave up on the image.{said}", hint="Try again, or ask for a smaller size."
        )
    if status >= 500:
        busy = RemoteError(f"Vertex AI failed with status {status}.{said}", hint="Try again later.")
        return RetryableError(busy, after=after, overloaded=status == 503)
    if status == 400 and body.kind != "FAILED_PRECONDITION":
        return InputError(
            f"Google refuses the request.{said or f' Status {status}.'}",
            hint=f"Does {model} take this?",
        )
    if 300 <= status < 400:
        return RemoteError(
            "What answers sends to another address.",
            hint="Is --api-endpoint an address of Vertex AI?",
        )
    return google_http.error_from_status(status, body.kind, body.message)


def error_from_failed_call(failed: FailedCall) -> RetryableError | T2IError:
    """The error for a call without an answer; retryable only if it cannot have run."""
    return error_of_billed_call(failed, _RESUME_HINT)


def _not_found_error(model: str, location: Location, said: str) -> ModelError:
    elsewhere = (
        ""
        if location.region == GEMINI_REGION
        else f" Most image models are in --region {GEMINI_REGION} alone."
    )
    return ModelError(
        f"{model} is not served to {location.project} in {location.region}.{said}",
        hint=f"Known ones are {', '.join(IMAGE_MODELS)}.{elsewhere}",
    )
