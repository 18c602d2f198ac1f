"""Plan a request before it is run: the memory measures it needs, or the refusal with a hint."""

from dataclasses import replace

from t2i_cli.backends.local import (
    cuda_graphs,
    device,
    load_target,
    memory,
    quantization,
    saved_weights,
)
from t2i_cli.backends.local.device import MemoryInfo
from t2i_cli.backends.local.load_target import LoadTarget
from t2i_cli.backends.local.memory import MIB, Measures, MemoryEstimate
from t2i_cli.backends.local.memory_plan import MemoryPlan
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.errors import OutOfMemoryError
from t2i_cli.models import catalog, diffusers_folder
from t2i_cli.models.weights import DTYPE_BYTES
from t2i_cli.request import ResolvedRequest


def plan_memory(
    target: LoadTarget, request: ResolvedRequest, options: LocalOptions, resident: int = 0
) -> MemoryPlan:
    """Plan how to run a request; `resident` bytes of its weights are on the device already.

    Raises OutOfMemoryError, with a hint to what would fit.
    """
    info = device.device_memory(target.device)
    found = MemoryInfo(free=info.free + resident, total=info.total)
    # A look-up takes a millisecond, so it is not repeated for a CPU: a server adds few per image.
    host = info.free if target.device.kind == "cpu" else device.host_memory().free
    size = (request.width or 0, request.height or 0)
    return plan_for_size(target, size, options, found, host, steps=request.steps or 0)


def plan_for_size(
    target: LoadTarget,
    size: tuple[int, int],
    options: LocalOptions,
    found: MemoryInfo,
    host: int,
    *,
    steps: int = 0,
) -> MemoryPlan:
    """Plan images of a width and height with what is free on the device and the host, in bytes.

    CUDA graphs, which images of enough `steps` are made with, never cost a measure: they are left
    out where they would not fit beside it.
    Raises OutOfMemoryError, with a hint to what would fit.
    """
    free, batch = found.free, options.batch_size or 1
    needed = _estimate(target, size[0], size[1], target.dtype)
    measures = _measures(target, needed, free, host, options)
    if measures is None:
        raise _out_of_memory_error(target, size, found, host, options)
    if target.slicing and memory.ATTENTION_SLICING not in measures:
        measures += (memory.ATTENTION_SLICING,)
    tile = memory.choose_tile(
        needed, measures, batch, target.device, free, small=options.memory == "low"
    )
    recorded = _with_graphs(needed, target, measures, steps)
    graphs = None
    if recorded is not None:
        graphs = 0
        if memory.fits(recorded, measures, batch, target.device, free, tile):
            needed, graphs = recorded, -(-recorded.graphs * batch // MIB)
    working = needed.working(measures, batch, target.device, tile)
    peak = needed.peak(measures, batch, target.device, tile)
    return MemoryPlan(
        device=target.device.name,
        device_name=target.device.label,
        dtype=target.dtype,
        free_mib=free // MIB,
        total_mib=found.total // MIB,
        weights_mib=sum(needed.weights.values()) // MIB,
        working_mib=None if needed.unknown else working // MIB,
        measures=measures,
        download_mib=target.missing_bytes // MIB,
        vae_tile=tile,
        peak_mib=None if needed.unknown else peak // MIB,
        cuda_graphs_mib=graphs,
    )


def max_batch_size(
    target: LoadTarget,
    request: ResolvedRequest,
    measures: Measures,
    resident: int,
    *,
    graphs: bool = False,
) -> int:
    """The largest batch size, a power of two, that a loaded model has memory for.

    With `graphs`, it is one at which there is memory for CUDA graphs, too.
    """
    needed = _estimate(target, request.width or 0, request.height or 0, target.dtype)
    recorded = _with_graphs(needed, target, measures, request.steps or 0) if graphs else None
    free = device.device_memory(target.device).free + resident
    return memory.images_that_fit(recorded or needed, target.device, free, measures)


def _with_graphs(
    needed: MemoryEstimate, target: LoadTarget, measures: Measures, steps: int
) -> MemoryEstimate | None:
    """The estimate with the recordings of CUDA graphs, `None` where nothing would be recorded.

    The engine may record a small transformer, too, by what it measures; that is not foreseen here.
    """
    if (
        needed.unknown
        or target.quantize
        or set(memory.OFFLOADS) & set(measures)
        or not cuda_graphs.records_passes(target.device, steps)
        or diffusers_folder.denoiser_config(target.folder)[0] != "unet"
    ):
        return None
    return replace(needed, graphs=cuda_graphs.graph_memory(needed.denoise))


def _estimate(target: LoadTarget, width: int, height: int, dtype: str) -> MemoryEstimate:
    now, then = (
        diffusers_folder.float32_decoder(target.folder, kind) for kind in (target.dtype, dtype)
    )

    def element(name: str, kind: str, float32_component: str | None) -> int:
        return DTYPE_BYTES["float32" if name == float32_component else kind]

    sizes = {
        name: size * element(name, dtype, then) // element(name, target.dtype, now)
        for name, size in target.sizes.items()
    }
    vae_element = element("vae", dtype, then)
    layer = target.layer and target.layer * DTYPE_BYTES[dtype] // DTYPE_BYTES[target.dtype]
    return memory.estimate_memory(
        target.folder,
        sizes,
        width,
        height,
        DTYPE_BYTES[dtype],
        vae_element=vae_element,
        guided=target.spec.guidance_argument is not None,
        layer=layer,
    )


def _measures(
    target: LoadTarget, needed: MemoryEstimate, free: int, host: int, options: LocalOptions
) -> Measures | None:
    """The measures to apply from the start, or `None` if none are enough."""
    if options.memory == "fast":
        return ()
    batch, slicing = options.batch_size or 1, options.attention_slicing is not False
    least = (
        memory.low_memory_measures(target.device, slicing=slicing)
        if options.memory == "low"
        else ()
    )
    found = memory.choose_measures(
        needed, target.device, free, host, batch, least=least, slicing=slicing
    )
    no_groups = saved_weights.lacks_group_offload(target.folder, target.quantize)
    return None if no_groups and memory.GROUP_OFFLOAD in (found or ()) else found


def _fits(
    target: LoadTarget,
    size: tuple[int, int],
    free: int,
    host: int,
    options: LocalOptions,
    dtype: str | None = None,
) -> bool:
    """Whether some measures fit an image of that size into `free` bytes; also in another dtype."""
    needed = _estimate(target, *size, dtype or target.dtype)
    return _measures(target, needed, free, host, options) is not None


def fits_whole_device(target: LoadTarget, size: tuple[int, int], options: LocalOptions) -> bool:
    """Whether an image of that size fits into all the memory of the device and the host."""
    total, host = device.device_memory(target.device).total, device.host_memory().total
    return _fits(target, size, total, host, options)


def _out_of_memory_error(
    target: LoadTarget,
    size: tuple[int, int],
    found: MemoryInfo,
    host: int,
    options: LocalOptions,
) -> OutOfMemoryError:
    """The error, with a hint to what would fit: another dtype, a smaller size or model."""
    width, height = size

    def fits(width: int, height: int, dtype: str) -> bool:
        return _fits(target, (width, height), found.free, host, options, dtype)

    needed = _estimate(target, width, height, target.dtype)
    slicing = options.attention_slicing is not False
    possible = memory.candidate_measures(target.device, slicing=slicing)
    least = min(needed.peak(measures, 1, target.device) for measures in possible)
    message = (
        f"{target.spec.name} at {width}x{height} needs about {least // MIB:,} MiB on "
        f"{target.device.name}, and {found.free // MIB:,} of {found.total // MIB:,} MiB are free."
    )
    sliced = replace(options, attention_slicing=None)
    if not slicing and _measures(target, needed, found.free, host, sliced) is not None:
        return OutOfMemoryError(message, hint="It would fit without --no-attention-slicing.")
    if target.dtype == "float32" and target.device.kind != "cpu" and fits(width, height, "float16"):
        return OutOfMemoryError(message, hint="It would fit with --dtype float16.")
    for kind in quantization.MEMORY_METHODS:
        quantized = load_target.quantized_target(target, kind, options)
        if quantized and _fits(quantized, size, found.free, host, options):
            return OutOfMemoryError(message, hint=f"It would fit with --quantize {kind}.")
    for eighths in range(7, 0, -1):
        grid = target.spec.multiple
        smaller = [max(grid, side * eighths // 8 // grid * grid) for side in size]
        if fits(smaller[0], smaller[1], target.dtype):
            return OutOfMemoryError(
                message, hint=f"It would fit with --size {smaller[0]}x{smaller[1]}."
            )
    models = [
        model
        for model in catalog.MODELS.values()
        # Twice the download: half-precision weights double on a CPU, or activations need as much.
        if (model.download_bytes or 0) * 2 < found.free
    ]
    best = max(models, key=lambda model: model.download_bytes or 0, default=None)
    if best is None:
        return OutOfMemoryError(message, hint="No model fits; end what else takes the memory.")
    return OutOfMemoryError(message, hint=f"No size of it fits; -m {best.name} would.")
