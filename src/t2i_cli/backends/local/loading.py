"""A model's pipeline: read into memory, put on its device, and what was done to make it fit."""

import inspect
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from t2i_cli import __version__
from t2i_cli.backends.local import memory
from t2i_cli.backends.local.device import is_out_of_memory
from t2i_cli.errors import InputError, ModelError, OutOfMemoryError, error_reason
from t2i_cli.events import MemoryMeasure, OnEvent
from t2i_cli.models import (
    component_check,
    diffusers_folder,
    libraries,
    resolution,
    schedulers,
    weights,
)
from t2i_cli.models.lazy_imports import defer_imports
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request import ResolvedRequest

if TYPE_CHECKING:
    from t2i_cli.backends.local.planning import LoadTarget

_COMMIT = re.compile("[0-9a-f]{40}")
_MOMENT = 5.0
"""Seconds."""


class LoadedPipeline:
    """A pipeline in memory; `measures` are those taken for it so far, in order.

    `batch_limit` is how many images fit one pass, once memory has run out; `previews` are how many
    are wanted of each image of the run.
    """

    def __init__(self, aim: "LoadTarget", pipe: LibraryObject, on_event: OnEvent) -> None:
        self.spec = aim.spec
        self.folder = aim.folder
        self.device = aim.device
        self.dtype = aim.dtype
        self.pipe = pipe
        self.on_event = on_event
        self.previews: Sequence[int] = ()
        self.measures: list[str] = []
        self.batch_limit: int | None = None
        self._placed: str | None = None
        self._made: tuple[tuple[object, ...], float] | None = None
        self._bytes = sum(aim.sizes.values())
        self._own_scheduler: LibraryObject = getattr(pipe, "scheduler", None)

    def is_for(self, aim: "LoadTarget") -> bool:
        """Whether this is what the target asks for."""
        return (self.folder, self.dtype) == (aim.folder, aim.dtype)

    def record_success(self, request: ResolvedRequest) -> None:
        """Remember that an image of the request's kind was just made."""
        self._made = request.batch_key(), time.monotonic()

    def recently_fitted(self, request: ResolvedRequest) -> bool:
        """Whether one was made a moment ago, so that memory need not be looked at again."""
        kind, when = self._made or ((), 0.0)
        return kind == request.batch_key() and time.monotonic() - when < _MOMENT

    @property
    def revision(self) -> str | None:
        """The commit of a model from the Hub: its snapshot folder is named after it."""
        return self.folder.name if _COMMIT.fullmatch(self.folder.name) else None

    @property
    def libraries(self) -> dict[str, str]:
        """The versions that the image depends on."""
        import diffusers
        import torch
        import transformers

        return {
            "t2i": __version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        }

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights that stay on the device."""
        offloaded = {memory.MODEL_OFFLOAD, memory.GROUP_OFFLOAD} & set(self.measures)
        return 0 if offloaded else self._bytes

    def record_measure(self, measure: str, reason: str) -> None:
        """Record a measure and tell of it."""
        self.measures.append(measure)
        self.on_event(MemoryMeasure(name=measure, reason=reason))

    def place(
        self, measures: memory.Measures = (), reason: str = "", asked: memory.Measures = ()
    ) -> None:
        """Take measures and put the pipeline where it runs. Out of memory is raised as it comes.

        `reason` is told of every measure that the user has not `asked` for.
        """
        new = [measure for measure in measures if measure not in self.measures]
        if memory.MODEL_OFFLOAD in new and self.pipe.model_cpu_offload_seq is None:
            new = [memory.GROUP_OFFLOAD if m == memory.MODEL_OFFLOAD else m for m in new]
        for measure in new:
            self.record_measure(measure, "as asked" if measure in asked else reason)
        if memory.VAE_TILING in new:
            tile_vae(self.pipe)
        if memory.ATTENTION_SLICING in new:
            self.pipe.enable_attention_slicing()
        offloads = [m for m in (memory.GROUP_OFFLOAD, memory.MODEL_OFFLOAD) if m in self.measures]
        offload = offloads[0] if offloads else ""
        if offload != self._placed:
            self._placed = None
            self._move(offload)
            self._placed = offload

    def set_scheduler(self, name: str | None) -> str | None:
        """Use the scheduler of that short name, or the model's own; returns its class's name."""
        if name is None:
            if getattr(self.pipe, "scheduler", None) is not self._own_scheduler:
                self.pipe.scheduler = self._own_scheduler
        else:
            import diffusers

            spec = schedulers.find_scheduler(name, self.spec.flow)
            latent = not {"vae", "movq", "vqvae", "vqgan"}.isdisjoint(self.pipe.components)
            config = schedulers.scheduler_config(spec, self._own_scheduler.config, latent=latent)
            with libraries.suppress_warnings(), defer_imports():
                try:
                    self.pipe.scheduler = getattr(diffusers, spec.cls).from_config(config)
                except (ValueError, NotImplementedError, ImportError, AssertionError) as error:
                    raise InputError(
                        f"The scheduler {name!r} does not fit {self.spec.name}: "
                        f"{error_reason(error)}",
                        hint="Leave --scheduler away for the model's own.",
                        field="scheduler",
                    ) from error
        return type(self.pipe.scheduler).__name__ if self.pipe.scheduler is not None else None

    def _move(self, offload: str) -> None:
        """Put the weights where they rest: hooks off, then moved, then hooks on.

        Their precision was settled when they were read: under hooks, nothing may be cast.
        """
        _remove_hooks(self.pipe)
        if offload == memory.GROUP_OFFLOAD:
            self._offload_groups()
        elif offload == memory.MODEL_OFFLOAD:
            self.pipe.enable_model_cpu_offload(device=self.device.name)
        else:
            self.pipe.to(self.device.name)
            _order_channels_last(self.pipe)

    def _offload_groups(self) -> None:
        import torch

        self.pipe.to("cpu", silence_dtype_warnings=True)
        # Streams hide the copies behind the computation, where the device has them.
        stream = self.device.kind in {"cuda", "rocm"}
        self.pipe.enable_group_offload(
            onload_device=torch.device(self.device.name),
            offload_type="leaf_level",
            use_stream=stream,
            low_cpu_mem_usage=stream,
        )


def _remove_hooks(pipe: LibraryObject) -> None:
    """Free a pipeline's networks of what moves them, also where putting it on failed midway."""
    import torch

    pipe.remove_all_hooks()  # accelerate's
    for network in pipe.components.values():
        for module in network.modules() if isinstance(network, torch.nn.Module) else ():
            # diffusers' own
            if (registry := getattr(module, "_diffusers_hook", None)) is not None:
                for name in list(registry.hooks):
                    registry.remove_hook(name, recurse=False)


def _order_channels_last(pipe: LibraryObject) -> None:
    """Store the weights of convolutions as their fastest kernels read them, on CPUs and GPUs."""
    import torch

    for network in (getattr(pipe, "unet", None), latent_decoder(pipe)):
        # The order has no meaning for the video VAEs that some image models use.
        if network is not None and all(weight.dim() < 5 for weight in network.parameters()):
            network.to(memory_format=torch.channels_last)


def tile_vae(pipe: LibraryObject) -> None:
    """Decode one image at a time, in tiles."""
    vae = latent_decoder(pipe)
    for method in ("enable_slicing", "enable_tiling"):
        if hasattr(vae, method):
            getattr(vae, method)()


def latent_decoder(pipe: LibraryObject) -> LibraryObject:
    """The network that turns latents into pictures, or None for a pipeline on pixels."""
    return getattr(pipe, "vae", None) or getattr(pipe, "movq", None)


def load_pipeline(
    aim: "LoadTarget", on_event: OnEvent, *, safety_checker: bool, trust_remote_code: bool
) -> LoadedPipeline:
    """Read a pipeline's weights into the host's memory. Raises ModelError, OutOfMemoryError."""
    import torch

    folder, name = aim.folder, aim.spec.name
    cls = resolution.pipeline_class(folder, trust_remote_code=trust_remote_code)
    # Some pipelines go without a component only where they are told so (SD 3 without T5).
    extra: dict[str, Any] = dict.fromkeys(diffusers_folder.absent_components(folder))
    dtype: Any = getattr(torch, aim.dtype)
    exact = diffusers_folder.float32_decoder(folder, aim.dtype)
    # Where there is MPS, the pipelines themselves cast it to half precision and back.
    if exact and not torch.backends.mps.is_available():
        dtype = {"default": dtype, exact: torch.float32}
    if not safety_checker and any(
        p.name == "safety_checker" for p in diffusers_folder.list_components(folder)
    ):
        extra |= {"safety_checker": None, "requires_safety_checker": False}
    if variant := weights.find_variant(folder, half=aim.dtype != "float32"):
        extra["variant"] = variant
    wanted = set(inspect.signature(cls.__init__).parameters) - extra.keys()
    with libraries.suppress_warnings(), libraries.pause_gc(), defer_imports():
        try:
            extra |= component_check.load_tokenizers(
                folder, wanted, trust_remote_code=trust_remote_code
            )
            pipe = cls.from_pretrained(
                str(folder),
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                **extra,
            )
        except Exception as error:  # whatever a model's files and its libraries may raise
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
    return LoadedPipeline(aim, pipe, on_event)
