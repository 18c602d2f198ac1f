"""Encodes and saves images on threads while the next ones are made."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, Semaphore

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.errors import T2IError, internal_error
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.terminal.console import console

Outcome = SavedImage | Failure
SaveImage = Callable[[GeneratedImage], SavedImage]

SAVER_THREADS = 4
"""Threads that encode and save: fsync waits for the disk, and encoding PNG releases the GIL."""
MAX_SAVER_THREADS = 16
_WORKERS_PER_SAVER = 8
"""Workers of a backend that one thread saves for; theirs come as files, so that it only waits."""


def saver_thread_count(parallelism: int) -> int:
    """How many threads save the images of a backend that makes `parallelism` at once."""
    return min(MAX_SAVER_THREADS, max(SAVER_THREADS, parallelism // _WORKERS_PER_SAVER))


class SaverThreads:
    """Saves images on `threads` threads; at most two images a thread are in hand.

    `report` gets every outcome, one at a time and in the order of `submit()`, from any of the
    threads. `fail` gets what a save or `report` raises and no image's failure can hold.
    """

    def __init__(
        self,
        save: SaveImage,
        report: Callable[[Outcome], None],
        fail: Callable[[BaseException], None],
        threads: int = SAVER_THREADS,
    ) -> None:
        self._save = save
        self._report = report
        self._fail = fail
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="saver")
        self._slots = Semaphore(2 * threads)
        self._lock = Lock()
        self._submitted = self._reported = 0
        self._finished: dict[int, Outcome | None] = {}

    def submit(self, outcome: GeneratedImage | Failure) -> None:
        """Save an image, or report a failure after the saves before it; waits for a free slot."""
        place, self._submitted = self._submitted, self._submitted + 1
        if isinstance(outcome, Failure):
            self._finish(place, outcome)
            return
        self._slots.acquire()
        self._pool.submit(self._save_image, place, outcome)

    def close(self, *, cancel: bool = False) -> None:
        """Wait for the saves in hand, or with `cancel` for those that have begun."""
        self._pool.shutdown(cancel_futures=cancel)
        with self._lock:
            # A save that was cancelled keeps none after it from being reported.
            for place in sorted(self._finished):
                self._report_one(place)

    def _save_image(self, place: int, generated: GeneratedImage) -> None:
        outcome: Outcome | None = None
        try:
            outcome = save_or_fail(generated, self._save)
        except BaseException as error:  # noqa: BLE001 - raised again where the run is waited for
            self._fail(error)
        finally:
            self._finish(place, outcome)
            self._slots.release()

    def _finish(self, place: int, outcome: Outcome | None) -> None:
        with self._lock:
            self._finished[place] = outcome
            while self._reported in self._finished:
                self._report_one(self._reported)

    def _report_one(self, place: int) -> None:
        self._reported = place + 1
        outcome = self._finished.pop(place)
        try:
            if outcome is not None:
                self._report(outcome)
        except BaseException as error:  # noqa: BLE001 - raised again where the run is waited for
            self._fail(error)


def save_or_fail(generated: GeneratedImage, save: SaveImage) -> Outcome:
    """Save an image; whatever its save raises is its Failure, but for MemoryError."""
    started = time.monotonic()
    try:
        saved = save(generated)
    except MemoryError:
        raise
    except Exception as raised:  # noqa: BLE001 - told as this image's failure
        error = raised if isinstance(raised, T2IError) else internal_error(raised)
        return Failure(index=generated.index, request=generated.request, error=error)
    console.trace(
        f"image {generated.index + 1}: made in {generated.seconds:.2f} s, saved in "
        f"{time.monotonic() - started:.2f} s"
    )
    return saved
