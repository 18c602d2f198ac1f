"""The out-of-memory fallback: apply one more memory measure, then the batch is tried again."""

from t2i_cli.backends.local import (
    device,
    loading,
    memory,
    saved_weights,
    vae_tiling,
    weight_offload,
)
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.errors import OutOfMemoryError


def apply_next_measure(loaded: LoadedPipeline, *, batch: int, slicing: bool | None) -> None:
    """Apply the next measure after a batch of `batch` images ran out of memory.

    `slicing` is the user's choice of attention slicing. Raises OutOfMemoryError if no measure is
    left.
    """
    device.clear_cache(loaded.device)
    reason = f"{loaded.device.name} ran out of memory"
    if batch > 1:
        loaded.batch_limit = batch // 2
        loaded.record_measure(f"batch-size-{loaded.batch_limit}", reason)
        return
    while left := [
        measure for measure in _fallback_measures(loaded, slicing) if measure not in loaded.measures
    ]:
        try:
            loaded.place((left[0],), reason)
        except Exception as error:  # only out of memory is handled
            if not device.is_out_of_memory(error):
                raise
        else:
            return
        device.clear_cache(loaded.device)
    raise OutOfMemoryError(
        f"{loaded.device.name} ran out of memory, whatever was tried "
        f"({', '.join(loaded.measures) or 'there was nothing to try'}).",
        hint="A smaller --size needs less, and so does a smaller model.",
    )


def _fallback_measures(loaded: LoadedPipeline, slicing: bool | None) -> list[str]:
    """The measures that can help this pipeline on its device, cheapest first."""
    measures = []
    if vae_tiling.can_tile(loading.latent_decoder(loaded.pipe)):
        measures.append(memory.VAE_TILING)
    # With a fused kernel, slicing needs more memory than it saves.
    if not loaded.device.fused_attention and slicing is not False:
        measures.append(memory.ATTENTION_SLICING)
    if loaded.device.own_memory and memory.GROUP_OFFLOAD not in loaded.measures:
        moved = memory.MODEL_OFFLOAD in loaded.measures
        if not moved and weight_offload.idle_text_encoders(loaded.pipe):
            measures.append(memory.TEXT_ENCODER_OFFLOAD)
        if loaded.pipe.model_cpu_offload_seq is not None:
            measures.append(memory.MODEL_OFFLOAD)
        if not saved_weights.lacks_group_offload(loaded.folder, loaded.quantize):
            measures.append(memory.GROUP_OFFLOAD)
    return measures
