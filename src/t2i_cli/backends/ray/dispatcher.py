"""Hands the requests of runs out to workers, and takes back what they make, or lose."""

import time
from collections.abc import Sequence
from typing import Any

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.ray import losses
from t2i_cli.backends.ray.pass_runner import PassEnded, PassMessage, WorkerPass, restore_cause
from t2i_cli.backends.ray.pending_requests import pass_rows
from t2i_cli.backends.ray.pool_state import PASSES_IN_HAND, PassInHand, PoolRun, PoolWorker
from t2i_cli.backends.ray.worker_table import WorkerTable
from t2i_cli.errors import T2IError
from t2i_cli.events import Notice


class PassDispatcher:
    """The workers, and the runs that they work for; used in one thread only.

    `table` counts what each worker makes.
    `batch_size` is the images of a pass, `None` where workers find it out. `load_run` has every
    worker load its model, also those that start later.
    """

    def __init__(self, batch_size: int | None, table: WorkerTable) -> None:
        self.workers: list[PoolWorker] = []
        self.runs: list[PoolRun] = []
        self.load_run: PoolRun | None = None
        self._batch_size = batch_size
        self.table = table
        self._numbers = 0

    def receive(self, worker: PoolWorker, messages: Sequence[PassMessage]) -> None:
        """Deal with what a worker tells of its passes."""
        for number, content in messages:
            if one := worker.passes.get(number):
                self._on_message(worker, number, one, content)

    def remove_run(self, run: PoolRun) -> None:
        """Cancel what is left of a run."""
        run.pending.clear()
        if run in self.runs:
            self.runs.remove(run)
        for worker in self.workers:
            if numbers := [n for n, one in worker.passes.items() if one.run is run]:
                worker.handle.cancel.remote(numbers)

    def finish_soon(self, run: PoolRun) -> None:
        """Begin none of a run's requests any more."""
        run.pending.clear()
        run.ends_soon = True
        for worker in self.workers:
            if any(one.run is run for one in worker.passes.values()):
                worker.handle.finish_soon.remote()
        self._end_if_done(run)

    def _end_if_done(self, run: PoolRun) -> None:
        if run.ends_soon and not any(
            one.run is run for worker in self.workers for one in worker.passes.values()
        ):
            run.end(None)

    def tell(self, notice: Notice) -> None:
        """Tell all runs."""
        for run in self.runs:
            run.outbox.put(notice)

    def fail_runs(self, error: T2IError) -> None:
        """End all runs with an error."""
        for run in [*self.runs, *([self.load_run] if self.load_run else [])]:
            run.end(error)

    def submit_load(self, worker: PoolWorker) -> None:
        """Have a worker load the model, if one is to be loaded."""
        if self.load_run and self.load_run.load:
            self._submit(worker, PassInHand(self.load_run, [], load=self.load_run.load))

    def _on_message(self, worker: PoolWorker, number: int, one: PassInHand, content: Any) -> None:  # noqa: ANN401
        run = one.run
        if isinstance(content, PassEnded):
            del worker.passes[number]
            if one.load:
                run.end(restore_cause(content.error) if content.error else None)
                return
            for index in content.failed:
                if index in one.members and content.error:
                    one.members.remove(index)
                    self.table.count(worker, failures=1)
                    error = restore_cause(content.error)
                    run.put_outcome(Failure(index=index, request=run.requests[index], error=error))
            if one.members and run in self.runs and not run.ends_soon:
                run.pending.give_back(one.members)
                self.hand_out_all()
            self._end_if_done(run)
        elif isinstance(content, GeneratedImage | Failure):
            if content.index in one.members:
                one.members.remove(content.index)
                if isinstance(content, GeneratedImage):
                    used = content.info.batch_size or 1
                    worker.largest_pass = max(worker.largest_pass, used)
                    self.table.count(worker, images=1, seconds=content.seconds)
                else:
                    self.table.count(worker, failures=1)
                    restore_cause(content.error)
                run.put_outcome(content)
        else:
            run.outbox.put(content)

    def hand_out_all(self) -> None:
        """Hand passes out to all workers that have too few."""
        # Workers with the fewest passes first: at the start each gets one before any gets two.
        for fullness in range(PASSES_IN_HAND):
            for worker in self.workers:
                if worker.ready and len(worker.passes) <= fullness:
                    self.hand_out(worker, fullness + 1)

    def hand_out(self, worker: PoolWorker, most: int = PASSES_IN_HAND) -> None:
        """Hand passes out to a worker, up to `most`."""
        while len(worker.passes) < most:
            if any(one.is_alone for one in worker.passes.values()):
                return
            run = next((run for run in self.runs if run.takes_more(len(self.workers))), None)
            if run is None:
                return
            ready = sum(one.ready for one in self.workers)
            members = run.pending.take(
                worker.kind,
                (other.kind for other in self.workers if other is not worker and other.kind),
                most=pass_rows(self._batch_size, worker.largest_pass),
                workers=max(1, ready // len(self.runs)),
                idle=not worker.passes,
                whole=len(self.runs) > 1 and ready <= len(self.runs),
            )
            if not members:
                return
            self._submit(worker, PassInHand(run, members))
            # The next pass is another run's, if there is one.
            self.runs.remove(run)
            self.runs.append(run)

    def take_over(self, idle: PoolWorker) -> None:
        """Have another worker give back a pass that waits there, for one that has nothing."""
        if idle.passes or not idle.ready or any(run.is_held_up for run in self.runs):
            return
        for worker in self.workers:
            for number, one in list(worker.passes.items())[1:]:
                fits = idle.kind is None or (one.members and idle.kind[:2] == one.kind[:2])
                if fits and one.run in self.runs and not one.withdrawn:
                    one.withdrawn = True
                    worker.handle.withdraw.remote(number)
                    return

    def _submit(self, worker: PoolWorker, one: PassInHand) -> None:
        self._numbers += 1
        if not worker.passes:
            worker.last_sign = time.monotonic()
        worker.passes[self._numbers] = one
        if one.members:
            worker.kind = one.kind
        members = [(index, one.run.requests[index]) for index in one.members]
        previews = one.run.previews and [one.run.previews[index] for index in one.members]
        worker.handle.submit.remote(
            WorkerPass(number=self._numbers, members=members, previews=previews, load=one.load)
        )

    def give_back(self, worker: PoolWorker, reason: str) -> None:
        """Give back what a lost worker had, which is none of the workers any more."""
        given_back = 0
        # The images of an earlier pass may all be here before its end is told.
        begun = next((one for one in worker.passes.values() if one.members or one.load), None)
        for one in worker.passes.values():
            run = one.run
            if one.load or run not in self.runs:
                if one.load:
                    run.lost_loads += 1
                    if run.lost_loads > losses.MAX_LOST_LOADS:
                        run.end(losses.load_error(reason))
                continue
            if run.ends_soon:
                self._end_if_done(run)
                continue
            given_back += len(one.members)
            if one is not begun:
                run.pending.give_back(one.members)
                continue
            for index in run.pending.give_back_lost(one.members):
                given_back -= 1
                self.table.count(worker, failures=1)
                error = losses.request_error(reason)
                run.put_outcome(Failure(index=index, request=run.requests[index], error=error))
        self.tell(losses.loss_notice(worker.node, reason, given_back))
