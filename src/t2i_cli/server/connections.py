"""Bounds on connections: how many there are, and how long one may wait on its client.

A connection on which no request has been let in is "unadmitted". Anyone who reaches the port can
make one, so they have a quarter of the places, seconds to ask, and give way to newcomers.
"""

import asyncio
import time
from collections import Counter
from typing import Any, NamedTuple

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_GRACE = 60.0
"""Seconds for a client to send a request's headers, or to read any of a response."""
SEND_TIMEOUT = 300.0
"""Seconds for a client to read a whole response."""
UNADMITTED_SECONDS = 15.0
"""Seconds for which a connection stays whose client has sent no request that was let in."""
DEFAULT_CONNECTIONS = 512
"""Connections at a time; more if the queue is longer, fewer if there are few descriptors."""
DROP_REASONS = ("crowded", "slow")
"""Why the server ends a connection: it gave way to a newcomer, or had waited too long."""
EXTENSION = "t2i.connection"
"""Key of a request's connection in the extensions of its ASGI scope."""
_MAX_BACKLOG = 1024
_MAX_BURST = DEFAULT_CONNECTIONS // 32
MAX_CHUNKS = 2**13
"""Chunks of a request's body: one of a single byte costs as much as a large one."""
UNADMITTED_CHUNKS = 2**10
"""The same for a connection of which no request has been let in; one read can hold 700."""
_READ_SIZE = 2**12
"""Bytes read at a time: the most that h11 parses without letting other connections run.

asyncio reads 256 KiB by default, of which h11 parses one-byte chunks for half a second.
"""


def descriptor_limit() -> int | None:
    """The process's limit of open files and sockets; None where there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def listen_backlog() -> int:
    """Connections that may wait in the system to be accepted; they take no descriptors yet."""
    descriptors = descriptor_limit()
    return _MAX_BACKLOG if descriptors is None else max(1, min(_MAX_BACKLOG, descriptors // 2))


def accept_burst() -> int:
    """Connections that asyncio accepts at once; it takes its backlog for that number.

    An eighth of the places for unadmitted ones: it takes the event loop a few rounds, each with
    such a burst, to read the request of a newcomer, who would else have given way by then.
    """
    descriptors = descriptor_limit()
    return _MAX_BURST if descriptors is None else max(1, min(_MAX_BURST, descriptors // 64))


def connection_limit(queue: int) -> int:
    """The most connections of a server with a queue of that length."""
    wanted = max(DEFAULT_CONNECTIONS, 2 * queue)
    descriptors = descriptor_limit()
    return wanted if descriptors is None else max(4, min(wanted, descriptors // 2))


class ConnectionTable:
    """The server's connections, at most `most`. Use it on the event loop only.

    `dropped` counts the connections that the server ended, by DROP_REASONS; `refused` counts
    requests that found no place.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.dropped: Counter[str] = Counter()
        self.refused = 0
        self._most_unadmitted = max(1, most // 4)
        # By the client's address; the oldest first, as dicts keep their order.
        self._unadmitted: dict[str, dict[BoundedProtocol, None]] = {}
        self._admitted: dict[BoundedProtocol, None] = {}
        self._waits: dict[BoundedProtocol, _ClientWait] = {}

    @property
    def unadmitted(self) -> int:
        """Connections on which no request has been let in."""
        return sum(map(len, self._unadmitted.values()))

    @property
    def admitted(self) -> int:
        """Connections on which a request has been let in."""
        return len(self._admitted)

    def add(self, connection: "BoundedProtocol") -> None:
        """Add a new connection; the oldest of the client that has most gives way to it."""
        if self.unadmitted >= self._most_unadmitted:
            crowd = max(self._unadmitted.values(), key=len)
            self._drop(next(iter(crowd)), "crowded")
        self._unadmitted.setdefault(connection.address, {})[connection] = None

    def remove(self, connection: "BoundedProtocol") -> None:
        """Remove a connection that has ended."""
        self._admitted.pop(connection, None)
        siblings = self._unadmitted.get(connection.address, {})
        siblings.pop(connection, None)
        if not siblings:
            self._unadmitted.pop(connection.address, None)

    def admit(self, connection: "BoundedProtocol") -> bool:
        """Give a connection a lasting place: its request is let in. False if there is none."""
        if connection in self._admitted:
            return True
        if len(self._admitted) >= self.most - self._most_unadmitted:
            self.refused += 1
            return False
        self.remove(connection)
        self._admitted[connection] = None
        return True

    def drop_slow(self) -> None:
        """End connections that have waited on their clients too long; uvicorn has no such limit."""
        now = time.monotonic()
        for siblings in list(self._unadmitted.values()):
            for connection in list(siblings):
                if now - connection.opened > UNADMITTED_SECONDS:
                    self._drop(connection, "slow")
        waits: dict[BoundedProtocol, _ClientWait] = {}
        everyone = [*self._admitted, *(c for group in self._unadmitted.values() for c in group)]
        for connection in everyone:
            if (unsent := unsent_bytes(connection)) is not None:
                previous = self._waits.get(connection)
                if previous is None or bool(previous.unsent) != bool(unsent):
                    previous = _ClientWait(unsent, changed=now, started=now)
                changed = previous.changed if previous.unsent == unsent else now
                waits[connection] = _ClientWait(unsent, changed, previous.started)
        for connection, wait in waits.items():
            if now - wait.changed > REQUEST_GRACE or (
                wait.unsent and now - wait.started > SEND_TIMEOUT
            ):
                self._drop(connection, "slow")
        self._waits = waits

    def _drop(self, connection: "BoundedProtocol", reason: str) -> None:
        self.dropped[reason] += 1
        self.remove(connection)
        # Unsent data is dropped, too.
        connection.transport.abort()


class _ClientWait(NamedTuple):
    """Unsent bytes of a slow client; when they last changed and when the wait started."""

    unsent: int
    changed: float
    started: float


def unsent_bytes(connection: H11Protocol) -> int | None:
    """Bytes that the client has not read; 0 if it has to send a request, else None."""
    if unread := connection.transport.get_write_buffer_size():
        return unread
    idle = connection.cycle is None or connection.cycle.response_complete
    return 0 if idle and connection.timeout_keep_alive_task is None else None


class _BoundedConnection(h11.Connection):
    """h11's parser with a limit on the chunks of a body."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self.most_chunks = UNADMITTED_CHUNKS
        self._chunks = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event. Raises RemoteProtocolError for a body of too many chunks."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = 0
        elif isinstance(event, h11.Data) and event.chunk_start:
            self._chunks += 1
            if self._chunks > self.most_chunks:
                raise h11.RemoteProtocolError("The body comes in too many chunks.")
        return event


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol over h11, with a place in the application's ConnectionTable.

    The table is `state.connections` of the application; requests have the connection in their
    scope, as EXTENSION.
    """

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*args, **options)
        self.table: ConnectionTable = self.config.app.state.connections  # type: ignore[union-attr]
        self.address = ""
        self.opened = time.monotonic()
        self.conn: _BoundedConnection = _BoundedConnection()
        self._inner = self.app
        self.app = self._with_extension

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place."""
        super().connection_made(transport)
        # asyncio's own attribute for the size of a read.
        transport.max_size = _READ_SIZE  # type: ignore[attr-defined]
        self.address = self.client[0] if self.client else ""
        self.table.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the place."""
        super().connection_lost(exc)
        self.table.remove(self)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless an answer is on its way: then cut the connection."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
            if self.cycle is not None and not self.cycle.response_complete:
                # It was begun with the request's head; what it would answer has been answered.
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        else:
            self.transport.abort()

    def admit(self) -> bool:
        """Whether the connection has, or gets, a lasting place."""
        if not self.table.admit(self):
            return False
        self.conn.most_chunks = MAX_CHUNKS
        return True

    async def _with_extension(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), EXTENSION: self}
        await self._inner(scope, receive, send)
