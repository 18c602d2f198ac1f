"""What a server says of an error: every dialect's error object, read, and fit to be shown."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from t2i_cli.errors import InterruptedRunError, T2IError, TerminatedError, error_from_json
from t2i_cli.net.http_client import HttpResponse
from t2i_cli.terminal.console import escape_controls

MAX_MESSAGE = 300
"""Characters of a server's sentence that are shown."""

_SECRETS = (
    (re.compile(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]+"), r"\1?…"),
    (re.compile(r"(?i)\b(bearer)\s+[\w.~+/=-]+"), r"\1 …"),
    (re.compile(r"\b(ya29\.|sk-|hf_)[\w.*-]+"), r"\1…"),
)
"""Signed addresses, and keys by the forms that they have."""


@dataclass(frozen=True, kw_only=True)
class ErrorBody:
    """A server's error: `param` is the field at fault as the server calls it."""

    message: str
    code: str = ""
    kind: str = ""
    param: str | None = None
    own: T2IError | None = None
    """The error itself, where a t2i server sent it."""


def parse_error_body(answer: HttpResponse, *secrets: str | None) -> ErrorBody:
    """What the body says of the error; `secrets` are kept out of it."""
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        return ErrorBody(message="")
    return _told(body, *secrets)


def _told(body: object, *secrets: str | None) -> ErrorBody:
    # Google wraps some errors in a list; FastAPI says `detail`.
    body = body[0] if isinstance(body, list) and body else body
    body = body if isinstance(body, dict) else {"message": body}
    error = body.get("error", body.get("detail", body))
    if isinstance(error, list) and error and isinstance(error[0], dict):
        where = error[0].get("loc")
        last = where[-1] if isinstance(where, list) and where else None
        error = {"message": error[0].get("msg"), "param": last}
    if not isinstance(error, dict):
        error = {"message": error}
    if inner := _inner(error.get("message")):
        return _told(inner, *secrets)
    message = sanitise(_text(error.get("message")), *secrets)
    own = error.get("t2i", error)
    return ErrorBody(
        message=message,
        code=_text(error.get("code")),
        kind=_text(error.get("type") or error.get("status")),
        param=_text(error.get("param")) or None,
        own=_own(own, *secrets) if isinstance(own, dict) else None,
    )


def sanitise(text: str, *secrets: str | None) -> str:
    """A server's text on one line, without secrets, and not too long."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "…")
    for pattern, stand_in in _SECRETS:
        text = pattern.sub(stand_in, text)
    line = escape_controls(" ".join(text.split()))
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}…"


def with_full_stop(text: str) -> str:
    """The text with a full stop, and nothing for nothing."""
    return text if not text or text.endswith((".", "…", "!", "?")) else f"{text}."


def _inner(message: object) -> dict[str, object] | None:
    """The error object of a container, which Vertex AI hands on as a sentence."""
    if not isinstance(message, str) or not message.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and {"error", "detail"} & value.keys() else None


def _own(record: Mapping[str, object], *secrets: str | None) -> T2IError | None:
    """The error of a t2i server: its codes are ours."""
    field = record.get("field", record.get("param"))
    hint = sanitise(_text(record.get("hint")), *secrets)
    message = sanitise(_text(record.get("message")), *secrets)
    code = record.get("code")
    error = error_from_json({"code": code, "message": message, "hint": hint, "field": field})
    # A server that shuts down is none to wait for; it ends its own process, not this one.
    return None if isinstance(error, TerminatedError | InterruptedRunError) else error


def _text(value: object) -> str:
    return "" if value is None else str(value)
