"""The requests of a run that no worker has yet, by kind, and how many a worker is given."""

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence

from t2i_cli.request import ResolvedRequest

RequestKind = tuple[object, ...]
"""The model and the batch key of requests that a worker makes without loading anything between."""
MAX_ROWS_PER_PASS = 64
"""Largest number of requests that a worker is given at a time."""
_FIRST_ROWS = 4
"""Requests of a worker's first passes, where the images of a pass may be of any number."""
MAX_LOSSES = 2
"""How often a request is given to another worker after the one that had it was lost."""


def request_kind(request: ResolvedRequest) -> RequestKind:
    """The kind of a request."""
    return (request.model, request.revision, *request.batch_key())


class PendingRequests:
    """Requests by their positions in a run; those of one kind are handed out together.

    `left` are the positions of those that are to be handed out, all by default.
    """

    def __init__(
        self, requests: Sequence[ResolvedRequest], left: Iterable[int] | None = None
    ) -> None:
        indices = range(len(requests)) if left is None else sorted(left)
        self._kinds: dict[RequestKind, deque[int]] = {}
        self._requests = requests
        self._losses: Counter[int] = Counter()
        self._count = len(indices)
        for index in indices:
            self._kinds.setdefault(request_kind(requests[index]), deque()).append(index)

    def __len__(self) -> int:
        return self._count

    def take(
        self,
        last: RequestKind | None,
        others: Iterable[RequestKind],
        *,
        most: int,
        workers: int,
        idle: bool = True,
        whole: bool = False,
    ) -> list[int]:
        """Up to `most` requests of one kind for a worker; none if there are none.

        `last` is the kind that the worker made last, `others` those of the other workers, `workers`
        the number of all. Towards the end fewer are given, so that all workers end together, unless
        the `whole` is for one worker, as the others have other runs. A request that was lost with a
        worker is given alone, and to an `idle` worker: if that is lost as well, it is known with
        which request.
        """
        kind = self._choose_kind(last, others)
        if kind is None:
            return []
        rows = self._kinds[kind]
        share = len(rows) if whole else math.ceil(len(rows) / (2 * max(1, workers)))
        taken: list[int] = []
        while rows and len(taken) < min(most, share):
            if self._losses[rows[0]] and (taken or not idle):
                break
            taken.append(rows.popleft())
            if self._losses[taken[0]]:
                break
        if not rows:
            del self._kinds[kind]
        self._count -= len(taken)
        return taken

    def give_back(self, indices: Iterable[int]) -> None:
        """Take requests back that a worker did not begin; they are the next of their kind."""
        for index in sorted(indices, reverse=True):
            kind = request_kind(self._requests[index])
            self._kinds.setdefault(kind, deque()).appendleft(index)
            self._count += 1

    def give_back_lost(self, indices: Sequence[int]) -> list[int]:
        """Take requests back that a lost worker had begun; returns those that were lost too often.

        The returned ones are not taken back.
        """
        self._losses.update(indices)
        self.give_back(index for index in indices if self._losses[index] <= MAX_LOSSES)
        return [index for index in indices if self._losses[index] > MAX_LOSSES]

    def was_lost(self, index: int) -> bool:
        """Whether a worker was lost that had begun the request."""
        return self._losses[index] > 0

    def clear(self) -> None:
        """Hand nothing out any more."""
        self._kinds.clear()
        self._count = 0

    def _choose_kind(
        self, last: RequestKind | None, others: Iterable[RequestKind]
    ) -> RequestKind | None:
        """The worker's own kind, else one of its model, else of the model with most to do."""
        if last in self._kinds:
            return last
        if last is not None:
            for kind in self._kinds:
                if kind[:2] == last[:2]:
                    return kind
        left: Counter[RequestKind] = Counter()
        for kind, rows in self._kinds.items():
            left[kind[:2]] += len(rows)
        if not left:
            return None
        workers_by_model = Counter(kind[:2] for kind in others)
        model = max(left, key=lambda model: left[model] / (1 + workers_by_model[model]))
        return next(kind for kind in self._kinds if kind[:2] == model)


def pass_rows(batch_size: int | None, largest_seen: int) -> int:
    """How many requests a worker is given at a time.

    `batch_size` is the images of a pass, `None` where the worker finds them out; then
    `largest_seen` is the most that it has put into one.
    """
    if batch_size is not None:
        return min(batch_size, MAX_ROWS_PER_PASS)
    # Several passes, so that the worker can try larger ones.
    return min(max(_FIRST_ROWS, 4 * largest_seen), MAX_ROWS_PER_PASS)
