"""Options of the http backend, validated before a request is sent."""

import ipaddress
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from t2i_cli.errors import InputError
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.settings import store

OPENAI_HOST = "api.openai.com"


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Options of the http backend.

    `url` is the API's base URL, as http://host:port/v1; `dialect` `None` is detected from the model
    list. `retry_policy` applies to each image. `concurrency` is the maximum number of calls in
    flight. `on_note` takes sentences for the user on the first look at the server. With `plan_only`
    no image is made, and a server that cannot be asked is planned for as far as it is known.
    """

    url: str
    retry_policy: RetryPolicy
    key: str | None = field(default=None, repr=False)
    dialect: str | None = None
    concurrency: int | None = None
    on_note: Callable[[str], None] = lambda _: None
    plan_only: bool = False


def parse_base_url(url: str | None) -> str:
    """Validate a base URL and remove its trailing slash; raises InputError."""
    if not url:
        raise InputError(
            "There is no server to ask.", hint="Give it as --url http://host:port/v1", field="url"
        )
    try:
        parts = urlsplit(url.strip())
        valid = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or 1)
    except ValueError:
        valid = False
    if not valid:
        raise InputError(f"--url {url} is not of the form http://host:port/v1.", field="url")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "The URL of a server holds no name, password or query.",
            hint="A key belongs in T2I_HTTP_API_KEY.",
            field="url",
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def other_base_urls(url: str) -> Iterator[str]:
    """Where the API may be if it is not at `url`, as people give the address of a server."""
    for ending in ("/images/generations", "/models"):
        if url.endswith(ending):
            yield url.removesuffix(ending)
    if not url.endswith("/v1"):
        yield f"{url}/v1"


def is_same_origin(url: str, other: str) -> bool:
    """Whether two URLs have the same scheme, host and port."""
    try:
        ours, theirs = urlsplit(url), urlsplit(other)
        usual = {"http": 80, "https": 443}
        ports = [one.port or usual.get(one.scheme) for one in (ours, theirs)]
    except ValueError:
        return False
    return (ours.scheme, ours.hostname, ports[0]) == (theirs.scheme, theirs.hostname, ports[1])


def api_key_for(url: str) -> str | None:
    """The API key for a server: t2i's setting; OPENAI_API_KEY only for OpenAI's own host."""
    parts = urlsplit(url)
    is_openai = parts.scheme == "https" and parts.hostname == OPENAI_HOST
    own = store.get_setting("http_api_key")
    if own or not is_openai:
        return own
    key = os.environ.get("OPENAI_API_KEY") or None
    setting = store.setting_named("http_api_key")
    if key and not setting.accepts(key):
        raise InputError(f"OPENAI_API_KEY must be {setting.takes}, not {store.MASK}.")
    return key


def is_plaintext(url: str) -> bool:
    """Whether requests are sent unencrypted over a network: plain HTTP, not to this host."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return False
    try:
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return True
