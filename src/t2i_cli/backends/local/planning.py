"""A request before it is run: which device and precision, whether it fits, and with what."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from t2i_cli.backends.local import batch_size, device, memory
from t2i_cli.backends.local.device import Device, MemoryInfo
from t2i_cli.backends.local.memory import MIB, Measures, MemoryEstimate, MemoryPlan
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.errors import InputError, OutOfMemoryError
from t2i_cli.events import OnEvent
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog, diffusers_folder, libraries, resolution, weights
from t2i_cli.request import ResolvedRequest

_ELEMENT = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class LoadTarget:
    """Where and how a model is to run. `folder` may hold its configs only, until `fetch`.

    `sizes` are the bytes of each component's weights; an estimate under the name "model" where
    `missing_bytes` are still to be downloaded. `slicing` is asked for and can be done.
    """

    spec: ModelSpec
    device: Device
    dtype: str
    folder: Path
    sizes: Mapping[str, int]
    missing_bytes: int = 0
    slicing: bool = False


def resolve_target(spec: ModelSpec, options: LocalOptions) -> LoadTarget:
    """Find device, precision and files of a model; raises T2IError where one does not do."""
    place = device.find_device(options.device)
    folder, total, missing = spec.folder, 0, 0
    if folder is None:
        from t2i_cli import hub

        repo = spec.repo or spec.name
        folder = hub.fetch_configs(repo, revision=spec.revision, offline=options.offline)
    transformer = diffusers_folder.denoiser_config(folder)[0] == "transformer"
    dtype = device.choose_dtype(place, options.dtype, transformer=transformer)
    slicing = bool(options.attention_slicing) and _can_slice(folder, options)
    if (options.batch_size or 1) > 1:
        _check_batch_size(folder, options)
    if spec.folder is None:
        half = dtype != "float32"
        size = hub.download_size(repo, revision=spec.revision, offline=options.offline, half=half)
        total, missing = size.total_bytes, size.missing_bytes
    if missing:
        # Files in full precision may be halved when they are read; refuse only what cannot fit.
        estimate = total // 2 if half else total
        return LoadTarget(
            spec=spec,
            device=place,
            dtype=dtype,
            folder=folder,
            sizes={"model": estimate},
            missing_bytes=missing,
            slicing=slicing,
        )
    aim = LoadTarget(spec=spec, device=place, dtype=dtype, folder=folder, sizes={}, slicing=slicing)
    return _measured(aim, options)


def fetch_files(aim: LoadTarget, options: LocalOptions, on_event: OnEvent) -> LoadTarget:
    """The target with its files here, downloaded where they are missing. Raises T2IError."""
    if aim.spec.folder is not None:
        return aim
    from t2i_cli import hub

    folder = hub.download_model(
        aim.spec.repo or aim.spec.name,
        revision=aim.spec.revision,
        offline=options.offline,
        half=aim.dtype != "float32",
        on_event=on_event,
    )
    return _measured(replace(aim, folder=folder, missing_bytes=0), options)


def _can_slice(folder: Path, options: LocalOptions) -> bool:
    """Whether the model's denoiser can slice its attention; if not, InputError unless lenient."""
    name, _ = diffusers_folder.denoiser_config(folder)
    cls = next(
        (part.cls for part in diffusers_folder.list_components(folder) if part.name == name), ""
    )
    if hasattr(getattr(libraries.import_diffusers(), cls, None), "set_attention_slice"):
        return True
    if options.lenient:
        return False
    without = "" if options.lenient is None else ", or go on without it by --lenient"
    raise InputError(
        f"The model's {name} ({cls}) has no attention slicing; its attention is fused.",
        hint=f"Leave --attention-slicing away{without}.",
        field="attention_slicing",
    )


def _check_batch_size(folder: Path, options: LocalOptions) -> None:
    """Raise InputError, unless lenient, where the model's images cannot share a pass."""
    cls = resolution.pipeline_class(folder, trust_remote_code=options.trust_remote_code)
    if options.lenient or batch_size.are_independent(cls):
        return
    raise InputError(
        batch_size.dependence_reason(cls),
        hint="Leave --batch-size away, or go on with one image a pass by --lenient.",
        field="batch_size",
    )


def _measured(aim: LoadTarget, options: LocalOptions) -> LoadTarget:
    """The target with the true sizes of its weights; raises ModelError if they are not sound."""
    skip = frozenset() if options.safety_checker else frozenset({"safety_checker"})
    found = weights.read_weight_headers(aim.folder, half=aim.dtype != "float32", skip=skip)
    exact = diffusers_folder.float32_decoder(aim.folder, aim.dtype)
    sizes = {name: w.size("float32" if name == exact else aim.dtype) for name, w in found.items()}
    return replace(aim, sizes=sizes)


def plan_memory(
    aim: LoadTarget, request: ResolvedRequest, options: LocalOptions, resident: int = 0
) -> MemoryPlan:
    """How the request would be run; `resident` bytes of its weights are on the device already.

    Raises OutOfMemoryError, naming the nearest thing that would work.
    """
    memory_here = device.device_memory(aim.device)
    free = memory_here.free + resident
    # Looking takes a millisecond, of the few that a server may add to an image.
    host = memory_here.free if aim.device.kind == "cpu" else device.host_memory().free
    width, height = request.width or 0, request.height or 0
    needed = _need(aim, width, height, aim.dtype)
    measures = _measures(aim, needed, free, host, options)
    if measures is None:
        here = MemoryInfo(free=free, total=memory_here.total)
        raise _refusal(aim, (width, height), here, host, options)
    if aim.slicing and memory.ATTENTION_SLICING not in measures:
        measures += (memory.ATTENTION_SLICING,)
    return MemoryPlan(
        device=aim.device.name,
        device_name=aim.device.label,
        dtype=aim.dtype,
        free_mib=free // MIB,
        total_mib=memory_here.total // MIB,
        weights_mib=sum(needed.weights.values()) // MIB,
        working_mib=needed.working(measures, options.batch_size or 1, aim.device) // MIB,
        measures=measures,
        download_mib=aim.missing_bytes // MIB,
    )


def max_batch_size(
    aim: LoadTarget, request: ResolvedRequest, measures: Measures, resident: int
) -> int:
    """How many images, a power of two, one pass of a loaded model has memory for."""
    needed = _need(aim, request.width or 0, request.height or 0, aim.dtype)
    free = device.device_memory(aim.device).free + resident
    return memory.images_that_fit(needed, aim.device, free, measures)


def _need(aim: LoadTarget, width: int, height: int, dtype: str) -> MemoryEstimate:
    now, then = (diffusers_folder.float32_decoder(aim.folder, kind) for kind in (aim.dtype, dtype))

    def element(name: str, kind: str, exact: str | None) -> int:
        return _ELEMENT["float32" if name == exact else kind]

    sizes = {
        name: size * element(name, dtype, then) // element(name, aim.dtype, now)
        for name, size in aim.sizes.items()
    }
    vae_element = element("vae", dtype, then)
    return memory.estimate_memory(
        aim.folder, sizes, width, height, _ELEMENT[dtype], vae_element=vae_element
    )


def _measures(
    aim: LoadTarget, needed: MemoryEstimate, free: int, host: int, options: LocalOptions
) -> Measures | None:
    """What to do from the start; `None` where nothing is enough."""
    if options.memory == "fast":
        return ()
    batch, slicing = options.batch_size or 1, options.attention_slicing is not False
    least = (
        memory.low_memory_measures(aim.device, slicing=slicing) if options.memory == "low" else ()
    )
    return memory.choose_measures(
        needed, aim.device, free, host, batch, least=least, slicing=slicing
    )


def _refusal(
    aim: LoadTarget, size: tuple[int, int], here: MemoryInfo, host: int, options: LocalOptions
) -> OutOfMemoryError:
    """The refusal, with the nearest that would work: another dtype, a smaller size or model."""
    width, height = size

    def fits(width: int, height: int, dtype: str) -> bool:
        needed = _need(aim, width, height, dtype)
        return _measures(aim, needed, here.free, host, options) is not None

    needed = _need(aim, width, height, aim.dtype)
    slicing = options.attention_slicing is not False
    possible = memory.candidate_measures(aim.device, slicing=slicing)
    least = min(needed.peak(measures, 1, aim.device) for measures in possible)
    message = (
        f"{aim.spec.name} at {width}x{height} needs about {least // MIB:,} MiB on "
        f"{aim.device.name}, and {here.free // MIB:,} of {here.total // MIB:,} MiB are free."
    )
    sliced = replace(options, attention_slicing=None)
    if not slicing and _measures(aim, needed, here.free, host, sliced) is not None:
        return OutOfMemoryError(message, hint="It would fit without --no-attention-slicing.")
    if aim.dtype == "float32" and aim.device.kind != "cpu" and fits(width, height, "float16"):
        return OutOfMemoryError(message, hint="It would fit with --dtype float16.")
    for eighths in range(7, 0, -1):
        grid = aim.spec.multiple
        smaller = [max(grid, side * eighths // 8 // grid * grid) for side in size]
        if fits(smaller[0], smaller[1], aim.dtype):
            return OutOfMemoryError(
                message, hint=f"It would fit with --size {smaller[0]}x{smaller[1]}."
            )
    models = [
        model
        for model in catalog.MODELS.values()
        # Downloads in half precision double on a CPU; the other half is to work in.
        if (model.download_bytes or 0) * 2 < here.free
    ]
    best = max(models, key=lambda model: model.download_bytes or 0, default=None)
    if best is None:
        return OutOfMemoryError(message, hint="No model fits; end what else takes the memory.")
    return OutOfMemoryError(message, hint=f"No size of it fits; -m {best.name} would.")
