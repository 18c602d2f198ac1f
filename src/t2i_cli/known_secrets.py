"""The secrets that this process knows, and their removal from texts.

An exception of a library may quote the header, the URL or the environment that it was given. Each
T2IError and each line on stderr passes `scrub_secrets`.
"""

import base64
import json
import logging
import os
import re
import traceback
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote, unquote, urlsplit

SHORTEST_SECRET = 8
"""Characters; a shorter text is too frequent in sentences to be replaced in them."""
REPLACEMENT = "…"

_SECRET_VARIABLE = re.compile(
    r"(.*_)?(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY)", re.IGNORECASE
)
_PROXY_VARIABLE = re.compile(r"(HTTPS?|ALL|FTP)_PROXY", re.IGNORECASE)
_MOST_REGISTERED = 64
"""Of tokens, which are renewed each hour, the last ones are kept."""
_registered: dict[str, None] = {}


def register_secret(*secrets: str | None) -> None:
    """Add secrets that come from a file, standard input or a server."""
    for secret in filter(None, secrets):
        _registered.pop(secret, None)
        _registered[secret] = None
    for oldest in list(_registered)[:-_MOST_REGISTERED]:
        _registered.pop(oldest, None)


def scrub_secrets(text: str) -> str:
    """The text without this process's secrets, in plain, quoted for a URL or JSON, or in base64.

    They are those registered, and those of environment variables that are named for one.
    """
    known = frozenset((*_registered, *_secrets_of_environment()))
    return _pattern(known).sub(REPLACEMENT, text) if known else text


class SecretFilter(logging.Filter):
    """Scrubs what is logged, tracebacks included; drops nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Scrub the record's message and traceback."""
        record.msg, record.args = scrub_secrets(record.getMessage()), None
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = scrub_secrets(
                "".join(traceback.format_exception(record.exc_info[1])).rstrip()
            )
        return True


def _secrets_of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.fullmatch(name):
            yield value.strip()
        elif _PROXY_VARIABLE.fullmatch(name) and "@" in value:
            try:
                yield from filter(None, [urlsplit(value).password])
            except ValueError:  # a broken address
                continue


@lru_cache(maxsize=8)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str]:
    """Finds any form of the secrets, the longest first."""
    forms = {form for secret in secrets for form in _forms(secret) if len(form) >= SHORTEST_SECRET}
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _forms(secret: str) -> Iterator[str]:
    # Not every variable's bytes are text.
    quoted = (quote(secret, safe=safe, errors="surrogatepass") for safe in ("", "/"))
    yield from (secret, *quoted, unquote(secret))
    yield from (json.dumps(secret)[1:-1], repr(secret)[1:-1])
    data = secret.encode(errors="surrogatepass")
    # Inside of a longer text, as in a header of Basic authentication, a secret begins at any of
    # three places of a group. The first and last characters of base64 hold bits of its neighbours.
    for offset in range(3) if len(data) >= SHORTEST_SECRET else ():
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            padded = encode(bytes(offset) + data).decode()
            first = -(-offset * 8 // 6)
            yield padded[first : (offset + len(data)) * 8 // 6]
