"""What holds for every backend that calls servers: runs beside each other, each ended by itself."""

import threading
import time
from collections.abc import Callable, Sequence
from threading import Event as Flag

from t2i_cli.backend import Backend, Failure, GeneratedImage
from t2i_cli.events import Event, RequestSent
from t2i_cli.request import ResolvedRequest


class RunThread(threading.Thread):
    """A run of one request in a thread of its own; `sent` once its call began."""

    def __init__(self, backend: Backend, request: ResolvedRequest) -> None:
        super().__init__(daemon=True)
        self.cancel = Flag()
        self.sent = False
        self.outcomes: list[GeneratedImage | Failure] = []
        self._backend, self._request = backend, request
        self.start()

    def run(self) -> None:
        self.outcomes.extend(self._backend.run([self._request], self._hear, self.cancel))

    def _hear(self, event: Event) -> None:
        self.sent |= isinstance(event, RequestSent)


def check_parallel_runs(
    backend: Backend,
    requests: Sequence[ResolvedRequest],
    in_flight: Callable[[], int],
    finish: Callable[[], None],
) -> None:
    """Run five requests at once on a server that waits for `finish`, and cancel one of them.

    Two of them wait for room, as three calls may be in flight. `in_flight` counts those that the
    server has, and goes on counting one that was given up.
    """
    assert backend.parallelism() == 3
    runs = [RunThread(backend, request) for request in requests]
    assert len(runs) == 5
    _until(lambda: in_flight() == 3)
    time.sleep(0.3)  # in which a fourth would be sent
    assert in_flight() == sum(run.sent for run in runs) == 3
    cancelled = next(run for run in runs if run.sent)
    cancelled.cancel.set()
    cancelled.join(30)
    assert not cancelled.is_alive()
    _until(lambda: sum(run.sent for run in runs) == 4 and in_flight() >= 3)
    assert sum(run.is_alive() for run in runs) == 4
    finish()
    for run in runs:
        run.join(30)
        assert not run.is_alive()
        made = [outcome for outcome in run.outcomes if isinstance(outcome, GeneratedImage)]
        assert len(made) == len(run.outcomes) == (run is not cancelled)


def _until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)
