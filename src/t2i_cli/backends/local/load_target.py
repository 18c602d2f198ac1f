"""How to load a model: its device, dtype and files, and the bytes of its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from t2i_cli.backends.local import batch_size, device, quantization, saved_weights
from t2i_cli.backends.local.device import Device
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.local.unavailable import hinting_at_embedded_model
from t2i_cli.errors import InputError
from t2i_cli.events import OnEvent
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import (
    catalog,
    class_facts,
    component_check,
    diffusers_folder,
    resolution,
    saved_quantization,
    sources,
    weights,
)
from t2i_cli.models.bucket_models import naming_urls
from t2i_cli.models.model_files import ModelFiles
from t2i_cli.models.weights import DTYPE_BYTES, ComponentWeights


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
@naming_urls()
def resolve_target(
    spec: ModelSpec, options: LocalOptions, quantize: str | None = None
) -> LoadTarget:
    """Find the device, dtype and files of a model; raises T2IError if one is not usable."""
    found_device = device.find_device(options.device)
    model_files = ModelFiles(spec, offline=options.offline)
    folder = model_files.config_folder()
    if quantize:
        _check_not_quantized(folder, quantize, spec)
    if spec.name not in catalog.MODELS or spec.composition:
        facts = resolution.pipeline_facts(folder, trust_remote_code=options.trust_remote_code)
        component_check.check_complete(folder, facts)
    transformer = diffusers_folder.denoiser_config(folder)[0] == "transformer"
    asked = options.dtype or quantization.required_dtype(quantize)
    saved_weights.check_saved_weights(folder, spec.name, found_device)
    dtype = saved_weights.settle_dtype(
        folder,
        spec.name,
        options.dtype,
        found_device,
        device.choose_dtype(found_device, asked, transformer=transformer),
    )
    slicing = bool(options.attention_slicing) and _supports_slicing(folder, options)
    if (options.batch_size or 1) > 1:
        _check_batch_size(folder, options)
    total, missing = model_files.size(dtype)
    if missing:
        # Full-precision files may be halved at loading; assume so, to refuse only what cannot fit.
        estimate = total // 2 if dtype != "float32" else total
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
@naming_urls()
def fetch_files(target: LoadTarget, options: LocalOptions, on_event: OnEvent) -> LoadTarget:
    """Download missing files and return the target with its complete folder. Raises T2IError."""
    model_files = ModelFiles(target.spec, offline=options.offline)
    folder = model_files.download(target.dtype, on_event)
    if folder is None:
        return target
    # What the weights were quantised for may stand in their files alone.
    dtype = saved_weights.settle_dtype(
        folder, target.spec.name, options.dtype, target.device, target.dtype
    )
    found = replace(target, folder=folder, dtype=dtype, missing_bytes=0)
    return _with_weight_sizes(found, options)


def _check_not_quantized(folder: Path, quantize: str, spec: ModelSpec) -> None:
    """Raise InputError for weights that are saved quantised, and would be quantised anew."""
    for part in sources.list_parts(folder):
        if method := saved_quantization.saved_method(part):
            raise InputError(
                f"The {part.name} of {spec.name} is quantised already ({method}); --quantize "
                f"{quantize} cannot come on top.",
                hint="Leave --quantize away.",
                field="quantize",
            )


def _supports_slicing(folder: Path, options: LocalOptions) -> bool:
    """Whether the denoiser supports attention slicing; if not, InputError unless lenient."""
    name, _ = diffusers_folder.denoiser_config(folder)
    cls = next((part.cls for part in sources.list_parts(folder) if part.name == name), "")
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
    found = weights.read_weight_headers(target.folder, target.dtype, skip=skip)
    largest = max((w.largest for w in found.values()), default=0)
    return replace(
        target,
        sizes=loaded_sizes(target.folder, target.dtype, found, target.quantize),
        layer=largest * DTYPE_BYTES[target.dtype],
    )


def loaded_sizes(
    folder: Path, dtype: str, found: Mapping[str, ComponentWeights], quantize: str | None = None
) -> dict[str, int]:
    """Bytes of each component's weights once they are loaded, from those in its files."""
    float32_component = diffusers_folder.float32_decoder(folder, dtype)
    return quantization.quantized_sizes(found, folder, dtype, float32_component, quantize)


def quantized_target(target: LoadTarget, kind: str, options: LocalOptions) -> LoadTarget | None:
    """The target with quantised weights; `None` if it is quantised, or cannot be here."""
    if target.quantize or not quantization.is_available(kind, target.device):
        return None
    if saved_quantization.quantized_parts(target.folder):
        return None
    quantized = replace(target, quantize=kind)
    if not target.missing_bytes:
        return _with_weight_sizes(quantized, options)
    sizes = {
        name: quantization.shrunk_bytes(size, target.dtype, kind)
        for name, size in target.sizes.items()
    }
    return replace(quantized, sizes=sizes)
