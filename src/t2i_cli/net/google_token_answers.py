"""Checks answers to requests for a token, which google-auth would take for what they are not."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime

from t2i_cli.errors import RemoteError
from t2i_cli.files.state_files import is_count, is_text, parse_json


def check_token_answer(status: str, headers: Mapping[str, str], body: bytes) -> None:
    """Raise RemoteError for an answer of status 2xx that google-auth could not make sense of.

    Those of the metadata server are plain text, unless their type says JSON.
    """
    kind = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    is_plain = "json" not in kind and body[:1] not in {b"{", b"["} and b"<" not in body
    if not status.startswith("2") or (is_plain and body):
        return
    try:
        answer = parse_json(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not all(
        check(answer[name]) for name, check in _TOKEN_FIELDS.items() if name in answer
    ):
        raise RemoteError(
            "Google issues no token now: what answers in its place makes no sense.",
            hint="Check the network: a proxy or a login page may answer for it.",
        )


def _is_bearer_token(value: object) -> bool:
    """Whether a header can carry it: visible ASCII, no spaces."""
    return is_text(value, 2**16) and value.isascii() and " " not in value


def _is_lifetime(value: object) -> bool:
    """Whether it is a number of seconds up to a year, also as text."""
    digits = str(value) if is_count(value) or isinstance(value, str) else ""
    return re.fullmatch("[0-9]{1,8}", digits) is not None


def _is_expiry(value: object) -> bool:
    """Whether it is a time as google-auth parses that of an impersonated account's token."""
    try:
        return isinstance(value, str) and bool(datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return False


_TOKEN_FIELDS: Mapping[str, Callable[[object], bool]] = dict.fromkeys(
    ("access_token", "accessToken", "refresh_token", "id_token", "token"), _is_bearer_token
) | {"expires_in": _is_lifetime, "expireTime": _is_expiry}
"""What google-auth takes from answers to requests for a token."""
