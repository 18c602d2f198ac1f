"""Run a pipeline for one batch of requests, with step events and cancellation."""

import inspect
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from threading import Event as Flag
from typing import Any, Self

from t2i_cli.backends.local import (
    clip_layers,
    pipeline_calls,
    pipeline_output,
    prompt_embedding_cache,
    prompt_warnings,
    random_state,
    step_cache,
    weighted_prompts,
)
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.backends.local.pipeline_output import PipelineOutput
from t2i_cli.backends.local.previews import PreviewHook
from t2i_cli.errors import InputError, ModelError
from t2i_cli.events import Step
from t2i_cli.models import extras_support, libraries
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.part_source import PART_FIELDS
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import ADDED_FIELDS, FIELDS

_HONOURED_ELSEWHERE = {
    *("clip_skip", "embeddings", "extras", "loras", "prompt_2", "prompt_syntax", "quantize"),
    *("schedule", "step_cache", *PART_FIELDS),
    *(name for name, known in FIELDS.items() if known.expanded),
}
"""Added fields that act otherwise than by an argument of the pipeline of their value."""


class RunCancelled(Exception):  # noqa: N818 - control flow, not an error
    """The run was cancelled between two steps."""


def run_pipeline(
    loaded: LoadedPipeline,
    requests: Sequence[ResolvedRequest],
    indices: tuple[int, ...],
    cancel: Flag,
) -> list[PipelineOutput | ModelError]:
    """Generate the images of requests that have equal batch keys; one output per request.

    The noise of each image depends on its seed alone. An output that does not match its request is
    a ModelError. Raises RunCancelled, and whatever the
    pipeline raises.
    """
    prompt_embedding_cache.cache_text_embeddings(loaded.pipe)
    preview_hook = PreviewHook(loaded, requests, indices)
    loaded.pipe.progress_bar = _ProgressBar(loaded, indices, cancel, preview_hook)
    arguments = pipeline_arguments(loaded, requests)
    seeded = random_state.seeded_global_generators(requests[0].seed, loaded.device)
    try:
        caching = step_cache.step_caching(loaded.pipe, requests[0].step_cache)
        running = loaded.engine.running(requests[0].steps or 0, len(requests))
        skipping = clip_layers.skipping_layers(loaded.pipe, requests[0])
        with seeded, libraries.suppress_warnings(), preview_hook, caching, running, skipping:
            arguments = weighted_prompts.embedding_arguments(loaded, arguments, requests)
            arguments = pipeline_calls.call_arguments(loaded.pipe, arguments, requests)
            output = loaded.pipe(**arguments)
    except Exception:  # any error: it is raised again
        # Offload the networks again, as the pipeline itself does at its end.
        loaded.pipe.maybe_free_model_hooks()
        raise
    return pipeline_output.check_output(loaded, requests, output)


def pipeline_arguments(
    loaded: LoadedPipeline, requests: Sequence[ResolvedRequest]
) -> dict[str, Any]:
    """The arguments of the pipeline call, without those that are unset. Raises InputError."""
    first = requests[0]
    parameters = inspect.signature(loaded.pipe.__call__).parameters
    arguments: dict[str, Any] = {
        "prompt": [prompt_warnings.text_read(loaded, request.prompt) for request in requests],
        **{
            known.pipeline: getattr(first, name) for name, known in FIELDS.items() if known.pipeline
        },
    }
    _check_arguments(first, parameters)
    argument = loaded.spec.guidance_argument
    if argument is None:
        # Without these, the pipeline's default would guide a model distilled to need no guidance.
        unguided = {"guidance_scale": 0.0, "true_cfg_scale": 1.0}
        arguments |= {name: value for name, value in unguided.items() if name in parameters}
    else:
        arguments[argument] = first.guidance_scale
    if first.negative_prompt:
        arguments["negative_prompt"] = [
            prompt_warnings.text_read(loaded, request.negative_prompt or "") for request in requests
        ]
    elif argument == "true_cfg_scale" and loaded.spec.negative_prompt:
        # Without a negative prompt, these pipelines silently skip guidance.
        arguments["negative_prompt"] = [" "] * len(requests)
    if any(request.prompt_2 for request in requests):
        arguments["prompt_2"] = [request.prompt_2 or request.prompt for request in requests]
    if first.clip_skip is not None:
        arguments["clip_skip"] = clip_layers.skipped_layers(first)
    arguments |= _size_arguments(parameters, first)
    arguments |= extras_support.extra_arguments(first, parameters, len(requests))
    if "output_type" in parameters and pipeline_output.returns_arrays(loaded.pipe):
        arguments["output_type"] = "np"
    return {name: value for name, value in arguments.items() if value is not None}


def _size_arguments(parameters: Mapping[str, object], request: ResolvedRequest) -> dict[str, Any]:
    """The arguments that make a pipeline keep the requested size.

    By default, some use the nearest of a list of sizes, and may or may not resize the image at the
    end; FluxKontext scales to an area.
    """
    area = (request.width or 0) * (request.height or 0)
    size_arguments = {"use_resolution_binning": False, "max_area": area or None}
    return {name: value for name, value in size_arguments.items() if name in parameters}


def _check_arguments(request: ResolvedRequest, parameters: Container[str]) -> None:
    """Raise InputError for an added field that the pipeline has no argument for."""
    for name in sorted(set(ADDED_FIELDS) - _HONOURED_ELSEWHERE):
        known = FIELDS[name]
        if getattr(request, name) is not None and known.pipeline not in parameters:
            raise InputError(
                f"{request.model} takes no {name.replace('_', ' ')} on this machine.", field=name
            )


class _ProgressBar:
    """Replaces `pipe.progress_bar`, which every pipeline updates once per step.

    Step callbacks are missing in some pipelines, and called twice per step with second-order
    schedulers.
    """

    def __init__(
        self, loaded: LoadedPipeline, indices: tuple[int, ...], cancel: Flag, previews: PreviewHook
    ) -> None:
        self._loaded = loaded
        self._previews = previews
        self._indices = indices
        self._cancel = cancel
        self._iterable: Iterable[Any] = ()
        self._total = self._done = 0

    def __call__(self, iterable: LibraryObject = None, total: int | None = None) -> Self:
        """Start counting, over an iterable or up to a total, as tqdm does."""
        self._iterable = () if iterable is None else iterable
        self._total = len(iterable) if total is None else total
        self._done = 0
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            yield item
            self.update()

    def update(self, steps: int = 1) -> None:
        """Count completed steps and emit the event. Raises RunCancelled."""
        self._done += steps
        self._loaded.on_event(Step(indices=self._indices, step=self._done, steps=self._total))
        if self._cancel.is_set():
            raise RunCancelled
        self._previews.after_step(self._done, self._total)
