"""Which pipelines a step cache works for: diffusers' first-block hook knows their transformers."""

STEP_CACHE_PIPELINES = frozenset(
    {"CogView4Pipeline", "FluxKontextPipeline", "FluxPipeline", "QwenImagePipeline"}
)
"""tests/test_step_cache.py tries the hook on every family's transformer; these are left.

The hook (diffusers 0.42) needs blocks that it knows, that take `hidden_states`, and of which the
first and the last return as many streams: Stable Diffusion 3's last block returns one of two,
FLUX.2 goes on with one where it began with two, and Z-Image's blocks call their input `x`.
"""


def step_cache_complaint(model: str, pipeline: str | None) -> str | None:
    """The sentence that refuses a step cache to a model, `None` if it takes one or is unknown."""
    if pipeline is None or pipeline in STEP_CACHE_PIPELINES:
        return None
    return (
        f"{model} takes no step cache: diffusers' first-block hook does not know the network of a "
        f"{pipeline}."
    )
