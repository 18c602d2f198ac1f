"""The served model: what it takes, whether it is ready, and the jobs it works on."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from t2i_cli.backend import Backend
from t2i_cli.errors import (
    InputError,
    ModelError,
    OutOfMemoryError,
    T2IError,
    TerminatedError,
    TimedOutError,
)
from t2i_cli.events import Event, Notice, OnEvent
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.server.batcher import Batcher
from t2i_cli.server.jobs import ImageJob
from t2i_cli.server.options import ServerLimits

FORCED = 5.0
"""Seconds that a cancelled pass has to end in, when the server stops; mostly it takes one step."""
_REMEMBERED = 1000
"""Kinds of requests about which the backend need not be asked again: that takes a millisecond."""


class NotServedError(ModelError):
    """A request names another model than the one that is served; `field` is where."""

    def __init__(self, message: str, *, field: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


class Engine:
    """Serves one model of a backend. All of it is on the event loop, but for the backend's work.

    `model` is a name, as `--model` takes it, or a function that finds it and may take its time.
    `spec` is there once `start()` has described it; `ready` says that it can serve. Between the two
    jobs are taken, and hear of its loading. `failure` is what kept it from starting. Without `load`
    the first job loads the model, as its own request needs it.
    """

    def __init__(
        self,
        backend: Backend,
        model: str | None | Callable[[OnEvent], str],
        limits: ServerLimits | None = None,
        *,
        revision: str | None = None,
        load: bool = True,
    ) -> None:
        self.limits = limits or ServerLimits()
        self.ready = self.stopping = False
        self.failure: T2IError | None = None
        self.spec: ModelSpec
        self.line = Batcher(backend, self.limits)
        self._backend = backend
        self._model = model
        self._revision = revision
        self._load_first = load
        self._names: set[str | None] = {None}
        self._checked: set[tuple[object, ...]] = set()
        self._known = asyncio.Event()
        self._asking = 0
        self._latest: Event | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Jobs of which nothing has begun."""
        return self.line.waiting

    @property
    def running(self) -> int:
        """Images that are being made."""
        return self.line.running

    @property
    def idle_since(self) -> float | None:
        """`time.monotonic()` since when nothing is asked for; `None` while something is."""
        return self.line.idle_since

    def job(self, id: str) -> ImageJob | None:
        """The job of that id, while it is unfinished."""
        return self.line.jobs.get(id)

    async def start(self) -> None:
        """Describe the model, load it, and be ready. Raises T2IError, which waiting jobs get."""
        try:
            self.spec = await self.line.run_in_thread(self._describe)
            self._names |= {self.spec.name, self.spec.repo}
            self._known.set()
            if self._load_first and not self.stopping:
                await self.line.run_in_thread(self._load)
        except T2IError as error:
            self.failure = error
            self._known.set()
            self._fail(list(self.line.jobs.values()), error)
            raise
        self.ready = not self.stopping
        self.line.start()

    async def stop(self, grace: float) -> bool:
        """Take nothing more, refuse what waits, and give what has begun `grace` seconds.

        Then it is given up; returns whether anything was. Called again, it hurries with less grace.
        """
        self.stopping, self.ready = True, False
        self._known.set()
        self._fail([job for job in self.line.jobs.values() if not job.has_begun], _stopping())
        await self.line.drain(grace)
        left = list(self.line.jobs.values())
        self._fail(left, _stopping())
        ended = await self.line.drain(FORCED)
        if not self._closed:
            self._closed = True
            with suppress(TimeoutError):
                if ended:
                    await asyncio.wait_for(self.line.run_in_thread(self._backend.close), FORCED)
            self.line.shutdown()
        return bool(left)

    async def wait_described(self) -> ModelSpec:
        """The model, once it is described; raises T2IError if that failed.

        As many may wait as the queue has places, and no longer than a job may take: else it raises
        BusyError or TimedOutError.
        """
        if not self._known.is_set():
            if self._asking >= self.limits.queue:
                raise self.line.busy_error()
            self._asking += 1
            try:
                await asyncio.wait_for(self._known.wait(), self.limits.timeout)
            except TimeoutError:
                raise TimedOutError(
                    "The time limit ran out while the server was finding its model.",
                    hint="Try again in a moment.",
                ) from None
            finally:
                self._asking -= 1
        self._refuse()
        return self.spec

    def check_model(self, model: str | None, revision: str | None = None) -> None:
        """Raise NotServedError if that is not what is served: it is a name here, never a path."""
        if model not in self._names:
            raise NotServedError(
                f"This server does not serve {model!r}.",
                hint="Leave the model away for the one that it serves.",
                field="model",
            )
        if revision not in (None, self.spec.revision):
            raise NotServedError(
                f"This server does not serve the revision {revision!r}.", field="revision"
            )

    async def resolve_requests(
        self,
        requests: Sequence[GenerateRequest],
        *,
        counted: str | None = None,
        lenient: bool = False,
        on_note: Callable[[Notice], None] = lambda _: None,
    ) -> list[ResolvedRequest]:
        """The requests with all settled; raises T2IError for what is wrong with any of them.

        Waits until the model is described. `counted` is the caller's field that says how many they
        are. `on_note` hears of what `lenient` leaves out.
        """
        spec = await self.wait_described()
        if not 1 <= len(requests) <= self.limits.images:
            raise InputError(
                f"A job takes 1 to {self.limits.images} images, not {len(requests)}.", field=counted
            )
        settled = []
        left_out: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            self.check_model(request.model, request.revision)
            plain = replace(request, model=None, revision=None)
            said: list[str] = []
            try:
                settled.append(resolve_request(plain, spec, lenient=lenient, on_note=said.append))
            except InputError as error:
                error.hint = None  # it speaks of the command line
                raise
            self._check_limits(settled[-1])
            for message in said:
                left_out.setdefault(message, []).append(number)
        for kind, one in {request.batch_key(): request for request in settled}.items():
            if kind not in self._checked:
                # Memory is seen to when the pass begins, which has it to itself.
                with suppress(OutOfMemoryError):
                    await asyncio.to_thread(self._backend.check, one)
                self._checked.add(kind)
        while len(self._checked) > _REMEMBERED:
            self._checked.pop()
        for message, about in left_out.items():
            on_note(Notice(message=message, indices=tuple(about)))
        return settled

    def submit(
        self,
        requests: Sequence[ResolvedRequest],
        *,
        previews: int = 0,
        steps: bool = True,
        notes: Sequence[Notice] = (),
    ) -> ImageJob:
        """Have settled requests wait for their turn; `previews` are wanted of each at most.

        The job tells of `steps`, if wanted, and of the `notes` that are there already. Raises
        BusyError when the queue is full, TerminatedError when the server is stopping.
        """
        self._refuse()
        job = ImageJob(requests, previews, self.line.remove, steps=steps)
        self.line.add(job)
        for note in notes:
            job.publish(note)
        if self.limits.timeout is not None:
            job.expire(self.limits.timeout)
        if not self.ready and self._latest:
            job.publish(self._latest)
        return job

    def _refuse(self) -> None:
        if self.failure:
            raise self.failure
        if self.stopping:
            raise _stopping()

    def _describe(self) -> ModelSpec:
        """Find the model, and where it is to run."""
        model = self._model(self._hear) if callable(self._model) else self._model
        self._names.add(model)
        asked = GenerateRequest(prompt="-", model=model, revision=self._revision)
        spec = self._backend.describe(asked)
        with suppress(OutOfMemoryError):
            self._backend.check(resolve_request(asked, spec))
        return spec

    def _load(self) -> None:
        self._backend.load(resolve_request(GenerateRequest(prompt="-"), self.spec), self._hear)

    def _hear(self, event: Event) -> None:
        """Tell of the model's loading: those who wait, and those who come meanwhile the latest."""
        self._latest = event
        self.line.publish(event)

    def _fail(self, jobs: Sequence[ImageJob], error: T2IError) -> None:
        for job in jobs:
            job.fail(error)

    def _check_limits(self, request: ResolvedRequest) -> None:
        if (request.width or 0) * (request.height or 0) > self.limits.pixels:
            raise InputError(
                f"{request.width}x{request.height} is more than the {self.limits.pixels:,} pixels "
                "that this server makes.",
                field="width",
            )
        if (request.steps or 0) > self.limits.steps:
            raise InputError(f"This server takes at most {self.limits.steps} steps.", field="steps")


def _stopping() -> TerminatedError:
    return TerminatedError("The server is stopping.", hint="Try again in a moment.")
