"""Check a pipeline's output against the requests: number of images, sizes, finite values."""

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
    """The image of one request: RGB; black if the safety checker withheld it."""

    image: "Image"
    withheld: bool


def returns_arrays(pipe: LibraryObject) -> bool:
    """Whether a pipeline's arrays have the same content as its images.

    DeepFloyd IF adds its watermark to images only.
    """
    return getattr(pipe, "watermarker", None) is None


def check_output(
    loaded: LoadedPipeline, requests: Sequence[ResolvedRequest], output: LibraryObject
) -> list[PipelineOutput | ModelError]:
    """The images in a pipeline's output, one per request, in their order.

    `output` holds float arrays (height x width x channels, 0 to 1) or PIL images. An image that is
    not finite or has the wrong size is a ModelError. Raises ModelError if the number of images is
    not that of the requests.
    """
    # The field is "images" in most pipelines, "image" in Kandinsky 5, and the first in all.
    images = list(output[0])
    if len(images) != len(requests):
        raise ModelError(
            f"{_name(loaded)} made {len(images)} images where {len(requests)} were asked for."
        )
    flags = _safety_flags(output) or [False] * len(requests)
    return [
        _check_image(loaded, request, image, bool(flag))
        for request, image, flag in zip(requests, images, flags, strict=True)
    ]


def _safety_flags(output: LibraryObject) -> Sequence[Any]:
    """The safety checker's flag of each image; empty without a checker."""
    names = ("nsfw_content_detected", "nsfw_detected")
    return next((list(flags) for name in names if (flags := getattr(output, name, None))), [])


def _check_image(
    loaded: LoadedPipeline, request: ResolvedRequest, image: LibraryObject, withheld: bool
) -> PipelineOutput | ModelError:
    if hasattr(image, "shape"):
        import numpy as np
        from diffusers.utils.pil_utils import numpy_to_pil

        if not np.isfinite(image).all():
            return _not_finite_error(loaded)
        (image,) = numpy_to_pil(image)
    wanted = (request.width or image.width, request.height or image.height)
    if image.size != wanted:
        return ModelError(
            f"{_name(loaded)} made {image.width}x{image.height} pixels "
            f"where {wanted[0]}x{wanted[1]} were asked for.",
            hint=f"--size {image.width}x{image.height} is a size that it keeps.",
        )
    return PipelineOutput(image=image.convert("RGB"), withheld=withheld)


def _not_finite_error(loaded: LoadedPipeline) -> ModelError:
    others = [dtype for dtype in ("float32", "bfloat16") if dtype != loaded.dtype]
    return ModelError(
        f"{_name(loaded)} made no picture in {loaded.dtype}, but values that are no numbers (NaN).",
        hint=f"Another precision may do: --dtype {' or '.join(others)}. If none does, the model's "
        "files may be damaged.",
    )


def _name(loaded: LoadedPipeline) -> str:
    return type(loaded.pipe).__name__
