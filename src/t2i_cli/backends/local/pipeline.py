"""One pass of a pipeline: requests of one kind in, pictures out, step by step."""

import inspect
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from threading import Event as Flag
from typing import Any, Self

from t2i_cli.backends.local import pipeline_output
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.backends.local.pipeline_output import PipelineOutput
from t2i_cli.backends.local.previews import PreviewHook
from t2i_cli.errors import InputError, ModelError
from t2i_cli.events import Step
from t2i_cli.models import libraries
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import FIELDS, LATER


class RunCancelled(Exception):  # noqa: N818 - no error, but the way out of a pipeline's loop
    """The run was cancelled between two steps."""


def run_pipeline(
    loaded: LoadedPipeline,
    requests: Sequence[ResolvedRequest],
    indices: tuple[int, ...],
    cancel: Flag,
) -> list[PipelineOutput | ModelError]:
    """Make the pictures of requests that differ in prompt and seed only.

    Each image's noise comes from a CPU generator of its own, so that it depends on the seed alone.
    An error stands in the place of a picture that is not what was asked for. Raises Cancelled, and
    whatever the pipeline raises.
    """
    import torch

    shown = PreviewHook(loaded, requests, indices)
    loaded.pipe.progress_bar = _Steps(loaded, indices, cancel, shown)
    # Language models that rewrite prompts or draw an image's plan take no generator.
    torch.manual_seed(requests[0].seed)
    generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
    try:
        with libraries.suppress_warnings(), shown:
            output = loaded.pipe(**_arguments(loaded, requests), generator=generators)
    except Exception:  # whatever it is, it goes on from here
        # As the pipeline itself does at its end: what was moved to the device goes back.
        loaded.pipe.maybe_free_model_hooks()
        raise
    return pipeline_output.check_output(loaded, requests, output)


def _arguments(loaded: LoadedPipeline, requests: Sequence[ResolvedRequest]) -> dict[str, Any]:
    """The pipeline's arguments, as far as the model takes them."""
    first = requests[0]
    taken = inspect.signature(loaded.pipe.__call__).parameters
    arguments: dict[str, Any] = {
        "prompt": [request.prompt for request in requests],
        **{
            known.pipeline: getattr(first, name) for name, known in FIELDS.items() if known.pipeline
        },
    }
    _refuse_untaken(first, taken)
    argument = loaded.spec.guidance_argument
    if argument is None:
        # Left away, the pipeline's own default would guide a model that was made to need none.
        off = {"guidance_scale": 0.0, "true_cfg_scale": 1.0}
        arguments |= {name: value for name, value in off.items() if name in taken}
    else:
        arguments[argument] = first.guidance_scale
    if first.negative_prompt:
        arguments["negative_prompt"] = [request.negative_prompt for request in requests]
    elif argument == "true_cfg_scale" and loaded.spec.negative_prompt:
        # These pipelines leave guidance out, silently, where there is no negative prompt.
        arguments["negative_prompt"] = [" "] * len(requests)
    arguments |= _size_kept(taken, first)
    if "output_type" in taken and pipeline_output.returns_arrays(loaded.pipe):
        arguments["output_type"] = "np"
    return {name: value for name, value in arguments.items() if value is not None}


def _size_kept(taken: Mapping[str, object], request: ResolvedRequest) -> dict[str, Any]:
    """The arguments that have a pipeline work at the size that is asked for.

    Left alone, some take the nearest of a list of sizes, and may or may not fit the image in the
    end; FluxKontext scales to an area.
    """
    area = (request.width or 0) * (request.height or 0)
    kept = {"use_resolution_binning": False, "max_area": area or None}
    return {name: value for name, value in kept.items() if name in taken}


def _refuse_untaken(request: ResolvedRequest, taken: Container[str]) -> None:
    """Raise InputError for a later field that the pipeline has no argument for."""
    for name in LATER:
        known = FIELDS[name]
        if getattr(request, name) is not None and known.pipeline not in taken:
            raise InputError(
                f"{request.model} takes no {name.replace('_', ' ')} on this machine.", field=name
            )


class _Steps:
    """Stands in for `pipe.progress_bar`, which every family calls once for each step.

    Step callbacks would do for most families; some have none, and second-order schedulers call
    them twice a step.
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
        """Begin to count; as tqdm, over an iterable or up to a total."""
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
        """Count a step that is done. Raises Cancelled."""
        self._done += steps
        self._loaded.on_event(Step(indices=self._indices, step=self._done, steps=self._total))
        if self._cancel.is_set():
            raise RunCancelled
        self._previews.after(self._done, self._total)
