"""HTTP clients of a backend: each run has one to itself, so that it can end its own calls only."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event as Flag
from threading import Lock

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.events import OnEvent
from t2i_cli.net.concurrency import InFlightCall, run_concurrently
from t2i_cli.net.http_client import HttpClient
from t2i_cli.net.throttle import Throttle
from t2i_cli.request import ResolvedRequest


class ClientPool:
    """Clients by `make_client`, kept with their connections for the next run; thread-safe.

    The first one is made at once: what is wrong with certificates or proxies is raised here.
    """

    def __init__(self, make_client: Callable[[], HttpClient]) -> None:
        self._make_client = make_client
        self._lock = Lock()
        self._all = [make_client()]
        self._idle = list(self._all)

    @contextmanager
    def borrow(self) -> Iterator[HttpClient]:
        """A client that nobody else has until the block ends; it is closed if it is aborted."""
        with self._lock:
            client = self._idle.pop() if self._idle else None
        if client is None:
            client = self._make_client()
            with self._lock:
                self._all.append(client)
        try:
            yield client
        finally:
            with self._lock:
                (self._all.remove if client.aborted else self._idle.append)(client)
            if client.aborted:
                client.close()

    def run_calls(
        self,
        requests: Sequence[ResolvedRequest],
        send: Callable[[InFlightCall, HttpClient], GeneratedImage],
        throttle: Throttle,
        on_event: OnEvent,
        cancel: Flag,
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome for each request, as `run_concurrently`, with a client of its own."""
        with self.borrow() as client:
            yield from run_concurrently(
                requests,
                lambda call: send(call, client),
                throttle,
                on_event,
                cancel,
                abort=client.abort,
            )

    def close(self) -> None:
        """Close the connections of all clients; may be called twice."""
        with self._lock:
            clients = list(self._all)
        for client in clients:
            client.close()
