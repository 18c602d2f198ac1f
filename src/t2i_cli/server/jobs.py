"""What the engine owes one caller: the images of a few requests, and news of them meanwhile."""

import asyncio
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.errors import InterruptedRunError, T2IError, TimedOutError
from t2i_cli.events import Event, Notice, Step
from t2i_cli.request import ResolvedRequest

Message = Event | GeneratedImage | Failure


class ImageJob:
    """Images on their way: an asynchronous iterator over what happens, to its end.

    Indices are positions within `requests`; `unbegun` are those that still wait. `tally` counts the
    outcomes: "made", or an error's code. With `steps` it tells of each step. Leaving it as a
    context cancels what is unfinished.
    """

    def __init__(
        self,
        requests: Sequence[ResolvedRequest],
        previews: int,
        on_end: Callable[["ImageJob"], None],
        *,
        steps: bool = True,
    ) -> None:
        self.id = secrets.token_urlsafe(12)
        self.requests = tuple(requests)
        self.previews = previews
        self.steps = steps
        self.accepted = time.monotonic()
        self.tally: Counter[str] = Counter()
        self.unbegun = deque(range(len(requests)))
        self._open = set(self.unbegun)
        self._notes: list[Notice] = []
        self._unread = len(requests)
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._on_end = on_end
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """The next message; may be cancelled without losing one."""
        if not self._unread:
            raise StopAsyncIteration
        message = await self._inbox.get()
        if isinstance(message, GeneratedImage | Failure):
            self._unread -= 1
        return message

    @property
    def has_begun(self) -> bool:
        """Whether any of its images is made or being made."""
        return len(self.unbegun) < len(self.requests)

    @property
    def done(self) -> bool:
        """Whether every request has its outcome, read or not."""
        return not self._open

    async def images(self) -> list[GeneratedImage]:
        """All images, in the order of the requests; raises the first failure's error."""
        made: dict[int, GeneratedImage] = {}
        async for message in self:
            if isinstance(message, Failure):
                raise message.error
            if isinstance(message, GeneratedImage):
                made[message.index] = message
        return [made[index] for index in sorted(made)]

    def notes(self, index: int) -> list[str]:
        """What was noted so far of one of its images, or of all of them."""
        about = (note.message for note in self._notes if index in (note.indices or (index,)))
        return list(dict.fromkeys(about))

    def cancel(self) -> None:
        """Give up what has no outcome yet; nothing if all have one."""
        self.fail(InterruptedRunError("The job was cancelled."))

    def fail(self, error: T2IError) -> None:
        """End the job: what has no outcome yet has this one."""
        for index in sorted(self._open):
            self.complete(Failure(index=index, request=self.requests[index], error=error))

    def expire(self, seconds: float) -> None:
        """End the job in so many seconds, if it is not done by then."""
        error = TimedOutError(f"The time limit of {seconds:g} s ran out.")
        self._timer = asyncio.get_running_loop().call_later(seconds, self.fail, error)

    def publish(self, event: Event) -> None:
        """Pass on an event, while anything is open."""
        if not self._open or (isinstance(event, Step) and not self.steps):
            return
        if isinstance(event, Notice):
            self._notes.append(event)
        self._inbox.put_nowait(event)

    def complete(self, outcome: GeneratedImage | Failure) -> None:
        """Take a request's outcome; a second one is dropped."""
        if outcome.index not in self._open:
            return
        self._open.discard(outcome.index)
        self._inbox.put_nowait(outcome)
        self.tally[outcome.error.code if isinstance(outcome, Failure) else "made"] += 1
        if not self._open:
            if self._timer:
                self._timer.cancel()
            self._on_end(self)


class JobObserver:
    """Hears of what becomes of jobs; what it does not care for, it leaves as it is."""

    def on_event(self, event: Event) -> None:
        """The model is being loaded, or a measure was taken for it."""

    def on_queued(self, job: ImageJob) -> None:
        """A job begins to wait."""

    def on_rejected(self) -> None:
        """A job found the queue full, or a request too many that wait for the model."""

    def on_finished(self, job: ImageJob) -> None:
        """Every request of a job has its outcome."""

    def on_batch_finished(self, images: int, seconds: float) -> None:
        """A pass of so many images took so long."""
