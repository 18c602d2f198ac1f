"""Parses the error bodies of every dialect; sanitises the servers' text for display."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from t2i_cli.errors import InterruptedRunError, T2IError, TerminatedError, error_from_json
from t2i_cli.files.state_files import parse_json
from t2i_cli.net.http_client import HttpResponse
from t2i_cli.terminal.console import escape_controls

MAX_MESSAGE = 300
"""Characters of a server's message that are shown."""

_SECRETS = (
    (re.compile(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]+"), r"\1?…"),
    (re.compile(r"(?i)\b(bearer)\s+[\w.~+/=-]+"), r"\1 …"),
    (re.compile(r"\b(ya29\.|sk-|hf_)[\w.*-]+"), r"\1…"),
)
"""Patterns of signed URLs and API keys, each with its replacement."""


@dataclass(frozen=True, kw_only=True)
class ErrorBody:
    """A server's error; `param` is the invalid field, by the server's name for it."""

    message: str
    code: str = ""
    kind: str = ""
    param: str | None = None
    t2i_error: T2IError | None = None
    """The original error, if a t2i server sent it."""


def parse_error_body(response: HttpResponse, *secrets: str | None) -> ErrorBody:
    """The error in the body, empty if it is not JSON. `secrets` are replaced in its texts."""
    try:
        body = parse_json(response.body)
    except ValueError:
        return ErrorBody(message="")
    return _parse(body, *secrets)


def _parse(body: object, *secrets: str | None) -> ErrorBody:
    # Google wraps some errors in a list; FastAPI calls the error `detail`.
    body = body[0] if isinstance(body, list) and body else body
    body = body if isinstance(body, dict) else {"message": body}
    error = body.get("error", body.get("detail", body))
    if isinstance(error, list) and error and isinstance(error[0], dict):
        location = error[0].get("loc")
        field = location[-1] if isinstance(location, list) and location else None
        error = {"message": error[0].get("msg"), "param": field}
    if not isinstance(error, dict):
        error = {"message": error}
    if nested := _nested_error(error.get("message")):
        return _parse(nested, *secrets)
    message = sanitise(_text(error.get("message")), *secrets)
    t2i_error = error.get("t2i", error)
    return ErrorBody(
        message=message,
        code=_text(error.get("code")),
        kind=_text(error.get("type") or error.get("status")),
        param=_text(error.get("param")) or None,
        t2i_error=_t2i_error(t2i_error, *secrets) if isinstance(t2i_error, dict) else None,
    )


def sanitise(text: str, *secrets: str | None) -> str:
    """The text on one line, without secrets or control characters, cut at MAX_MESSAGE."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "…")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    line = escape_controls(" ".join(text.split()))
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}…"


def with_full_stop(text: str) -> str:
    """The text ending in punctuation; an empty text stays empty."""
    return text if not text or text.endswith((".", "…", "!", "?")) else f"{text}."


def _nested_error(message: object) -> dict[str, object] | None:
    """A container's error object, which Vertex AI passes on as a JSON string."""
    if not isinstance(message, str) or not message.lstrip().startswith("{"):
        return None
    try:
        value = parse_json(message.encode(errors="replace"))
    except ValueError:
        return None
    return value if isinstance(value, dict) and {"error", "detail"} & value.keys() else None


def _t2i_error(record: Mapping[str, object], *secrets: str | None) -> T2IError | None:
    """The T2IError in a t2i server's error object, or None for another server's object."""
    field = record.get("field", record.get("param"))
    hint = sanitise(_text(record.get("hint")), *secrets)
    message = sanitise(_text(record.get("message")), *secrets)
    code = record.get("code")
    error = error_from_json({"code": code, "message": message, "hint": hint, "field": field})
    # Not raised here: they are about the server's process, and would end this one.
    return None if isinstance(error, TerminatedError | InterruptedRunError) else error


def _text(value: object) -> str:
    return "" if value is None else str(value)
