"""The OOM fallback of the VAE decode: decodes the same latents again, with a memory measure."""

from t2i_cli.backends.local import device, memory, vae_tiling, working_memory
from t2i_cli.backends.local.device import clear_cache, is_out_of_memory
from t2i_cli.backends.local.loading import LoadedPipeline, latent_decoder
from t2i_cli.errors import OutOfMemoryError
from t2i_cli.events import MemoryMeasure
from t2i_cli.models.libraries import LibraryObject

VAE_ON_CPU = "vae-on-cpu"


def install_decode_fallback(loaded: LoadedPipeline) -> None:
    """Wrap `vae.decode`, so that denoising is not repeated when the decode runs out of memory."""
    if (vae := latent_decoder(loaded.pipe)) is not None:
        vae.decode = _DecodeWithFallback(loaded, vae)


class _DecodeWithFallback:
    """Replaces `vae.decode`: tries it as it is, sliced, in ever smaller tiles, on the CPU."""

    def __init__(self, loaded: LoadedPipeline, vae: LibraryObject) -> None:
        self._loaded = loaded
        self._vae = vae
        self._decode = vae.decode
        self._cpu_vae: LibraryObject = None

    def __call__(
        self, latents: LibraryObject, *args: LibraryObject, **kwargs: LibraryObject
    ) -> LibraryObject:
        """Decode latents (batch x channels x height x width), cast to the VAE's dtype.

        Returns what `vae.decode` does: images of -1 to 1. The latents have the denoiser's dtype,
        which may not be the VAE's. Raises OutOfMemoryError.
        """
        if latents.is_floating_point():
            latents = latents.to(self._vae.dtype)
        self._slice_if_short(latents)
        while True:
            if self._cpu_vae is not None:
                return self._decode_on_cpu(latents, *args, **kwargs)
            try:
                return self._decode(latents, *args, **kwargs)
            except Exception as error:  # only out of memory is handled
                if not is_out_of_memory(error):
                    raise
            # Outside the except block, whose traceback keeps the failed decode's tensors alive.
            clear_cache(self._loaded.device)
            self._apply_next_measure(latents)

    def _slice_if_short(self, latents: LibraryObject) -> None:
        """Decode image by image if the images of a batch do not fit at once."""
        applied = {memory.VAE_SLICING, memory.VAE_TILING} & set(self._loaded.measures)
        if len(latents) == 1 or applied or not vae_tiling.can_slice(self._vae):
            return
        pixels = latents[:, 0].numel() * vae_tiling.pixels_per_latent(self._vae) ** 2
        element = latents.element_size()
        needed = working_memory.decoder_bytes(self._loaded.folder, pixels, element)
        if needed and needed > device.device_memory(self._loaded.device).free:
            self._vae.enable_slicing()
            self._loaded.record_measure(memory.VAE_SLICING, "to fit the memory that is free")

    def _apply_next_measure(self, latents: LibraryObject) -> None:
        if self._loaded.engine.release_memory():
            return
        loaded, applied = self._loaded, self._loaded.measures
        reason = f"{loaded.device.name} ran out of memory at the decode"
        tiled = memory.VAE_TILING in applied
        if (
            len(latents) > 1
            and not tiled
            and memory.VAE_SLICING not in applied
            and vae_tiling.can_slice(self._vae)
        ):
            self._vae.enable_slicing()
            loaded.record_measure(memory.VAE_SLICING, reason)
            return
        if vae_tiling.can_tile(self._vae) and (side := self._next_tile(latents)):
            loaded.tile_decode(side, limit=True)
            if tiled:
                smaller = f"{reason} in larger tiles; they are of {side} pixels now"
                loaded.on_event(MemoryMeasure(name=memory.VAE_TILING, reason=smaller))
            else:
                loaded.record_measure(memory.VAE_TILING, reason)
            return
        if self._loaded.device.kind == "cpu":
            raise _out_of_memory()
        self._cpu_vae = self._load_on_cpu()
        self._loaded.record_measure(VAE_ON_CPU, reason)

    def _next_tile(self, latents: LibraryObject) -> int | None:
        """The side of the tiles to try next in pixels; `None` if they are the smallest."""
        scale = vae_tiling.pixels_per_latent(self._vae)
        side = max(latents.shape[-2:]) * scale
        if memory.VAE_TILING not in self._loaded.measures:
            return vae_tiling.smaller_tile(side, scale) or vae_tiling.SMALLEST_TILE
        return vae_tiling.smaller_tile(min(side, self._loaded.vae_tile or side), scale)

    def _load_on_cpu(self) -> LibraryObject:
        """Load a second copy of the VAE: on the CPU, in float32, without offload hooks."""
        import torch

        name = "vae" if getattr(self._loaded.pipe, "vae", None) is self._vae else "movq"
        vae = type(self._vae).from_pretrained(
            str(self._loaded.folder / name), torch_dtype=torch.float32, use_safetensors=True
        )
        vae_tiling.decode_in_tiles(vae, vae_tiling.COMFORTABLE_TILE)
        return vae

    def _decode_on_cpu(
        self, latents: LibraryObject, *args: LibraryObject, **kwargs: LibraryObject
    ) -> LibraryObject:
        import torch

        try:
            decoded = self._cpu_vae.decode(latents.to("cpu", torch.float32), *args, **kwargs)
        except Exception as error:  # only out of memory is handled
            if is_out_of_memory(error):
                raise _out_of_memory() from error
            raise
        # `decoded` is a tuple, or an output object that can be indexed like one.
        sample = decoded[0].to(latents.device)
        return (sample,) if isinstance(decoded, tuple) else type(decoded)(sample=sample)


def _out_of_memory() -> OutOfMemoryError:
    return OutOfMemoryError(
        "Memory ran out at the decode, in tiles and on the CPU too.",
        hint="A smaller --size needs less, and so do fewer programs beside.",
    )
