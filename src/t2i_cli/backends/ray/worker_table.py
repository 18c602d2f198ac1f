"""The numbers of workers, and what those with each number have made: kept when one is replaced."""

from dataclasses import dataclass, field, replace
from threading import Lock

from t2i_cli.backend import WorkerReport
from t2i_cli.backends.ray.pool_state import PoolWorker


@dataclass
class _Place:
    """A number, the worker that has it now, and the sums of all that had it."""

    total: WorkerReport
    worker: PoolWorker | None = None


@dataclass
class WorkerTable:
    """Workers by number, from 0: a new one gets the lowest that is free. Thread-safe."""

    _places: list[_Place] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def add(self, worker: PoolWorker) -> None:
        """Give the worker a number."""
        with self._lock:
            free = next((place for place in self._places if place.worker is None), None)
            if free is None:
                free = _Place(WorkerReport(number=len(self._places), state="gone"))
                self._places.append(free)
            free.worker, worker.number = worker, free.total.number

    def remove(self, worker: PoolWorker) -> None:
        """Have the worker's number be free."""
        with self._lock:
            self._places[worker.number].worker = None

    def count(
        self,
        worker: PoolWorker,
        *,
        images: int = 0,
        failures: int = 0,
        losses: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Add to the sums of the worker's number, also once it is removed."""
        with self._lock:
            place = self._places[worker.number]
            total = place.total
            place.total = replace(
                total,
                images=total.images + images,
                failures=total.failures + failures,
                losses=total.losses + losses,
                seconds=total.seconds + seconds,
            )

    def reports(self) -> list[WorkerReport]:
        """The status of each number, in order."""
        with self._lock:
            return [_report(place) for place in self._places]


def _report(place: _Place) -> WorkerReport:
    worker = place.worker
    if worker is None:
        return place.total
    if not worker.ready:
        return replace(place.total, state="starting", node=worker.node if worker.started else None)
    return replace(place.total, state="busy" if worker.passes else "ready", node=worker.node)
