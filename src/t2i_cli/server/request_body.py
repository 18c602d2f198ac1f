"""Reads a request's body within limits, and answers clients that are still sending one."""

import asyncio
from contextlib import suppress

from fastapi import Response
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from t2i_cli.errors import InputError, T2IError, TimedOutError

BODY_SECONDS = 30.0
"""Seconds for a client to send its body."""

REFUSED_BODY_SECONDS = 5.0
"""Seconds for the body of a request that is refused whatever it holds."""
MAX_DRAIN = 32 * 2**20
"""Bytes that are read, and not kept, of a client that is still sending when it is answered."""
DRAIN_PAUSE = 2.0
"""Seconds without a byte from such a client, after which the connection is closed."""
DRAIN_SECONDS = 30.0
"""Seconds for all that it sends."""


class RejectedError(Exception):
    """A request was rejected with `status`; `close` ends the connection with it.

    With `drain` some of what the client still sends is read before, as it would miss the answer.
    """

    def __init__(
        self, status: int, error: T2IError, *, close: bool = False, drain: bool = False
    ) -> None:
        self.status = status
        self.error = error
        self.close = close
        self.drain = drain


async def read_body(
    headers: Headers, receive: Receive, limit: int, rejection: RejectedError | None
) -> bytes | None:
    """The whole body, empty after a rejection; `None` if the client disconnected.

    Raises RejectedError for a body that is larger than `limit` bytes or does not come.
    A rejection that closes the connection is raised at once.
    """
    if rejection and rejection.close:
        raise rejection
    error = InputError(f"The body has more than {limit:,} bytes.")
    length = headers.get("content-length", "0")
    if length.isdecimal() and (len(length) > 15 or int(length) > limit):
        raise RejectedError(413, error, close=True, drain=True)
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(REFUSED_BODY_SECONDS if rejection else BODY_SECONDS):
            while (message := await receive())["type"] == "http.request":
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    more = message.get("more_body", False)
                    raise RejectedError(413, error, close=True, drain=more)
                if not rejection:
                    body += chunk
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        if rejection:
            rejection.close = True
            raise rejection from None
        slow = TimedOutError("The body took too long.")
        raise RejectedError(408, slow, close=True) from None
    return None


def check_framing(scope: Scope, headers: Headers) -> None:
    """Reject a body that a proxy before this server may see end elsewhere (RFC 9112, 6.1)."""
    if "content-length" in headers:
        found = "a Content-Length beside Transfer-Encoding"
    elif scope.get("http_version", "1.1") != "1.1":
        found = "Transfer-Encoding, which HTTP/1.0 has not"
    else:
        return
    raise RejectedError(
        400,
        InputError(f"The request has {found}.", hint="Send one Content-Length, or chunks."),
        close=True,
        drain=True,
    )


async def _drain(receive: Receive) -> None:
    """Read what a client still sends, until it pauses or the limits are reached."""
    left = MAX_DRAIN
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await asyncio.wait_for(receive(), DRAIN_PAUSE)
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                left -= len(message.get("body", b""))


async def send_and_drain(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a response that closes the connection, and read some of what the client still sends.

    The server would close with the response's end, and the system resets a connection that is
    closed with data unread, which can take the response from the client.
    """

    async def send_unfinished(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "more_body": True}
        await send(message)

    await response(scope, receive, send_unfinished)
    await _drain(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
