"""Plan a request before it is run: device, dtype, and the memory measures it needs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from t2i_cli.backends.local import batch_size, device, memory, quantization
from t2i_cli.backends.local.device import Device, MemoryInfo
from t2i_cli.backends.local.memory import MIB, Measures, MemoryEstimate, MemoryPlan
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.local.unavailable import hinting_at_embedded_model
from t2i_cli.errors import InputError, OutOfMemoryError
from t2i_cli.events import OnEvent
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import (
    catalog,
    class_facts,
    component_check,
    diffusers_folder,
    resolution,
    weights,
)
from t2i_cli.models.weights import ComponentWeights
from t2i_cli.request import ResolvedRequest

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class LoadTarget:
    """How to load a model. `folder` may contain its configs only, until `fetch_files`.

    `sizes` are the bytes of each component's weights, or an estimate under the name "model" while
    `missing_bytes` are still to be downloaded. `slicing` is whether attention slicing is requested
    and supported, `quantize` the quantisation of its weights. `layer` is the bytes of the largest
    layer's weights, where known.
    """

    spec: ModelSpec
    device: Device
    dtype: str
    folder: Path
    sizes: Mapping[str, int]
    missing_bytes: int = 0
    slicing: bool = False
    quantize: str | None = None
    layer: int | None = None


@hinting_at_embedded_model()
def resolve_target(
    spec: ModelSpec, options: LocalOptions, quantize: str | None = None
) -> LoadTarget:
    """Find the device, dtype and files of a model; raises T2IError if one is not usable."""
    found_device = device.find_device(options.device)
    folder, total, missing = spec.folder, 0, 0
    if folder is None:
        from t2i_cli import hub

        repo = spec.repo or spec.name
        folder = hub.fetch_configs(repo, revision=spec.revision, offline=options.offline)
    if spec.name not in catalog.MODELS:
        facts = resolution.pipeline_facts(folder, trust_remote_code=options.trust_remote_code)
        component_check.check_complete(folder, facts)
    transformer = diffusers_folder.denoiser_config(folder)[0] == "transformer"
    asked = options.dtype or quantization.required_dtype(quantize)
    dtype = device.choose_dtype(found_device, asked, transformer=transformer)
    slicing = bool(options.attention_slicing) and _supports_slicing(folder, options)
    if (options.batch_size or 1) > 1:
        _check_batch_size(folder, options)
    if spec.folder is None:
        half = dtype != "float32"
        size = hub.download_size(repo, revision=spec.revision, offline=options.offline, half=half)
        total, missing = size.total_bytes, size.missing_bytes
    if missing:
        # Full-precision files may be halved at loading; assume so, to refuse only what cannot fit.
        estimate = total // 2 if half else total
        return LoadTarget(
            spec=spec,
            device=found_device,
            dtype=dtype,
            folder=folder,
            sizes={"model": quantization.shrunk_bytes(estimate, dtype, quantize)},
            missing_bytes=missing,
            slicing=slicing,
            quantize=quantize,
        )
    target = LoadTarget(
        spec=spec,
        device=found_device,
        dtype=dtype,
        folder=folder,
        sizes={},
        slicing=slicing,
        quantize=quantize,
    )
    return _with_weight_sizes(target, options)


@hinting_at_embedded_model()
def fetch_files(target: LoadTarget, options: LocalOptions, on_event: OnEvent) -> LoadTarget:
    """Download missing files and return the target with its complete folder. Raises T2IError."""
    if target.spec.folder is not None:
        return target
    from t2i_cli import hub

    folder = hub.download_model(
        target.spec.repo or target.spec.name,
        revision=target.spec.revision,
        offline=options.offline,
        half=target.dtype != "float32",
        on_event=on_event,
    )
    return _with_weight_sizes(replace(target, folder=folder, missing_bytes=0), options)


def _supports_slicing(folder: Path, options: LocalOptions) -> bool:
    """Whether the denoiser supports attention slicing; if not, InputError unless lenient."""
    name, _ = diffusers_folder.denoiser_config(folder)
    cls = next(
        (part.cls for part in diffusers_folder.list_components(folder) if part.name == name), ""
    )
    if class_facts.has_method(cls, "set_attention_slice"):
        return True
    if options.lenient:
        return False
    without = "" if options.lenient is None else ", or go on without it by --lenient"
    raise InputError(
        f"The model's {name} ({cls}) has no attention slicing; its attention is fused.",
        hint=f"Leave --attention-slicing away{without}.",
        field="attention_slicing",
    )


def attention_slicing_notice(target: LoadTarget) -> str:
    """The sentence for a user who asks for attention slicing: its cost, or that there is none."""
    if not target.slicing:
        return "The model has no attention slicing; it is left out."
    return (
        "Attention slicing is on: it can make attention three times slower, and beside a fused "
        "kernel it takes more memory than it saves."
    )


def _check_batch_size(folder: Path, options: LocalOptions) -> None:
    """Raise InputError, unless lenient, if the model's images cannot share a batch."""
    facts = resolution.pipeline_facts(folder, trust_remote_code=options.trust_remote_code)
    if options.lenient or batch_size.is_independent_class(facts.name, facts.module):
        return
    raise InputError(
        batch_size.class_dependence_reason(facts.name),
        hint="Leave --batch-size away, or go on with one image a pass by --lenient.",
        field="batch_size",
    )


def _with_weight_sizes(target: LoadTarget, options: LocalOptions) -> LoadTarget:
    """The target with the actual sizes of its weights; raises ModelError if they are damaged."""
    skip = frozenset() if options.safety_checker else frozenset({"safety_checker"})
    found = weights.read_weight_headers(target.folder, half=target.dtype != "float32", skip=skip)
    largest = max((w.largest for w in found.values()), default=0)
    return replace(
        target,
        sizes=component_sizes(target.folder, target.dtype, found, target.quantize),
        layer=largest * _DTYPE_BYTES[target.dtype],
    )


def component_sizes(
    folder: Path, dtype: str, found: Mapping[str, ComponentWeights], quantize: str | None = None
) -> dict[str, int]:
    """Bytes of each component's weights once they are loaded, from those in its files."""
    float32_component = diffusers_folder.float32_decoder(folder, dtype)
    return quantization.component_sizes(found, folder, dtype, float32_component, quantize)


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
    return plan_for_size(target, (request.width or 0, request.height or 0), options, found, host)


def plan_for_size(
    target: LoadTarget, size: tuple[int, int], options: LocalOptions, found: MemoryInfo, host: int
) -> MemoryPlan:
    """Plan images of a width and height with what is free on the device and the host, in bytes.

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
    )


def max_batch_size(
    target: LoadTarget, request: ResolvedRequest, measures: Measures, resident: int
) -> int:
    """The largest batch size, a power of two, that a loaded model has memory for."""
    needed = _estimate(target, request.width or 0, request.height or 0, target.dtype)
    free = device.device_memory(target.device).free + resident
    return memory.images_that_fit(needed, target.device, free, measures)


def _estimate(target: LoadTarget, width: int, height: int, dtype: str) -> MemoryEstimate:
    now, then = (
        diffusers_folder.float32_decoder(target.folder, kind) for kind in (target.dtype, dtype)
    )

    def element(name: str, kind: str, float32_component: str | None) -> int:
        return _DTYPE_BYTES["float32" if name == float32_component else kind]

    sizes = {
        name: size * element(name, dtype, then) // element(name, target.dtype, now)
        for name, size in target.sizes.items()
    }
    vae_element = element("vae", dtype, then)
    layer = target.layer and target.layer * _DTYPE_BYTES[dtype] // _DTYPE_BYTES[target.dtype]
    return memory.estimate_memory(
        target.folder,
        sizes,
        width,
        height,
        _DTYPE_BYTES[dtype],
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
    no_groups = target.quantize in quantization.WITHOUT_GROUP_OFFLOAD
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


def quantized_target(target: LoadTarget, kind: str, options: LocalOptions) -> LoadTarget | None:
    """The target with quantised weights; `None` if it is quantised, or cannot be here."""
    if target.quantize or not quantization.is_available(kind, target.device):
        return None
    quantized = replace(target, quantize=kind)
    if not target.missing_bytes:
        return _with_weight_sizes(quantized, options)
    sizes = {
        name: quantization.shrunk_bytes(size, target.dtype, kind)
        for name, size in target.sizes.items()
    }
    return replace(quantized, sizes=sizes)


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
        quantized = quantized_target(target, kind, options)
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
