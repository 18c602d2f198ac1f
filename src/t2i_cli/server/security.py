"""Who may ask, and how: Host, Origin, key, kind and size of every request, before anything else."""

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
"""That a client has to send its body in."""

_UNREAD = {408, 413}
"""What is answered while the body may still come."""
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Of every answer that does not say otherwise."""

Render = Callable[[str, T2IError, int], Response]
"""The answer to a request for a path that failed, with a status."""


class _Refusal(Exception):  # noqa: N818 - no error, but the way to an answer
    def __init__(self, status: int, error: T2IError) -> None:
        self.status = status
        self.error = error


class SecurityMiddleware:
    """An ASGI middleware that refuses what the options do not allow.

    `open_paths` need no key; one that ends in "/" stands for all below it. `probes` answer to any
    Host: they tell nothing but a state. `trusted` paths are those that Vertex calls: neither key
    nor Origin is asked for. A container listens on every
    address; without a key, nothing else of it is there.
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
        self._open = {path for path in open_paths if path == "/" or not path.endswith("/")}
        self._below = tuple(path for path in open_paths if path != "/" and path.endswith("/"))
        self._probes = probes
        self._trusted = trusted
        self._render = render
        self._origins = {origin.casefold() for origin in options.cors_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is allowed, with its body read."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        headers = Headers(scope=scope)
        refused: _Refusal | None = None
        try:
            self._check(scope, headers)
        except _Refusal as refusal:
            refused = refusal
        try:
            # Read all the same: who is still sending when it is refused may not see the answer.
            body = await self._read(headers, receive, keep=refused is None)
            if refused:
                raise refused
        except _Refusal as refusal:
            answer = self._render(scope["path"], refusal.error, refusal.status)
            if refusal.status == 401:
                answer.headers["WWW-Authenticate"] = "Bearer"
            if refusal.status in _UNREAD:
                answer.headers["Connection"] = "close"
            await answer(scope, receive, send)
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
            raise _Refusal(
                415,
                InputError("The body must be JSON.", hint="Send Content-Type: application/json."),
            )

    def _check_host(self, host: str) -> None:
        """Names that could be another site's, rebound to this address, are not answered to."""
        name = parse_host(host)
        allowed = {"localhost", *(name.casefold() for name in self._options.allowed_hosts)}
        if name in allowed or "*" in allowed or _is_address(name):
            return
        if not name:
            raise _Refusal(403, AccessError("The request names no host."))
        raise _Refusal(
            403,
            AccessError(
                f"This server does not answer to the host {name!r}.",
                hint=f"--allowed-host {name} lets it.",
            ),
        )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin", "").casefold()
        own = headers.get("host", "").casefold()
        if not origin or origin in self._origins or "*" in self._origins:
            return
        if origin.partition("://")[2] != own:
            raise _Refusal(
                403,
                AccessError(
                    "The request comes from another site's page.",
                    hint="--cors-origin names the sites that may ask.",
                ),
            )

    def _check_key(self, path: str, authorization: str) -> None:
        key = self._options.api_key
        if path in self._open or path.startswith(self._below):
            return
        if key is None:
            if self._options.container is None:
                return
            raise _Refusal(
                403,
                AccessError(
                    "In a container without a key, this server answers the container's routes.",
                    hint=f"Give it a key, by {API_KEY_VARIABLE}, for all else.",
                ),
            )
        scheme, _, given = authorization.partition(" ")
        right = hmac.compare_digest(given.strip().encode(), key.encode())
        if not (right and scheme.casefold() == "bearer"):
            raise _Refusal(
                401,
                AccessError(
                    "This server needs its key.",
                    hint="Send it as Authorization: Bearer KEY; the server's owner has it.",
                ),
            )

    async def _read(self, headers: Headers, receive: Receive, *, keep: bool) -> bytes | None:
        """The whole body, without `keep` an empty one; `None` if the client went away meanwhile."""
        limit = self._options.max_body
        error = InputError(f"The body has more than {limit:,} bytes.")
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 15 or int(length) > limit):
            raise _Refusal(413, error)
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while (message := await receive())["type"] == "http.request":
                    piece = message.get("body", b"")
                    size += len(piece)
                    if size > limit:
                        raise _Refusal(413, error)
                    if keep:
                        body += piece
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise _Refusal(408, TimedOutError("The body took too long.")) from None
        return None


def check_names(hosts: Collection[str], origins: Collection[str]) -> None:
    """Raise InputError for a name that no request's Host or Origin can ever match."""
    for host in hosts:
        plain = host.isascii() and "*" not in host and host.split() == [host]
        if host != "*" and not (plain and parse_host(host) == host.casefold()):
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
    """Whether a browser may send that as Origin (https://fetch.spec.whatwg.org/#origin-header)."""
    try:
        found = urlsplit(text)
        port = found.port
    except ValueError:
        return False
    host = found.hostname or ""
    name = f"[{host}]" if ":" in host else host
    usual = port is None or port == {"http": 80, "https": 443}.get(found.scheme)
    whole = f"{found.scheme}://{name}" + ("" if usual else f":{port}")
    plain = bool(host) and text.isascii() and "*" not in host and text.split() == [text]
    return plain and text == whole


def _with_headers(send: Send) -> Send:
    async def added(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return added


def parse_host(host: str) -> str:
    """The name or address in a Host header, without its port; "" for what is no host."""
    try:
        found = urlsplit(f"//{host}")
        return "" if found.path or found.query or found.username else found.hostname or ""
    except ValueError:  # an IPv6 address that is none
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
