"""What a pass comes to: images with their record, or failures in t2i's own words."""

import traceback
from collections.abc import Iterator

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.local import prompt_warnings
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
from t2i_cli.events import Notice, OnEvent
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest

Member = tuple[int, ResolvedRequest]
"""A request and its position in the run."""


def emit_prompt_warnings(
    loaded: LoadedPipeline, group: list[Member], on_event: OnEvent
) -> list[Failure]:
    """Tell what the model will not understand; the failures of what cannot be looked at."""
    failures: dict[int, Failure] = {}
    requests = dict(group)
    for words, indices in prompt_warnings.indices_by_prompt(group).items():
        try:
            for note in prompt_warnings.prompt_warnings(loaded, words):
                on_event(Notice(message=note, indices=tuple(indices)))
        except MemoryError:
            raise
        except Exception as raised:  # noqa: BLE001 - told as the failure of those it is for
            for index in indices:
                failures[index] = Failure(
                    index=index, request=requests[index], error=internal_error(raised)
                )
    return list(failures.values())


def failures_for(members: list[Member], error: T2IError) -> Iterator[Failure]:
    """The same failure for each of these."""
    return (Failure(index=index, request=request, error=error) for index, request in members)


def generation_info_for(
    loaded: LoadedPipeline, scheduler: str | None, batch_size: int
) -> GenerationInfo:
    """What made the images of a pass what they are."""
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
        libraries=loaded.libraries,
    )


def outcome_for(
    index: int,
    request: ResolvedRequest,
    picture: PipelineOutput | ModelError,
    lock: GenerationInfo,
    seconds: float,
) -> GeneratedImage | Failure:
    """The image, unless it is none or the model's safety checker withheld it."""
    if isinstance(picture, ModelError):
        return Failure(index=index, request=request, error=picture)
    if picture.withheld:
        error = ContentFilteredError(
            "The model's safety checker withheld the image.",
            hint="Another seed or wording may pass; --no-safety-checker leaves the checker out.",
        )
        return Failure(index=index, request=request, error=error)
    return GeneratedImage(
        index=index, request=request, image=picture.image, info=lock, seconds=seconds
    )


def pipeline_error(error: Exception, loaded: LoadedPipeline, request: ResolvedRequest) -> T2IError:
    """A pipeline's error as one of ours."""
    name = type(loaded.pipe).__name__
    places = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    if "set_scheduler" in places:
        return InputError(
            f"The scheduler {request.scheduler!r} cannot be used here: {error_reason(error)}",
            hint="Leave --scheduler away for the model's own.",
            field="scheduler",
        )
    if request.scheduler is not None and places & {"retrieve_timesteps", "set_timesteps"}:
        return InputError(
            f"The scheduler {request.scheduler!r} does not fit {name}.",
            hint="Leave --scheduler away for the model's own.",
            field="scheduler",
        )
    return PipelineError(f"{name} failed: {error_reason(error)}")
