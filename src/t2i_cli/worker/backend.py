"""The local backend by way of the warm worker; without it, wherever no worker can be used."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from threading import Event as Flag

from t2i_cli.backend import Backend, Failure, GeneratedImage
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.events import Event, Notice, OnEvent, Step
from t2i_cli.image_formats import ImageFormat
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.worker import client
from t2i_cli.worker.client import WorkerExchange
from t2i_cli.worker.fingerprint import WorkerSpec
from t2i_cli.worker.spawn import MODEL_PATH, get_or_spawn
from t2i_cli.worker.state import (
    EXIT_TIMEOUT,
    RuntimeDir,
    WorkerExitingError,
    WorkerState,
    WorkerUnavailableError,
    WorkerUnresponsiveError,
)

SENT_AT_ONCE = 4
"""Requests: those of other runs come in between, and the device need not wait for files."""


class WorkerBackend:
    """Images from a worker, which stays `keep_alive` seconds after the last one.

    `without` makes the backend that stands in where no worker can be used. `format` is the one in
    which the images are likely to be wanted.
    """

    def __init__(
        self,
        options: LocalOptions,
        keep_alive: float,
        without: Callable[[LocalOptions], Backend],
        format: ImageFormat = "png",
    ) -> None:
        # Of the worker, only attention slicing asks for it; all else is settled here.
        lenient = options.lenient and bool(options.attention_slicing)
        self._options = replace(options, lenient=lenient)
        self._keep_alive = keep_alive
        self._make_without = without
        self._format: ImageFormat = format
        self._stand_in: Backend | None = None

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """What is known of the model: the worker is asked where telling takes the libraries."""
        name = request.model or catalog.DEFAULT_MODEL
        known = catalog.find_in_catalog(name, request.revision)
        if known and not (known.folder and request.revision):
            return known
        if not (catalog.folder_named(name) or catalog.is_repository(name)):
            return self._without.describe(request)
        try:
            try:
                return self._asked(name, request.revision)
            except WorkerExitingError as error:
                if not error.place.wait_gone(within=EXIT_TIMEOUT):
                    raise
                return self._asked(name, request.revision)
        except WorkerUnavailableError:
            # What stands in the way is told when the image is made.
            return self._without.describe(request)

    def check(self, request: ResolvedRequest) -> None:
        """The worker checks what it is sent."""

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """What the image takes here, told without a worker."""
        return self._without.estimate(request)

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """The commit that a model's revision stands for now."""
        return self._without.resolve_revision(model, revision)

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Have a worker there."""
        try:
            self._hire(request.model, request.revision)
        except WorkerUnavailableError:
            self._without.load(request, on_event)

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome a request; what a worker fails to make is made without it.

        Where one leaves just as it is asked, the next is hired, once.
        """
        left = dict(enumerate(requests))
        patient = True
        try:
            while left and not cancel.is_set():
                before = len(left)
                try:
                    yield from self._made(left, on_event, cancel)
                except WorkerExitingError as error:
                    made = len(left) < before
                    if made or not patient or not error.place.wait_gone(within=EXIT_TIMEOUT):
                        raise
                    patient = False
        except WorkerUnavailableError as error:
            reason = str(error)
            if isinstance(error, WorkerUnresponsiveError) and not error.place.kill():
                reason = "The warm worker hangs, and cannot be ended."
            if left:
                on_event(Notice(message=f"{reason} This run goes on without it."))
                yield from self._run_without(left, on_event, cancel)

    def close(self) -> None:
        """Give back what the stand-in holds; the worker stays."""
        if self._stand_in:
            self._stand_in.close()

    @property
    def _without(self) -> Backend:
        self._stand_in = self._stand_in or self._make_without(self._options)
        return self._stand_in

    def _asked(self, model: str, revision: str | None) -> ModelSpec:
        """What a worker says of the model."""
        place, state = self._hire(model, revision)
        with WorkerExchange(place, state, MODEL_PATH) as exchange:
            return client.worker_model(exchange)

    def _made(
        self, left: dict[int, ResolvedRequest], on_event: OnEvent, cancel: Flag
    ) -> Iterator[GeneratedImage | Failure]:
        """What a worker makes of the next requests, which then are no longer left."""
        members = list(islice(left.items(), SENT_AT_ONCE))
        place, state = self._hire(members[0][1].model, members[0][1].revision)
        asked = client.build_body(members, self._format)
        keep = {client.KEEP_ALIVE_HEADER: f"{self._keep_alive:g}"}
        with WorkerExchange(place, state, client.GENERATE_PATH, asked, keep) as exchange:
            for outcome in client.read_outcomes(exchange, members, on_event):
                del left[outcome.index]
                yield outcome
                if cancel.is_set():
                    return

    def _hire(self, model: str, revision: str | None) -> tuple[RuntimeDir, WorkerState]:
        wanted = WorkerSpec(model=model, revision=revision, options=self._options)
        return get_or_spawn(wanted, self._keep_alive)

    def _run_without(
        self, left: Mapping[int, ResolvedRequest], on_event: OnEvent, cancel: Flag
    ) -> Iterator[GeneratedImage | Failure]:
        """The requests that are left, by their positions, on the stand-in."""
        positions = list(left)

        def hear(event: Event) -> None:
            if isinstance(event, Step | Notice):
                event = replace(event, indices=tuple(positions[i] for i in event.indices))
            on_event(event)

        self._without.check(left[positions[0]])
        for outcome in self._without.run(list(left.values()), hear, cancel):
            yield replace(outcome, index=positions[outcome.index])
