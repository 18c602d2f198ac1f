"""Drives a backend: requests go in, every outcome comes out; the only caller of `Backend.run`."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from threading import Event as Flag
from typing import Protocol, cast

from t2i_cli.backend import Backend, Failure, GeneratedImage
from t2i_cli.errors import T2IError, internal_error
from t2i_cli.events import Event, Notice, OnEvent, Preview, RequestSent, Step
from t2i_cli.output.image_writer import SavedImage
from t2i_cli.request import ResolvedRequest

SaveImage = Callable[[GeneratedImage], SavedImage]


def generate_and_save(
    requests: Sequence[ResolvedRequest],
    backend: Backend,
    save: SaveImage,
    on_event: OnEvent,
    cancel: Flag,
) -> Iterator[SavedImage | Failure]:
    """Yield what became of each request, as it happens; a failed save is that image's failure."""
    for outcome in run_backend(backend, requests, on_event, cancel):
        yield save_outcome(outcome, save)


def save_outcome(outcome: GeneratedImage | Failure, save: SaveImage) -> SavedImage | Failure:
    """Save an image; a failed save is that image's failure."""
    if isinstance(outcome, Failure):
        return outcome
    try:
        return save(outcome)
    except T2IError as error:
        return Failure(index=outcome.index, request=outcome.request, error=error)


def run_backend(
    backend: Backend,
    requests: Sequence[ResolvedRequest],
    on_event: OnEvent,
    cancel: Flag,
    previews: Sequence[int] = (),
) -> Generator[GeneratedImage | Failure]:
    """Yield what became of each request; what the backend raises is the failure of those in hand.

    In hand are those of a Step or Sent that have no outcome yet, or else the first without one. A
    generator that raised has ended: the backend is called again with the others. `previews` are
    how many are wanted of each.
    """
    left = dict(enumerate(requests))
    while left and not cancel.is_set():
        in_hand: set[int] = set()
        try:
            yield from _once(backend, left, in_hand, on_event, cancel, previews)
            return
        except MemoryError:
            raise
        except Exception as raised:  # noqa: BLE001 - told as the failure of the requests in hand
            error = raised if isinstance(raised, T2IError) else internal_error(raised)
        blamed = [index for index in left if index in in_hand] or list(left)[:1]
        for index in blamed:
            yield Failure(index=index, request=left.pop(index), error=error)
        if not blamed:
            on_event(Notice(message=f"After the last image: {error.message}"))


def _once(
    backend: Backend,
    left: dict[int, ResolvedRequest],
    in_hand: set[int],
    on_event: OnEvent,
    cancel: Flag,
    previews: Sequence[int],
) -> Iterator[GeneratedImage | Failure]:
    """One call of the backend with what is left, by its positions; takes out what got one."""
    positions = list(left)

    def hear(event: Event) -> None:
        if isinstance(event, Preview):
            event = replace(event, index=positions[event.index])
        elif isinstance(event, Step | RequestSent | Notice):
            event = replace(event, indices=tuple(positions[index] for index in event.indices))
        if isinstance(event, Step | RequestSent):
            in_hand.update(event.indices)
        on_event(event)

    # Backends are generators; closing one lets it tidy up.
    wanted = [previews[index] for index in positions] if previews else ()
    made = backend.run(list(left.values()), hear, cancel, wanted)
    with closing(cast("_Closable", made)):
        for outcome in made:
            index = positions[outcome.index]
            left.pop(index, None)
            yield replace(outcome, index=index)


class _Closable(Protocol):
    close: Callable[[], None]
