"""Build the outcomes of a batch: images with their generation info, or failures."""

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.local import arithmetic, memory_use, prompt_warnings
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.backends.local.pipeline_output import PipelineOutput
from t2i_cli.errors import (
    ContentFilteredError,
    InputError,
    ModelError,
    PipelineError,
    T2IError,
    error_reason,
    internal_error,
)
from t2i_cli.events import OnEvent
from t2i_cli.models import prompt_support
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest

Member = tuple[int, ResolvedRequest]
"""A request after its position in the run."""


def emit_prompt_warnings(
    loaded: LoadedPipeline, group: list[Member], on_event: OnEvent
) -> list[Failure]:
    """Emit notices on the prompts; return failures of requests whose prompt check failed."""
    failures: dict[int, Failure] = {}
    requests = dict(group)
    # All have one syntax: it is part of the batch key.
    in_parts = bool(group[0][1].prompt_syntax) and prompt_support.reads_in_parts(loaded.spec)
    for text, indices in prompt_warnings.indices_by_prompt(loaded, group).items():
        try:
            for note in prompt_warnings.prompt_warnings(loaded, text, in_parts=in_parts):
                on_event(replace(note, indices=tuple(indices)))
        except MemoryError:
            raise
        except Exception as raised:  # noqa: BLE001 - becomes the failure of its requests
            for index in indices:
                failures[index] = Failure(
                    index=index, request=requests[index], error=internal_error(raised)
                )
    return list(failures.values())


def failures_for(members: list[Member], error: T2IError) -> Iterator[Failure]:
    """A failure with the same error for each request."""
    return (Failure(index=index, request=request, error=error) for index, request in members)


def batch_outcomes(
    loaded: LoadedPipeline,
    batch: list[Member],
    scheduler: str | None,
    outputs: list[PipelineOutput | ModelError],
    seconds: float,
) -> list[GeneratedImage | Failure]:
    """The outcome of each request of a batch, which took `seconds` and used that scheduler."""
    info = generation_info_for(loaded, scheduler, len(batch))
    used = memory_use.memory_use(loaded.device, loaded.plan)
    return [
        outcome_for(index, request, output, info, seconds / len(batch), used)
        for (index, request), output in zip(batch, outputs, strict=True)
    ]


def generation_info_for(
    loaded: LoadedPipeline, scheduler: str | None, batch_size: int
) -> GenerationInfo:
    """The generation info of a batch's images."""
    return GenerationInfo(
        backend="local",
        model=loaded.spec.repo or loaded.spec.name,
        revision=loaded.revision,
        pipeline=type(loaded.pipe).__name__,
        scheduler=scheduler,
        device=loaded.device.name,
        dtype=loaded.dtype,
        batch_size=batch_size,
        measures=tuple(loaded.measures),
        threads=arithmetic.thread_count(loaded.device),
        engine=loaded.engine.used,
        attention=loaded.engine.attention,
        vae_tile=loaded.vae_tile,
        sha256=loaded.sha256,
        libraries=loaded.libraries,
    )


def outcome_for(
    index: int,
    request: ResolvedRequest,
    output: PipelineOutput | ModelError,
    info: GenerationInfo,
    seconds: float,
    memory: Mapping[str, int] | None = None,
) -> GeneratedImage | Failure:
    """The image, or a failure for an error or an image that the safety checker withheld.

    `seconds` is the time per image, `memory` what its batch took.
    """
    if isinstance(output, ModelError):
        return Failure(index=index, request=request, error=output)
    if output.withheld:
        error = ContentFilteredError(
            "The model's safety checker withheld the image.",
            hint="Another seed or wording may pass; --no-safety-checker leaves the checker out.",
        )
        return Failure(index=index, request=request, error=error)
    return GeneratedImage(
        index=index,
        request=request,
        image=output.image,
        info=info,
        seconds=seconds,
        memory=memory,
    )


def pipeline_error(error: Exception, loaded: LoadedPipeline, request: ResolvedRequest) -> T2IError:
    """Map an exception of a pipeline to a T2IError."""
    name = type(loaded.pipe).__name__
    functions = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    if "set_scheduler" in functions:
        return InputError(
            f"The scheduler {request.scheduler!r} cannot be used here: {error_reason(error)}",
            hint="Leave --scheduler away for the model's own.",
            field="scheduler",
        )
    if request.scheduler is not None and functions & {"retrieve_timesteps", "set_timesteps"}:
        return InputError(
            f"The scheduler {request.scheduler!r} does not fit {name}.",
            hint="Leave --scheduler away for the model's own.",
            field="scheduler",
        )
    return PipelineError(f"{name} failed: {error_reason(error)}")
