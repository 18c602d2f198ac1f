"""Bounded concurrency: calls to a server in threads, outcomes in order of completion."""

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
"""Seconds between two checks of whether to stop, or to start more calls."""


@dataclass(frozen=True, kw_only=True)
class InFlightCall:
    """One call in flight. `stop` is set once its outcome is no longer wanted."""

    index: int
    request: ResolvedRequest
    stop: Flag
    note: Callable[[str], None]
    """Takes a sentence for the user, about the run as a whole."""
    note_request: Callable[[str], None]
    """Takes a sentence about this request and about those that differ from it in the seed only."""


def run_concurrently(
    requests: Sequence[ResolvedRequest],
    send: Callable[[InFlightCall], GeneratedImage],
    throttle: Throttle,
    on_event: OnEvent,
    cancel: Flag,
    abort: Callable[[], None],
) -> Iterator[GeneratedImage | Failure]:
    """Yield one outcome for each request, in order of completion.

    `send` makes one call, in a thread; it raises T2IError or CallCancelledError. At most
    `throttle.limit` calls are in flight, of all runs with that throttle together. No call is
    started while the caller handles an outcome.
    Equal notices go to `on_event` once. Ends early once `cancel` is set; `abort` then ends the
    calls in flight. Raises what `send` raises that is no failure of one image, as MemoryError.
    """
    stop_starting = cancel.soon if isinstance(cancel, CancellationToken) else Flag()
    stop = Flag()
    outcomes: SimpleQueue[GeneratedImage | Failure | Notice | BaseException] = SimpleQueue()
    started = in_flight = 0
    seen_notices: set[Notice] = set()
    same_but_seed: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        same_but_seed.setdefault(request.identity(seed=0), []).append(index)

    def post_notice(indices: Sequence[int], text: str) -> None:
        outcomes.put(Notice(message=text, indices=tuple(indices)))

    def run_call(call: InFlightCall) -> None:
        outcome = _call_outcome(send, call)
        # Before the outcome can be read: whoever reads it may begin the next call.
        throttle.end_call()
        if outcome is not None:
            outcomes.put(outcome)

    def start_call(index: int) -> None:
        on_event(RequestSent(indices=(index,)))
        request = requests[index]
        call = InFlightCall(
            index=index,
            request=request,
            stop=stop,
            note=partial(post_notice, ()),
            note_request=partial(post_notice, same_but_seed[request.identity(seed=0)]),
        )
        # Daemon threads: an abandoned call must not keep the process alive.
        Thread(target=run_call, args=(call,), daemon=True, name="call").start()

    try:
        while not cancel.is_set():
            while (
                started < len(requests)
                and in_flight < throttle.limit
                and not stop_starting.is_set()
                and throttle.begin_call()
            ):
                try:
                    start_call(started)
                except BaseException:
                    throttle.end_call()
                    raise
                started, in_flight = started + 1, in_flight + 1
            if not in_flight and (started == len(requests) or stop_starting.is_set()):
                return
            try:
                message = outcomes.get(timeout=POLL_INTERVAL)
            except Empty:
                continue
            if isinstance(message, Notice):
                if message not in seen_notices:
                    seen_notices.add(message)
                    on_event(message)
                continue
            in_flight -= 1
            if isinstance(message, BaseException):
                raise message
            yield message
    finally:
        stop.set()
        if in_flight:
            abort()


def _call_outcome(
    send: Callable[[InFlightCall], GeneratedImage], call: InFlightCall
) -> GeneratedImage | Failure | BaseException | None:
    """What came of a call; `None` if it was cancelled, an exception that ends the run."""
    try:
        return send(call)
    except T2IError as error:
        return Failure(index=call.index, request=call.request, error=error)
    except CallCancelledError:
        return None
    except MemoryError as error:
        return error
    except Exception as error:  # noqa: BLE001 - becomes this image's failure
        return Failure(index=call.index, request=call.request, error=internal_error(error))
    except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
        return error
