"""Encodes the prompts of all passes at once where text encoders leave the device after each."""

from collections.abc import Sequence
from typing import Self

from t2i_cli.backends.local import (
    clip_layers,
    device,
    memory,
    pipeline,
    pipeline_calls,
    prompt_embedding_cache,
    random_state,
    weighted_prompts,
)
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.errors import error_reason
from t2i_cli.events import Notice
from t2i_cli.models import libraries
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request import ResolvedRequest

MAX_TEXTS = 32
"""Requests encoded ahead: their embeddings must still be in the cache when their turn comes."""


class _TextsEncoded(Exception):  # noqa: N818 - control flow, not an error
    """The pipeline is about to denoise: its texts are encoded."""


class _StopAtDenoising:
    """Replaces `pipe.progress_bar`, which every pipeline makes after it has encoded its texts."""

    def __call__(self, *_: object, **__: object) -> Self:
        raise _TextsEncoded


def encode_ahead(loaded: LoadedPipeline, requests: Sequence[ResolvedRequest]) -> None:
    """Fill the cache with the embeddings of requests that have equal batch keys.

    With model offload, a text encoder comes to the device for each pass with a new text, and leaves
    it again; here it comes once for all. Elsewhere it stays, and nothing is gained. A failure is
    told once; the texts are then encoded in their passes.
    """
    texts = {(one.prompt, one.prompt_2, one.negative_prompt): one for one in requests}
    distinct = list(texts.values())[:MAX_TEXTS]
    if memory.MODEL_OFFLOAD not in loaded.measures or len(distinct) < 2:
        return
    prompt_embedding_cache.cache_text_embeddings(loaded.pipe)
    encoders = prompt_embedding_cache.cached_encoders(loaded.pipe)
    if not encoders:
        return
    # Of several encoders each moves the one before it off the device: they take all texts at once.
    # One alone takes text by text, padded as in a pass of that text.
    groups = [distinct] if len(encoders) > 1 else [[request] for request in distinct]
    try:
        try:
            for group in groups:
                _encode(loaded, group)
        finally:
            loaded.pipe.maybe_free_model_hooks()
    except Exception as error:  # noqa: BLE001 - pipelines may raise anything; their pass will, too
        if device.is_out_of_memory(error):
            device.clear_cache(loaded.device)
        reason = error_reason(error)
        loaded.on_event(Notice(message=f"Prompts are not encoded ahead of their passes: {reason}"))


def _encode(loaded: LoadedPipeline, requests: Sequence[ResolvedRequest]) -> None:
    """Run the pipeline on the requests until it begins to denoise."""
    arguments: dict[str, LibraryObject] = pipeline.pipeline_arguments(loaded, requests)
    seeded = random_state.seeded_global_generators(requests[0].seed, loaded.device)
    loaded.set_scheduler(requests[0].scheduler, requests[0].schedule)
    loaded.pipe.progress_bar = _StopAtDenoising()
    try:
        skipping = clip_layers.skipping_layers(loaded.pipe, requests[0])
        with seeded, libraries.suppress_warnings(), skipping:
            arguments = weighted_prompts.embedding_arguments(loaded, arguments, requests)
            arguments = pipeline_calls.call_arguments(loaded.pipe, arguments, requests)
            loaded.pipe(**arguments)
    except _TextsEncoded:
        return
