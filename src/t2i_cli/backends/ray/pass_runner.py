"""Runs passes on a backend in a worker's process, and keeps what they tell until it is fetched."""

import pickle
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event as Flag
from typing import Protocol, cast

from t2i_cli.backend import Backend, EncodedImage, Failure, GeneratedImage
from t2i_cli.backends.local.backend import LocalBackend
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.errors import OutOfMemoryError, T2IError, internal_error
from t2i_cli.events import Event, Notice, Preview, RequestSent, Step
from t2i_cli.image_formats import ImageFormat
from t2i_cli.net.lazy_image import LazyImage
from t2i_cli.output import metadata
from t2i_cli.request import ResolvedRequest

_ENCODERS = 2
"""Threads that encode images while the next are made."""
_MAX_ENCODING = 8
"""Images of which the encoding may lag behind."""


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a worker needs to make its backend.

    `folders` are the folders of models whose names are paths relative to the driver's folder.
    """

    make_backend: Callable[[LocalOptions], Backend]
    options: LocalOptions
    format: ImageFormat
    folders: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class WorkerPass:
    """Requests for a worker, after their positions in their run, and previews wanted of each.

    With `load` nothing is made: the model of that request is loaded.
    """

    number: int
    members: Sequence[tuple[int, ResolvedRequest]] = ()
    previews: Sequence[int] = ()
    load: ResolvedRequest | None = None


@dataclass(frozen=True, kw_only=True)
class PassEnded:
    """A pass has ended, and no outcome of it follows.

    `error` is what the backend raised, and `failed` the positions of the requests that it is the
    failure of; other requests without an outcome were not begun, or cancelled.
    """

    error: T2IError | None = None
    failed: tuple[int, ...] = ()


PassMessage = tuple[int, Event | GeneratedImage | Failure | PassEnded]
"""What a pass tells, after its number."""


class WorkerTraceback(Exception):  # noqa: N818 - it stands for another exception
    """The traceback, as text, of an exception in a worker's process."""


class _Closable(Protocol):
    close: Callable[[], None]


class PassRunner:
    """Runs passes one after the other in a thread; all methods may be called from any thread."""

    def __init__(self, config: WorkerConfig) -> None:
        self._backend = config.make_backend(config.options)
        self._format: ImageFormat = config.format
        if isinstance(self._backend, LocalBackend):
            for name, folder in config.folders.items():
                self._backend.register_folder(name, folder)
        self._passes: deque[WorkerPass] = deque()
        self._cancelled: dict[int, Flag] = {}
        self._soon = Flag()
        self._messages: deque[PassMessage] = deque()
        self._changed = threading.Condition()
        self._urgent = False
        self._encoders = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="encoder")
        self._encoding = threading.Semaphore(_MAX_ENCODING)
        threading.Thread(target=self._run_passes, daemon=True, name="passes").start()

    def submit(self, one: WorkerPass) -> None:
        """Queue a pass."""
        self._soon.clear()
        with self._changed:
            self._cancelled[one.number] = Flag()
            self._passes.append(one)
            self._changed.notify_all()

    def withdraw(self, number: int) -> None:
        """End a pass at once if it has not begun."""
        with self._changed:
            found = next((one for one in self._passes if one.number == number), None)
            if found:
                self._passes.remove(found)
        if found:
            self._put(number, PassEnded())

    def cancel(self, numbers: Sequence[int]) -> None:
        """Cancel these passes; each ends with its next step."""
        for number in numbers:
            if flag := self._cancelled.get(number):
                flag.set()

    def finish_soon(self) -> None:
        """Finish the images in progress, and begin no others of the passes that are queued."""
        self._soon.set()

    def fetch(self, seconds: float, linger: float) -> list[PassMessage]:
        """The messages since the last call; waits up to `seconds` for the first.

        Events alone are waited `linger` seconds longer for, so that they come together.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._messages, seconds)
            if self._messages:
                self._changed.wait_for(lambda: self._urgent, linger)
            found, self._urgent = list(self._messages), False
            self._messages.clear()
        return found

    def _run_passes(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._passes)
                one = self._passes.popleft()
            cancel = self._cancelled[one.number]
            ended = PassEnded()
            encoded: list[Future[None]] = []
            if not (cancel.is_set() or self._soon.is_set()):
                ended = self._run_pass(one, cancel, encoded)
            del self._cancelled[one.number]
            self._encoders.submit(self._end_pass, one.number, encoded, ended)

    def _end_pass(self, number: int, encoded: Sequence["Future[None]"], ended: PassEnded) -> None:
        # The encoders take their work in order: what is waited for here has begun.
        for future in encoded:
            future.exception()
        self._put(number, ended)

    def _run_pass(self, one: WorkerPass, cancel: Flag, encoded: list["Future[None]"]) -> PassEnded:
        positions = [position for position, _ in one.members]
        remaining, in_progress = dict.fromkeys(positions), set[int]()
        notes: dict[int, list[str]] = {}

        def on_event(event: Event) -> None:
            if isinstance(event, Preview):
                event = replace(event, index=positions[event.index])
            elif isinstance(event, Step | RequestSent | Notice):
                event = replace(event, indices=tuple(positions[i] for i in event.indices))
            if isinstance(event, Notice):
                for index in event.indices:
                    notes.setdefault(index, []).append(event.message)
            if isinstance(event, Step | RequestSent):
                if self._soon.is_set() and not in_progress:
                    cancel.set()
                in_progress.update(event.indices)
            self._put(one.number, event)

        try:
            if one.load is not None:
                self._backend.load(one.load, on_event)
                return PassEnded()
            outcomes = self._backend.run(
                [request for _, request in one.members], on_event, cancel, one.previews
            )
            with closing(cast("_Closable", outcomes)):
                for outcome in outcomes:
                    index = positions[outcome.index]
                    found = replace(outcome, index=index)
                    in_progress.discard(index)
                    remaining.pop(index, None)
                    if isinstance(found, GeneratedImage):
                        merged = tuple(dict.fromkeys((*found.notes, *notes.get(index, ()))))
                        self._encoding.acquire()
                        encoded.append(
                            self._encoders.submit(
                                self._encode, one.number, replace(found, notes=merged)
                            )
                        )
                    else:
                        self._put(one.number, _portable_failure(found))
                    if self._soon.is_set() and not in_progress:
                        break
        except Exception as raised:  # noqa: BLE001 - becomes the failure of its requests
            error = _error_of(raised)
            failed = [index for index in remaining if index in in_progress] or list(remaining)[:1]
            return PassEnded(error=_portable_error(error), failed=tuple(failed))
        return PassEnded()

    def _encode(self, number: int, generated: GeneratedImage) -> None:
        found: GeneratedImage | Failure
        try:
            found = encoded_image(generated, self._format)
        except Exception as raised:  # noqa: BLE001 - becomes the image's failure
            error = _error_of(raised)
            found = _portable_failure(
                Failure(index=generated.index, request=generated.request, error=error)
            )
        finally:
            self._encoding.release()
        self._put(number, found)

    def _put(self, number: int, content: Event | GeneratedImage | Failure | PassEnded) -> None:
        with self._changed:
            last = self._messages[-1] if self._messages else None
            if last and _is_next_step(last, number, content):
                self._messages[-1] = (number, content)
            else:
                self._messages.append((number, content))
            self._urgent |= isinstance(content, GeneratedImage | Failure | PassEnded | Preview)
            self._changed.notify_all()


def _is_next_step(last: PassMessage, number: int, content: object) -> bool:
    """Whether it is a later step of the same images as the last message, which it replaces."""
    return (
        isinstance(content, Step)
        and isinstance(last[1], Step)
        and last[0] == number
        and last[1].indices == content.indices
        and last[1].step < content.step
    )


def encoded_image(generated: GeneratedImage, format: ImageFormat) -> LazyImage:
    """The image as a file in the format, and beside a lossy one without loss, too."""
    data = metadata.image_file_bytes(generated, format)
    pixels: EncodedImage | None = None
    if format != "png":
        pixels = EncodedImage(format="png", data=metadata.image_file_bytes(generated, "png"))
    return LazyImage(
        index=generated.index,
        request=generated.request,
        info=generated.info,
        seconds=generated.seconds,
        round_trip=generated.round_trip,
        notes=generated.notes,
        memory=generated.memory,
        file=EncodedImage(format=format, data=data),
        file_size=generated.size,
        pixels=pixels,
    )


def _error_of(raised: Exception) -> T2IError:
    """The error of a request for which this was raised."""
    if isinstance(raised, MemoryError):
        return OutOfMemoryError("The memory of the worker's machine is used up.")
    return raised if isinstance(raised, T2IError) else internal_error(raised)


def _portable_failure(failure: Failure) -> Failure:
    return replace(failure, error=_portable_error(failure.error))


def _portable_error(error: T2IError) -> T2IError:
    """The error as another process can take it: its cause is carried as text."""
    try:
        copy: T2IError = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own
    except Exception:  # noqa: BLE001 - a class of another's
        copy = internal_error(error)
    if error.__cause__ is not None:
        text = "".join(traceback.format_exception(error.__cause__))
        copy.cause_text = text  # type: ignore[attr-defined]
    copy.__cause__ = copy.__traceback__ = None
    return copy


def restore_cause(error: T2IError) -> T2IError:
    """The error with its cause's traceback, as a driver got it from a worker."""
    if text := vars(error).pop("cause_text", None):
        error.__cause__ = WorkerTraceback(text)
    return error
