"""Load a model's pipeline as the options say, and move it to its device as planned."""

from t2i_cli.backends.local import (
    absent_gpu,
    batch_size,
    device,
    load_target,
    loading,
    memory,
    oom_fallback,
    vae_decode,
)
from t2i_cli.backends.local.load_target import LoadTarget
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.backends.local.memory_plan import MemoryPlan
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.events import Notice, OnEvent


def load_for_options(
    target: LoadTarget, options: LocalOptions, on_event: OnEvent
) -> LoadedPipeline:
    """Load a pipeline into the host's memory, and tell what the options cannot have of it."""
    loaded = loading.load_pipeline(
        target,
        on_event,
        safety_checker=options.safety_checker,
        trust_remote_code=options.trust_remote_code,
    )
    vae_decode.install_decode_fallback(loaded)
    absent_gpu.tell_unused_gpu(target.device.kind, options.device, on_event)
    loaded.engine.compile_mode = options.compile
    if options.attention_slicing:
        on_event(Notice(message=load_target.attention_slicing_notice(target)))
    if (options.batch_size or 1) > 1 and not batch_size.are_independent(type(loaded.pipe)):
        on_event(Notice(message=batch_size.dependence_reason(type(loaded.pipe))))
    return loaded


def place_as_planned(loaded: LoadedPipeline, plan: MemoryPlan, options: LocalOptions) -> None:
    """Move a pipeline to its device with the planned measures, and more if memory runs out."""
    loaded.plan = plan
    loaded.engine.graphs_fit = plan.cuda_graphs_mib != 0
    requested = plan.measures if options.memory == "low" else ()
    if options.attention_slicing:
        requested += (memory.ATTENTION_SLICING,)
    try:
        reason = "to fit the memory that is free"
        loaded.place(plan.measures, reason, requested, plan.vae_tile)
    except Exception as error:  # only out of memory is handled
        if not device.is_out_of_memory(error):
            raise
    else:
        return
    oom_fallback.apply_next_measure(loaded, batch=1, slicing=options.attention_slicing)
