"""The local backend: models on this machine, kept loaded between runs, and fitted to its memory."""

import gc
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event as Flag

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.local import (
    device,
    loading,
    memory,
    oom_fallback,
    outcomes,
    pipeline,
    planning,
    prompt_embedding_cache,
    vae_decode,
)
from t2i_cli.backends.local.batch_size import BatchSizeTuner, are_independent, dependence_reason
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.backends.local.memory import MemoryPlan
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.local.outcomes import Member
from t2i_cli.backends.local.pipeline import RunCancelled
from t2i_cli.backends.local.pipeline_output import PipelineOutput
from t2i_cli.backends.local.planning import LoadTarget
from t2i_cli.errors import InputError, ModelError, OutOfMemoryError, T2IError, internal_error
from t2i_cli.events import Loading, Notice, OnEvent
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog, diffusers_folder, resolution, schedulers
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.settings import store


class LocalBackend:
    """Images from this machine's GPU or CPU. Errors leave it only as T2IError."""

    def __init__(
        self, options: LocalOptions, make_room: Callable[[], bool] = lambda: False
    ) -> None:
        """`make_room` has others here give back memory, and says whether any did."""
        self._options = options
        self._make_room = make_room
        self._specs: dict[tuple[str, str | None], ModelSpec] = {}
        self._targets: dict[tuple[str, str | None], LoadTarget] = {}
        self._folders: dict[str, Path] = {}
        self._loaded: LoadedPipeline | None = None
        self._sizes: dict[tuple[object, ...], BatchSizeTuner] = {}
        if options.offline:
            store.set_offline()

    def register_folder(self, name: str, folder: Path) -> None:
        """Have a model in a folder by another name: the address that it came from."""
        self._folders[name] = folder

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """What is known of the model that the request names; raises T2IError."""
        name = request.model or catalog.DEFAULT_MODEL
        spec = resolution.resolve_model(
            name,
            request.revision,
            offline=self._options.offline,
            trust_remote_code=self._options.trust_remote_code,
            folder=self._folders.get(name),
        )
        self._specs[spec.repo or spec.name, spec.revision] = spec
        return spec

    def check(self, request: ResolvedRequest) -> None:
        """Raise if this machine cannot make the image; loads no weight."""
        self._check_scheduler(request)
        aim, loaded = self._target(request), self._loaded
        resident = loaded.resident_bytes if loaded and loaded.is_for(aim) else 0
        self._roomy_plan(aim, request, resident)

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """The plan, as --dry-run prints it."""
        return self.plan(request).to_json()

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """The commit that a repository's revision stands for now, `None` for a local model."""
        if "/" not in model or os.path.isdir(model):
            return None
        from t2i_cli.hub import snapshot

        return snapshot.find_snapshot(model, revision, self._options.offline).commit

    def plan(self, request: ResolvedRequest) -> MemoryPlan:
        """What making the image would take, and what would be done to make it fit."""
        self._check_scheduler(request)
        return planning.plan_memory(self._target(request), request, self._options)

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Have the request's model on its device. Raises T2IError."""
        self._prepare(request, on_event)

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome a request; like requests that follow each other share passes."""
        for _, members in itertools.groupby(
            enumerate(requests), lambda member: member[1].batch_key()
        ):
            group = list(members)
            if cancel.is_set():
                return
            try:
                loaded = self._prepare(group[0][1], on_event)
                sizes = self._pass_size(loaded, group[0][1])
            except T2IError as error:
                yield from outcomes.failures_for(group, error)
                continue
            except MemoryError:
                raise
            except Exception as raised:  # noqa: BLE001 - told as the failure of those it is for
                # Nobody knows what is loaded by now.
                self.close()
                yield from outcomes.failures_for(group, internal_error(raised))
                continue
            loaded.previews = previews or [0] * len(requests)
            unread = outcomes.emit_prompt_warnings(loaded, group, on_event)
            yield from unread
            failed = {failure.index for failure in unread}
            readable = [member for member in group if member[0] not in failed]
            yield from self._make(loaded, sizes, readable, cancel)

    def close(self) -> None:
        """Drop the model and give its memory back."""
        if self._loaded is None:
            return
        used = self._loaded.device
        self._loaded = None
        self._sizes.clear()
        # What was there when imports froze the collector's view would never be collected.
        gc.unfreeze()
        device.clear_cache(used)

    def _spec(self, request: ResolvedRequest) -> ModelSpec:
        known = self._specs.get((request.model, request.revision))
        return known or self.describe(
            GenerateRequest(prompt=request.prompt, model=request.model, revision=request.revision)
        )

    def _check_scheduler(self, request: ResolvedRequest) -> None:
        """Raise InputError where the request's scheduler cannot be used; reads configs only."""
        if request.scheduler is None:
            return
        spec = self._spec(request)
        if spec.flow is None:
            raise InputError(f"The scheduler of {spec.name} cannot be changed.", field="scheduler")
        own = diffusers_folder.component_config(self._target(request).folder, "scheduler")
        schedulers.check_scheduler(request.scheduler, spec.flow, own, spec.name)

    def _roomy_plan(
        self, aim: LoadTarget, request: ResolvedRequest, resident: int = 0
    ) -> MemoryPlan:
        """The plan; where memory is short, the one after others here have given theirs back."""
        try:
            plan = planning.plan_memory(aim, request, self._options, resident)
        except OutOfMemoryError:
            if not self._make_room():
                raise
        else:
            planned = self._options.memory == "auto" and set(plan.measures)
            if not planned or planned == {memory.ATTENTION_SLICING} or not self._make_room():
                return plan
        return planning.plan_memory(aim, request, self._options, resident)

    def _target(self, request: ResolvedRequest) -> LoadTarget:
        """Where the model is to run: found once, so that a model from the Hub stays the same."""
        key = (request.model, request.revision)
        if key not in self._targets:
            self._targets[key] = planning.resolve_target(self._spec(request), self._options)
        return self._targets[key]

    def _prepare(self, request: ResolvedRequest, on_event: OnEvent) -> LoadedPipeline:
        """The request's model on its device, fitted to its memory. Raises T2IError."""
        self._check_scheduler(request)
        aim = self._target(request)
        if self._loaded and not self._loaded.is_for(aim):
            self.close()
        if self._loaded:
            self._loaded.on_event = on_event
            if self._loaded.recently_fitted(request):
                return self._loaded
            plan = self._roomy_plan(aim, request, self._loaded.resident_bytes)
        else:
            aim = planning.fetch_files(aim, self._options, on_event)
            self._targets[request.model, request.revision] = aim
            plan = self._roomy_plan(aim, request)
            on_event(Loading(model=aim.spec.name, device=aim.device.name))
            self._loaded = self._load(aim, on_event)
        self._place(self._loaded, plan.measures)
        prompt_embedding_cache.cache_text_embeddings(self._loaded.pipe)
        return self._loaded

    def _load(self, aim: LoadTarget, on_event: OnEvent) -> LoadedPipeline:
        loaded = loading.load_pipeline(
            aim,
            on_event,
            safety_checker=self._options.safety_checker,
            trust_remote_code=self._options.trust_remote_code,
        )
        vae_decode.install_decode_fallback(loaded)
        if self._options.attention_slicing:
            on_event(Notice(message=_SLICING_COST if aim.slicing else _NO_SLICING))
        if (self._options.batch_size or 1) > 1 and not are_independent(type(loaded.pipe)):
            on_event(Notice(message=dependence_reason(type(loaded.pipe))))
        return loaded

    def _place(self, loaded: LoadedPipeline, measures: memory.Measures) -> None:
        """Put a pipeline on its device with the planned measures, and more if memory runs out."""
        asked = measures if self._options.memory == "low" else ()
        if self._options.attention_slicing:
            asked += (memory.ATTENTION_SLICING,)
        try:
            loaded.place(measures, "to fit the memory that is free", asked)
        except Exception as error:  # only memory is dealt with here
            if not device.is_out_of_memory(error):
                raise
        else:
            return
        oom_fallback.apply_next_measure(loaded, batch=1, slicing=self._options.attention_slicing)

    def _make(
        self, loaded: LoadedPipeline, sizes: BatchSizeTuner, group: list[Member], cancel: Flag
    ) -> Iterator[GeneratedImage | Failure]:
        """Make the pictures of requests of one kind, as many in a pass as memory allows."""
        alone = 0
        while group and not cancel.is_set():
            size = 1 if alone else sizes.next_size(len(group), loaded.batch_limit)
            batch = group[:size]
            made: Sequence[GeneratedImage | Failure] | None
            try:
                made = self._pass(loaded, sizes, batch, cancel)
            except RunCancelled:
                return
            except MemoryError:
                raise
            except Exception as raised:  # noqa: BLE001 - told as the failure of those it is for
                error = raised if isinstance(raised, T2IError) else internal_error(raised)
                if size > 1 and not isinstance(error, InputError | OutOfMemoryError):
                    # It may be the fault of one of them: each is tried alone.
                    alone = size
                    continue
                made = list(outcomes.failures_for(batch, error))
            if made is None:
                continue
            group = group[size:]
            alone = max(0, alone - size)
            yield from made
            if self._options.clear_cache:
                device.clear_cache(loaded.device)

    def _pass(
        self, loaded: LoadedPipeline, sizes: BatchSizeTuner, batch: list[Member], cancel: Flag
    ) -> list[GeneratedImage | Failure] | None:
        """The outcomes of one pass, or None if memory ran out and a measure was taken."""
        started = time.monotonic()
        made = self._attempt(loaded, batch, cancel)
        if made is None:
            return None
        scheduler, pictures = made
        loaded.record_success(batch[0][1])
        lock = outcomes.generation_info_for(loaded, scheduler, len(batch))
        took = time.monotonic() - started
        sizes.record(len(batch), took)
        seconds = took / len(batch)
        return [
            outcomes.outcome_for(index, request, picture, lock, seconds)
            for (index, request), picture in zip(batch, pictures, strict=True)
        ]

    def _pass_size(self, loaded: LoadedPipeline, request: ResolvedRequest) -> BatchSizeTuner:
        """What is known of the best size of passes for requests of this kind."""
        kind = request.batch_key()
        if kind not in self._sizes:
            wanted = self._options.batch_size if are_independent(type(loaded.pipe)) else 1
            most = wanted or planning.max_batch_size(
                self._target(request), request, tuple(loaded.measures), loaded.resident_bytes
            )
            self._sizes[kind] = BatchSizeTuner(wanted, most)
        return self._sizes[kind]

    def _attempt(
        self, loaded: LoadedPipeline, batch: list[Member], cancel: Flag
    ) -> tuple[str | None, list[PipelineOutput | ModelError]] | None:
        """The scheduler and the pictures; None if memory ran out and a measure was taken."""
        indices = tuple(index for index, _ in batch)
        requests = [request for _, request in batch]
        try:
            scheduler = loaded.set_scheduler(requests[0].scheduler)
            return scheduler, pipeline.run_pipeline(loaded, requests, indices, cancel)
        except (T2IError, RunCancelled):
            raise
        except Exception as error:  # what a pipeline of any family may raise
            if not device.is_out_of_memory(error):
                raise outcomes.pipeline_error(error, loaded, requests[0]) from error
        # Outside the except block, whose traceback holds the tensors that are in the way.
        if self._make_room():
            device.clear_cache(loaded.device)
            return None
        oom_fallback.apply_next_measure(
            loaded, batch=len(batch), slicing=self._options.attention_slicing
        )
        return None


_NO_SLICING = "The model has no attention slicing; it is left out."
_SLICING_COST = (
    "Attention slicing is on: it can make attention three times slower, and beside a fused kernel "
    "it takes more memory than it saves."
)
