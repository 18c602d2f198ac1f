"""Several calls in flight: each in a thread of its own, outcomes as they come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event as Flag
from threading import Thread

from t2i_cli.backend import CancellationToken, Failure, GeneratedImage
from t2i_cli.errors import T2IError, internal_error
from t2i_cli.events import Notice, OnEvent, RequestSent
from t2i_cli.net.retry import CallCancelledError
from t2i_cli.net.throttle import Throttle
from t2i_cli.request import ResolvedRequest

POLL_INTERVAL = 0.1
"""Seconds between two looks at whether to stop, or to send more."""


@dataclass(frozen=True, kw_only=True)
class InFlightCall:
    """One request on its way. `stop` is set when nobody waits for it any more."""

    index: int
    request: ResolvedRequest
    stop: Flag
    tell: Callable[[str], None]
    """Takes a sentence for the user."""
    quote: Callable[[str], None]
    """The same, of this request and of those that differ from it in seed alone."""


def run_concurrently(
    requests: Sequence[ResolvedRequest],
    make: Callable[[InFlightCall], GeneratedImage],
    throttle: Throttle,
    on_event: OnEvent,
    cancel: Flag,
    abandon: Callable[[], None],
) -> Iterator[GeneratedImage | Failure]:
    """Yield one outcome for each request.

    `make` runs in threads and raises T2IError or CallCancelledError.

    At most `throttle.room` calls are in flight, none is begun while the caller holds an outcome,
    and a note is told once. Ends early once `cancel` is set; `abandon` then breaks off what is in
    flight.
    """
    soon = cancel.soon if isinstance(cancel, CancellationToken) else Flag()
    stop = Flag()
    outbox: SimpleQueue[GeneratedImage | Failure | Notice | BaseException] = SimpleQueue()
    begun = flying = 0
    told: set[Notice] = set()
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, request in enumerate(requests):
        alike.setdefault(request.identity_values(), []).append(index)

    def note(indices: Sequence[int], message: str) -> None:
        outbox.put(Notice(message=message, indices=tuple(indices)))

    def work(call: InFlightCall) -> None:
        try:
            outbox.put(make(call))
        except T2IError as error:
            outbox.put(Failure(index=call.index, request=call.request, error=error))
        except CallCancelledError:
            pass
        except MemoryError as error:
            outbox.put(error)
        except Exception as error:  # noqa: BLE001 - told as this image's failure
            outbox.put(Failure(index=call.index, request=call.request, error=internal_error(error)))
        except BaseException as error:  # noqa: BLE001 - raised again where the call is waited for
            outbox.put(error)

    try:
        while not cancel.is_set():
            while begun < len(requests) and flying < throttle.room and not soon.is_set():
                on_event(RequestSent(indices=(begun,)))
                request = requests[begun]
                call = InFlightCall(
                    index=begun,
                    request=request,
                    stop=stop,
                    tell=partial(note, ()),
                    quote=partial(note, alike[request.identity_values()]),
                )
                # Daemons: a call that nobody waits for must not hold the process up.
                Thread(target=work, args=(call,), daemon=True, name="call").start()
                begun, flying = begun + 1, flying + 1
            if not flying and (begun == len(requests) or soon.is_set()):
                return
            try:
                item = outbox.get(timeout=POLL_INTERVAL)
            except Empty:
                continue
            if isinstance(item, Notice):
                if item not in told:
                    told.add(item)
                    on_event(item)
                continue
            flying -= 1
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        if flying:
            abandon()
