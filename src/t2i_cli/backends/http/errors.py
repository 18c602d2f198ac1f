"""What a server's refusal means: an error in one sentence, and whether to ask again."""

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
    theirs: name
    for name, known in request_fields.FIELDS.items()
    for theirs in (*known.dialects.values(), known.true_cfg)
    if theirs not in {None, request_fields.SIZE}
}
"""Ours for a server's name of a field; that of a size stays."""

_MODERATED = {"content_policy_violation", "moderation_blocked"}
_KEY = "T2I_HTTP_API_KEY holds the key; OPENAI_API_KEY is sent to api.openai.com only."
_LOG = "Look into the server's log."


def error_from_response(
    answer: HttpResponse, url: str, key: str | None
) -> T2IError | RetryableError:
    """The error for an answer that is no image; RetryableError where it may pass."""
    told = error_body.parse_error_body(answer, key)
    error = _error(answer.status, told, url)
    if told.own is not None and answer.status not in {401, 403}:
        error = told.own
    if isinstance(error, InputError) and error.field:
        error.field = FIELD_NAMES.get(error.field, error.field)
    if isinstance(error, InputError | ContentFilteredError | AccessError | ModelError):
        return error
    if answer.status == 429 and told.code != "insufficient_quota":
        return RetryableError(error, after=answer.retry_after, crowded=True)
    if answer.status == 502:
        return RetryableError(error, after=answer.retry_after)
    passing = isinstance(error, RemoteError) and told.kind != "InternalServerException"
    if answer.status == 503 and passing:
        return RetryableError(error, after=answer.retry_after, crowded=True)
    return error


def _error(status: int, told: error_body.ErrorBody, url: str) -> T2IError:
    message = error_body.with_full_stop(told.message)
    why = f" {message}" if message else ""
    if told.code in _MODERATED:
        return ContentFilteredError(
            f"The server withheld the image:{why}", hint="Change the prompt."
        )
    match status:
        case 400 | 413 | 422:
            return InputError(
                f"The server refuses the request:{why or f' status {status}.'}",
                hint="Is the --dialect right, and does the model take this?",
                field=told.param,
            )
        case 401:
            return AccessError(f"The server at {url} refuses the API key.{why}", hint=_KEY)
        case 403:
            return AccessError(f"The server at {url} does not allow this.{why}", hint=_KEY)
        case 404 if "model" in f"{told.code} {told.param} {message.lower()}":
            return ModelError(f"The server does not have the model.{why}", hint="-m names another.")
        case 404 | 405:
            return RemoteError(
                f"There is no images API at {url}.", hint="--url usually ends in /v1."
            )
        case 408 | 504:
            return TimedOutError(
                f"The server gave up on the image.{why}", hint="Fewer --steps, or a smaller --size."
            )
        case 429:
            return QuotaError(
                f"The server has too many requests.{why}", hint="A smaller --concurrency may do."
            )
        case 503:
            return RemoteError(f"The server is overloaded or not ready.{why}", hint=_LOG)
        case _ if 300 <= status < 400:
            return RemoteError(
                f"The server at {url} sends to another address.", hint="Give that one as --url."
            )
    return RemoteError(f"The server failed with status {status}.{why}", hint=_LOG)
