"""The server's core: one model of one backend, its readiness, request resolution and jobs."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from t2i_cli.backend import Backend, MultiWorkerBackend, WorkerReport
from t2i_cli.errors import (
    InputError,
    ModelError,
    OutOfMemoryError,
    T2IError,
    TerminatedError,
    TimedOutError,
)
from t2i_cli.events import Event, Notice, OnEvent
from t2i_cli.known_names import suggest_name
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.part_source import (
    PART_FIELDS,
    PartSource,
    find_other_part,
    parts_without_paths,
)
from t2i_cli.prompts.styles import StyleFile, expand_styles
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.server.batcher import Batcher
from t2i_cli.server.jobs import ImageJob
from t2i_cli.server.options import ServerLimits
from t2i_cli.server.private_paths import PrivatePaths

FORCED_STOP_TIMEOUT = 5.0
"""Seconds for a cancelled batch to end when the server stops; usually it takes one step."""
_MAX_CHECKED = 1000
"""Batch keys for which backend.check() is not repeated; it takes about 1 ms."""


class NotServedError(ModelError):
    """A request names a model or revision that is not served; `field` is the request's field."""

    def __init__(self, message: str, *, field: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


class Engine:
    """Serves one model of a backend. Use it on the event loop only; the backend has a thread.

    `model` is a name, as `--model` takes it, or a function that returns it and may block. `spec` is
    set once `start()` has described the model; `ready` once it is loaded. Between the two, jobs are
    accepted and get the loading events. `failure` is the error that kept it from starting. Without
    `load` the first job loads the model, as its own request needs it; with it, the weights are
    quantised as `quantize` says. `parts` are those that the model has from elsewhere. Without
    `jobs_share` images share a pass only with those of their job. With `named_adapters` clients
    name LoRAs of the operator's folder, and no other file. `styles` are those that requests may
    name.
    """

    def __init__(
        self,
        backend: Backend,
        model: str | None | Callable[[OnEvent], str],
        limits: ServerLimits | None = None,
        *,
        revision: str | None = None,
        quantize: str | None = None,
        parts: Mapping[str, PartSource] | None = None,
        load: bool = True,
        jobs_share: bool = True,
        named_adapters: bool = True,
        styles: StyleFile | None = None,
    ) -> None:
        self.limits = limits or ServerLimits()
        self.ready = self.stopping = False
        self.failure: T2IError | None = None
        self.spec: ModelSpec
        self.batcher = Batcher(backend, self.limits, jobs_share=jobs_share)
        self._backend = backend
        self._model = model
        self._revision = revision
        self._quantize = quantize
        self._parts = parts or {}
        self._load_first = load
        self._named_adapters = named_adapters
        self.hidden = PrivatePaths()
        """Of a worker nothing is hidden: its client is the user."""
        if named_adapters:
            self.hidden.add_parts(self._parts)
            if isinstance(model, str):
                self.hidden.add_model(model)
        self.styles = styles
        self._names: set[str | None] = {None}
        self._checked: set[tuple[object, ...]] = set()
        self._described = asyncio.Event()
        self._describe_waiters = 0
        self._last_event: Event | None = None
        self._closed = False

    @property
    def shown_name(self) -> str:
        """The model's name as clients know it: of a file or folder of this machine no path."""
        return self.hidden.text(self.spec.shown_name)

    @property
    def waiting(self) -> int:
        """Jobs of which no image has started."""
        return self.batcher.waiting

    @property
    def running(self) -> int:
        """Images of the running batch."""
        return self.batcher.running

    def worker_reports(self) -> Sequence[WorkerReport]:
        """The status of each of the backend's workers; none where it has no workers."""
        backend = self._backend
        return backend.worker_reports() if isinstance(backend, MultiWorkerBackend) else ()

    @property
    def idle_since(self) -> float | None:
        """`time.monotonic()` at the end of the last job; `None` while there are jobs."""
        return self.batcher.idle_since

    def job(self, id: str) -> ImageJob | None:
        """The unfinished job with this id, else None."""
        return self.batcher.jobs.get(id)

    async def start(self) -> None:
        """Describe and load the model. Raises T2IError, which is also the waiting jobs' error."""
        try:
            self.spec = await self.batcher.run_in_thread(self._describe)
            self._names |= {self.spec.name, self.shown_name, self.spec.repo}
            self._described.set()
            if self._load_first and not self.stopping:
                await self.batcher.run_in_thread(self._load)
        except T2IError as error:
            self.failure = error
            self._described.set()
            self._fail(list(self.batcher.jobs.values()), error)
            raise
        self.ready = not self.stopping
        self.batcher.start()

    async def stop(self, grace: float) -> bool:
        """Accept no more jobs, fail the waiting ones, cancel started ones after `grace` seconds.

        Returns whether a started job was cancelled. May be called again, with less `grace`.
        """
        self.stopping, self.ready = True, False
        self._described.set()
        self._fail(
            [job for job in self.batcher.jobs.values() if not job.has_started], _stopping_error()
        )
        await self.batcher.drain(grace)
        unfinished = list(self.batcher.jobs.values())
        self._fail(unfinished, _stopping_error())
        ended = await self.batcher.drain(FORCED_STOP_TIMEOUT)
        if not self._closed:
            self._closed = True
            with suppress(TimeoutError):
                if ended:
                    await asyncio.wait_for(
                        self.batcher.run_in_thread(self._backend.close), FORCED_STOP_TIMEOUT
                    )
            self.batcher.shutdown()
        return bool(unfinished)

    async def wait_described(self) -> ModelSpec:
        """The model's spec, once it is known. Raises T2IError if describing it failed.

        Raises BusyError if more callers wait than the queue's limit, TimedOutError after the job
        time limit.
        """
        if not self._described.is_set():
            if self._describe_waiters >= self.limits.queue:
                raise self.batcher.busy_error()
            self._describe_waiters += 1
            try:
                await asyncio.wait_for(self._described.wait(), self.limits.timeout)
            except TimeoutError:
                raise TimedOutError(
                    "The time limit ran out while the server was finding its model.",
                    hint="Try again in a moment.",
                ) from None
            finally:
                self._describe_waiters -= 1
        self._raise_if_unavailable()
        return self.spec

    def check_model(self, model: str | None, revision: str | None = None) -> None:
        """Raise NotServedError for another model or revision. Names are compared, never opened."""
        known = None if model is None else catalog.find_spelled(model)
        if model not in self._names and (known is None or known.name not in self._names):
            names = [name for name in (self.shown_name, self.spec.repo) if name]
            raise NotServedError(
                f"This server does not serve {model!r}.",
                hint=f"{suggest_name(str(model), names)}"
                "Leave the model away for the one that it serves.",
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
        """The resolved requests. Raises T2IError if any of them is invalid for the model or limits.

        Waits until the model is described. `counted` is the body's field that sets their number,
        for the error. `on_note` gets a notice of each setting that `lenient` ignores, and of a size
        far from the model's own.
        """
        spec = await self.wait_described()
        if not 1 <= len(requests) <= self.limits.images:
            raise InputError(
                f"A job takes 1 to {self.limits.images} images, not {len(requests)}.", field=counted
            )
        resolved = []
        ignored: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            self.check_model(request.model, request.revision)
            self._check_quantization(request.quantize)
            self._check_parts(request)
            own = {name: None for name in ("model", "revision", *PART_FIELDS)}
            plain = replace(request, **own)  # type: ignore[arg-type]
            messages: list[str] = []
            try:
                resolved.append(
                    resolve_request(
                        expand_styles(plain, self.styles, spec.own_negative_prompt),
                        spec,
                        lenient=lenient,
                        on_note=messages.append,
                        on_size_note=messages.append,
                    )
                )
            except InputError as error:
                error.hint = None  # the hint names command-line options
                raise
            self._check_limits(resolved[-1])
            for message in messages:
                ignored.setdefault(message, []).append(number)
        for key, example in {request.batch_key(): request for request in resolved}.items():
            if key not in self._checked:
                # Memory is checked when the batch starts and has the device to itself.
                await self._check(example)
                self._checked.add(key)
        while len(self._checked) > _MAX_CHECKED:
            self._checked.pop()
        for message, indices in ignored.items():
            on_note(Notice(message=message, indices=tuple(indices)))
        return resolved

    async def _check(self, request: ResolvedRequest) -> None:
        """Raise T2IError for a request that the backend cannot do.

        The model alone was checked at the start, so what LoRAs and embeddings lack is bad input.
        """
        try:
            # Memory is checked when the batch starts and has the device to itself.
            with suppress(OutOfMemoryError):
                await asyncio.to_thread(self._backend.check, request)
        except ModelError as error:
            if not (request.loras or request.embeddings):
                raise
            field = "loras" if request.loras else "embeddings"
            raise InputError(error.message, field=field) from error

    def submit(
        self,
        requests: Sequence[ResolvedRequest],
        *,
        previews: int = 0,
        steps: bool = True,
        notes: Sequence[Notice] = (),
    ) -> ImageJob:
        """Queue resolved requests as a job, with at most `previews` previews of each image.

        The job publishes the `notes`, and Step events if `steps`. Raises BusyError when the queue
        is full, TerminatedError when the server is stopping.
        """
        self._raise_if_unavailable()
        job = ImageJob(
            *(requests, previews, self.batcher.remove),
            steps=steps,
            hidden=self.hidden,
        )
        self.batcher.add(job)
        for note in notes:
            job.publish(note)
        if self.limits.timeout is not None:
            job.expire(self.limits.timeout)
        if not self.ready and self._last_event:
            job.publish(self._last_event)
        return job

    def _raise_if_unavailable(self) -> None:
        if self.failure:
            raise self.failure
        if self.stopping:
            raise _stopping_error()

    def _describe(self) -> ModelSpec:
        """Describe the model, and check that this machine can run it, memory aside."""
        model = self._model(self._on_load_event) if callable(self._model) else self._model
        self._names.add(model)
        named = {"model": model, "revision": self._revision, **self._parts}
        request = GenerateRequest(prompt="-", **named)  # type: ignore[arg-type]
        spec = self._backend.describe(request)
        if self._named_adapters:
            self.hidden.add_model(model or "")
            self.hidden.add_spec(spec)
        # Clients learn names of this machine's files, and no paths.
        spec = replace(spec, **parts_without_paths(spec))  # type: ignore[arg-type]
        if self._quantize:
            spec = replace(spec, quantize=self._quantize)
        if self._named_adapters and spec.adapters == "files":
            spec = replace(spec, adapters="names")
        with suppress(OutOfMemoryError):
            self._backend.check(resolve_request(request, spec))
        return spec

    def _load(self) -> None:
        self._backend.load(
            resolve_request(GenerateRequest(prompt="-"), self.spec), self._on_load_event
        )

    def _on_load_event(self, event: Event) -> None:
        """Publish a loading event to waiting jobs, and keep it for later ones."""
        self._last_event = event
        self.batcher.publish(event)

    def _fail(self, jobs: Sequence[ImageJob], error: T2IError) -> None:
        for job in jobs:
            job.fail(error)

    def _check_quantization(self, quantize: str | None) -> None:
        """Raise NotServedError for another quantisation than the loaded model's."""
        if self._load_first and quantize not in {None, self.spec.quantize}:
            loaded = self.spec.quantize or "no"
            raise NotServedError(
                f"This server does not serve {quantize} weights; its model is loaded with {loaded} "
                "quantization.",
                hint="Leave quantize away for what it serves.",
                field="quantize",
            )

    def _check_parts(self, request: GenerateRequest) -> None:
        """Raise NotServedError for a part other than the model's own. Names are only compared."""
        if other := find_other_part(self.spec, request):
            raise NotServedError(
                f"This server does not serve its model with the {other[0]} {other[1]!r}.",
                hint=f"Leave {other[0]} away for what it serves.",
                field=other[0],
            )

    def _check_limits(self, request: ResolvedRequest) -> None:
        if (request.width or 0) * (request.height or 0) > self.limits.pixels:
            raise InputError(
                f"{request.width}x{request.height} is more than the {self.limits.pixels:,} pixels "
                "that this server makes.",
                field="width",
            )
        if (request.steps or 0) > self.limits.steps:
            raise InputError(f"This server takes at most {self.limits.steps} steps.", field="steps")


def _stopping_error() -> TerminatedError:
    return TerminatedError("The server is stopping.", hint="Try again in a moment.")
