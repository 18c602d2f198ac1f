"""What a pipeline made, compared with what was asked for: how many, which size, finite numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.errors import ModelError
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request import ResolvedRequest

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class PipelineOutput:
    """What a pipeline made of one request: `image` is RGB, black where it was withheld."""

    image: "Image"
    withheld: bool


def returns_arrays(pipe: LibraryObject) -> bool:
    """Whether a pipeline makes of its arrays what it makes of its images.

    DeepFloyd IF puts its watermark into images only.
    """
    return getattr(pipe, "watermarker", None) is None


def check_output(
    loaded: LoadedPipeline, requests: Sequence[ResolvedRequest], output: LibraryObject
) -> list[PipelineOutput | ModelError]:
    """The pictures in a pipeline's output: arrays (height x width x channels, 0 to 1) or images.

    An error stands in the place of one that is not finite or not of its request's size. Raises
    ModelError where there are more or fewer than requests.
    """
    # "images" for most pipelines, "image" for Kandinsky 5: the first field for all.
    found = list(output[0])
    if len(found) != len(requests):
        raise ModelError(
            f"{_name(loaded)} made {len(found)} images where {len(requests)} were asked for."
        )
    flagged = _flagged(output) or [False] * len(requests)
    return [
        _picture(loaded, request, made, bool(flag))
        for request, made, flag in zip(requests, found, flagged, strict=True)
    ]


def _flagged(output: LibraryObject) -> Sequence[Any]:
    """What the safety checker said of each image; nothing where there is none."""
    names = ("nsfw_content_detected", "nsfw_detected")
    return next((list(said) for name in names if (said := getattr(output, name, None))), [])


def _picture(
    loaded: LoadedPipeline, request: ResolvedRequest, made: LibraryObject, withheld: bool
) -> PipelineOutput | ModelError:
    if hasattr(made, "shape"):
        import numpy as np
        from diffusers.utils.pil_utils import numpy_to_pil

        if not np.isfinite(made).all():
            return _not_finite(loaded)
        (made,) = numpy_to_pil(made)
    wanted = (request.width or made.width, request.height or made.height)
    if made.size != wanted:
        return ModelError(
            f"{_name(loaded)} made {made.width}x{made.height} pixels where {wanted[0]}x{wanted[1]} "
            "were asked for.",
            hint=f"--size {made.width}x{made.height} is a size that it keeps.",
        )
    return PipelineOutput(image=made.convert("RGB"), withheld=withheld)


def _not_finite(loaded: LoadedPipeline) -> ModelError:
    others = [dtype for dtype in ("float32", "bfloat16") if dtype != loaded.dtype]
    return ModelError(
        f"{_name(loaded)} made no picture in {loaded.dtype}, but values that are no numbers (NaN).",
        hint=f"Another precision may do: --dtype {' or '.join(others)}. If none does, the model's "
        "files may be damaged.",
    )


def _name(loaded: LoadedPipeline) -> str:
    return type(loaded.pipe).__name__
