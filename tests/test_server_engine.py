"""The engine: a bounded queue, shared passes, and an end to all that nobody waits for."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.errors import (
    InputError,
    InternalError,
    InterruptedRunError,
    ModelError,
    OutOfMemoryError,
    T2IError,
    TerminatedError,
    TimedOutError,
    internal_error,
)
from t2i_cli.events import Event, Loading, MemoryMeasure, Notice, OnEvent, Preview, Step
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.server import batcher
from t2i_cli.server.batcher import BusyError
from t2i_cli.server.engine import Engine, NotServedError
from t2i_cli.server.jobs import ImageJob, JobObserver
from t2i_cli.server.options import ServerLimits
from tests.fakes.stub_backend import Held, StubBackend


@asynccontextmanager
async def started(
    backend: StubBackend, limits: ServerLimits | None = None, *, jobs_share: bool = True
) -> AsyncIterator[Engine]:
    engine = Engine(backend, "postcard", limits, jobs_share=jobs_share)
    await engine.start()
    try:
        yield engine
    finally:
        if isinstance(backend, Held):
            backend.go.set()
        await engine.stop(grace=10)


def run(test: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def until(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.005)


async def asked(engine: Engine, *prompts: str, **fields: object) -> list[ResolvedRequest]:
    return await engine.resolve_requests(
        [GenerateRequest(prompt=prompt, **fields) for prompt in prompts]  # type: ignore[arg-type]
    )


async def submit(engine: Engine, *prompts: str, previews: int = 0, **fields: object) -> ImageJob:
    return engine.submit(await asked(engine, *prompts, **fields), previews=previews)


def prompts(held: Held) -> list[list[str]]:
    return [[request.prompt for request in one] for one in held.passes]


def test_a_job_gets_its_images_in_order() -> None:
    async def test() -> None:
        async with started(StubBackend()) as engine:
            job = await submit(engine, "one", "two", "three")
            made = await job.images()
            assert [image.request.prompt for image in made] == ["one", "two", "three"]
            assert [image.index for image in made] == [0, 1, 2]
            assert job.done
            assert engine.idle_since is not None

    run(test())


def test_waiting_jobs_of_one_kind_share_a_pass_and_others_keep_their_turn() -> None:
    async def test() -> None:
        held = Held()
        async with started(held, ServerLimits(max_batch=3)) as engine:
            first = await submit(engine, "first")
            await until(lambda: held.passes)
            others = [
                await submit(engine, "a"),
                await submit(engine, "large", width=256),
                await submit(engine, "b", "c", "d"),
            ]
            held.go.set()
            made = [[i.request.prompt for i in await job.images()] for job in (first, *others)]
            assert made == [["first"], ["a"], ["large"], ["b", "c", "d"]]
            assert prompts(held) == [["first"], ["a", "b", "c"], ["large"], ["d"]]

    run(test())


class Parallel(Held):
    """Makes two passes at once."""

    def parallelism(self) -> int:
        """Two."""
        return 2


def test_a_backend_of_several_workers_gets_as_many_passes_at_once() -> None:
    async def test() -> None:
        held = Parallel()
        async with started(held, ServerLimits(max_batch=3, queue=1)) as engine:
            jobs = [await submit(engine, "a"), await submit(engine, "b")]
            await until(lambda: len(held.passes) == 2)
            assert engine.running == 2
            jobs.append(await submit(engine, "c"))
            with pytest.raises(BusyError):
                await submit(engine, "d")
            jobs[1].cancel()
            await until(lambda: held.cancelled == 1)  # and not the pass beside it
            held.go.set()
            assert [len(await job.images()) for job in (jobs[0], jobs[2])] == [1, 1]
            await until(lambda: not engine.running)
            four = await submit(engine, *"efgh")
            assert len(await four.images()) == 4
            assert sorted(map(len, prompts(held))) == [1, 1, 1, 2, 2]  # shared by both
            await until(lambda: not engine.running)

    run(test())


def test_a_worker_makes_passes_of_one_run_alone() -> None:
    async def test() -> None:
        held = Held()
        async with started(held, ServerLimits(max_batch=3), jobs_share=False) as engine:
            first = await submit(engine, "first")
            await until(lambda: held.passes)
            others = [await submit(engine, "a"), await submit(engine, "b", "c", "d", "e")]
            held.go.set()
            for job in (first, *others):
                await job.images()
            assert prompts(held) == [["first"], ["a"], ["b", "c", "d"], ["e"]]

    run(test())


def test_every_job_hears_of_its_own_images_only() -> None:
    async def test() -> None:
        held = Held()
        async with started(held) as engine:
            first = await submit(engine, "first")
            await until(lambda: held.passes)
            one = await submit(engine, "a", "b", previews=2)
            other = await submit(engine, "c")
            held.go.set()
            await first.images()
            held.go.clear()
            heard: dict[ImageJob, list[object]] = {one: [], other: []}
            await until(lambda: len(held.passes) == 2)
            for job in (one, other):
                while not any(isinstance(m, Step) and m.step == 4 for m in heard[job]):
                    heard[job].append(await anext(job))
            steps = {job: {m.indices for m in heard[job] if isinstance(m, Step)} for job in heard}
            assert steps == {one: {(0, 1)}, other: {(0,)}}
            shown = [(m.index, m.step) for m in heard[one] if isinstance(m, Preview)]
            assert shown == [(0, 1), (1, 1), (0, 2), (1, 2)]
            assert not any(isinstance(m, Preview) for m in heard[other])

    run(test())


class Annotated(Held):
    """Quotes each prompt in a note to whoever wrote it, and tells all of them one thing."""

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: threading.Event,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        on_event(Notice(message="for all"))
        for index, request in enumerate(requests):
            on_event(Notice(message=request.prompt, indices=(index,)))
        yield from super().run(requests, on_event, cancel, previews)


def test_what_quotes_a_prompt_is_told_to_its_own_job_only() -> None:
    async def test() -> None:
        held = Annotated()
        async with started(held) as engine:
            first = await submit(engine, "first")
            await until(lambda: held.passes)
            jobs = [await submit(engine, "a", "b"), await submit(engine, "c")]
            held.go.set()
            await first.images()
            told = [[m async for m in job if isinstance(m, Notice)] for job in jobs]
            assert prompts(held) == [["first"], ["a", "b", "c"]]
            assert [[(n.message, n.indices) for n in notes] for notes in told] == [
                [("for all", ()), ("a", (0,)), ("b", (1,))],
                [("for all", ()), ("c", (0,))],
            ]

    run(test())


def test_a_full_queue_refuses_and_says_when_to_try_again() -> None:
    async def test() -> None:
        held = Held()
        refusals = []

        class Counting(JobObserver):
            def on_rejected(self) -> None:
                refusals.append(1)

        async with started(held, ServerLimits(queue=2)) as engine:
            engine.batcher.observers.append(Counting())
            jobs = [await submit(engine, "running")]
            await until(lambda: held.passes)
            jobs += [await submit(engine, "waits", width=w) for w in (64, 256)]
            assert engine.waiting == 2
            with pytest.raises(BusyError) as caught:
                await submit(engine, "too many")
            assert caught.value.retry_after >= 1
            assert refusals == [1]
            held.go.set()
            for job in jobs:
                await job.images()
            await (await submit(engine, "room again")).images()

    run(test())


@pytest.mark.parametrize(
    ("last", "waits"),
    [(0.0, 1), (0.2, 1), (7.0, 21), (2.5, 8), (19.9, 60), (50.0, 60)],
)
def test_who_is_refused_is_told_to_wait_for_the_passes_before_it(last: float, waits: int) -> None:
    async def test() -> None:
        held = Held()
        async with started(held, ServerLimits(queue=2, max_batch=2)) as engine:
            await submit(engine, "running")
            await until(lambda: held.passes)
            engine.batcher._last_seconds = last  # what the pass before took
            for width in (64, 256):
                await submit(engine, "a", "b", width=width)
            with pytest.raises(BusyError) as caught:
                await submit(engine, "too many")
            # Two passes of two images, and the one that runs.
            assert caught.value.retry_after == waits
            assert engine.batcher.busy_error().retry_after == batcher.RETRY_AFTER == 5

    run(test())


def test_a_queue_of_none_still_takes_what_can_begin_at_once() -> None:
    async def test() -> None:
        async with started(StubBackend(), ServerLimits(queue=0)) as engine:
            for prompt in ("one", "two"):
                assert len(await (await submit(engine, prompt)).images()) == 1

    run(test())


def test_a_job_that_is_left_frees_its_place_in_the_queue() -> None:
    async def test() -> None:
        held = Held()
        async with started(held, ServerLimits(queue=1)) as engine:
            await submit(engine, "running")
            await until(lambda: held.passes)
            async with await submit(engine, "left", width=256):
                assert engine.waiting == 1
            assert engine.waiting == 0
            after = await submit(engine, "after")
            held.go.set()
            await after.images()
            assert prompts(held) == [["running"], ["after"]]

    run(test())


def test_a_pass_ends_only_when_nobody_waits_for_any_of_its_images() -> None:
    async def test() -> None:
        held = Held()
        async with started(held) as engine:
            first = await submit(engine, "first")
            await until(lambda: held.passes)
            jobs = [await submit(engine, prompt) for prompt in ("a", "b")]
            first.cancel()
            with pytest.raises(InterruptedRunError):
                await first.images()
            await until(lambda: len(held.passes) == 2)
            assert held.cancelled == 1
            jobs[0].cancel()
            await asyncio.sleep(0.1)
            assert held.cancelled == 1
            jobs[1].cancel()
            await until(lambda: held.cancelled == 2)
            held.go.set()
            await (await submit(engine, "c")).images()

    run(test())


def test_a_timeout_cancels_the_work() -> None:
    async def test() -> None:
        held = Held()
        async with started(held, ServerLimits(timeout=0.2)) as engine:
            job = await submit(engine, "slow")
            waits = await submit(engine, "waits", width=256)
            for one in (job, waits):
                with pytest.raises(TimedOutError, match=r"0\.2 s"):
                    await one.images()
            await until(lambda: held.cancelled == 1)
            assert len(held.passes) == 1

    run(test())


@pytest.mark.parametrize("error", [ModelError("broken"), InputError("wrong"), InternalError("bug")])
def test_a_bad_request_does_not_harm_those_that_share_its_pass(error: T2IError) -> None:
    class Fragile(Held):
        """Fails a whole pass for one request in it, as pipelines do."""

        def fails_together(self, requests: list[ResolvedRequest]) -> bool:
            return any(request.prompt == "bad" for request in requests)

    held = Fragile()
    held.fails = lambda _: error if held.fails_together(held.passes[-1]) else None

    async def test() -> None:
        async with started(held) as engine:
            first = await submit(engine, "first")
            await until(lambda: held.passes)
            jobs = {prompt: await submit(engine, prompt) for prompt in ("a", "bad", "c")}
            held.go.set()
            await first.images()
            for prompt in ("a", "c"):
                [image] = await jobs[prompt].images()
                assert image.request.prompt == prompt
            with pytest.raises(type(error)):
                await jobs["bad"].images()
            assert prompts(held) == [["first"], ["a", "bad", "c"], ["a"], ["bad"], ["c"]]

    run(test())


def test_a_bug_is_logged_and_the_next_job_is_served(caplog: pytest.LogCaptureFixture) -> None:
    def fails(request: ResolvedRequest) -> None:
        if request.prompt == "bug":
            raise ZeroDivisionError("secret detail")

    async def test() -> None:
        async with started(StubBackend(fails=fails)) as engine:
            with pytest.raises(InternalError) as caught:
                await (await submit(engine, "bug")).images()
            assert "secret" not in str(caught.value)
            await (await submit(engine, "fine")).images()

    run(test())
    assert "ZeroDivisionError: secret detail" in caplog.text


def test_a_bug_that_a_backend_tells_is_for_the_log_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(request: ResolvedRequest) -> T2IError | None:
        return (
            internal_error(ZeroDivisionError("secret detail")) if request.prompt == "bug" else None
        )

    async def test() -> None:
        async with started(StubBackend(fails=fails)) as engine:
            jobs = [await submit(engine, prompt) for prompt in ("a", "bug", "c")]
            for job, kind in zip(jobs, (GeneratedImage, Failure, GeneratedImage), strict=True):
                *_, outcome = [message async for message in job]
                assert isinstance(outcome, kind)
                if isinstance(outcome, Failure):
                    assert isinstance(outcome.error, InternalError)
                    assert outcome.error.message == "The server met a bug; its log has the details."
                    assert outcome.error.__cause__ is None

    run(test())
    assert "ZeroDivisionError: secret detail" in caplog.text


def test_a_failures_cause_is_for_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    def fails(request: ResolvedRequest) -> T2IError:
        try:
            raise ZeroDivisionError("secret detail")
        except ZeroDivisionError as error:
            failure = ModelError("The pipeline failed.")
            failure.__cause__ = error
            return failure

    async def test() -> None:
        async with started(StubBackend(fails=fails)) as engine:
            [failure] = [message async for message in await submit(engine, "a")]
            assert isinstance(failure, Failure)
            assert failure.error.__cause__ is None

    run(test())
    assert "ZeroDivisionError: secret detail" in caplog.text


def test_out_of_memory_is_told_and_the_next_job_is_served() -> None:
    def fails(request: ResolvedRequest) -> T2IError | None:
        return OutOfMemoryError("no memory") if request.prompt == "large" else None

    async def test() -> None:
        async with started(StubBackend(fails=fails)) as engine:
            with pytest.raises(OutOfMemoryError):
                await (await submit(engine, "large")).images()
            await (await submit(engine, "small")).images()

    run(test())


def test_a_backend_that_ends_early_leaves_no_job_waiting() -> None:
    class Lazy(StubBackend):
        def run(self, *_: object) -> AsyncIterator[GeneratedImage | Failure]:  # type: ignore[override]
            return (_ for _ in ())  # type: ignore[return-value]

    async def test() -> None:
        async with started(Lazy()) as engine:
            with pytest.raises(InternalError):
                await (await submit(engine, "never")).images()

    run(test())


def test_stopping_finishes_what_runs_and_refuses_the_rest() -> None:
    async def test() -> None:
        held = Held()
        async with started(held, ServerLimits(max_batch=2)) as engine:
            runs = await submit(engine, "a", "b", "c")
            await until(lambda: held.passes)
            waits = await submit(engine, "waits", width=256)
            stop = asyncio.create_task(engine.stop(grace=30))
            with pytest.raises(TerminatedError):
                await waits.images()
            assert not engine.ready
            with pytest.raises(TerminatedError):
                await submit(engine, "too late")
            held.go.set()
            assert len(await runs.images()) == 3
            assert not await stop

    run(test())


def test_stopping_gives_up_what_takes_too_long() -> None:
    async def test() -> None:
        held = Held()
        async with started(held) as engine:
            job = await submit(engine, "endless")
            await until(lambda: held.passes)
            assert await engine.stop(grace=0.1)
            assert held.cancelled == 1
            with pytest.raises(TerminatedError):
                await job.images()

    run(test())


class Slow(StubBackend):
    """Loads until it is told to go on; or fails to."""

    def __init__(self, error: T2IError | None = None) -> None:
        super().__init__()
        self.go = threading.Event()
        self.error = error

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        on_event(Loading(model="postcard", device="cpu"))
        assert self.go.wait(30)
        if self.error:
            raise self.error
        on_event(MemoryMeasure(name="vae-tiling", reason="to test"))


def test_what_stops_while_the_model_is_found_does_not_load_it() -> None:
    found, loaded = threading.Event(), threading.Event()

    def find(_: OnEvent) -> str:
        assert found.wait(30)
        return "postcard"

    class Loader(StubBackend):
        def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
            loaded.set()

    async def test() -> None:
        engine = Engine(Loader(), find)
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(0)
        stopping = asyncio.create_task(engine.stop(grace=1))
        await until(lambda: engine.stopping)
        found.set()
        await asyncio.gather(starting, stopping)
        assert not (engine.ready or loaded.is_set())

    run(test())


def test_jobs_are_taken_while_the_model_loads_and_hear_of_it() -> None:
    async def test() -> None:
        slow = Slow()
        engine = Engine(slow, "postcard", ServerLimits(queue=2))
        starting = asyncio.create_task(engine.start())
        first = await submit(engine, "first")
        assert isinstance(await anext(first), Loading)
        second = await submit(engine, "second")
        assert isinstance(await anext(second), Loading)
        with pytest.raises(BusyError):
            await submit(engine, "third")
        assert not engine.ready
        slow.go.set()
        assert isinstance(await anext(second), MemoryMeasure)
        assert len(await second.images()) == len(await first.images()) == 1
        await starting
        assert engine.ready
        await engine.stop(grace=0)

    run(test())


def test_a_model_that_cannot_be_loaded_is_told_to_all() -> None:
    async def test() -> None:
        slow = Slow(error=ModelError("The weights are torn."))
        engine = Engine(slow, "postcard")
        starting = asyncio.create_task(engine.start())
        job = await submit(engine, "first")
        slow.go.set()
        for failing in (job.images(), starting, submit(engine, "second"), engine.wait_described()):
            with pytest.raises(ModelError, match="torn"):
                await failing
        assert not engine.ready
        await engine.stop(grace=0)

    run(test())


def test_no_more_wait_for_the_model_than_the_queue_holds() -> None:
    async def test() -> None:
        found = threading.Event()
        refused = Refusals()

        def find(on_event: OnEvent) -> str:
            found.wait(60)
            return "postcard"

        engine = Engine(StubBackend(), find, ServerLimits(queue=2))
        engine.batcher.observers.append(refused)
        starting = asyncio.create_task(engine.start())
        waiting = [asyncio.create_task(engine.wait_described()) for _ in range(2)]
        await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(BusyError):
                await submit(engine, "too many")
        assert refused.count == 2
        waiting[0].cancel()
        await asyncio.wait([waiting.pop(0)])
        waiting.append(asyncio.create_task(engine.wait_described()))
        found.set()
        assert {spec.name for spec in await asyncio.gather(*waiting)} == {"postcard"}
        await starting
        assert len(await asyncio.gather(*(engine.wait_described() for _ in range(9)))) == 9
        await engine.stop(grace=0)

    run(test())


def test_the_time_limit_holds_while_the_model_is_found() -> None:
    async def test() -> None:
        found = threading.Event()

        def find(on_event: OnEvent) -> str:
            found.wait(60)
            return "postcard"

        engine = Engine(StubBackend(), find, ServerLimits(queue=1, timeout=0.1))
        starting = asyncio.create_task(engine.start())
        for _ in range(2):  # the place of the first is free again
            with pytest.raises(TimedOutError, match="finding its model"):
                await asked(engine, "too early")
        found.set()
        await starting
        assert await asked(engine, "in time")
        await engine.stop(grace=0)

    run(test())


class Refusals(JobObserver):
    count = 0

    def on_rejected(self) -> None:
        self.count += 1


def test_a_model_that_is_found_only_then_is_served_by_its_names_alone() -> None:
    async def test() -> None:
        engine = Engine(StubBackend(), lambda on_event: "sd15")
        await engine.start()
        assert engine.spec.name == "sd15"
        for model in (None, "sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5"):
            [request] = await asked(engine, "x", model=model)
            assert request.model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
        for wrong in ("postcard", "/etc", "../..", "~"):
            with pytest.raises(NotServedError) as caught:
                await asked(engine, "x", model=wrong)
            assert caught.value.field == "model"
        with pytest.raises(NotServedError) as caught:
            await asked(engine, "x", revision="other")
        assert caught.value.field == "revision"
        await engine.stop(grace=0)

    run(test())


def test_limits_are_kept() -> None:
    limits = ServerLimits(images=2, pixels=128 * 128, steps=30)

    async def test() -> None:
        async with started(StubBackend(), limits) as engine:
            assert len(await asked(engine, "a", "b", steps=30, width=128, height=128)) == 2
            for wrong, field in (
                (engine.resolve_requests([GenerateRequest(prompt="a")] * 3, counted="n"), "n"),
                (asked(engine, "a", "b", "c"), None),
                (asked(engine, width=136), None),
                (asked(engine, "a", width=136, height=128), "width"),
                (asked(engine, "a", steps=31), "steps"),
                (asked(engine, "a", guidance_scale=1.0, negative_prompt="x"), "negative_prompt"),
            ):
                with pytest.raises(InputError) as caught:
                    await wrong
                assert caught.value.field == field

    run(test())


def test_what_cannot_be_honoured_is_left_out_where_that_is_asked_for() -> None:
    async def test() -> None:
        async with started(StubBackend()) as engine:
            notes: list[Notice] = []
            request = GenerateRequest(prompt="a", guidance_scale=1.0, negative_prompt="x")
            settled = await engine.resolve_requests(
                [request] * 2, lenient=True, on_note=notes.append
            )
            assert [one.negative_prompt for one in settled] == [None, None]
            assert len(notes) == 1

    run(test())


def test_nothing_is_kept_of_a_job_that_is_done() -> None:
    async def test() -> None:
        kept = []
        async with started(StubBackend()) as engine:
            for _ in range(20):
                job = await submit(engine, "x")
                await job.images()
                kept.append(weakref.ref(job))
            del job
            # The thread of the last pass lets go of it a moment after its end.
            await (await submit(engine, "last")).images()
            gc.collect()
            assert not [one for one in kept if one()]

    run(test())


def test_a_backend_is_asked_once_about_requests_of_one_kind() -> None:
    class Choosy(StubBackend):
        def check(self, request: ResolvedRequest) -> None:
            checked.append(request.prompt)
            if request.scheduler:
                raise InputError("No scheduler here.", field="scheduler")
            if request.width == 256:
                raise OutOfMemoryError("Not now.")

    checked: list[str] = []

    async def test() -> None:
        async with started(Choosy()) as engine:
            checked.clear()
            await asked(engine, "a", "b")
            # Memory may be there again when its turn comes.
            await asked(engine, "c", width=256)
            for prompt in ("d", "e"):
                with pytest.raises(InputError):
                    await asked(engine, prompt, scheduler="euler")
        assert checked == ["b", "c", "d", "e"]

    run(test())


def test_clients_that_shared_a_pass_share_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "LINGER_FRACTION", 1000)
    monkeypatch.setattr(batcher, "MAX_LINGER", 0.5)
    held = Held()

    async def client(engine: Engine, name: str, pause: float) -> None:
        for number in range(3):
            await (await submit(engine, f"{name}{number}")).images()
            await asyncio.sleep(pause)

    async def test() -> None:
        async with started(held) as engine:
            first = await submit(engine, "first")
            await until(lambda: held.passes)
            both = asyncio.gather(client(engine, "a", 0), client(engine, "b", 0.05))
            await until(lambda: engine.waiting == 2)
            held.go.set()
            await first.images()
            await both
            assert prompts(held) == [["first"], *([f"a{n}", f"b{n}"] for n in range(3))]
            # One alone is not kept waiting for another that does not come.
            await (await submit(engine, "last")).images()

    run(test())


def test_one_that_waits_already_does_not_keep_another_out_of_the_next_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batcher, "LINGER_FRACTION", 1000)
    monkeypatch.setattr(batcher, "MAX_LINGER", 30)
    held = Held()

    async def test() -> None:
        async with started(held) as engine:
            first = await submit(engine, "first")
            await until(lambda: held.passes)
            both = [await submit(engine, name) for name in ("a", "b")]
            held.go.set()
            await first.images()
            held.go.clear()
            await until(lambda: len(held.passes) == 2)
            waits = await submit(engine, "c")
            held.go.set()
            for job in both:
                await job.images()
            again = [await submit(engine, name) for name in ("d", "e")]
            for job in (waits, *again):
                await job.images()
            assert prompts(held) == [["first"], ["a", "b"], ["c", "d", "e"]]

    run(test())


def test_steps_that_nobody_hears_of_do_not_come_to_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[object] = []
    hear = batcher.Batcher._forward

    def counting(self: batcher.Batcher, work: Any, event: Any) -> None:  # noqa: ANN401 - as it is
        heard.append(event)
        hear(self, work, event)

    monkeypatch.setattr(batcher.Batcher, "_forward", counting)

    async def test() -> None:
        async with started(StubBackend(steps=True)) as engine:
            quiet = engine.submit(await asked(engine, "a"), previews=1, steps=False)
            told = [type(message) async for message in quiet]
            assert told == [Preview, GeneratedImage]
            assert [type(event) for event in heard] == [Preview]
            told = [type(message) async for message in await submit(engine, "b")]
            assert told == [Step, Step, GeneratedImage]

    run(test())


def test_the_memory_ladder_serves_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import UNet2DConditionModel

    from t2i_cli.backends.local import LocalBackend, LocalOptions
    from tests.fakes import gpu

    wish: dict[str, Any] = {"steps": 2, "width": 64, "height": 64}

    async def test() -> None:
        engine = Engine(LocalBackend(LocalOptions(device="cpu", batch_size=None)), "postcard")
        await engine.start()
        with monkeypatch.context() as once:
            gpu.Failing(once, UNet2DConditionModel, "forward", (2,))
            job = await submit(engine, "a", **wish)
            told = [message async for message in job]
        assert [m.name for m in told if isinstance(m, MemoryMeasure)] == ["vae-tiling"]
        assert isinstance(told[-1], GeneratedImage)
        assert told[-1].info.measures == ("vae-tiling",)
        with monkeypatch.context() as always, pytest.raises(OutOfMemoryError):
            gpu.Failing(always, UNet2DConditionModel, "forward", range(1000))
            await (await submit(engine, "b", **wish)).images()
        assert len(await (await submit(engine, "c", "d", **wish)).images()) == 2
        assert engine.ready
        await engine.stop(grace=10)

    run(test())


def test_what_is_refused_is_told_in_words() -> None:
    error = BusyError(7)
    assert (error.message, error.hint, error.retry_after) == (
        "The server is busy: its queue is full.",
        "Try again in a moment.",
        7,
    )


class Hearing(JobObserver):
    """Notes down all that it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def on_event(self, event: Event) -> None:
        self.heard.append(("event", event))

    def on_queued(self, job: ImageJob) -> None:
        self.heard.append(("queued", job.id))

    def on_finished(self, job: ImageJob) -> None:
        self.heard.append(("finished", job.id))

    def on_batch_finished(self, images: int, seconds: float) -> None:
        self.heard.append(("pass", images, 0 <= seconds < 60))


def test_observers_hear_of_every_job_and_pass() -> None:
    async def test() -> None:
        async with started(StubBackend()) as engine:
            hearing = Hearing()
            engine.batcher.observers.append(hearing)
            job = await submit(engine, "a", "b")
            await job.images()
            await until(lambda: not engine.running)
            assert hearing.heard == [
                ("queued", job.id),
                ("finished", job.id),
                ("pass", 2, True),
            ]
            event = Notice(message="for all")
            engine.batcher.publish(event)
            await until(lambda: len(hearing.heard) == 4)
            assert hearing.heard[-1] == ("event", event)

    run(test())


def test_a_measure_for_memory_is_told_to_the_jobs_of_the_pass_and_to_observers() -> None:
    class Measuring(StubBackend):
        def run(
            self,
            requests: Sequence[ResolvedRequest],
            on_event: OnEvent,
            cancel: threading.Event,
            previews: Sequence[int] = (),
        ) -> Iterator[GeneratedImage | Failure]:
            on_event(MemoryMeasure(name="vae-tiling", reason="full"))
            on_event(Notice(message="for all"))
            yield from super().run(requests, on_event, cancel, previews)

    async def test() -> None:
        async with started(Measuring()) as engine:
            hearing = Hearing()
            engine.batcher.observers.append(hearing)
            told = [message async for message in await submit(engine, "a", "b")]
            assert [type(message) for message in told[:2]] == [MemoryMeasure, Notice]
            assert sum(isinstance(message, Notice) for message in told) == 1
            events = [said[1] for said in hearing.heard if said[0] == "event"]
            assert [type(event) for event in events] == [MemoryMeasure]

    run(test())


def test_a_bug_is_logged_in_words_and_told_in_others(caplog: pytest.LogCaptureFixture) -> None:
    def fails(request: ResolvedRequest) -> T2IError:
        if request.prompt == "model":
            failure = ModelError("The pipeline failed.")
            failure.__cause__ = ZeroDivisionError("detail")
            return failure
        return internal_error(ZeroDivisionError("detail"))

    async def test() -> None:
        async with started(StubBackend(fails=fails)) as engine:
            for prompt in ("bug", "model"):
                [failure] = [message async for message in await submit(engine, prompt)]
                assert isinstance(failure, Failure)
                told = failure.error.message
                assert failure.error.__traceback__ is None
                assert told == (batcher._BUG if prompt == "bug" else "The pipeline failed.")

    run(test())
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("ERROR", "The backend met a bug."),
        ("ERROR", "An image failed: The pipeline failed."),
    ]
    assert all(r.exc_info and r.exc_info[0] is ZeroDivisionError for r in caplog.records)


def test_what_a_backend_leaves_open_has_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(Held):
        """Makes the first image of each pass only."""

        def run(
            self,
            requests: Sequence[ResolvedRequest],
            on_event: OnEvent,
            cancel: threading.Event,
            previews: Sequence[int] = (),
        ) -> Iterator[GeneratedImage | Failure]:
            made = super().run(requests, on_event, cancel, previews)
            yield next(made)
            assert isinstance(made, Generator)
            made.close()

    async def test() -> None:
        short = Short()
        short.go.set()
        async with started(short) as engine:
            job = await submit(engine, "a", "b", "c")
            outcomes = [m async for m in job if isinstance(m, GeneratedImage | Failure)]
            # Each of the others is tried alone before it is given up.
            assert [type(outcome) for outcome in outcomes] == [GeneratedImage] * 3
            assert prompts(short) == [["a", "b", "c"], ["b"], ["c"]]
            monkeypatch.setattr(Short, "run", lambda *_: (_ for _ in ()))
            with pytest.raises(InternalError) as caught:
                await (await submit(engine, "d")).images()
            assert caught.value.message == "The backend ended before its work was done."

    run(test())


def test_a_line_that_drains_says_whether_all_is_done() -> None:
    async def test() -> None:
        held = Held()
        async with started(held) as engine:
            assert await engine.batcher.drain(0)
            job = await submit(engine, "a")
            await until(lambda: held.passes)
            assert not await engine.batcher.drain(0.05)
            held.go.set()
            assert await engine.batcher.drain(30)
            assert job.done and not engine.running

    run(test())


@pytest.mark.parametrize("took", [2.0, 100.0])
def test_the_next_pass_waits_for_the_same_clients_a_twentieth_of_the_last(
    took: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def test() -> None:
        held = Held()
        loop = asyncio.get_running_loop()
        real = loop.call_later

        def call_later(delay: float, call: Any, *args: Any) -> asyncio.TimerHandle:  # noqa: ANN401
            if getattr(call, "__name__", "") == "_on_linger_end":
                pauses.append(delay)
            return real(delay, call, *args)

        monkeypatch.setattr(loop, "call_later", call_later)
        async with started(held) as engine:
            await submit(engine, "first")
            await until(lambda: held.passes)
            both = [await submit(engine, prompt) for prompt in ("a", "b")]
            engine.batcher.jobs[next(iter(engine.batcher.jobs))].cancel()
            await until(lambda: len(held.passes) == 2)
            assert engine.batcher._batches
            engine.batcher._batches[0].started -= took
            held.go.set()
            for job in both:
                await job.images()
            await until(lambda: pauses)
            took_then = engine.batcher._last_seconds  # and what this machine took beside it
            assert took_then >= took
            assert pauses == [pytest.approx(min(took_then / 20, 0.25))]

    run(test())
