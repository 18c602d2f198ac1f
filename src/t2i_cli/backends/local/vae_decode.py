"""The OOM fallback of the VAE decode: decodes the same latents again, with a memory measure."""

from t2i_cli.backends.local import memory
from t2i_cli.backends.local.device import clear_cache, is_out_of_memory
from t2i_cli.backends.local.loading import LoadedPipeline, latent_decoder
from t2i_cli.errors import OutOfMemoryError
from t2i_cli.models.libraries import LibraryObject

VAE_SLICING = "vae-slicing"
VAE_ON_CPU = "vae-on-cpu"


def install_decode_fallback(loaded: LoadedPipeline) -> None:
    """Wrap `vae.decode`, so that denoising is not repeated when the decode runs out of memory."""
    if (vae := latent_decoder(loaded.pipe)) is not None:
        vae.decode = _DecodeWithFallback(loaded, vae)


class _DecodeWithFallback:
    """Replaces `vae.decode`: tries it as it is, sliced, tiled, then on the CPU."""

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
            self._apply_next_measure(len(latents))

    def _apply_next_measure(self, batch: int) -> None:
        if self._loaded.engine.release_memory():
            return
        applied = self._loaded.measures
        reason = f"{self._loaded.device.name} ran out of memory at the decode"
        if memory.VAE_TILING not in applied:
            if batch > 1 and VAE_SLICING not in applied and hasattr(self._vae, "enable_slicing"):
                self._vae.enable_slicing()
                self._loaded.record_measure(VAE_SLICING, reason)
                return
            if hasattr(self._vae, "enable_tiling"):
                self._vae.enable_tiling()
                self._loaded.record_measure(memory.VAE_TILING, reason)
                return
        if self._loaded.device.kind == "cpu":
            raise _out_of_memory()
        self._cpu_vae = self._load_on_cpu()
        self._loaded.record_measure(VAE_ON_CPU, reason)

    def _load_on_cpu(self) -> LibraryObject:
        """Load a second copy of the VAE: on the CPU, in float32, without offload hooks."""
        import torch

        name = "vae" if getattr(self._loaded.pipe, "vae", None) is self._vae else "movq"
        vae = type(self._vae).from_pretrained(
            str(self._loaded.folder / name), torch_dtype=torch.float32, use_safetensors=True
        )
        if hasattr(vae, "enable_tiling"):
            vae.enable_tiling()
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
