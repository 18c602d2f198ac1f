"""What the pool of workers knows of its workers, their passes, and runs."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.ray.losses import RunEnded
from t2i_cli.backends.ray.pending_requests import PendingRequests, RequestKind, request_kind
from t2i_cli.errors import T2IError
from t2i_cli.events import Event, OnEvent
from t2i_cli.request import ResolvedRequest

PASSES_IN_HAND = 2
"""Passes that a worker has: the one that it makes, and the next."""
_MIN_UNREAD = 16
"""Outcomes that wait, beside one for every two workers, when no more passes are handed out."""


class PoolRun:
    """Requests that are made together; `outbox` is read by the thread that wants the outcomes.

    `left` are the positions of those that have no outcome yet, all by default.
    """

    def __init__(
        self,
        requests: Sequence[ResolvedRequest],
        previews: Sequence[int],
        left: Iterable[int] | None = None,
    ) -> None:
        self.requests = requests
        self.previews = previews
        self.pending = PendingRequests(requests, left)
        self.outbox: SimpleQueue[Event | GeneratedImage | Failure | RunEnded] = SimpleQueue()
        self.load: ResolvedRequest | None = None
        self.lost_loads = 0
        self.ends_soon = self.is_held_up = False
        self._ended = False

    def put_outcome(self, outcome: GeneratedImage | Failure) -> None:
        """Hand an outcome to the run's reader."""
        self.outbox.put(outcome)

    def end(self, error: T2IError | None) -> None:
        """Tell the run's reader that no outcome follows, once."""
        if not self._ended:
            self._ended = True
            self.pending.clear()
            self.outbox.put(RunEnded(error))

    def has_caught_up(self) -> bool:
        """Whether no pass was handed out as outcomes were waiting, and few of them still are."""
        return self.is_held_up and self.outbox.qsize() <= _MIN_UNREAD

    def takes_more(self, workers: int) -> bool:
        """Whether requests are left, and the reader keeps up with the outcomes."""
        self.is_held_up = self.outbox.qsize() > _MIN_UNREAD + workers // 2
        return bool(self.pending) and not self.is_held_up


@dataclass(eq=False)
class PassInHand:
    """A pass that a worker has; `members` are the positions of requests without an outcome."""

    run: PoolRun
    members: list[int]
    load: ResolvedRequest | None = None
    withdrawn: bool = False

    @property
    def is_alone(self) -> bool:
        """Whether its worker gets no other pass beside it."""
        return any(self.run.pending.was_lost(index) for index in self.members)

    @property
    def kind(self) -> RequestKind:
        """The kind of its requests."""
        return request_kind(self.run.requests[self.members[0]])


@dataclass(eq=False)
class PoolWorker:
    """A worker; `started` once its versions are known, `ready` once it takes passes.

    `number` is that of the worker table.
    """

    handle: Any
    number: int = -1
    node: str = "that was to start"
    started: bool = False
    ready: bool = False
    passes: dict[int, PassInHand] = field(default_factory=dict)
    kind: RequestKind | None = None
    largest_pass: int = 1
    last_sign: float = field(default_factory=time.monotonic)

    @property
    def is_busy(self) -> bool:
        """Whether a sign of it is due: it makes its backend, or has a pass."""
        return bool(self.passes) or (self.started and not self.ready)


def forward_events(run: PoolRun, on_event: OnEvent, seconds: float) -> object | None:
    """The next outcome or end of a run within `seconds`; events before it go to `on_event`."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            item = run.outbox.get(timeout=left)
        except Empty:
            return None
        if isinstance(item, RunEnded | GeneratedImage | Failure):
            return item
        on_event(item)
    return None
