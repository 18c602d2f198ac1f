"""Which requests a worker of a Ray cluster is given, and what becomes of those that are lost."""

from collections.abc import Sequence

import pytest

from t2i_cli.backend import WorkerReport
from t2i_cli.backends.ray import losses
from t2i_cli.backends.ray.pending_requests import PendingRequests, pass_rows, request_kind
from t2i_cli.backends.ray.pool_state import PassInHand, PoolRun, PoolWorker
from t2i_cli.backends.ray.worker_table import WorkerTable
from t2i_cli.request import ResolvedRequest


def request(model: str = "a", steps: int = 4, seed: int = 0) -> ResolvedRequest:
    return ResolvedRequest(prompt="x", model=model, seed=seed, steps=steps, width=64, height=64)


def taken(pending: PendingRequests, most: int = 100, workers: int = 1) -> list[list[int]]:
    found = []
    while members := pending.take(None, [], most=most, workers=workers):
        found.append(members)
    return found


def test_requests_of_one_kind_stay_together_and_none_is_lost() -> None:
    requests = [request(steps=4 + index % 3, seed=index) for index in range(30)]
    pending = PendingRequests(requests)
    passes = taken(pending, most=4)
    assert sorted(index for members in passes for index in members) == list(range(30))
    assert all(len({requests[index].steps for index in members}) == 1 for members in passes)
    assert len(pending) == 0


def test_a_worker_keeps_its_kind_then_its_model_before_it_loads_another() -> None:
    requests = [request("a", 4), request("a", 8), *[request("b")] * 9]
    pending = PendingRequests(requests)
    kinds = [request_kind(one) for one in requests]
    assert pending.take(kinds[1], [], most=1, workers=1) == [1]
    assert pending.take(kinds[1], [], most=1, workers=1) == [0]
    assert pending.take(kinds[1], [], most=1, workers=1) == [2]


def test_models_share_the_workers_by_what_is_left_of_them() -> None:
    requests = [request("a")] * 60 + [request("b")] * 30
    pending = PendingRequests(requests)
    kinds: list[tuple[object, ...]] = []
    for _ in range(6):
        members = pending.take(None, kinds, most=1, workers=6)
        kinds.append(request_kind(requests[members[0]]))
    assert [kind[0] for kind in kinds].count("a") == 4


def test_passes_become_smaller_towards_the_end() -> None:
    sizes = [len(one) for one in taken(PendingRequests([request()] * 64), most=16, workers=2)]
    assert sizes[0] == 16
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


def test_what_was_not_begun_comes_next_and_counts_as_no_loss() -> None:
    pending = PendingRequests([request(seed=seed) for seed in range(6)])
    first = pending.take(None, [], most=2, workers=1)
    for _ in range(5):
        pending.give_back(first)
        assert pending.take(None, [], most=2, workers=1) == first


def test_a_lost_request_is_given_to_an_idle_worker_only() -> None:
    pending = PendingRequests([request(seed=seed) for seed in range(3)])
    pending.give_back_lost(pending.take(None, [], most=1, workers=1))
    assert pending.take(None, [], most=1, workers=1, idle=False) == []
    assert pending.take(None, [], most=1, workers=1) == [0]
    assert pending.take(None, [], most=1, workers=1, idle=False) == [1]


def test_a_lost_request_is_given_twice_more_and_alone_then_fails() -> None:
    pending = PendingRequests([request(seed=seed) for seed in range(8)])
    first = pending.take(None, [], most=3, workers=1)
    assert pending.give_back_lost(first) == []
    for losses_before in (1, 2):
        alone = [pending.take(None, [], most=3, workers=1) for _ in first]
        assert alone == [[index] for index in first]
        given_up = [pending.give_back_lost(members) for members in reversed(alone)][::-1]
        assert given_up == ([[]] * 3 if losses_before == 1 else [[index] for index in first])
    assert sorted(sum(taken(pending), [])) == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("batch_size", "seen", "rows"),
    [(1, 1, 1), (8, 1, 8), (None, 1, 4), (None, 8, 32), (None, 32, 64)],
)
def test_rows_given_at_a_time_let_a_worker_try_larger_passes(
    batch_size: int | None, seen: int, rows: int
) -> None:
    assert pass_rows(batch_size, seen) == rows


def _named(kind: str, text: str) -> Exception:
    error: Exception = type(kind, (Exception,), {})(text)
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            _named("ActorDiedError", "The actor died unexpectedly before finishing."),
            "its process ended",
        ),
        (
            _named("ActorDiedError", "died because its node has died."),
            "its machine left the cluster",
        ),
        (
            _named("OutOfMemoryError", "killed due to the node running low on memory."),
            "its machine ran out of memory",
        ),
    ],
)
def test_the_reason_of_a_loss_is_said_shortly(error: Exception, reason: str) -> None:
    assert losses.loss_reason(error) == reason


def test_what_goes_to_others_is_told() -> None:
    told: Sequence[str] = [
        losses.loss_notice("n1", "its process ended", n).message for n in (0, 1, 3)
    ]
    assert told == [
        "A worker on n1 was lost: its process ended.",
        "A worker on n1 was lost: its process ended; its image goes to others.",
        "A worker on n1 was lost: its process ended; its 3 images go to others.",
    ]


def test_what_is_for_one_worker_is_given_whole() -> None:
    pending = PendingRequests([request(seed=seed) for seed in range(9)])
    assert pending.take(None, [], most=4, workers=8, whole=True) == [0, 1, 2, 3]
    assert pending.take(None, [], most=64, workers=8, whole=True) == [4, 5, 6, 7, 8]


def test_a_worker_that_replaces_another_has_its_number_and_its_sums() -> None:
    table, workers = WorkerTable(), [PoolWorker(None, node=f"n{number}") for number in range(3)]
    for worker in workers:
        table.add(worker)
    workers[0].started = workers[0].ready = workers[1].ready = True
    workers[1].started = True
    workers[1].passes[1] = PassInHand(PoolRun([], ()), [])
    assert [(one.number, one.state, one.node) for one in table.reports()] == [
        (0, "ready", "n0"),
        (1, "busy", "n1"),
        (2, "starting", None),
    ]
    table.count(workers[1], images=2, seconds=0.5)
    table.remove(workers[1])
    table.count(workers[1], losses=1, failures=1)
    assert table.reports()[1] == WorkerReport(
        number=1, state="gone", images=2, failures=1, losses=1, seconds=0.5
    )
    for number in (1, 3):
        late = PoolWorker(None, node="late")
        table.add(late)
        assert late.number == number
        table.count(late, images=1)
    found = table.reports()
    assert [one.number for one in found] == [0, 1, 2, 3]
    assert (found[1].images, found[1].losses, found[1].state) == (3, 1, "starting")
