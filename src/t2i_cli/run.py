"""The loop: requests go to a backend, its images to a sink, and every outcome comes out."""

from collections.abc import Callable, Iterator, Sequence
from threading import Event as Flag

from t2i_cli.backends import Backend, Failure, GeneratedImage
from t2i_cli.errors import T2IError
from t2i_cli.events import OnEvent
from t2i_cli.request import ResolvedRequest
from t2i_cli.sink import Saved

Save = Callable[[GeneratedImage], Saved]


def run(
    requests: Sequence[ResolvedRequest],
    backend: Backend,
    save: Save,
    on_event: OnEvent,
    cancel: Flag,
) -> Iterator[Saved | Failure]:
    """Yield what became of each request, as it happens; a failed save is that image's failure."""
    for outcome in backend.run(requests, on_event, cancel):
        yield keep(outcome, save)


def keep(outcome: GeneratedImage | Failure, save: Save) -> Saved | Failure:
    """Save an image; a failed save is that image's failure."""
    if isinstance(outcome, Failure):
        return outcome
    try:
        return save(outcome)
    except T2IError as error:
        return Failure(index=outcome.index, request=outcome.request, error=error)
