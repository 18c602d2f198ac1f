"""Makes a batch's images: the backend in a thread of its own, encoding and saving in others."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event as Flag
from threading import Semaphore, Thread

from t2i_cli import driver
from t2i_cli.backend import Backend, CancellationToken, Failure, GeneratedImage
from t2i_cli.batch.interrupt import StopSignal
from t2i_cli.driver import SaveImage, save_outcome
from t2i_cli.errors import internal_error
from t2i_cli.events import Event, OnEvent, RequestSent, Step
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.request import ResolvedRequest

Outcome = SavedImage | Failure

WRITER_THREADS = 4
"""Threads that encode and save: an fsync waits for the disk, and encoding leaves Python's lock."""
MAX_OUTCOMES = 256
"""Outcomes handed on together at most."""
_LOOK = 0.2
"""Seconds between two looks at whether all is to stop now."""


@dataclass(frozen=True)
class _Ended:
    """The backend has no more; `error` is what it raised."""

    error: BaseException | None = None


class LocalExecutor:
    """Runs a backend in a thread of this process, and saves in others behind it."""

    def __init__(self, backend: Backend, savers: int = WRITER_THREADS) -> None:
        self._backend = backend
        self._savers = savers

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        save: SaveImage,
        on_event: OnEvent,
        stop: StopSignal,
    ) -> Iterator[Sequence[Outcome]]:
        """Yield what became of each request, in groups and in any order, as it is saved.

        `save` is called for each image, from any thread; a failed save is that image's failure. At
        most two images a thread wait for it. `on_event` is called from this generator alone. `stop`
        ends it early: no request is begun once it says `soon`, and it returns within a second of
        `now`.
        """
        line = _Line(self._backend, self._savers, save, stop)
        Thread(target=line.produce, args=(requests,), daemon=True, name="backend").start()
        try:
            yield from line.outcomes(on_event)
        finally:
            line.cancel.set()


class _Line:
    """One run: the backend's thread fills `outbox` by way of the savers, the caller empties it."""

    def __init__(self, backend: Backend, savers: int, save: SaveImage, stop: StopSignal) -> None:
        self.cancel = CancellationToken(stop.soon)
        self._backend = backend
        self._save = save
        self._stop = stop
        self._outbox: SimpleQueue[Event | Outcome | _Ended] = SimpleQueue()
        self._pool = ThreadPoolExecutor(savers, thread_name_prefix="saver")
        self._room = Semaphore(2 * savers)
        self._in_hand: set[int] = set()
        # As many as there is room for: those before them are done.
        self._saves: deque[Future[None]] = deque(maxlen=2 * savers)
        self._unheard: dict[int, Flag] = {}

    def produce(self, requests: Sequence[ResolvedRequest]) -> None:
        """Run the backend to its end, or to that of the images in hand."""
        ended = _Ended()
        try:
            made = driver.run_backend(self._backend, requests, self._hear, self.cancel)
            with closing(made):
                for outcome in made:
                    if self._stop.now.is_set():
                        break
                    self._take(outcome)
                    if self._stop.soon.is_set() and not self._in_hand:
                        break
        except BaseException as error:  # noqa: BLE001 - raised again where the run is waited for
            ended = _Ended(error)
        self._pool.shutdown()
        self._outbox.put(ended)

    def outcomes(self, on_event: OnEvent) -> Iterator[Sequence[Outcome]]:
        """Yield what is there whenever something is, until the end."""
        while True:
            if self._stop.soon.is_set() and not self._in_hand:
                self.cancel.set()
            if self._stop.now.is_set():
                self.cancel.set()
                # What is being saved takes milliseconds, and would be lost.
                self._pool.shutdown(cancel_futures=True)
                yield [item for item in self._waiting() if isinstance(item, SavedImage | Failure)]
                return
            found: list[Outcome] = []
            for item in self._waiting(_LOOK):
                if isinstance(item, SavedImage | Failure):
                    found.append(item)
                elif isinstance(item, _Ended):
                    if found:
                        yield found
                    if item.error:
                        raise item.error
                    return
                else:
                    on_event(item)
            if found:
                yield found
                for outcome in found:
                    if heard := self._unheard.pop(outcome.index, None):
                        heard.set()

    def _waiting(self, seconds: float | None = None) -> Iterator[Event | Outcome | _Ended]:
        """What lies in the outbox; with `seconds`, waiting that long for the first."""
        try:
            if seconds is not None:
                yield self._outbox.get(timeout=seconds)
            for _ in range(MAX_OUTCOMES):
                yield self._outbox.get_nowait()
        except Empty:
            return

    def _hear(self, event: Event) -> None:
        if isinstance(event, Step):
            if event.step == 1 and self._stop.soon.is_set() and not self._in_hand:
                self.cancel.set()
            self._in_hand.update(event.indices)
        elif isinstance(event, RequestSent):
            self._in_hand.update(event.indices)
        self._outbox.put(event)

    def _take(self, outcome: GeneratedImage | Failure) -> None:
        if isinstance(outcome, Failure):
            self._in_hand.discard(outcome.index)
            # Whoever hears of it may want no more, and counts what was made before it: what fails
            # at once must not run ahead.
            while wait(self._saves, _LOOK).not_done and not self.cancel.is_set():
                pass
            heard = self._unheard[outcome.index] = Flag()
            self._outbox.put(outcome)
            while not (heard.wait(_LOOK) or self.cancel.is_set()):
                pass
            return
        self._room.acquire()
        self._saves.append(self._pool.submit(self._keep, outcome))
        self._in_hand.discard(outcome.index)

    def _keep(self, generated: GeneratedImage) -> None:
        try:
            self._outbox.put(self._kept(generated))
        except BaseException as error:  # noqa: BLE001 - raised again where the run is waited for
            self._outbox.put(_Ended(error))
        finally:
            self._room.release()

    def _kept(self, generated: GeneratedImage) -> Outcome:
        try:
            return save_outcome(generated, self._save)
        except MemoryError:
            raise
        except Exception as raised:  # noqa: BLE001 - told as this image's failure
            return Failure(
                index=generated.index, request=generated.request, error=internal_error(raised)
            )
