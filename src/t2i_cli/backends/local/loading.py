"""Load a model's pipeline, place it on its device, and record its memory measures."""

import inspect
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from t2i_cli import __version__
from t2i_cli.backends.local import (
    load_ahead,
    memory,
    quantization,
    saved_weights,
    single_file_loading,
    vae_tiling,
    weight_offload,
    working_memory,
)
from t2i_cli.backends.local.adapters import AdapterSwitch
from t2i_cli.backends.local.denoiser_engine import DenoiserEngine
from t2i_cli.backends.local.device import is_out_of_memory
from t2i_cli.backends.local.memory_plan import MemoryPlan
from t2i_cli.errors import InputError, ModelError, OutOfMemoryError, T2IError, error_reason
from t2i_cli.events import MemoryMeasure, Notice, OnEvent
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import (
    catalog,
    component_check,
    diffusers_folder,
    file_digests,
    libraries,
    noise_schedules,
    resolution,
    saved_quantization,
    schedulers,
    sources,
)
from t2i_cli.models.bucket_models import model_of_copy
from t2i_cli.models.lazy_imports import defer_imports
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request import ResolvedRequest
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from t2i_cli.backends.local.load_target import LoadTarget

_COMMIT = re.compile("[0-9a-f]{40}")
_DECODERS = {"vae", "movq", "vqvae", "vqgan"}
_RECENT_SECONDS = 5.0
"""Seconds after a successful batch within which free memory is not checked again."""


class LoadedPipeline:
    """A loaded pipeline; `measures` are the memory measures applied so far, in order.

    `batch_limit` is the maximum batch size, set once memory has run out; `vae_tile` is the side of
    the decode's tiles in pixels, where it is tiled; `previews` is the number
    of previews wanted of each image of the run.
    """

    def __init__(self, target: "LoadTarget", pipe: LibraryObject, on_event: OnEvent) -> None:
        self.spec = target.spec
        self.folder = target.folder
        self.device = target.device
        self.dtype = target.dtype
        self.quantize = target.quantize
        self.sha256 = _file_digest(target.spec)
        self._saved_versions = saved_quantization.package_versions(target.folder)
        self.pipe = pipe
        self.on_event = on_event
        self.previews: Sequence[int] = ()
        self.measures: list[str] = []
        self.batch_limit: int | None = None
        self.engine = DenoiserEngine(self)
        self.adapters = AdapterSwitch(self)
        self.vae_tile: int | None = None
        self._tile_limit: int | None = None
        self.plan: MemoryPlan | None = None
        self._offload: str | None = None
        self._last_success: tuple[tuple[object, ...], float] | None = None
        self._weight_bytes = sum(target.sizes.values())
        texts = filter(working_memory.is_text_encoder, target.sizes)
        self._text_bytes = sum(target.sizes[name] for name in texts)
        self._model_scheduler: LibraryObject = getattr(pipe, "scheduler", None)

    def is_for(self, target: "LoadTarget") -> bool:
        """Whether this is the pipeline of the target."""
        mine = (self.folder, self.dtype, self.quantize)
        return mine == (target.folder, target.dtype, target.quantize)

    def record_success(self, request: ResolvedRequest) -> None:
        """Record that an image with the request's batch key was just generated."""
        self._last_success = request.batch_key(), time.monotonic()

    def recently_fitted(self, request: ResolvedRequest) -> bool:
        """Whether one was generated a moment ago, so that memory need not be checked again."""
        key, at = self._last_success or ((), 0.0)
        return key == request.batch_key() and time.monotonic() - at < _RECENT_SECONDS

    @property
    def revision(self) -> str | None:
        """The commit of a Hub model, after which its snapshot folder is named, else `None`."""
        name = sources.base_folder(self.folder).name
        return name if _COMMIT.fullmatch(name) and not self.sha256 else None

    @property
    def libraries(self) -> dict[str, str]:
        """The versions of the libraries that the image depends on."""
        import diffusers
        import torch
        import transformers

        return {
            "t2i": __version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            **quantization.package_version(self.quantize),
            **self._saved_versions,
            **self.adapters.package_version(),
        }

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights that stay on the device between batches."""
        if {memory.MODEL_OFFLOAD, memory.GROUP_OFFLOAD} & set(self.measures):
            return 0
        if memory.TEXT_ENCODER_OFFLOAD in self.measures:
            return self._weight_bytes - self._text_bytes + self.adapters.bytes
        return self._weight_bytes + self.adapters.bytes

    def record_measure(self, measure: str, reason: str) -> None:
        """Record a measure and emit its event."""
        self.measures.append(measure)
        self.on_event(MemoryMeasure(name=measure, reason=reason))

    def place(
        self,
        measures: memory.Measures = (),
        reason: str = "",
        requested: memory.Measures = (),
        tile: int | None = None,
    ) -> None:
        """Apply measures and move the pipeline to its device. Raises what torch raises.

        `reason` is reported for every measure that is not in `requested`, the user's own; `tile` is
        the planned side of the decode's tiles.
        """
        possible = dict.fromkeys(map(self._possible, measures))
        new = [measure for measure in possible if measure not in self.measures]
        for measure in new:
            self.record_measure(measure, "as asked" if measure in requested else reason)
        if memory.VAE_SLICING in new:
            vae_tiling.decode_in_slices(latent_decoder(self.pipe))
        if memory.VAE_TILING in new or (tile and memory.VAE_TILING in self.measures):
            self.tile_decode(tile or vae_tiling.COMFORTABLE_TILE)
        if memory.ATTENTION_SLICING in new:
            self.pipe.enable_attention_slicing()
        offload = next((m for m in memory.OFFLOADS if m in self.measures), "")
        if offload != self._offload:
            self._offload = None
            self._apply_offload(offload)
            self._offload = offload

    def tile_decode(self, side: int, *, limit: bool = False) -> None:
        """Decode in tiles of `side` pixels, or of the largest that memory has not run out with.

        With `limit`, memory has run out with all larger ones.
        """
        if limit:
            self._tile_limit = side
        self.vae_tile = min(side, self._tile_limit or side)
        vae_tiling.decode_in_tiles(latent_decoder(self.pipe), self.vae_tile)

    def set_scheduler(self, name: str | None, schedule: str | None = None) -> str | None:
        """Set the scheduler of a short name, or the model's own if `None`; returns its class name.

        It gets the noise levels of a schedule. Raises InputError if it does not fit the model.
        """
        if name is None and schedule is None:
            if getattr(self.pipe, "scheduler", None) is not self._model_scheduler:
                self.pipe.scheduler = self._model_scheduler
        else:
            import diffusers

            own = self._model_scheduler
            spec = noise_schedules.scheduled_spec(
                (name, schedule),
                self.spec.flow,
                {**own.config, "_class_name": type(own).__name__} if own else {},
                self.spec.name,
            )
            # The model's own says by itself whether it clips.
            latent = bool(name) and not _DECODERS.isdisjoint(self.pipe.components)
            config = schedulers.scheduler_config(spec, own.config, latent=latent)
            with libraries.suppress_warnings(), defer_imports():
                try:
                    self.pipe.scheduler = getattr(diffusers, spec.cls).from_config(config)
                except (ValueError, NotImplementedError, ImportError, AssertionError) as error:
                    raise InputError(
                        f"The scheduler {name or spec.cls!r} does not fit {self.spec.name}: "
                        f"{error_reason(error)}",
                        hint="Leave --scheduler away for the model's own.",
                        field="scheduler",
                    ) from error
        return type(self.pipe.scheduler).__name__ if self.pipe.scheduler is not None else None

    @property
    def model_name(self) -> str:
        """The model's name, for errors."""
        return self.spec.name

    @contextmanager
    def layers_changing(self, *, structure: bool) -> Iterator[None]:
        """Change layers without the hooks of offloading, which are made anew afterwards.

        Without `structure` only what scales layers changes, which recorded calls must follow, too.
        """
        offload = self._offload if structure else None
        if offload:
            weight_offload.remove_hooks(self.pipe)
        try:
            yield
        finally:
            self.engine.forget_network()
            if offload:
                self._apply_offload(offload)

    def _apply_offload(self, offload: str) -> None:
        """Move the weights: remove offload hooks, move, then install the hooks of `offload`.

        The dtypes were set at loading: weights must not be cast under hooks.
        """
        weight_offload.remove_hooks(self.pipe)
        if offload == memory.GROUP_OFFLOAD:
            if note := weight_offload.offload_groups(self.pipe, self.device, self._weight_bytes):
                self.on_event(Notice(message=note))
        elif offload == memory.MODEL_OFFLOAD:
            _use_channels_last(self.pipe)
            self.pipe.enable_model_cpu_offload(device=self.device.name)
        elif offload == memory.TEXT_ENCODER_OFFLOAD:
            weight_offload.offload_text_encoders(self.pipe, self.device)
            _use_channels_last(self.pipe)
        else:
            self.pipe.to(self.device.name)
            if not saved_weights.lacks_memory_format(self.folder, self.quantize):
                _use_channels_last(self.pipe)

    def _possible(self, measure: str) -> str:
        """The measure, or the next stronger one if this pipeline does not have it."""
        if measure == memory.TEXT_ENCODER_OFFLOAD and not weight_offload.idle_text_encoders(
            self.pipe
        ):
            measure = memory.MODEL_OFFLOAD
        if measure == memory.MODEL_OFFLOAD and self.pipe.model_cpu_offload_seq is None:
            measure = memory.GROUP_OFFLOAD
        return measure


def _file_digest(spec: ModelSpec) -> str | None:
    """The SHA-256 of the single file that a model is named by. Raises ModelError."""
    if spec.copy_folder:
        file = model_of_copy(spec.copy_folder).file_path
    else:
        file = catalog.file_named(spec.name) if spec.composition and not spec.repo else None
    # After it was read: its pages are in memory. Of one on the Hub it was told.
    return spec.file_digest if file is None else file_digests.sha256_of(file)


def _use_channels_last(pipe: LibraryObject) -> None:
    """Store convolution weights in channels-last order, which is faster on CPUs and GPUs."""
    import torch

    for network in (getattr(pipe, "unet", None), latent_decoder(pipe)):
        # Not defined for the 5-D weights of the video VAEs that some image models use.
        if network is not None and all(weight.dim() < 5 for weight in network.parameters()):
            network.to(memory_format=torch.channels_last)


def latent_decoder(pipe: LibraryObject) -> LibraryObject:
    """The network that decodes latents to images, or `None` for a pipeline on pixels."""
    return getattr(pipe, "vae", None) or getattr(pipe, "movq", None)


def load_pipeline(
    target: "LoadTarget", on_event: OnEvent, *, safety_checker: bool, trust_remote_code: bool
) -> LoadedPipeline:
    """Load a pipeline into the host's memory. Raises ModelError, OutOfMemoryError."""
    ahead = load_ahead.LoadAhead(target)
    torch = libraries.import_torch()
    ahead.start_device()
    started = time.monotonic()
    folder, name = target.folder, target.spec.name
    cls = resolution.pipeline_class(folder, trust_remote_code=trust_remote_code)
    if note := sources.exchanged_class(folder):
        on_event(Notice(message=note))
    # Some pipelines accept a missing component only as an explicit None (SD 3 without T5).
    extra: dict[str, Any] = dict.fromkeys(sources.absent_parts(folder))
    dtype: Any = getattr(torch, target.dtype)
    float32_component = diffusers_folder.float32_decoder(folder, target.dtype)
    # With MPS, the pipelines themselves cast that component to half precision and back.
    if float32_component and not torch.backends.mps.is_available():
        dtype = {"default": dtype, float32_component: torch.float32}
    if not safety_checker and any(p.name == "safety_checker" for p in sources.list_parts(folder)):
        extra |= {"safety_checker": None, "requires_safety_checker": False}
    variants = sources.chosen_variants(folder, target.dtype)
    parameters = set(inspect.signature(cls.__init__).parameters) - extra.keys()
    quantized = quantization.quantized_loading(target.quantize, folder, target.device, target.dtype)
    with libraries.suppress_warnings(), libraries.pause_gc(), defer_imports():
        try:
            extra |= component_check.load_tokenizers(
                folder, parameters, trust_remote_code=trust_remote_code
            )
            with (
                quantized as arguments,
                saved_weights.current_device(folder, target.device),
                libraries.component_variants(variants),
            ):
                extra |= single_file_loading.load_parts(target, dtype, on_event)
                pipe = cls.from_pretrained(
                    str(folder),
                    dtype=dtype,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=trust_remote_code,
                    **extra,
                    **arguments,
                )
        except T2IError:
            raise
        except Exception as error:  # libraries may raise anything for a damaged model
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"Memory ran out while {name} was read.", hint="Use a smaller model."
                ) from error
            if "trust_remote_code" in str(error) and not trust_remote_code:
                raise component_check.custom_code_error(folder, "a component's auto_map") from error
            raise ModelError(
                f"{name} cannot be loaded: {error_reason(error)}",
                hint="The model may be damaged, or need other versions of diffusers or "
                "transformers.",
            ) from error
        finally:
            ahead.end()
    saved_weights.finish_loading(pipe, folder, target.dtype)
    _check_complete(pipe, name)
    if target.quantize == "fp8-storage":
        quantization.store_in_fp8(pipe, folder, target.dtype)
    console.trace(f"loaded from {folder} in {time.monotonic() - started:.2f} s")
    return LoadedPipeline(target, pipe, on_event)


def _check_complete(pipe: LibraryObject, name: str) -> None:
    """Raise ModelError if the files had no weights for a part of a network."""
    import torch

    for component, network in pipe.components.items():
        if isinstance(network, torch.nn.Module) and any(p.is_meta for p in network.parameters()):
            raise ModelError(
                f"{name} is damaged: its {component} lacks weights that its config says."
            )
