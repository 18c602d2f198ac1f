"""Map a server's error responses to t2i's errors, and decide whether a retry makes sense."""

import re

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
_QUOTA_CODES = {
    *("insufficient_quota", "insufficient_credits", "insufficient_balance", "quota_exceeded"),
    *("billing_hard_limit_reached", "billing_not_active", "payment_required"),
}
"""Codes for an account without quota or credit, where no retry helps (OpenAI's error codes)."""
_STATUS_OF_CODE = {
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "too_many_requests"), 429),
    **dict.fromkeys(("invalid_request_error", "badrequesterror", "validation_error"), 400),
    **dict.fromkeys(("authentication_error", "invalid_api_key"), 401),
    **dict.fromkeys(("permission_error", "permission_denied"), 403),
    **dict.fromkeys(("model_not_found", "not_found_error", "notfounderror"), 404),
    **dict.fromkeys(("unavailable_error", "overloaded_error", "service_unavailable"), 503),
}
"""The status of an error that came with status 200, by its code or type in lower case."""
_UNKNOWN_STATUS = 0
_NOT_FOUND = {404, 405, 501}
"""Statuses of a server that has no such path."""
_STARTING = re.compile(
    r"\b(loading|(still|is) starting|starting up|warming|initiali[sz]ing|not (yet )?ready)\b",
    re.IGNORECASE,
)
"""What servers say while they load their model, as llama.cpp, TGI and Hugging Face do."""
_FAILED = re.compile(r"fail|error|cannot|could not|unable", re.IGNORECASE)
_KEY_HINT = "T2I_HTTP_API_KEY holds the key; OPENAI_API_KEY is sent to api.openai.com only."
_LOG_HINT = "Look into the server's log."


def error_from_response(
    response: HttpResponse, url: str, key: str | None, *, first_look: bool = False
) -> T2IError | RetryableError:
    """The error for a response without an image; RetryableError if it may be temporary.

    `first_look`: nothing was asked of the server yet, so that 503 says that it starts up.
    """
    body = error_body.parse_error_body(response, key)
    status = _actual_status(response.status, body)
    error = _error_for_status(status, body, url)
    if body.t2i_error is not None and response.status not in {401, 403}:
        error = body.t2i_error
    if isinstance(error, InputError) and error.field:
        error.field = FIELD_NAMES.get(error.field, error.field)
    if isinstance(error, InputError | ContentFilteredError | AccessError | ModelError):
        return error
    if status == 429 and not _is_spent(status, body):
        return RetryableError(error, after=response.retry_after, overloaded=True)
    if status == 502:
        return RetryableError(error, after=response.retry_after)
    temporary = isinstance(error, RemoteError) and body.kind != "InternalServerException"
    if status in {503, _UNKNOWN_STATUS} and temporary:
        if (first_look and status == 503) or _is_starting(body):
            return RetryableError(error, after=response.retry_after, cold_start=True)
        if status == 503:
            return RetryableError(error, after=response.retry_after, overloaded=True)
    return error


def is_not_found(response: HttpResponse) -> bool:
    """Whether the server has no such path, also if it says so with status 200."""
    return _actual_status(response.status, error_body.parse_error_body(response)) in _NOT_FOUND


def _actual_status(status: int, body: error_body.ErrorBody) -> int:
    """The status of an error; for one that came with 200, that of its code, if it is known."""
    if status != 200:
        return status
    if body.code.isdecimal() and 400 <= int(body.code[:4]) < 600:
        return int(body.code[:4])
    found = (_STATUS_OF_CODE.get(name.lower()) for name in (body.code, body.kind))
    return next((one for one in found if one), _UNKNOWN_STATUS)


def _is_starting(body: error_body.ErrorBody) -> bool:
    """Whether the server says that it loads its model, and not that this failed."""
    return bool(_STARTING.search(body.message)) and not _FAILED.search(body.message)


def _is_spent(status: int, body: error_body.ErrorBody) -> bool:
    """Whether the account has no quota or credit left."""
    return status == 402 or not _QUOTA_CODES.isdisjoint({body.code.lower(), body.kind.lower()})


def _error_for_status(status: int, body: error_body.ErrorBody, url: str) -> T2IError:
    message = error_body.with_full_stop(body.message)
    reason = f" {message}" if message else ""
    if body.code in _MODERATION_CODES:
        return ContentFilteredError(
            f"The server withheld the image:{reason}", hint="Change the prompt."
        )
    if _is_spent(status, body):
        return QuotaError(
            f"The account at {url} has no quota or credit left.{reason}",
            hint="Its plan and billing decide that; to try again does not help.",
        )
    match status:
        case 400 | 413 | 422:
            return InputError(
                f"The server at {url} refuses the request:{reason or f' status {status}.'}",
                hint="Is the --dialect right, and does the model take this?",
                field=body.param,
            )
        case 401:
            return AccessError(f"The server at {url} refuses the API key.{reason}", hint=_KEY_HINT)
        case 403:
            return AccessError(f"The server at {url} does not allow this.{reason}", hint=_KEY_HINT)
        case 404 if "model" in f"{body.code} {body.param} {message.lower()}":
            return ModelError(
                f"The server at {url} does not have the model.{reason}", hint="-m names another."
            )
        case 404 | 405:
            return RemoteError(
                f"There is no images API at {url}.", hint="--url usually ends in /v1."
            )
        case 408 | 504:
            return TimedOutError(
                f"The server at {url} gave up on the request.{reason}",
                hint="Fewer --steps, or a smaller --size.",
            )
        case 429:
            return QuotaError(
                f"The server at {url} has too many requests.{reason}",
                hint="A smaller --concurrency may do.",
            )
        case 503:
            return RemoteError(
                f"The server at {url} is overloaded or not ready.{reason}", hint=_LOG_HINT
            )
        case _ if 300 <= status < 400:
            return RemoteError(
                f"The server at {url} sends to another address.", hint="Give that one as --url."
            )
    with_status = "" if status == _UNKNOWN_STATUS else f" with status {status}"
    return RemoteError(f"The server at {url} failed{with_status}.{reason}", hint=_LOG_HINT)
