"""ASGI middleware that checks every request: framing, Host, Origin, API key, body size."""

import hmac
import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from fastapi import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from t2i_cli.errors import AccessError, InputError, T2IError
from t2i_cli.server.batcher import RETRY_AFTER, BusyError
from t2i_cli.server.connections import EXTENSION
from t2i_cli.server.options import API_KEY_VARIABLE, ServerOptions
from t2i_cli.server.request_body import (
    RejectedError,
    check_framing,
    read_body,
    send_and_drain,
)

_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_DEFAULT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Headers of every response that does not set them itself."""

Render = Callable[[str, T2IError, int], Response]
"""Makes the error response for a path, an error and a status."""


@dataclass
class ApiKey:
    """The key that requests need, if any; it can be replaced while the server runs."""

    value: str | None = field(default=None, repr=False)

    def matches(self, given: str) -> bool:
        """Whether this is the key, compared in constant time."""
        return self.value is not None and hmac.compare_digest(given.encode(), self.value.encode())


class SecurityMiddleware:
    """An ASGI middleware that rejects requests that the options do not allow.

    `open_paths` need no API key; one that ends in "/", except "/" itself, includes all below it.
    `probes` accept any Host: they reveal only a state. `trusted` paths are those that Vertex AI
    calls: neither key nor Origin is checked. A container without a key serves no other paths, as it
    listens on every address. `render` makes the error responses.
    """

    def __init__(
        self,
        app: ASGIApp,
        options: ServerOptions,
        *,
        api_key: ApiKey,
        open_paths: Collection[str],
        probes: Collection[str],
        trusted: Collection[str],
        render: Render,
    ) -> None:
        self._app = app
        self._options = options
        self._api_key = api_key
        self._open_paths = {path for path in open_paths if path == "/" or not path.endswith("/")}
        self._open_prefixes = tuple(
            path for path in open_paths if path != "/" and path.endswith("/")
        )
        self._probes = probes
        self._trusted = trusted
        self._render = render
        self._origins = {origin.casefold() for origin in options.cors_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request on, with its body already read."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        send = _with_default_headers(send)
        headers = Headers(scope=scope)
        rejection: RejectedError | None = None
        try:
            self._check(scope, headers)
            self._admit(scope)
        except RejectedError as rejected:
            rejection = rejected
        try:
            # Read the body all the same: a client that is still sending may miss the response.
            body = await read_body(headers, receive, self._options.max_body, rejection)
            if rejection:
                raise rejection
        except RejectedError as rejected:
            await self._reject(rejected, scope, receive, send)
            return
        if body is None:
            return
        read = False

        async def replay() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _reject(
        self, rejected: RejectedError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        response = self._render(scope["path"], rejected.error, rejected.status)
        if rejected.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        if rejected.close:
            response.headers["Connection"] = "close"
        if rejected.drain:
            await send_and_drain(response, scope, receive, send)
        else:
            await response(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self._open_paths or path.startswith(self._open_prefixes)

    def _admit(self, scope: Scope) -> None:
        """Give the connection a lasting place, unless anybody may ask for this path."""
        connection = scope.get("extensions", {}).get(EXTENSION)
        if connection is None or self._is_open(scope["path"]) or connection.admit():
            return
        raise RejectedError(
            503,
            BusyError(RETRY_AFTER, "The server is busy: it has no place for another connection."),
            close=True,
            drain=True,
        )

    def _check(self, scope: Scope, headers: Headers) -> None:
        if "transfer-encoding" in headers:
            check_framing(scope, headers)
        if self._options.container is None and scope["path"] not in self._probes:
            self._check_host(headers.get("host", ""))
        if scope["path"] not in self._trusted:
            if scope["method"] not in _SAFE_METHODS:
                self._check_origin(headers)
            self._check_key(scope["path"], headers.get("authorization", ""))

    def _check_host(self, host: str) -> None:
        """Reject unknown host names, against DNS rebinding."""
        name = parse_host(host)
        allowed = {"localhost", *(name.casefold() for name in self._options.allowed_hosts)}
        if name in allowed or "*" in allowed or _is_address(name):
            return
        if not name:
            raise RejectedError(403, AccessError("The request names no host."))
        raise RejectedError(
            403,
            AccessError(
                f"This server does not answer to the host {name!r}.",
                hint=f"--allowed-host {name} lets it.",
            ),
        )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin", "").casefold()
        host = headers.get("host", "").casefold()
        if not origin or origin in self._origins or "*" in self._origins:
            return
        if origin.partition("://")[2] != host:
            raise RejectedError(
                403,
                AccessError(
                    "The request comes from another site's page.",
                    hint="--cors-origin names the sites that may ask.",
                ),
            )

    def _check_key(self, path: str, authorization: str) -> None:
        if self._is_open(path):
            return
        if self._api_key.value is None:
            if self._options.container is None:
                return
            raise RejectedError(
                403,
                AccessError(
                    "In a container without a key, this server answers the container's routes.",
                    hint=f"Give it a key, by {API_KEY_VARIABLE}, for all else.",
                ),
            )
        scheme, _, given = authorization.partition(" ")
        if not (self._api_key.matches(given.strip()) and scheme.casefold() == "bearer"):
            raise RejectedError(
                401,
                AccessError(
                    "This server needs its key.",
                    hint="Send it as Authorization: Bearer KEY; the server's owner has it.",
                ),
            )


def check_names(hosts: Collection[str], origins: Collection[str]) -> None:
    """Raise InputError for a name that no Host or Origin header can match."""
    for host in hosts:
        well_formed = host.isascii() and "*" not in host and host.split() == [host]
        if host != "*" and not (well_formed and parse_host(host) == host.casefold()):
            raise InputError(
                f"--allowed-host takes a host's name without scheme and port, or *, not {host!r}.",
                field="allowed_host",
            )
    for origin in origins:
        if origin != "*" and not _is_origin(origin):
            raise InputError(
                f"--cors-origin takes a site as browsers name it, or *, not {origin!r}.",
                hint="Write https://example.org: a scheme and a host, a port where it is unusual.",
                field="cors_origin",
            )


def _is_origin(text: str) -> bool:
    """Whether it is a valid Origin (https://fetch.spec.whatwg.org/#origin-header)."""
    try:
        found = urlsplit(text)
        port = found.port
    except ValueError:
        return False
    host = found.hostname or ""
    name = f"[{host}]" if ":" in host else host
    default_port = port is None or port == {"http": 80, "https": 443}.get(found.scheme)
    origin = f"{found.scheme}://{name}" + ("" if default_port else f":{port}")
    well_formed = bool(host) and text.isascii() and "*" not in host and text.split() == [text]
    return well_formed and text == origin


def _with_default_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _DEFAULT_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers


def parse_host(host: str) -> str:
    """The name or address in a Host header, without its port; "" if it is invalid."""
    try:
        found = urlsplit(f"//{host}")
        return "" if found.path or found.query or found.username else found.hostname or ""
    except ValueError:  # an invalid IPv6 address
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
