"""Backend that generates in the warm worker, and in this process where no worker can be used."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from threading import Event as Flag

from t2i_cli.backend import Backend, Failure, GeneratedImage
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.events import Event, Notice, OnEvent, move_event
from t2i_cli.image_formats import ImageFormat
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import (
    adapter_sources,
    catalog,
    composed_model,
    downloaded,
    own_models,
    weight_sources,
)
from t2i_cli.models.bucket_models import is_bucket_model
from t2i_cli.models.model_files import ModelFiles
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.worker import answers, client
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

MAX_REQUESTS_PER_CALL = 8
"""Few, so that other runs get their turn; several, so that images can share passes."""
_MIB = 2**20


def _is_file_or_url(model: str) -> bool:
    return is_bucket_model(model) or weight_sources.names_file(model)


class WorkerBackend:
    """Images from a worker, which stays `keep_alive` seconds after its last request.

    `make_fallback` makes the backend that is used where no worker can be. The worker encodes images
    in `format`, the one in which they will probably be saved.
    """

    def __init__(
        self,
        options: LocalOptions,
        keep_alive: float,
        make_fallback: Callable[[LocalOptions], Backend],
        format: ImageFormat = "png",
    ) -> None:
        # Only attention slicing needs `lenient` in the worker; all else is resolved here.
        lenient = options.lenient and bool(options.attention_slicing)
        self._options = replace(options, lenient=lenient)
        self._keep_alive = keep_alive
        self._make_fallback = make_fallback
        self._format: ImageFormat = format
        self._fallback_backend: Backend | None = None

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """The model's spec; from the worker where finding it needs torch and diffusers."""
        request, entry = own_models.settle_own_model(request)
        spec = own_models.with_own_defaults(self._describe(request), entry)
        options = self._options
        return adapter_sources.with_adapter_place(spec, options.lora_dir, offline=options.offline)

    def _describe(self, request: GenerateRequest) -> ModelSpec:
        name = request.model or catalog.DEFAULT_MODEL
        if composed_model.parts_of(request) or _is_file_or_url(name):
            return self._fallback.describe(request)  # which takes headers and configs only
        known = catalog.find_known(name, request.revision)
        # `--memory low` may settle a quantisation, for which the device must be known.
        low = self._options.memory == "low"
        if known and not low and not (known.folder and request.revision):
            return known
        if not (known or catalog.folder_named(name) or catalog.is_repository(name)):
            return self._fallback.describe(request)
        try:
            try:
                return self._ask_worker(name, request.revision)
            except WorkerExitingError as error:
                if not error.runtime_dir.wait_for_exit(EXIT_TIMEOUT):
                    raise
                return self._ask_worker(name, request.revision)
        except WorkerUnavailableError:
            # The reason is shown when the image is generated.
            return self._fallback.describe(request)

    def check(self, request: ResolvedRequest) -> None:
        """Check nothing: the worker checks the requests it gets."""

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """What the image takes here, if its model is still to be downloaded; needs no worker.

        Else what is to be downloaded of its LoRAs and embeddings.
        """
        model = request.model
        if composed_model.parts_of(request) or _is_file_or_url(model):
            spec = self._fallback.describe(request.model_request())
            _, missing = ModelFiles(spec, offline=self._options.offline).size("float32")
            here = not missing
        else:
            here = downloaded.is_local(model) or downloaded.has_weights(model)
        if not here:
            return self._fallback.estimate(request)
        # All else takes torch to say, which the worker's client does not load.
        folder, offline = self._options.lora_dir, self._options.offline
        missing = adapter_sources.download_bytes(request, folder, offline=offline)
        return {"download_mib": missing // _MIB} if missing else {}

    def image_price(self, request: ResolvedRequest) -> None:
        """Return `None`: this machine bills nothing."""

    def parallelism(self) -> int:
        """Return 1: there is one worker."""
        return 1

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """The commit that a model's revision stands for now."""
        return self._fallback.resolve_revision(model, revision)

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Start a worker if there is none."""
        try:
            self._get_worker(request)
        except WorkerUnavailableError:
            self._fallback.load(request, on_event)

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome a request. If the worker fails, the fallback runs the pending requests.

        If the worker exits before it answers, a new one is started, once.
        """
        pending = dict(enumerate(requests))
        may_restart = True
        try:
            while pending and not cancel.is_set():
                before = len(pending)
                try:
                    yield from self._generate(pending, on_event, cancel)
                except WorkerExitingError as error:
                    progressed = len(pending) < before
                    if (
                        progressed
                        or not may_restart
                        or not error.runtime_dir.wait_for_exit(EXIT_TIMEOUT)
                    ):
                        raise
                    may_restart = False
        except WorkerUnavailableError as error:
            reason = str(error)
            if isinstance(error, WorkerUnresponsiveError) and not error.runtime_dir.kill():
                reason = "The warm worker hangs, and cannot be ended."
            if pending:
                on_event(Notice(message=f"{reason} This run goes on without it."))
                yield from self._run_fallback(pending, on_event, cancel)

    def close(self) -> None:
        """Close the fallback backend; the worker stays."""
        if self._fallback_backend:
            self._fallback_backend.close()

    @property
    def _fallback(self) -> Backend:
        self._fallback_backend = self._fallback_backend or self._make_fallback(self._options)
        return self._fallback_backend

    def _ask_worker(self, model: str, revision: str | None) -> ModelSpec:
        """The model's spec, from a worker."""
        spec = WorkerSpec(model=model, revision=revision, options=self._options)
        runtime_dir, state = get_or_spawn(spec, self._keep_alive)
        with WorkerExchange(runtime_dir, state, MODEL_PATH) as exchange:
            return answers.worker_model(exchange)

    def _generate(
        self, pending: dict[int, ResolvedRequest], on_event: OnEvent, cancel: Flag
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield a worker's outcomes of the next requests; removes these from `pending`."""
        members = list(islice(pending.items(), MAX_REQUESTS_PER_CALL))
        runtime_dir, state = self._get_worker(members[0][1])
        # Such a record is completed here, which loses nothing of a PNG.
        named = any(request.own_name for _, request in members)
        body = answers.build_body(members, "png" if named else self._format)
        headers = {client.KEEP_ALIVE_HEADER: f"{self._keep_alive:g}"}
        with WorkerExchange(runtime_dir, state, client.GENERATE_PATH, body, headers) as exchange:
            for outcome in answers.read_outcomes(exchange, members, on_event):
                del pending[outcome.index]
                yield outcome
                if cancel.is_set():
                    return

    def _get_worker(self, request: ResolvedRequest) -> tuple[RuntimeDir, WorkerState]:
        spec = WorkerSpec(
            model=request.model,
            revision=request.revision,
            options=self._options,
            parts=composed_model.parts_of(request),
        )
        return get_or_spawn(spec, self._keep_alive)

    def _run_fallback(
        self, pending: Mapping[int, ResolvedRequest], on_event: OnEvent, cancel: Flag
    ) -> Iterator[GeneratedImage | Failure]:
        """Run the pending requests, by their positions in the run, on the fallback backend."""
        positions = list(pending)

        def forward(event: Event) -> None:
            on_event(move_event(event, positions))

        self._fallback.check(pending[positions[0]])
        for outcome in self._fallback.run(list(pending.values()), forward, cancel):
            yield replace(outcome, index=positions[outcome.index])
