"""Queue and dynamic batching: waiting images share batches, which one backend thread runs."""

import asyncio
import logging
import math
import time
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
from t2i_cli.known_secrets import SecretFilter
from t2i_cli.server.image_queue import ImageQueue, IndexedJob
from t2i_cli.server.jobs import ImageJob, JobObserver
from t2i_cli.server.options import ServerLimits

LINGER_FRACTION = 0.05
"""Fraction of the last batch's duration to wait for more requests, if several jobs shared it."""
MAX_LINGER = 0.25
"""Longest such wait in seconds."""
RETRY_AFTER = 5
"""Retry-After in seconds where no estimate is possible."""
MAX_RETRY_AFTER = 60
"""Longest Retry-After in seconds."""
_MAX_PARALLEL = 256
"""Largest number of batches that run beside each other."""

T = TypeVar("T")
batcher_log = logging.getLogger(__name__)
batcher_log.addFilter(SecretFilter())
_BUG = "The server met a bug; its log has the details."


class BusyError(QuotaError):
    """The queue is full, or so is all else; `retry_after` is the number of seconds to wait."""

    def __init__(
        self, retry_after: int, message: str = "The server is busy: its queue is full."
    ) -> None:
        super().__init__(message, hint="Try again in a moment.")
        self.retry_after = retry_after


@dataclass
class _Batch:
    """One call of the backend; `completed` holds the positions of members with an outcome."""

    members: list[IndexedJob]
    cancel: Flag = field(default_factory=Flag)
    completed: set[int] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)

    @property
    def is_unwanted(self) -> bool:
        """Whether no client waits for any of its images."""
        return all(job.done for job, _ in self.members)


class Batcher:
    """Runs jobs first in, first out. Use it on the event loop only; the backend has a thread.

    With `jobs_share`, images of several jobs may be of one batch.
    """

    def __init__(self, backend: Backend, limits: ServerLimits, *, jobs_share: bool = True) -> None:
        self.jobs: dict[str, ImageJob] = {}
        self.idle_since: float | None = time.monotonic()
        self.observers: list[JobObserver] = []
        self._backend = backend
        self._limits = limits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="backend")
        # Batches beside each other, of a backend that takes them: threads start as they are needed.
        self._threads = ThreadPoolExecutor(_MAX_PARALLEL, thread_name_prefix="batch")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = False
        self._queue = ImageQueue(jobs_share=jobs_share)
        self._batches: list[_Batch] = []
        self._last_seconds = 0.0
        self._linger_timer: asyncio.TimerHandle | None = None
        self._linger_target = 0

    @property
    def waiting(self) -> int:
        """Jobs of which no image has started."""
        return self._queue.jobs_waiting

    @property
    def running(self) -> int:
        """Images of the running batches."""
        return sum(len(batch.members) for batch in self._batches)

    @property
    def _free_slots(self) -> int:
        """How many batches could start, were those cancelled that no client waits for."""
        if not self._started:
            return 0
        return max(0, self._parallelism - sum(not batch.is_unwanted for batch in self._batches))

    @property
    def _parallelism(self) -> int:
        return min(self._backend.parallelism(), _MAX_PARALLEL)

    def start(self) -> None:
        """Start to run jobs."""
        self._started = True
        self._dispatch()

    def add(self, job: ImageJob) -> None:
        """Queue a job. Raises BusyError if the queue is full."""
        if self.waiting >= self._limits.queue + self._free_slots:
            wait = self._last_seconds * (1 + self._queue.images_waiting // self._limits.max_batch)
            raise self.busy_error(min(max(1, math.ceil(wait)), MAX_RETRY_AFTER))
        self.jobs[job.id] = job
        for observer in self.observers:
            observer.on_queued(job)
        self._queue.append(job)
        self.idle_since = None
        self._dispatch()

    def busy_error(self, retry_after: int = RETRY_AFTER) -> BusyError:
        """The error for a rejected request; notifies the observers."""
        for observer in self.observers:
            observer.on_rejected()
        return BusyError(retry_after)

    def remove(self, job: ImageJob) -> None:
        """Remove a finished job; cancels the batch if no client waits for it any more."""
        if self.jobs.pop(job.id, None):
            for observer in self.observers:
                observer.on_finished(job)
        self._queue.discard(job)
        for batch in self._batches:
            if batch.is_unwanted:
                batch.cancel.set()
        if not self.jobs:
            self.idle_since = time.monotonic()

    def publish(self, event: Event) -> None:
        """Send an event to every job and observer; callable from any thread."""
        self._call_on_loop(self._broadcast, event)

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` in the backend's thread; return its result."""
        self._loop = asyncio.get_running_loop()
        return await self._loop.run_in_executor(self._thread, work)

    async def drain(self, seconds: float) -> bool:
        """Wait at most `seconds` for all jobs and the batch to end; return whether they did."""
        deadline = time.monotonic() + seconds
        while (self.jobs or self._batches) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return not (self.jobs or self._batches)

    def shutdown(self) -> None:
        """Release the backend's thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self) -> None:
        """Start as many batches as may run, once the linger time is over or a batch is full."""
        parallelism = self._parallelism
        while self._started and (free := parallelism - len(self._batches)) > 0:
            if self._linger_timer and self._queue.images_waiting < self._linger_target:
                return
            self._stop_lingering()
            share = math.ceil(self._queue.images_waiting / free)
            members = self._queue.take(min(self._limits.max_batch, max(1, share)))
            if not members:
                return
            batch = _Batch(members)
            self._batches.append(batch)
            # A backend of one batch at a time has one thread: devices are chosen for threads.
            threads = self._thread if parallelism == 1 else self._threads
            self._loop = asyncio.get_running_loop()
            future = self._loop.run_in_executor(threads, partial(self._run, batch))
            future.add_done_callback(partial(self._on_batch_done, batch))

    def _run(self, batch: _Batch) -> None:
        """Run the backend on a batch, in its thread."""
        requests = [job.requests[index] for job, index in batch.members]
        previews = [job.previews for job, _ in batch.members]
        steps_wanted = any(job.steps for job, _ in batch.members)

        def on_event(event: Event) -> None:
            # Waking the event loop delays the batch: not for steps that no client wants.
            if steps_wanted or not isinstance(event, Step):
                self._call_on_loop(self._forward, batch, event)

        with closing(
            run_backend(self._backend, requests, on_event, batch.cancel, previews)
        ) as outcomes:
            for outcome in outcomes:
                self._call_on_loop(self._record_outcome, batch, outcome)

    def _broadcast(self, event: Event) -> None:
        for observer in self.observers:
            observer.on_event(event)
        for job in self.jobs.values():
            job.publish(event)

    def _call_on_loop(self, callback: Callable[..., object], *arguments: object) -> None:
        """Schedule a call on the event loop; callable from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _forward(self, batch: _Batch, event: Event) -> None:
        """Send an event to the jobs it concerns, with indices of each job's requests."""
        if isinstance(event, Preview):
            job, index = batch.members[event.index]
            job.publish(replace(event, index=index))
            return
        if not isinstance(event, Step | RequestSent | Notice) or not event.indices:
            for job in dict.fromkeys(job for job, _ in batch.members):
                job.publish(event)
            for observer in self.observers if isinstance(event, MemoryMeasure) else ():
                observer.on_event(event)
            return
        indices_by_job: dict[ImageJob, list[int]] = {}
        for position in event.indices:
            job, index = batch.members[position]
            indices_by_job.setdefault(job, []).append(index)
        for job, indices in indices_by_job.items():
            job.publish(replace(event, indices=tuple(indices)))

    def _record_outcome(self, batch: _Batch, outcome: GeneratedImage | Failure) -> None:
        job, index = batch.members[outcome.index]
        batch.completed.add(outcome.index)
        if isinstance(outcome, Failure) and (cause := outcome.error.__cause__):
            if isinstance(outcome.error, InternalError):
                outcome = replace(outcome, error=self._log_bug(cause))
            else:
                batcher_log.error("An image failed: %s", outcome.error.message, exc_info=cause)
            # The traceback's frames keep tensors in the device's memory.
            outcome.error.__cause__ = None
            outcome.error.__traceback__ = None
            if isinstance(outcome.error, InternalError):
                outcome = replace(outcome, error=InternalError(_BUG))
        if (
            len(batch.members) > 1
            and isinstance(outcome, Failure)
            and isinstance(outcome.error, InputError | ModelError | InternalError)
        ):
            # Another request of the batch may be the cause: retry each alone.
            self._queue.retry_alone((job, index))
            return
        job.complete(replace(outcome, index=index))

    def _on_batch_done(self, batch: _Batch, future: "asyncio.Future[None]") -> None:
        """Fail the members without an outcome, and start the next batch."""
        if future.cancelled():  # the event loop is closing
            return
        error: T2IError = InternalError("The backend ended before its work was done.")
        if (raised := future.exception()) is not None:
            error = raised if isinstance(raised, T2IError) else self._log_bug(raised)
        for position, (job, index) in enumerate(batch.members):
            if position not in batch.completed:
                request = job.requests[index]
                self._record_outcome(batch, Failure(index=position, request=request, error=error))
        self._batches.remove(batch)
        self._last_seconds = time.monotonic() - batch.started
        for observer in self.observers:
            observer.on_batch_finished(len(batch.members), self._last_seconds)
        if len({job.id for job, _ in batch.members}) > 1:
            # Clients that got their images together send their next requests almost together.
            self._linger_target = min(
                len(batch.members) + self._queue.images_waiting, self._limits.max_batch
            )
            pause = min(LINGER_FRACTION * self._last_seconds, MAX_LINGER)
            self._linger_timer = asyncio.get_running_loop().call_later(pause, self._on_linger_end)
        self._dispatch()

    def _on_linger_end(self) -> None:
        self._stop_lingering()
        self._dispatch()

    def _stop_lingering(self) -> None:
        if self._linger_timer:
            self._linger_timer.cancel()
        self._linger_timer = None

    @staticmethod
    def _log_bug(raised: BaseException) -> InternalError:
        batcher_log.error("The backend met a bug.", exc_info=raised)
        return InternalError(_BUG)
