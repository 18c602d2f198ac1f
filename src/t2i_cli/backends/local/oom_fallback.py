"""When memory runs out all the same: one measure more, then the work is tried again."""

from t2i_cli.backends.local import device, loading, memory
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.errors import OutOfMemoryError


def apply_next_measure(loaded: LoadedPipeline, *, batch: int, slicing: bool | None) -> None:
    """Take the next measure for a pass of `batch` images; `slicing` is the user's word on it.

    Raises OutOfMemoryError at the foot of the ladder.
    """
    device.clear_cache(loaded.device)
    reason = f"{loaded.device.name} ran out of memory"
    if batch > 1:
        loaded.batch_limit = batch // 2
        loaded.record_measure(f"batch-size-{loaded.batch_limit}", reason)
        return
    while rungs := [rung for rung in _rungs(loaded, slicing) if rung not in loaded.measures]:
        try:
            loaded.place((rungs[0],), reason)
        except Exception as error:  # only memory is dealt with here
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


def _rungs(loaded: LoadedPipeline, slicing: bool | None) -> list[str]:
    """The measures that can help this pipeline on its device, the cheapest first."""
    rungs = []
    if hasattr(loading.latent_decoder(loaded.pipe), "enable_tiling"):
        rungs.append(memory.VAE_TILING)
    # Beside a fused kernel, slicing takes more memory than it saves.
    if not loaded.device.fused_attention and slicing is not False:
        rungs.append(memory.ATTENTION_SLICING)
    if loaded.device.own_memory and memory.GROUP_OFFLOAD not in loaded.measures:
        if loaded.pipe.model_cpu_offload_seq is not None:
            rungs.append(memory.MODEL_OFFLOAD)
        rungs.append(memory.GROUP_OFFLOAD)
    return rungs
