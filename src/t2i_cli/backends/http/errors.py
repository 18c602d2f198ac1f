"""Map a server's error responses to t2i's errors, and decide whether a retry makes sense."""

from t2i_cli import request_fields
from t2i_cli.errors import (
    AccessError,
    ContentFilteredError,
    InputError,
    ModelError,
    QuotaError,
    RemoteError,
    T2IError,
    TimedOutError,
)
from t2i_cli.net import error_body
from t2i_cli.net.http_client import HttpResponse
from t2i_cli.net.retry import RetryableError

FIELD_NAMES = {
    server_name: name
    for name, known in request_fields.FIELDS.items()
    for server_name in (*known.dialects.values(), known.true_cfg)
    if server_name not in {None, request_fields.SIZE}
}
"""t2i's field name for a server's field name, without the size."""

_MODERATION_CODES = {"content_policy_violation", "moderation_blocked"}
_KEY_HINT = "T2I_HTTP_API_KEY holds the key; OPENAI_API_KEY is sent to api.openai.com only."
_LOG_HINT = "Look into the server's log."


def error_from_response(
    response: HttpResponse, url: str, key: str | None
) -> T2IError | RetryableError:
    """The error for a response without an image; RetryableError if it may be temporary."""
    body = error_body.parse_error_body(response, key)
    error = _error_for_status(response.status, body, url)
    if body.t2i_error is not None and response.status not in {401, 403}:
        error = body.t2i_error
    if isinstance(error, InputError) and error.field:
        error.field = FIELD_NAMES.get(error.field, error.field)
    if isinstance(error, InputError | ContentFilteredError | AccessError | ModelError):
        return error
    if response.status == 429 and body.code != "insufficient_quota":
        return RetryableError(error, after=response.retry_after, overloaded=True)
    if response.status == 502:
        return RetryableError(error, after=response.retry_after)
    temporary = isinstance(error, RemoteError) and body.kind != "InternalServerException"
    if response.status == 503 and temporary:
        return RetryableError(error, after=response.retry_after, overloaded=True)
    return error


def _error_for_status(status: int, body: error_body.ErrorBody, url: str) -> T2IError:
    message = error_body.with_full_stop(body.message)
    reason = f" {message}" if message else ""
    if body.code in _MODERATION_CODES:
        return ContentFilteredError(
            f"The server withheld the image:{reason}", hint="Change the prompt."
        )
    match status:
        case 400 | 413 | 422:
            return InputError(
                f"The server refuses the request:{reason or f' status {status}.'}",
                hint="Is the --dialect right, and does the model take this?",
                field=body.param,
            )
        case 401:
            return AccessError(f"The server at {url} refuses the API key.{reason}", hint=_KEY_HINT)
        case 403:
            return AccessError(f"The server at {url} does not allow this.{reason}", hint=_KEY_HINT)
        case 404 if "model" in f"{body.code} {body.param} {message.lower()}":
            return ModelError(
                f"The server does not have the model.{reason}", hint="-m names another."
            )
        case 404 | 405:
            return RemoteError(
                f"There is no images API at {url}.", hint="--url usually ends in /v1."
            )
        case 408 | 504:
            return TimedOutError(
                f"The server gave up on the image.{reason}",
                hint="Fewer --steps, or a smaller --size.",
            )
        case 429:
            return QuotaError(
                f"The server has too many requests.{reason}", hint="A smaller --concurrency may do."
            )
        case 503:
            return RemoteError(f"The server is overloaded or not ready.{reason}", hint=_LOG_HINT)
        case _ if 300 <= status < 400:
            return RemoteError(
                f"The server at {url} sends to another address.", hint="Give that one as --url."
            )
    return RemoteError(f"The server failed with status {status}.{reason}", hint=_LOG_HINT)
