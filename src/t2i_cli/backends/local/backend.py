"""The local backend: loads a model, keeps it loaded between runs, and fits it into memory."""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event as Flag

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.local import (
    adapter_checks,
    arithmetic,
    batch_size,
    device,
    encode_ahead,
    load_target,
    lossy_plan,
    memory,
    memory_use,
    oom_fallback,
    outcomes,
    parameter_check,
    pipeline,
    pipeline_calls,
    placement,
    planning,
    prompt_check,
    weighted_prompts,
)
from t2i_cli.backends.local.batch_size import BatchSizeTuner
from t2i_cli.backends.local.load_target import LoadTarget
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.backends.local.memory_plan import MemoryPlan
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.local.outcomes import Member
from t2i_cli.backends.local.pipeline import RunCancelled
from t2i_cli.backends.local.pipeline_output import PipelineOutput
from t2i_cli.backends.local.unavailable import hinting_at_embedded_model
from t2i_cli.errors import InputError, ModelError, OutOfMemoryError, T2IError, internal_error
from t2i_cli.events import Loaded, Loading, OnEvent
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import (
    adapter_sources,
    catalog,
    composed_model,
    downloaded,
    own_models,
    weight_sources,
)
from t2i_cli.part_source import parts_key
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.settings import store
from t2i_cli.terminal.console import console


class LocalBackend:
    """A backend on this machine's GPU or CPU. Raises only T2IError."""

    def __init__(
        self, options: LocalOptions, free_memory: Callable[[], bool] = lambda: False
    ) -> None:
        """`free_memory` asks other processes to give back memory; returns whether any did."""
        self._options = options
        self._free_memory = free_memory
        self._specs: dict[tuple[object, ...], ModelSpec] = {}
        self._targets: dict[tuple[object, ...], LoadTarget] = {}
        self._folders: dict[str, Path] = {}
        self._loaded: LoadedPipeline | None = None
        self._tuners: dict[tuple[object, ...], BatchSizeTuner] = {}
        if options.offline:
            store.set_offline()

    def register_folder(self, name: str, folder: Path) -> None:
        """Use the model in a folder under another name, such as the address it came from."""
        self._folders[name] = folder

    @hinting_at_embedded_model()
    def describe(self, request: GenerateRequest) -> ModelSpec:
        """Describe the model that the request names; raises T2IError."""
        request, entry = own_models.settle_own_model(request)
        name = request.model or catalog.DEFAULT_MODEL
        spec = composed_model.resolve_with_parts(
            name,
            request.revision,
            composed_model.parts_of(request),
            offline=self._options.offline,
            trust_remote_code=self._options.trust_remote_code,
            folder=self._folders.get(name),
        )
        spec = own_models.with_own_defaults(spec, entry)
        spec = lossy_plan.settle_quantization(spec, self._options)
        spec = adapter_sources.with_adapter_place(
            spec, self._options.lora_dir, offline=self._options.offline
        )
        self._specs[spec.repo or spec.name, spec.revision, *parts_key(spec)] = spec
        return spec

    def check(self, request: ResolvedRequest) -> None:
        """Raise T2IError if this machine cannot generate the image; loads no weights."""
        self.check_fields(request)
        target, loaded = self._planned_target(request), self._loaded
        resident = loaded.resident_bytes if loaded and loaded.is_for(target) else 0
        self._plan_memory(target, request, resident)

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """The memory plan as JSON, as --dry-run prints it, and how many GPUs are left unused."""
        return self.plan(request).to_json() | device.unused_gpus(self._options.device)

    def image_price(self, request: ResolvedRequest) -> None:
        """Return `None`: this machine bills nothing."""

    def parallelism(self) -> int:
        """Return 1: one pass has the device."""
        return 1

    @hinting_at_embedded_model()
    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """The current commit of a repository's revision; `None` for a local model."""
        if downloaded.is_local(model):
            return None
        from t2i_cli.hub import repository_file, snapshot

        if file := weight_sources.file_on_hub(model, revision):
            return repository_file.find_file(
                file.repo, str(file.file), revision=revision, offline=self._options.offline
            ).commit
        return snapshot.find_snapshot(model, revision, self._options.offline).commit

    def plan(self, request: ResolvedRequest) -> MemoryPlan:
        """The memory that the image needs, and the measures that make it fit. Raises T2IError."""
        self.check_fields(request)
        return planning.plan_memory(self._planned_target(request), request, self._options)

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Load the request's model to its device. Raises T2IError."""
        self._prepare(request, on_event)

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome per request; neighbours with equal batch keys share batches."""
        for _, members in itertools.groupby(
            enumerate(requests), lambda member: member[1].batch_key()
        ):
            group = list(members)
            if cancel.is_set():
                return
            try:
                loaded = self._prepare(group[0][1], on_event)
                tuner = self._tuner(loaded, group[0][1])
            except T2IError as error:
                yield from outcomes.failures_for(group, error)
                continue
            except MemoryError:
                raise
            except Exception as raised:  # noqa: BLE001 - becomes the failure of its requests
                # What is loaded is unknown after an unexpected error.
                self.close()
                yield from outcomes.failures_for(group, internal_error(raised))
                continue
            loaded.previews = previews or [0] * len(requests)
            failures = outcomes.emit_prompt_warnings(loaded, group, on_event)
            yield from failures
            failed = {failure.index for failure in failures}
            remaining = [member for member in group if member[0] not in failed]
            encode_ahead.encode_ahead(loaded, [request for _, request in remaining])
            yield from self._run_group(loaded, tuner, remaining, cancel)

    def close(self) -> None:
        """Unload the model and free its memory."""
        if self._loaded is None:
            return
        used, self._loaded = self._loaded.device, None
        self._tuners.clear()
        # Objects frozen after an import would never be collected.
        gc.unfreeze()
        device.clear_cache(used)

    def _spec(self, request: ResolvedRequest) -> ModelSpec:
        known = self._specs.get(request.model_key())
        return known or self.describe(request.model_request())

    def check_fields(self, request: ResolvedRequest) -> None:
        """Raise InputError for a field that cannot be honoured here; reads configs only."""
        spec = self._spec(request)
        lossy_plan.check_lossy_fields(request, spec, self._options)
        pipeline_calls.check_guidance(spec, request)
        if request.prompt_syntax or request.clip_skip:
            prompt_check.check_prompt_fields(request, spec, self._target(request).folder)
        if request.extras or request.schedule or request.scheduler is not None:
            parameter_check.check_parameters(
                request,
                spec,
                self._target(request).folder,
                trust_remote_code=self._options.trust_remote_code,
            )
        if request.loras or request.embeddings:
            adapter_checks.check_adapters(request, self._target(request), self._options)

    def _plan_memory(
        self, target: LoadTarget, request: ResolvedRequest, resident: int = 0
    ) -> MemoryPlan:
        """The memory plan; if memory is short, other processes free theirs and it is made anew."""
        try:
            plan = planning.plan_memory(target, request, self._options, resident)
        except OutOfMemoryError:
            if not self._free_memory():
                raise
        else:
            planned = self._options.memory == "auto" and set(plan.measures)
            if not planned or planned == {memory.ATTENTION_SLICING} or not self._free_memory():
                return plan
        return planning.plan_memory(target, request, self._options, resident)

    def _target(self, request: ResolvedRequest) -> LoadTarget:
        """How to load the model; resolved once, so that a run keeps one revision of a Hub model."""
        key = (*request.model_key(), request.quantize)
        if key not in self._targets:
            self._targets[key] = load_target.resolve_target(
                self._spec(request), self._options, request.quantize
            )
        return self._targets[key]

    def _planned_target(self, request: ResolvedRequest) -> LoadTarget:
        """How to load the model, with the bytes of the request's adapters."""
        return adapter_checks.with_adapters(self._target(request), request, self._options)

    def _prepare(self, request: ResolvedRequest, on_event: OnEvent) -> LoadedPipeline:
        """Load the request's model, with measures that fit it into memory. Raises T2IError."""
        self.check_fields(request)
        arithmetic.settle_arithmetic(strict=self._options.strict)
        target = self._target(request)
        if not (self._loaded and self._loaded.is_for(target)):
            adapter_checks.check_disk_for_adapters(target, self._planned_target(request))
        read = adapter_checks.fetch_adapters(request, target, self._options, on_event)
        device.select_device(target.device)
        if self._loaded and not self._loaded.is_for(target):
            self.close()
        if self._loaded:
            self._loaded.on_event = on_event
            if self._loaded.recently_fitted(request):
                self._loaded.adapters.activate(read)
                return self._loaded
            planned = self._planned_target(request)
            plan = self._plan_memory(planned, request, self._loaded.resident_bytes)
            console.trace(plan.text())
            placement.place_as_planned(self._loaded, plan, self._options)
        else:
            target = load_target.fetch_files(target, self._options, on_event)
            self._targets[*request.model_key(), request.quantize] = target
            plan = self._plan_memory(self._planned_target(request), request)
            console.trace(plan.text())
            model, device_name, started = target.spec.name, target.device.name, time.monotonic()
            on_event(Loading(model=model, device=device_name))
            self._loaded = placement.load_for_options(target, self._options, on_event)
            placement.place_as_planned(self._loaded, plan, self._options)
            seconds = time.monotonic() - started
            on_event(Loaded(model=model, device=device_name, seconds=seconds))
            console.trace(f"loaded from {target.folder} in {seconds:.2f} s")
        self._loaded.adapters.activate(read)
        return self._loaded

    def _run_group(
        self, loaded: LoadedPipeline, tuner: BatchSizeTuner, group: list[Member], cancel: Flag
    ) -> Iterator[GeneratedImage | Failure]:
        """Run requests with equal batch keys in batches, as large as memory allows."""
        singles_left = 0
        loaded.engine.start_group(len(group))
        while group and not cancel.is_set():
            size = 1 if singles_left else tuner.next_size(len(group), loaded.batch_limit)
            size = weighted_prompts.count_alike(loaded, (one for _, one in group[:size]))
            batch = group[:size]
            made: Sequence[GeneratedImage | Failure] | None
            try:
                made = self._run_batch(loaded, tuner, batch, cancel)
            except RunCancelled:
                return
            except MemoryError:
                raise
            except Exception as raised:  # noqa: BLE001 - becomes the failure of its requests
                error = raised if isinstance(raised, T2IError) else internal_error(raised)
                if size > 1 and not isinstance(error, InputError | OutOfMemoryError):
                    # One request may have caused it: run each of the batch on its own.
                    singles_left = size
                    continue
                made = list(outcomes.failures_for(batch, error))
            if made is None:
                continue
            group = group[size:]
            singles_left = max(0, singles_left - size)
            yield from made
            if self._options.clear_cache:
                device.clear_cache(loaded.device)

    def _run_batch(
        self, loaded: LoadedPipeline, tuner: BatchSizeTuner, batch: list[Member], cancel: Flag
    ) -> list[GeneratedImage | Failure] | None:
        """The outcomes of one batch, or `None` if memory ran out and a measure was applied."""
        started = time.monotonic()
        memory_use.start_peak(loaded.device)
        outputs = self._try_batch(loaded, batch, cancel)
        if outputs is None:
            return None
        loaded.record_success(batch[0][1])
        elapsed = time.monotonic() - started
        tuner.record(len(batch), elapsed)
        return outcomes.batch_outcomes(loaded, batch, *outputs, elapsed)

    def _tuner(self, loaded: LoadedPipeline, request: ResolvedRequest) -> BatchSizeTuner:
        """The batch size tuner of the request's batch key."""
        key = request.batch_key()
        if key not in self._tuners:
            target, measures = self._planned_target(request), tuple(loaded.measures)
            self._tuners[key] = batch_size.make_tuner(
                1 if request.step_cache else self._options.batch_size,
                type(loaded.pipe),
                loaded.device,
                lambda: planning.max_batch_size(
                    target,
                    request,
                    measures,
                    loaded.resident_bytes,
                    graphs=loaded.engine.graphs_fit,
                ),
            )
        return self._tuners[key]

    def _try_batch(
        self, loaded: LoadedPipeline, batch: list[Member], cancel: Flag
    ) -> tuple[str | None, list[PipelineOutput | ModelError]] | None:
        """The scheduler's class name and one output per request.

        `None` if memory ran out and a measure was applied: the batch is to be tried again.
        """
        indices = tuple(index for index, _ in batch)
        requests = [request for _, request in batch]
        try:
            scheduler = loaded.set_scheduler(requests[0].scheduler, requests[0].schedule)
            return scheduler, pipeline.run_pipeline(loaded, requests, indices, cancel)
        except (T2IError, RunCancelled):
            raise
        except Exception as error:  # pipelines may raise anything
            if not device.is_out_of_memory(error):
                raise outcomes.pipeline_error(error, loaded, requests[0]) from error
        # Outside the except block, whose traceback keeps the tensors of the failed batch alive.
        if self._free_memory():
            device.clear_cache(loaded.device)
            return None
        oom_fallback.apply_next_measure(
            loaded, batch=len(batch), slicing=self._options.attention_slicing
        )
        return None
