"""What is lossy in a request: checked before anything is loaded, and settled for `--memory low`."""

from dataclasses import replace

from t2i_cli.backends.local import device, load_target, planning, quantization
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models.step_cache_support import step_cache_complaint
from t2i_cli.request import ResolvedRequest


def check_lossy_fields(request: ResolvedRequest, spec: ModelSpec, options: LocalOptions) -> None:
    """Raise InputError if the quantisation or step cache cannot be had here; loads no weights."""
    if request.quantize:
        found = device.find_device(options.device)
        quantization.check_quantization(request.quantize, found, options.dtype)
    if not request.step_cache:
        return
    if complaint := step_cache_complaint(spec.name, spec.pipeline):
        raise InputError(complaint, field="step_cache")
    if (options.batch_size or 1) > 1 and not options.lenient:
        raise InputError(
            "With a step cache each image is made alone: the images of a pass would decide "
            "together which blocks are skipped.",
            hint="Leave --batch-size away.",
            field="batch_size",
        )


def settle_quantization(spec: ModelSpec, options: LocalOptions) -> ModelSpec:
    """The spec, with the quantisation that `--memory low` takes where a request names none.

    It is the mildest one that is available, where no lossless measure fits the model's own size
    into all the memory that there is. What is free at the moment is not asked, for quantisation is
    part of an image's id: the same command has the same ids tomorrow. Raises T2IError.
    """
    if options.memory != "low":
        return spec
    target = load_target.resolve_target(spec, options)
    size = spec.width or 0, spec.height or 0
    if planning.fits_whole_device(target, size, options):
        return spec
    for kind in quantization.MEMORY_METHODS:
        smaller = load_target.quantized_target(target, kind, options)
        if smaller and planning.fits_whole_device(smaller, size, options):
            return replace(spec, quantize=kind)
    return spec
