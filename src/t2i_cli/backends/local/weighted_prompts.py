"""Encodes weighted and long prompts with compel, as embeddings that a pipeline takes for prompts.

A text without weights becomes the embedding that the pipeline itself would make, bit by bit, if it
fits the text encoder; a longer one is read in parts of its length, one after the other.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t2i_cli.backends.local import clip_layers
from t2i_cli.backends.local.compel_encoders import CompelEncoder, call_parameters, compel_encoders
from t2i_cli.backends.local.language_model_prompts import language_model_embeddings, parts_joined
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.models import prompt_support
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request import ResolvedRequest

_ENCODED = {"prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "clip_skip"}
"""Arguments of a pipeline's call that embeddings take the place of."""


def embedding_arguments(
    loaded: LoadedPipeline, arguments: Mapping[str, Any], requests: Sequence[ResolvedRequest]
) -> dict[str, Any]:
    """The arguments of a pipeline's call with embeddings in the place of weighted prompts.

    Those of requests in plain text are returned as they are.
    """
    if requests[0].prompt_syntax is None:
        return dict(arguments)
    import torch

    with torch.no_grad():
        embeddings = _embeddings(loaded, arguments, requests)
    kept = {name: value for name, value in arguments.items() if name not in _ENCODED}
    found = {name: value for name, value in embeddings.items() if value is not None}
    if "negative_prompt_embeds" in found:
        # Sana's default is an empty text, which it does not take beside an embedding.
        found["negative_prompt"] = None
    return kept | found


def count_alike(loaded: LoadedPipeline, requests: Iterable[ResolvedRequest]) -> int:
    """How many of the first requests have prompts of equal lengths in tokens, and can share a pass.

    Shorter prompts would be padded beside longer ones, which makes other images of them.
    """
    alike, length = 0, 0
    for request in requests:
        if request.prompt_syntax is not None:
            own = _padded_length(loaded, request)
            if alike and own != length:
                break
            length = own
        alike += 1
    return alike


def _embeddings(
    loaded: LoadedPipeline, arguments: Mapping[str, Any], requests: Sequence[ResolvedRequest]
) -> dict[str, Any]:
    """The embeddings of prompts and negative prompts by the arguments' names; `None` for none."""
    import torch

    pipe = loaded.pipe
    negatives = _negative_texts(loaded, arguments, requests)
    if type(pipe).__name__ in prompt_support.LANGUAGE_MODELS:
        return language_model_embeddings(loaded, arguments, requests, negatives.get(False, []))
    zeros = (
        type(pipe).__name__ in prompt_support.TWO_CLIPS
        and "negative_prompt" not in arguments
        and bool(pipe.config.force_zeros_for_empty_prompt)
    )
    # Layers are left out of the prompt only, as diffusers does.
    readers = compel_encoders(loaded, requests[0], clip_layers.skipped_layers(requests[0]))
    negative_readers = compel_encoders(loaded, requests[0], None)
    rows: list[tuple[list[LibraryObject], list[LibraryObject]]] = []
    pooled: list[LibraryObject] = []
    # One encoder after the other: with offload, each moves the one before it off the device.
    for reader, negative_reader in zip(readers, negative_readers, strict=True):
        prompts = [reader.prompt(request) for request in requests]
        refused = [] if zeros else negatives.get(reader.second, [])
        parsed = [negative_reader.parsed(t, "negative_prompt", requests[0]) for t in refused]
        if reader.gives_pooled:
            pooled = [reader.pooled(each) for each in prompts]
            pooled += [reader.pooled(each) for each in parsed]
        if reader.gives_embedding:
            rows.append(
                (
                    [reader.embedding(each) for each in prompts],
                    [negative_reader.embedding(each) for each in parsed],
                )
            )
    used = [reader for reader in readers if reader.gives_embedding]
    length = max(row.shape[1] for own, other in rows for row in (*own, *other))

    def joined(kind: int, encoders: Sequence[CompelEncoder]) -> LibraryObject:
        parts = [
            torch.cat([encoder.padded(row, length) for row in both[kind]])
            for encoder, both in zip(encoders, rows, strict=True)
            if both[kind]
        ]
        return torch.cat(parts, dim=-1) if parts else None

    count = len(requests)
    others = [each for each in negative_readers if each.gives_embedding]
    found = {
        "prompt_embeds": joined(0, used),
        "negative_prompt_embeds": joined(1, others),
        "pooled_prompt_embeds": torch.cat(pooled[:count]) if pooled else None,
        "negative_pooled_prompt_embeds": torch.cat(pooled[count:]) if pooled[count:] else None,
    }
    if zeros and negatives:
        found["negative_prompt_embeds"] = torch.zeros_like(found["prompt_embeds"])
        found["negative_pooled_prompt_embeds"] = torch.zeros_like(found["pooled_prompt_embeds"])
    return found


def _negative_texts(
    loaded: LoadedPipeline, arguments: Mapping[str, Any], requests: Sequence[ResolvedRequest]
) -> dict[bool, list[str]]:
    """The negative prompts of all requests, for the first encoder and for the second.

    None if nothing guides the image away from them.
    """
    given = arguments.get("negative_prompt")
    scale = arguments.get(loaded.spec.guidance_argument or "")
    guided = (
        type(loaded.pipe).__name__ not in prompt_support.CLIP_AND_T5
        and "negative_prompt_embeds" in call_parameters(loaded.pipe)
        and scale is not None
        and scale > loaded.spec.guidance_off
    )
    if given is None and not guided:
        return {}
    texts = [
        request.negative_prompt or (given[place] if given else "")
        for place, request in enumerate(requests)
    ]
    return {False: texts, True: list(arguments.get("negative_prompt_2") or texts)}


def _padded_length(loaded: LoadedPipeline, request: ResolvedRequest) -> int:
    """The tokens, or texts of full length, to which the request's prompts are padded."""
    if type(loaded.pipe).__name__ in prompt_support.LANGUAGE_MODELS:
        return parts_joined(request)
    lengths = [1]
    for encoder in compel_encoders(loaded, request, None):
        if not encoder.gives_embedding:
            continue
        lengths.append(encoder.length(encoder.prompt(request)))
        if request.negative_prompt:
            parsed = encoder.parsed(request.negative_prompt, "negative_prompt", request)
            lengths.append(encoder.length(parsed))
    return max(lengths)
