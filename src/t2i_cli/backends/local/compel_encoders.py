"""The text encoders of a pipeline as compel uses them, each giving what the pipeline takes."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from t2i_cli.backends.local import clip_layers, prompt_warnings
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.models import prompt_support
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.prompts.compel_prompt import parse_compel_prompt
from t2i_cli.prompts.weighted_prompt import parse_weights
from t2i_cli.request import ResolvedRequest

_LENGTH = "max_sequence_length"


class _EncoderView:
    """Stands for a text encoder in compel, and returns the layer that the pipeline takes.

    `layer` is an index of the hidden layers, `None` for the last one as the encoder returns it. An
    attention mask is passed on only if it hides a token: without one, the encoder computes as for
    the pipeline.
    """

    def __init__(
        self, encoder: LibraryObject, device: LibraryObject, layer: int | None, *, normalize: bool
    ) -> None:
        self._encoder = encoder
        self._layer = layer
        self._normalize = normalize
        self.device = device
        self.dtype = encoder.dtype

    def __call__(
        self, ids: LibraryObject, attention_mask: LibraryObject = None, **_: object
    ) -> SimpleNamespace:
        masked = attention_mask is not None and not bool(attention_mask.all())
        output = self._encoder(
            ids.to(self.device),
            attention_mask=attention_mask.to(self.device) if masked else None,
            output_hidden_states=self._layer is not None,
        )
        states = output.last_hidden_state
        if self._layer is not None:
            states = output.hidden_states[self._layer]
        if self._normalize:
            states = clip_layers.normalize_layer(self._encoder, states)
        pooled = output.get("text_embeds")
        return SimpleNamespace(
            last_hidden_state=states,
            pooler_output=output.get("pooler_output") if pooled is None else pooled,
        )


@dataclass(frozen=True)
class CompelEncoder:
    """A text encoder as compel uses it; `second` says that it reads the second prompt."""

    loaded: LoadedPipeline
    tokenizer: LibraryObject
    compel: LibraryObject
    second: bool

    @property
    def gives_embedding(self) -> bool:
        """Whether the pipeline takes the embedding of a prompt from it."""
        return self.second or self._family not in prompt_support.CLIP_AND_T5

    @property
    def gives_pooled(self) -> bool:
        """Whether the pipeline takes one vector of a prompt from it."""
        if self._family in prompt_support.TWO_CLIPS:
            return self.second
        return self._family in prompt_support.CLIP_AND_T5 and not self.second

    @property
    def _family(self) -> str:
        return type(self.loaded.pipe).__name__

    def prompt(self, request: ResolvedRequest) -> LibraryObject:
        """The request's prompt for this encoder, as compel's Conjunction."""
        if self.second and request.prompt_2:
            return self.parsed(request.prompt_2, "prompt_2", request)
        return self.parsed(request.prompt, "prompt", request)

    def parsed(self, text: str, field: str, request: ResolvedRequest) -> LibraryObject:
        """A text as compel's Conjunction, of parts that the tokenizer makes tokens of."""
        found = parse_prompt(text, field, request)
        for flat in flat_prompts(found):
            for part in flat.children:
                part.text = self._read_text(part.text)
            flat.children = [part for part in flat.children if self._has_tokens(part.text)]
            if not flat.children:
                flat.append(("", 1.0))
        return found

    def embedding(self, prompt: LibraryObject) -> LibraryObject:
        """The embedding (1 x tokens x width) of a Conjunction."""
        return self.compel.build_conditioning_tensor_for_conjunction(prompt)[0]

    def pooled(self, prompt: LibraryObject) -> LibraryObject:
        """The vector (1 x width) of a Conjunction's text, which has no weights."""
        flat = flat_prompts(prompt)
        text = " ".join(part.text.strip() for one in flat for part in one.children)
        if len(flat) == 1 and len(flat[0].children) == 1:
            text = flat[0].children[0].text
        return self.compel.conditioning_provider.get_pooled_embeddings([text])

    def padded(self, embedding: LibraryObject, length: int) -> LibraryObject:
        """An embedding with those of an empty text behind it, up to `length` tokens."""
        import torch

        empty = self.compel.conditioning_provider.empty_z
        repeats = (length - embedding.shape[1]) // empty.shape[1]
        return torch.cat([embedding, *[empty.to(embedding.dtype)] * repeats], dim=1)

    def length(self, prompt: LibraryObject) -> int:
        """The tokens of a Conjunction's embedding; encodes nothing."""
        provider = self.compel.conditioning_provider
        total = 0
        for one in prompt.prompts:
            flat = getattr(one, "prompts", [one])
            total += max(
                len(
                    provider.get_token_ids_and_expand_weights(
                        [part.text for part in each.children],
                        [part.weight for part in each.children],
                        device="cpu",
                    )[0]
                )
                for each in flat
            )
        return total

    def _read_text(self, text: str) -> str:
        text = prompt_warnings.text_read(self.loaded, text)
        convert = getattr(self.loaded.pipe, "maybe_convert_prompt", None)
        return text if convert is None else str(convert(text, self.tokenizer))

    def _has_tokens(self, text: str) -> bool:
        return bool(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def parse_prompt(text: str, field: str, request: ResolvedRequest) -> LibraryObject:
    """A text in the request's syntax as compel's Conjunction."""
    from compel import prompt_parser

    if request.prompt_syntax != prompt_support.COMPEL:
        parts = [tuple(part) for part in parse_weights(text, field)]
        return prompt_parser.Conjunction([prompt_parser.FlattenedPrompt(parts)])
    found = parse_compel_prompt(text, field, prompt_parser)
    children = [part for flat in flat_prompts(found) for part in flat.children]
    if len(children) == 1 and children[0].weight == 1:
        # The parser makes one space of several, and one behind a comma: some tokenizers see it.
        if "".join(children[0].text.split()) == "".join(text.split()):
            children[0].text = text
    return found


def flat_prompts(prompt: LibraryObject) -> list[LibraryObject]:
    """The prompts of a Conjunction, those of its blends included."""
    return [flat for one in prompt.prompts for flat in getattr(one, "prompts", [one])]


def call_parameters(pipe: LibraryObject) -> Mapping[str, Any]:
    """The parameters of a pipeline's call."""
    return inspect.signature(pipe.__call__).parameters


def compel_encoders(
    loaded: LoadedPipeline, request: ResolvedRequest, skipped: int | None
) -> list[CompelEncoder]:
    """The pipeline's text encoders, each returning what the pipeline takes of it."""
    pipe, family = loaded.pipe, type(loaded.pipe).__name__
    names = ("",) if family in prompt_support.ONE_CLIP else ("", "_2")
    found = []
    for suffix in names:
        encoder = getattr(pipe, f"text_encoder{suffix}")
        tokenizer = getattr(pipe, f"tokenizer{suffix}")
        if encoder is None:
            continue  # Stable Diffusion XL without its first
        is_clip = family not in prompt_support.CLIP_AND_T5
        layer = None
        if family in prompt_support.TWO_CLIPS:
            layer = -2 - (skipped or 0)
        elif is_clip and skipped is not None:
            layer = -1 - skipped
        normalize = family in prompt_support.ONE_CLIP and layer is not None
        view = _EncoderView(encoder, pipe._execution_device, layer, normalize=normalize)  # noqa: SLF001
        limit = None
        if family in prompt_support.CLIP_AND_T5 and suffix:
            limit = dict(request.extras or ()).get(_LENGTH)
            limit = limit or call_parameters(pipe)[_LENGTH].default
        found.append(
            CompelEncoder(
                loaded, tokenizer, _compel(view, tokenizer, limit, split=is_clip), bool(suffix)
            )
        )
    return found


def _compel(
    view: _EncoderView, tokenizer: LibraryObject, limit: object, *, split: bool
) -> LibraryObject:
    """compel for one text encoder; with `split`, it reads long texts in parts."""
    from compel import Compel, ReturnedEmbeddingsType, SplitLongTextMode

    return Compel(
        tokenizer=tokenizer,
        text_encoder=view,
        truncate_long_prompts=not split,
        returned_embeddings_type=ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED,
        split_long_text_mode=SplitLongTextMode.PHRASES,
        device=view.device,
        model_max_length=limit,
    )
