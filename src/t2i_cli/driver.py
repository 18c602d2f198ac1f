"""Runs a backend until every request has an outcome; the only caller of `Backend.run`."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from threading import Event as Flag
from threading import Lock
from typing import Protocol, cast

from t2i_cli.backend import Backend, Failure, GeneratedImage
from t2i_cli.errors import T2IError, internal_error
from t2i_cli.events import Event, Notice, OnEvent, RequestSent, Step, move_event
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest
from t2i_cli.saver_threads import Outcome, SaveImage, SaverThreads


def generate_and_save(
    requests: Sequence[ResolvedRequest],
    backend: Backend,
    save: SaveImage,
    report: Callable[[Outcome], None],
    on_event: OnEvent,
) -> None:
    """Run the backend in this thread, and save its images on others while the next are made.

    `save` is called from those threads. `report` gets each outcome in the backend's order, once it
    is saved; a failed save is that image's Failure. `report` and `on_event` are never called at
    once. However the run ends, also by Ctrl-C, images in hand are saved and reported first.
    Raises what `report` raises.
    """
    alone, cancel, raised = Lock(), Flag(), list[BaseException]()

    def report_alone(outcome: Outcome) -> None:
        with alone:
            report(outcome)

    def on_event_alone(event: Event) -> None:
        with alone:
            on_event(event)

    def fail(error: BaseException) -> None:
        raised.append(error)
        cancel.set()

    savers = SaverThreads(save, report_alone, fail)
    try:
        with closing(run_backend(backend, requests, on_event_alone, cancel)) as outcomes:
            for outcome in outcomes:
                savers.submit(outcome)
                if raised:
                    break
    finally:
        savers.close()
    if raised:
        raise raised[0]


def run_backend(
    backend: Backend,
    requests: Sequence[ResolvedRequest],
    on_event: OnEvent,
    cancel: Flag,
    previews: Sequence[int] = (),
) -> Generator[GeneratedImage | Failure]:
    """Yield the outcome of each request; an exception fails the requests in progress.

    These are the requests of a Step or RequestSent event without an outcome, or else the first
    one without. The backend is then run again with the remaining requests, as a generator that
    raised cannot go on. `previews` are the numbers of previews wanted of each request.
    """
    remaining = dict(enumerate(requests))
    while remaining and not cancel.is_set():
        in_progress: set[int] = set()
        try:
            yield from _run_once(backend, remaining, in_progress, on_event, cancel, previews)
            return
        except MemoryError:
            raise
        except Exception as raised:  # noqa: BLE001 - becomes the Failure of the requests in progress
            error = raised if isinstance(raised, T2IError) else internal_error(raised)
        failed = [index for index in remaining if index in in_progress] or list(remaining)[:1]
        for index in failed:
            yield Failure(index=index, request=remaining.pop(index), error=error)
        if not failed:
            on_event(Notice(message=f"After the last image: {error.message}"))


def _run_once(
    backend: Backend,
    remaining: dict[int, ResolvedRequest],
    in_progress: set[int],
    on_event: OnEvent,
    cancel: Flag,
    previews: Sequence[int],
) -> Iterator[GeneratedImage | Failure]:
    """Run the backend once with the remaining requests; removes those that get an outcome.

    Keys of `remaining` are positions in the whole run; indices in events and outcomes are mapped
    to them.
    """
    positions = list(remaining)
    notes: dict[int, list[str]] = {}

    def forward(event: Event) -> None:
        event = move_event(event, positions)
        if isinstance(event, Notice):
            for index in event.indices:
                notes.setdefault(index, []).append(event.message)
        if isinstance(event, Step | RequestSent):
            in_progress.update(event.indices)
        on_event(event)

    # Backends' generators release resources when closed.
    preview_counts = [previews[index] for index in positions] if previews else ()
    outcomes = backend.run(list(remaining.values()), forward, cancel, preview_counts)
    with closing(cast("_Closable", outcomes)):
        for outcome in outcomes:
            index = positions[outcome.index]
            remaining.pop(index, None)
            found = replace(outcome, index=index)
            if isinstance(found, GeneratedImage) and index in notes:
                found = replace(found, notes=_merged(found.notes, notes[index]))
            yield _with_own_name(found) if isinstance(found, GeneratedImage) else found


def with_notes(generated: GeneratedImage, notes: Sequence[str]) -> GeneratedImage:
    """The image with further notes, before its own.

    A PNG that was encoded without them is encoded anew; other formats would lose quality.
    """
    merged = _merged(notes, generated.notes)
    if merged == generated.notes:
        return generated
    return _with_record(generated, generated.info, merged)


def _with_own_name(generated: GeneratedImage) -> GeneratedImage:
    """The image with the name of the user's own that stood for its model, which no backend knows.

    Its request is known here alone: workers are told the model that the name stands for.
    """
    name = generated.request.own_name
    if name is None or generated.info.own_name == name:
        return generated
    return _with_record(generated, replace(generated.info, own_name=name), generated.notes)


def _with_record(
    generated: GeneratedImage, info: GenerationInfo, notes: tuple[str, ...]
) -> GeneratedImage:
    """The image with another record; its file, if it is a PNG that has one, is made anew."""
    file = generated.file
    if file is None or file.format != "png" or not file.has_record:
        return replace(generated, info=info, notes=notes)
    return GeneratedImage(
        index=generated.index,
        request=generated.request,
        image=generated.image,
        info=info,
        seconds=generated.seconds,
        round_trip=generated.round_trip,
        notes=notes,
        memory=generated.memory,
    )


def _merged(notes: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    """All notes, each once."""
    return tuple(dict.fromkeys((*notes, *more)))


class _Closable(Protocol):
    close: Callable[[], None]
