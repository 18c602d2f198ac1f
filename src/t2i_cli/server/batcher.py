"""The queue before the device: waiting jobs share passes of a backend, which one thread runs."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event as Flag
from typing import TypeVar

from t2i_cli.backend import Backend, Failure, GeneratedImage
from t2i_cli.driver import run_backend
from t2i_cli.errors import InputError, InternalError, ModelError, QuotaError, T2IError
from t2i_cli.events import Event, MemoryMeasure, Notice, Preview, RequestSent, Step
from t2i_cli.server.jobs import ImageJob, JobObserver
from t2i_cli.server.options import ServerLimits

LINGER = 0.05
"""Of a shared pass's time: how long the next one waits for the same clients, beside those that wait
already."""
MAX_LINGER = 0.25
"""Seconds."""
RETRY_AFTER = 5
"""Seconds, where nothing better is known."""
MAX_RETRY_AFTER = 60
"""Seconds."""

T = TypeVar("T")
IndexedJob = tuple[ImageJob, int]
"""A job and a position in it."""
batcher_log = logging.getLogger(__name__)
_BUG = "The server met a bug; its log has the details."


class BusyError(QuotaError):
    """The queue is full; `retry_after` is how many seconds to wait."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("The server is busy: its queue is full.", hint="Try again in a moment.")
        self.retry_after = retry_after


@dataclass
class _Pass:
    """One call of the backend; `answered` are positions among its members."""

    members: list[IndexedJob]
    cancel: Flag = field(default_factory=Flag)
    answered: set[int] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)


class Batcher:
    """Jobs in the order they came. All of it is on the event loop, but for the passes."""

    def __init__(self, backend: Backend, limits: ServerLimits) -> None:
        self.jobs: dict[str, ImageJob] = {}
        self.idle_since: float | None = time.monotonic()
        self.observers: list[JobObserver] = []
        self._backend = backend
        self._limits = limits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="backend")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened = False
        self._queue: deque[ImageJob] = deque()
        self._alone: deque[IndexedJob] = deque()
        self._pass: _Pass | None = None
        self._last = 0.0
        self._linger: asyncio.TimerHandle | None = None
        self._linger_for = 0

    @property
    def waiting(self) -> int:
        """Jobs of which nothing has begun."""
        return sum(not job.has_begun for job in self._queue)

    @property
    def running(self) -> int:
        """Images of the pass that runs."""
        return len(self._pass.members) if self._pass else 0

    @property
    def _free(self) -> bool:
        """Whether the device is free, or has nothing left that anyone waits for."""
        return self._opened and (self._pass is None or all(j.done for j, _ in self._pass.members))

    def start(self) -> None:
        """Begin to work."""
        self._opened = True
        self._dispatch()

    def add(self, job: ImageJob) -> None:
        """Have a job wait for its turn; raises BusyError where no more may wait."""
        if self.waiting >= self._limits.queue + self._free:
            left = self._last * (1 + self._images_waiting() // self._limits.max_batch)
            raise self.busy_error(min(max(1, math.ceil(left)), MAX_RETRY_AFTER))
        self.jobs[job.id] = job
        for observer in self.observers:
            observer.on_queued(job)
        self._queue.append(job)
        self.idle_since = None
        self._dispatch()

    def busy_error(self, retry_after: int = RETRY_AFTER) -> BusyError:
        """The error for what finds no place, which observers hear of."""
        for observer in self.observers:
            observer.on_rejected()
        return BusyError(retry_after)

    def remove(self, job: ImageJob) -> None:
        """Give up the place of a job that ended; a pass that nobody waits for any more ends."""
        if self.jobs.pop(job.id, None):
            for observer in self.observers:
                observer.on_finished(job)
        if job in self._queue:
            self._queue.remove(job)
        if self._pass and self._free:
            self._pass.cancel.set()
        if not self.jobs:
            self.idle_since = time.monotonic()

    def publish(self, event: Event) -> None:
        """Tell every job and observer, from any thread."""
        self._post(self._tell, event)

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """What `work` returns, when it had its turn in the backend's thread."""
        self._loop = asyncio.get_running_loop()
        return await self._loop.run_in_executor(self._thread, work)

    async def drain(self, seconds: float) -> bool:
        """Whether no job is left, and no pass, within so many seconds."""
        deadline = time.monotonic() + seconds
        while (self.jobs or self._pass) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return not (self.jobs or self._pass)

    def shutdown(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self) -> None:
        """Begin the next pass, if none runs and it is not worth waiting for company."""
        if self._pass or not self._opened:
            return
        if self._linger and self._images_waiting() < self._linger_for:
            return
        self._stop_lingering()
        if members := self._next_members():
            self._pass = _Pass(members)
            ending = asyncio.ensure_future(self.run_in_thread(partial(self._run, self._pass)))
            ending.add_done_callback(partial(self._ended, self._pass))

    def _next_members(self) -> list[IndexedJob]:
        """The image that waited longest, and those like it, as many as one pass may have."""
        while self._alone:
            job, index = self._alone.popleft()
            if not job.done:
                return [(job, index)]
        members: list[IndexedJob] = []
        for job in list(self._queue):
            for index in list(job.unbegun):
                if len(members) == self._limits.max_batch:
                    return members
                if not members or job.requests[index].batch_key() == _kind(members[0]):
                    members.append((job, index))
                    job.unbegun.remove(index)
            if not job.unbegun:
                self._queue.remove(job)
        return members

    def _run(self, work: _Pass) -> None:
        """Run the backend, in its thread."""
        requests = [job.requests[index] for job, index in work.members]
        previews = [job.previews for job, _ in work.members]
        watched = any(job.steps for job, _ in work.members)

        def hear(event: Event) -> None:
            # A step that nobody hears of must not wake the event loop, which holds the pass up.
            if watched or not isinstance(event, Step):
                self._post(self._hear, work, event)

        with closing(run_backend(self._backend, requests, hear, work.cancel, previews)) as made:
            for outcome in made:
                self._post(self._take, work, outcome)

    def _tell(self, event: Event) -> None:
        for observer in self.observers:
            observer.on_event(event)
        for job in self.jobs.values():
            job.publish(event)

    def _post(self, call: Callable[..., object], *arguments: object) -> None:
        """Have the event loop make a call."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    def _hear(self, work: _Pass, event: Event) -> None:
        """Hand an event to the jobs it concerns, with the positions that are theirs."""
        if isinstance(event, Preview):
            job, index = work.members[event.index]
            job.publish(replace(event, index=index))
            return
        if not isinstance(event, Step | RequestSent | Notice) or not event.indices:
            for job in dict.fromkeys(job for job, _ in work.members):
                job.publish(event)
            for observer in self.observers if isinstance(event, MemoryMeasure) else ():
                observer.on_event(event)
            return
        about: dict[ImageJob, list[int]] = {}
        for position in event.indices:
            job, index = work.members[position]
            about.setdefault(job, []).append(index)
        for job, own in about.items():
            job.publish(replace(event, indices=tuple(own)))

    def _take(self, work: _Pass, outcome: GeneratedImage | Failure) -> None:
        job, index = work.members[outcome.index]
        work.answered.add(outcome.index)
        if isinstance(outcome, Failure) and (cause := outcome.error.__cause__):
            if isinstance(outcome.error, InternalError):
                outcome = replace(outcome, error=self._defect(cause))
            else:
                batcher_log.error("An image failed: %s", outcome.error.message, exc_info=cause)
            # The cause's frames hold what the device's memory is full of.
            outcome.error.__cause__ = None
            outcome.error.__traceback__ = None
            if isinstance(outcome.error, InternalError):
                outcome = replace(outcome, error=InternalError(_BUG))
        if (
            len(work.members) > 1
            and isinstance(outcome, Failure)
            and isinstance(outcome.error, InputError | ModelError | InternalError)
        ):
            # It may be a neighbour's fault: each is tried alone.
            self._alone.append((job, index))
            return
        job.complete(replace(outcome, index=index))

    def _ended(self, work: _Pass, ending: "asyncio.Future[None]") -> None:
        """Answer what the backend left open, and go on with the next pass."""
        if ending.cancelled():  # with the event loop
            return
        error: T2IError = InternalError("The backend ended before its work was done.")
        if (raised := ending.exception()) is not None:
            error = raised if isinstance(raised, T2IError) else self._defect(raised)
        for position, (job, index) in enumerate(work.members):
            if position not in work.answered:
                request = job.requests[index]
                self._take(work, Failure(index=position, request=request, error=error))
        self._pass = None
        self._last = time.monotonic() - work.began
        for observer in self.observers:
            observer.on_batch_finished(len(work.members), self._last)
        if len({job.id for job, _ in work.members}) > 1:
            # Clients that had their images at the same time ask again at almost the same time.
            self._linger_for = min(
                len(work.members) + self._images_waiting(), self._limits.max_batch
            )
            pause = min(LINGER * self._last, MAX_LINGER)
            self._linger = asyncio.get_running_loop().call_later(pause, self._linger_over)
        self._dispatch()

    def _linger_over(self) -> None:
        self._stop_lingering()
        self._dispatch()

    def _stop_lingering(self) -> None:
        if self._linger:
            self._linger.cancel()
        self._linger = None

    def _images_waiting(self) -> int:
        return len(self._alone) + sum(len(job.unbegun) for job in self._queue)

    @staticmethod
    def _defect(raised: BaseException) -> InternalError:
        batcher_log.error("The backend met a bug.", exc_info=raised)
        return InternalError(_BUG)


def _kind(member: IndexedJob) -> tuple[object, ...]:
    job, index = member
    return job.requests[index].batch_key()
