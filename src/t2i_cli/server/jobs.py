"""A submitted job: an async stream of its events and images."""

import asyncio
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.driver import with_notes
from t2i_cli.errors import InterruptedRunError, T2IError, TimedOutError
from t2i_cli.events import Event, Notice, Step
from t2i_cli.request import ResolvedRequest
from t2i_cli.server.private_paths import PrivatePaths

Message = Event | GeneratedImage | Failure


class ImageJob:
    """An async iterator over a job's events, images and failures; ends when all have an outcome.

    Indices are positions in `requests`; `pending` are those that have not started. `outcomes`
    counts the outcomes: "made", or an error's code. Step events are published with `steps` only.
    What it shows has none of the `hidden` paths.
    Leaving the job's context cancels the unfinished requests.
    """

    def __init__(
        self,
        requests: Sequence[ResolvedRequest],
        previews: int,
        on_end: Callable[["ImageJob"], None],
        *,
        steps: bool = True,
        hidden: PrivatePaths | None = None,
    ) -> None:
        self.id = secrets.token_urlsafe(12)
        self.requests = tuple(requests)
        self._hidden = hidden or PrivatePaths()
        self.shown_requests = tuple(map(self._hidden.request, self.requests))
        self.previews = previews
        self.steps = steps
        self.accepted = time.monotonic()
        self.outcomes: Counter[str] = Counter()
        self.pending = deque(range(len(requests)))
        self._unresolved = set(self.pending)
        self._notes: list[Notice] = []
        self._unread_outcomes = len(requests)
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
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
        """The next message. Cancelling the await loses none."""
        if not self._unread_outcomes:
            raise StopAsyncIteration
        message = await self._messages.get()
        if isinstance(message, GeneratedImage | Failure):
            self._unread_outcomes -= 1
        return message

    @property
    def has_started(self) -> bool:
        """Whether any of its images has started."""
        return len(self.pending) < len(self.requests)

    @property
    def done(self) -> bool:
        """Whether every request has an outcome, read or not."""
        return not self._unresolved

    async def images(self) -> list[GeneratedImage]:
        """All images, in the order of the requests. Raises the first failure's T2IError."""
        images: dict[int, GeneratedImage] = {}
        async for message in self:
            if isinstance(message, Failure):
                raise message.error
            if isinstance(message, GeneratedImage):
                images[message.index] = message
        return [images[index] for index in sorted(images)]

    def notes(self, index: int) -> list[str]:
        """The notices so far about one image or about all, without duplicates."""
        messages = (note.message for note in self._notes if index in (note.indices or (index,)))
        return list(dict.fromkeys(messages))

    def cancel(self) -> None:
        """Cancel the requests that have no outcome yet."""
        self.fail(InterruptedRunError("The job was cancelled."))

    def fail(self, error: T2IError) -> None:
        """End the job: requests without an outcome fail with this error."""
        for index in sorted(self._unresolved):
            self.complete(Failure(index=index, request=self.requests[index], error=error))

    def expire(self, seconds: float) -> None:
        """Set a time limit in seconds, after which unfinished requests fail with TimedOutError."""
        error = TimedOutError(f"The time limit of {seconds:g} s ran out.")
        self._timer = asyncio.get_running_loop().call_later(seconds, self.fail, error)

    def publish(self, event: Event) -> None:
        """Queue an event for the reader; dropped once every request has an outcome."""
        if not self._unresolved or (isinstance(event, Step) and not self.steps):
            return
        event = self._hidden.event(event)
        if isinstance(event, Notice):
            self._notes.append(event)
        self._messages.put_nowait(event)

    def complete(self, outcome: GeneratedImage | Failure) -> None:
        """Set a request's outcome; a second one is dropped."""
        if outcome.index not in self._unresolved:
            return
        self._unresolved.discard(outcome.index)
        outcome = self._hidden.outcome(outcome)
        if isinstance(outcome, GeneratedImage):
            about = [note.message for note in self._notes if outcome.index in note.indices]
            outcome = with_notes(outcome, about)
        self._messages.put_nowait(outcome)
        self.outcomes[outcome.error.code if isinstance(outcome, Failure) else "made"] += 1
        if not self._unresolved:
            if self._timer:
                self._timer.cancel()
            self._on_end(self)


class JobObserver:
    """Callbacks about jobs; they do nothing unless overridden."""

    def on_event(self, event: Event) -> None:
        """The model is loading, or a memory measure was taken."""

    def on_queued(self, job: ImageJob) -> None:
        """A job was queued."""

    def on_rejected(self) -> None:
        """A job found the queue full, or too many requests wait for the model's description."""

    def on_finished(self, job: ImageJob) -> None:
        """Every request of a job has an outcome."""

    def on_batch_finished(self, images: int, seconds: float) -> None:
        """A batch of `images` took `seconds`."""
