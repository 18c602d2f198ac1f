"""What a user may choose about a server, checked before anything is sent."""

import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from t2i_cli.errors import InputError
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.settings import store

OPENAI_HOST = "api.openai.com"


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """`url` is the API's base, as http://host:port/v1; `dialect` None is found out by asking.

    `retry_policy` is for one image.
    """

    url: str
    retry_policy: RetryPolicy
    key: str | None = field(default=None, repr=False)
    dialect: str | None = None
    concurrency: int | None = None


def parse_base_url(url: str | None) -> str:
    """The API's base URL without a slash at its end; raises InputError."""
    if not url:
        raise InputError(
            "There is no server to ask.", hint="Give it as --url http://host:port/v1", field="url"
        )
    try:
        parts = urlsplit(url.strip())
        sound = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or 1)
    except ValueError:
        sound = False
    if not sound:
        raise InputError(f"--url {url} is not of the form http://host:port/v1.", field="url")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "The URL of a server holds no name, password or query.",
            hint="A key belongs in T2I_HTTP_API_KEY.",
            field="url",
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def api_key_for(url: str) -> str | None:
    """The API key for a server: t2i's own setting, and OpenAI's variable for OpenAI alone."""
    parts = urlsplit(url)
    of_openai = parts.scheme == "https" and parts.hostname == OPENAI_HOST
    own = store.get_setting("http_api_key")
    if own or not of_openai:
        return own
    key = os.environ.get("OPENAI_API_KEY") or None
    kind = store.setting_named("http_api_key")
    if key and not kind.accepts(key):
        raise InputError(f"OPENAI_API_KEY must be {kind.takes}, not {store.MASK}.")
    return key


def is_plaintext(url: str) -> bool:
    """Whether others on the way can read what is sent: plain HTTP, off this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return False
    try:
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return True
