"""ASGI middleware that checks every request: Host, Origin, API key, content type, body size."""

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from fastapi import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from t2i_cli.errors import AccessError, InputError, T2IError, TimedOutError
from t2i_cli.server.options import API_KEY_VARIABLE, ServerOptions

BODY_SECONDS = 30.0
"""Seconds for a client to send its body."""

_UNREAD_STATUSES = {408, 413}
"""Statuses sent before the whole body was read; the connection is closed after them."""
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


class _RejectedError(Exception):
    """A request was rejected with `status`."""

    def __init__(self, status: int, error: T2IError) -> None:
        self.status = status
        self.error = error


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
        open_paths: Collection[str],
        probes: Collection[str],
        trusted: Collection[str],
        render: Render,
    ) -> None:
        self._app = app
        self._options = options
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
        rejection: _RejectedError | None = None
        try:
            self._check(scope, headers)
        except _RejectedError as rejected:
            rejection = rejected
        try:
            # Read the body all the same: a client that is still sending may miss the response.
            body = await self._read_body(headers, receive, keep=rejection is None)
            if rejection:
                raise rejection
        except _RejectedError as rejected:
            response = self._render(scope["path"], rejected.error, rejected.status)
            if rejected.status == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
            if rejected.status in _UNREAD_STATUSES:
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
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

    def _check(self, scope: Scope, headers: Headers) -> None:
        if self._options.container is None and scope["path"] not in self._probes:
            self._check_host(headers.get("host", ""))
        if scope["path"] not in self._trusted:
            if scope["method"] not in _SAFE_METHODS:
                self._check_origin(headers)
            self._check_key(scope["path"], headers.get("authorization", ""))
        kind = headers.get("content-type", "").partition(";")[0].strip().casefold()
        if scope["method"] not in _SAFE_METHODS and kind != "application/json":
            raise _RejectedError(
                415,
                InputError("The body must be JSON.", hint="Send Content-Type: application/json."),
            )

    def _check_host(self, host: str) -> None:
        """Reject unknown host names, against DNS rebinding."""
        name = parse_host(host)
        allowed = {"localhost", *(name.casefold() for name in self._options.allowed_hosts)}
        if name in allowed or "*" in allowed or _is_address(name):
            return
        if not name:
            raise _RejectedError(403, AccessError("The request names no host."))
        raise _RejectedError(
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
            raise _RejectedError(
                403,
                AccessError(
                    "The request comes from another site's page.",
                    hint="--cors-origin names the sites that may ask.",
                ),
            )

    def _check_key(self, path: str, authorization: str) -> None:
        key = self._options.api_key
        if path in self._open_paths or path.startswith(self._open_prefixes):
            return
        if key is None:
            if self._options.container is None:
                return
            raise _RejectedError(
                403,
                AccessError(
                    "In a container without a key, this server answers the container's routes.",
                    hint=f"Give it a key, by {API_KEY_VARIABLE}, for all else.",
                ),
            )
        scheme, _, given = authorization.partition(" ")
        matches = hmac.compare_digest(given.strip().encode(), key.encode())
        if not (matches and scheme.casefold() == "bearer"):
            raise _RejectedError(
                401,
                AccessError(
                    "This server needs its key.",
                    hint="Send it as Authorization: Bearer KEY; the server's owner has it.",
                ),
            )

    async def _read_body(self, headers: Headers, receive: Receive, *, keep: bool) -> bytes | None:
        """The whole body, empty without `keep`; `None` if the client disconnected."""
        limit = self._options.max_body
        error = InputError(f"The body has more than {limit:,} bytes.")
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 15 or int(length) > limit):
            raise _RejectedError(413, error)
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while (message := await receive())["type"] == "http.request":
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:
                        raise _RejectedError(413, error)
                    if keep:
                        body += chunk
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise _RejectedError(408, TimedOutError("The body took too long.")) from None
        return None


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
