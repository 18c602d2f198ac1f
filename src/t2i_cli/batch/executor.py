"""Runs a backend in one thread and encodes and saves its images in others."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event as Flag
from threading import Thread

from t2i_cli import driver
from t2i_cli.backend import Backend, CancellationToken, Failure, GeneratedImage
from t2i_cli.batch.interrupt import StopSignal
from t2i_cli.events import Event, Finishing, OnEvent, RequestSent, Step
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.request import ResolvedRequest
from t2i_cli.saver_threads import Outcome, SaveImage, SaverThreads, saver_thread_count

MAX_OUTCOMES = 256
"""Largest number of outcomes in one group."""
_POLL_INTERVAL = 0.2
"""Seconds between two checks of the stop signal."""
_CANCEL_GRACE = 2.0
"""Seconds in which a cancelled backend with no image in progress should end by itself."""


@dataclass(frozen=True)
class _BackendEnded:
    """Queue item: the backend has ended; `error` is what it or a writer thread raised."""

    error: BaseException | None = None


class LocalExecutor:
    """Runs a backend in a thread of this process and saves its images in `savers` others.

    `savers` is `None` for as many as suit the backend's workers.
    """

    def __init__(
        self, backend: Backend, savers: int | None = None, *, idle_groups: bool = False
    ) -> None:
        self._backend = backend
        self._savers = savers or saver_thread_count(backend.parallelism())
        self._idle_groups = idle_groups

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        save: SaveImage,
        on_event: OnEvent,
        stop: StopSignal,
    ) -> Iterator[Sequence[Outcome]]:
        """Yield the outcome of each request once it is saved, in groups.

        With `idle_groups`, empty groups come while there are no outcomes, several a second.
        `save` is called once per image, from several threads; a T2IError that it raises becomes
        that image's Failure. At most two images per thread wait to be saved. `on_event` is called
        only from this generator's thread. `stop` ends the run early: after `soon` no request is
        started, and after `now` the generator returns within a second.
        """
        run = _Run(self._backend, self._savers, save, stop)
        Thread(target=run.produce, args=(requests,), daemon=True, name="backend").start()
        try:
            for group in run.outcomes(on_event):
                if group or self._idle_groups:
                    yield group
        finally:
            run.cancel.set()


class _Run:
    """One run: threads put events and outcomes into a queue, and the caller reads it."""

    def __init__(self, backend: Backend, savers: int, save: SaveImage, stop: StopSignal) -> None:
        self.cancel = CancellationToken(stop.soon)
        self._backend = backend
        self._stop = stop
        # A SimpleQueue's `get` never ends where a signal's handler returns after its timeout.
        self._queue: Queue[Event | Outcome | _BackendEnded] = Queue()
        self._savers = SaverThreads(
            save, self._queue.put, lambda error: self._queue.put(_BackendEnded(error)), savers
        )
        self._in_progress: set[int] = set()
        self._unprocessed: dict[int, Flag] = {}

    def produce(self, requests: Sequence[ResolvedRequest]) -> None:
        """Run the backend to its end, or after `stop.soon` until images in progress are done."""
        ended = _BackendEnded()
        try:
            generated = driver.run_backend(self._backend, requests, self._on_event, self.cancel)
            with closing(generated):
                for outcome in generated:
                    if self._stop.now.is_set():
                        break
                    self._handle_outcome(outcome)
                    if self._stop.soon.is_set() and not self._in_progress:
                        break
        except BaseException as error:  # noqa: BLE001 - raised again where the run is waited for
            ended = _BackendEnded(error)
        self._savers.close()
        self._queue.put(ended)

    def outcomes(self, on_event: OnEvent) -> Iterator[Sequence[Outcome]]:
        """Yield groups of outcomes as they arrive, until the backend has ended."""
        told, idle_since = False, 0.0
        while True:
            if self._stop.soon.is_set():
                in_progress = tuple(sorted(self._in_progress.copy()))
                if self._stop.signal is not None and not told:
                    told = True
                    on_event(Finishing(indices=in_progress))
                if in_progress:
                    idle_since = 0.0
                else:
                    self.cancel.set()
                    idle_since = idle_since or time.monotonic()
            # A backend that is loading a model, or downloading it, notices nothing for minutes.
            abandoned = idle_since and time.monotonic() - idle_since > _CANCEL_GRACE
            if self._stop.now.is_set() or abandoned:
                self.cancel.set()
                # Saves that have begun take milliseconds; waiting for them keeps their images.
                self._savers.close(cancel=not abandoned)
                yield [item for item in self._queued() if isinstance(item, SavedImage | Failure)]
                return
            found: list[Outcome] = []
            for item in self._queued(_POLL_INTERVAL):
                if isinstance(item, SavedImage | Failure):
                    found.append(item)
                elif isinstance(item, _BackendEnded):
                    if self._stop.signal is not None and not told:
                        on_event(Finishing(indices=()))
                    yield found
                    if item.error:
                        raise item.error
                    return
                else:
                    on_event(item)
            yield found
            for outcome in found:
                if processed := self._unprocessed.pop(outcome.index, None):
                    processed.set()

    def _queued(self, seconds: float | None = None) -> Iterator[Event | Outcome | _BackendEnded]:
        """Items of the queue; with `seconds`, waits up to that long for the first."""
        try:
            if seconds is not None:
                yield self._queue.get(timeout=seconds)
            for _ in range(MAX_OUTCOMES):
                yield self._queue.get_nowait()
        except Empty:
            return

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Step):
            if event.step == 1 and self._stop.soon.is_set() and not self._in_progress:
                self.cancel.set()
            self._in_progress.update(event.indices)
        elif isinstance(event, RequestSent):
            self._in_progress.update(event.indices)
        self._queue.put(event)

    def _handle_outcome(self, outcome: GeneratedImage | Failure) -> None:
        if isinstance(outcome, Failure):
            self._in_progress.discard(outcome.index)
            # The caller may stop the run at a failure. It is reported after the saves before it;
            # start no further request until the caller has processed it.
            processed = self._unprocessed[outcome.index] = Flag()
            self._savers.submit(outcome)
            while not (processed.wait(_POLL_INTERVAL) or self.cancel.is_set()):
                pass
            return
        self._savers.submit(outcome)
        self._in_progress.discard(outcome.index)
