"""Parses the error bodies of every dialect; sanitises the servers' text for display."""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass

from t2i_cli.errors import InterruptedRunError, T2IError, TerminatedError, error_from_json
from t2i_cli.files.state_files import parse_json
from t2i_cli.known_secrets import scrub_secrets
from t2i_cli.net.http_client import HttpResponse
from t2i_cli.terminal.console import escape_controls

MAX_MESSAGE = 300
"""Characters of a server's message that are shown."""
MAX_PAGE_BYTES = 65_536
"""Bytes of a page or text that are searched for a message."""

_ERROR_KEYS = ("error", "errors", "detail")
"""Keys of a body that hold an error object, or its text."""
_MESSAGE_KEYS = ("message", "msg", "description", "reason", "title")
"""Further keys that hold its text."""
_IMAGE_KEYS = {"b64_json", "url"}
_HTML = re.compile(
    r"\s*<(?:!--|(?:!doctype|\?xml|html|head|body|title|h1|center|p|div)\b)", re.IGNORECASE
)
_TITLE = re.compile(r"<(?:title|h1)\b[^>]{0,500}>([^<]+)", re.IGNORECASE)
_INVISIBLE = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|$)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*(?:>|$)")

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
    """The error in a body: JSON of any dialect, HTML, or text; empty if it is none of them.

    `secrets` are replaced in its texts.
    """
    return parse_error_bytes(response.body, *secrets)


def parse_error_bytes(content: bytes, *secrets: str | None) -> ErrorBody:
    """The error in a body's bytes, as `parse_error_body` gives it."""
    try:
        body = parse_json(content)
    except ValueError:
        body = content[:MAX_PAGE_BYTES].decode(errors="replace")
        body = "" if "\0" in body else body
    return _parse(body, *secrets)


def holds_error(body: object) -> bool:
    """Whether the JSON body of a successful response is an error, as some servers send it."""
    if not isinstance(body, dict):
        return False
    data = body.get("data")
    if isinstance(data, list) and data:
        first = data[0]
        return isinstance(first, dict) and bool(first.get("error")) and not _IMAGE_KEYS & set(first)
    return any(body.get(key) for key in (*_ERROR_KEYS, "message")) or body.get("object") == "error"


def _parse(body: object, *secrets: str | None) -> ErrorBody:
    # Google wraps some errors in a list; t2i and others put an image's error into its entry.
    body = body[0] if isinstance(body, list) and body else body
    body = body if isinstance(body, dict) else {"message": body}
    data = body.get("data")
    if isinstance(data, list) and data and isinstance(data[0], dict) and data[0].get("error"):
        body = data[0]
    # FastAPI calls the error `detail`, others `errors` or `message`.
    error = next((found for key in _ERROR_KEYS if isinstance(found := body.get(key), dict)), body)
    for key in (*_ERROR_KEYS, "message"):
        if nested := _nested_error(error.get(key)):
            return _parse(nested, *secrets)
    t2i_error = error.get("t2i", error)
    return ErrorBody(
        message=sanitise(_message(error), *secrets),
        code=_text(error.get("code")),
        kind=_text(error.get("type") or error.get("status")),
        param=_text(error.get("param")) or _location(error),
        t2i_error=_t2i_error(t2i_error, *secrets) if isinstance(t2i_error, dict) else None,
    )


def _message(error: Mapping[str, object]) -> str:
    """The texts of an error object, each once."""
    found = (_plain(error.get(key)) for key in (*_ERROR_KEYS, *_MESSAGE_KEYS))
    return ": ".join(dict.fromkeys(text for text in found if text))


def _plain(value: object) -> str:
    """The text in a value of an error object: that of a page of HTML is its title."""
    if isinstance(value, list) and value:
        # FastAPI lists invalid fields; the first is told.
        value = value[0]
    if isinstance(value, dict):
        value = value.get("msg") or value.get("message")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    text = str(value)[:MAX_PAGE_BYTES].strip()
    if not _HTML.match(text):
        return text
    title = _TITLE.search(text)
    return html.unescape(_TAG.sub(" ", title[1] if title else _INVISIBLE.sub(" ", text))).strip()


def _location(error: Mapping[str, object]) -> str | None:
    """The field that FastAPI names in the first entry of `detail`."""
    for key in _ERROR_KEYS:
        found = error.get(key)
        if isinstance(found, list) and found and isinstance(found[0], dict):
            location = found[0].get("loc")
            return _text(location[-1]) if isinstance(location, list) and location else None
    return None


def sanitise(text: str, *secrets: str | None) -> str:
    """The text on one line, without secrets or control characters, cut at MAX_MESSAGE."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "…")
    # Before it is cut: a part of a secret would not be known for one.
    text = scrub_secrets(text)
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
