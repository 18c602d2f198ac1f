"""Maps what Hugging Face's router and its providers answer to t2i's errors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from t2i_cli.backends.hf.providers import ServedModel
from t2i_cli.errors import (
    AccessError,
    ContentFilteredError,
    InputError,
    ModelError,
    QuotaError,
    RemoteError,
    T2IError,
    TimedOutError,
    error_reason,
)
from t2i_cli.files.state_files import is_amount, is_count
from t2i_cli.net import error_body
from t2i_cli.net.billed_calls import error_of_billed_call
from t2i_cli.net.http_client import FailedCall, HttpResponse, translate_error
from t2i_cli.net.retry import RetryableError
from t2i_cli.settings.schema import join_choices

PERMISSION_HINT = (
    "`t2i login` takes a token; it needs the permission to make calls to Inference Providers: "
    "https://huggingface.co/settings/tokens"
)
BILLED_HINT = "The image may have been made and be billed all the same; it is not asked for again."

_REFUSED_CONTENT = re.compile(
    r"nsfw|content.?policy|moderation|safety (system|check|filter)|flagged|sensitive|unsafe content"
    r"|inappropriate",
    re.IGNORECASE,
)
"""What providers say of a prompt or an image that they withhold."""
_SPENT = re.compile(
    r"(insufficient|not.?enough|exceeded).{0,40}(credit|balance|fund)|pre-?paid credits|exhausted",
    re.IGNORECASE,
)
"""What providers say of an account without credit, also with 403 or 429."""
_NOT_SERVED = re.compile(
    r"model.{0,200}(not (supported|found|available|exist)|unsupported|deprecated)", re.IGNORECASE
)
_LOADING = re.compile(r"\b(loading|warming up|starting|cold)\b", re.IGNORECASE)
_FAILED_STATUSES = {"failed", "canceled", "cancelled", "aborted", "fail"}
_RUNNING_STATUSES = {"starting", "processing"}


@dataclass(frozen=True, kw_only=True)
class CallContext:
    """What errors say of a call: its model and provider, and who pays."""

    served: ServedModel
    payer: str
    token: str = field(repr=False)


def error_from_router(response: HttpResponse, context: CallContext) -> T2IError | RetryableError:
    """The error for a refused submission; RetryableError if it may be temporary.

    A submission is repeated only where the answer says that it was not taken.
    """
    body = error_body.parse_error_body(response, context.token)
    error = _error_for_status(response.status, body, context)
    if response.status == 429 and not _is_spent(429, body.message):
        return RetryableError(error, after=response.retry_after, overloaded=True)
    if response.status == 503 and isinstance(error, RemoteError):
        if _LOADING.search(body.message):
            after = response.retry_after or _estimated_seconds(response)
            return RetryableError(error, pause=after, cold_start=True)
        return RetryableError(error, after=response.retry_after, overloaded=True)
    return error


def error_in_answer(answer: object, context: CallContext) -> T2IError | None:
    """The error in an answer with a good status, as of a failed prediction; `None` without one."""
    if not isinstance(answer, dict):
        return None
    data, code = answer.get("data"), answer.get("code")
    if is_count(code, 599) and code >= 400:  # noqa: PLR2004 - wavespeed's, under status 200
        body = error_body.ErrorBody(message=_error_text(answer, context))
        return _error_for_status(code, body, context)
    task: Mapping[str, object] = data if isinstance(data, dict) else answer
    status = str(task.get("status") or task.get("task_status") or "").lower()
    if answer.get("error") or status in _FAILED_STATUSES:
        text = error_body.with_full_stop(_error_text(task.get("error") or answer, context))
        return failed_prediction(text, context)
    concepts = answer.get("has_nsfw_concepts")
    if isinstance(concepts, list) and concepts[:1] == [True]:
        return ContentFilteredError(
            f"{context.served.provider} withheld the image: its filter took it for unsafe.",
            hint="Change the prompt.",
        )
    if status in _RUNNING_STATUSES and context.served.provider == "replicate":
        return TimedOutError(
            "replicate was still at work on the image after the 60 s that it waits.",
            hint=BILLED_HINT,
        )
    return None


def failed_prediction(text: str, context: CallContext) -> T2IError:
    """The error for a prediction that failed, by what the provider or the library says of it."""
    reason = f" {text}" if text else ""
    if _REFUSED_CONTENT.search(text):
        return ContentFilteredError(
            f"{context.served.provider} withheld the image:{reason}", hint="Change the prompt."
        )
    return RemoteError(f"{context.served.provider} made no image of it.{reason}", hint=BILLED_HINT)


def unreadable_answer(raised: Exception, context: CallContext) -> T2IError:
    """The error for what huggingface_hub raised about an answer, which it does not check.

    Its own sentences are ValueErrors; others are what a broken answer leads to.
    """
    reason = error_body.sanitise(error_reason(raised), context.token)
    if type(raised) is ValueError:
        return failed_prediction(error_body.with_full_stop(reason), context)
    return RemoteError(
        f"The answer of {context.served.provider} makes no sense to huggingface_hub "
        f"({type(raised).__name__}: {reason}).",
        hint=BILLED_HINT,
    )


def translate_failed_call(failed: FailedCall) -> RetryableError | T2IError:
    """The error for a call without a response; a submission that may have arrived is not repeated.

    An image that is fetched, or a question for its state, may be asked for again.
    """
    if failed.method == "GET":
        return translate_error(failed)
    return error_of_billed_call(failed, BILLED_HINT)


def _error_for_status(status: int, body: error_body.ErrorBody, context: CallContext) -> T2IError:
    provider, repo = context.served.provider, context.served.repo
    message = error_body.with_full_stop(body.message)
    reason = f" {message}" if message else ""
    if status in {400, 403, 422} and _REFUSED_CONTENT.search(f"{body.code} {message}"):
        return ContentFilteredError(
            f"{provider} withheld the image:{reason}", hint="Change the prompt."
        )
    if _is_spent(status, message):
        return QuotaError(
            f"Hugging Face bills {context.payer} for images of {provider}, and its credits are "
            f"used up.{reason}",
            hint="https://huggingface.co/settings/billing decides that; to try again does not "
            "help.",
        )
    if status == 404 or (status in {400, 422} and _NOT_SERVED.search(message)):
        return _not_served(context, reason)
    match status:
        case 400 | 413 | 422:
            return InputError(
                f"{provider} refuses the request:{reason or f' status {status}.'}",
                hint=f"Does {repo} take this there?",
                field=body.param,
            )
        case 401:
            return AccessError(f"Hugging Face refuses the token.{reason}", hint=PERMISSION_HINT)
        case 403 if re.search(r"gated|restricted|licen[cs]e", message, re.IGNORECASE):
            return AccessError(
                f"{repo} is gated: its licence must be accepted first.{reason}",
                hint=f"Accept the licence at https://huggingface.co/{repo}",
            )
        case 403:
            return AccessError(
                f"The token may not have images made by {provider} and billed to "
                f"{context.payer}.{reason}",
                hint=PERMISSION_HINT,
            )
        case 408 | 504:
            return TimedOutError(f"{provider} gave up on the request.{reason}", hint=BILLED_HINT)
        case 429:
            return QuotaError(
                f"{provider} has too many requests.{reason}",
                hint="A smaller --concurrency may do.",
            )
        case 503:
            return RemoteError(
                f"{provider} is overloaded or not ready.{reason}", hint="Try again later."
            )
    return RemoteError(f"{provider} failed with status {status}.{reason}", hint=BILLED_HINT)


def _not_served(context: CallContext, reason: str) -> ModelError:
    served = context.served
    others = join_choices(served.alternatives) if served.alternatives else "no other"
    return ModelError(
        f"{served.provider} does not serve {served.repo}; the Hub names {others} beside it."
        f"{reason}",
        hint=f"--provider {served.alternatives[0]} is another way."
        if served.alternatives
        else "-m names another model.",
    )


def _is_spent(status: int, message: str) -> bool:
    """Whether the account has no credit left."""
    return status == 402 or (status in {400, 403, 429} and bool(_SPENT.search(message)))


def _error_text(error: object, context: CallContext) -> str:
    """The text of an error in a good answer: text, or an object of any dialect."""
    if isinstance(error, str):
        return error_body.sanitise(error, context.token)
    if not isinstance(error, dict):
        return ""
    found = error.get("message") or error.get("msg") or error.get("error")
    if isinstance(found, dict):
        found = found.get("message")
    return error_body.sanitise(found, context.token) if isinstance(found, str) else ""


def _estimated_seconds(response: HttpResponse) -> float | None:
    """The seconds until the model is loaded, as hf-inference tells them; `None` if it does not."""
    try:
        answer = response.json()
    except RemoteError:
        return None
    seconds = answer.get("estimated_time") if isinstance(answer, dict) else None
    return float(seconds) if is_amount(seconds) and seconds > 0 else None
