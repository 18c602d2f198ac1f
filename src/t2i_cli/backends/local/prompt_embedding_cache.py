"""Cache of prompt embeddings: prompts, and above all negative prompts, repeat.

Each text is encoded on its own, not with the others of its batch, so that its embedding is
bit-identical in a batch of any size.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import overload

from t2i_cli.models.libraries import LibraryObject

MAX_CACHE_BYTES = 256 * 2**20
"""Maximum bytes of embeddings per encoder, in the host's memory; evicts the least recently used."""

_ENCODERS = {"CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"}
"""Encoders whose output rows depend on the same row of their input only."""

_LANGUAGE_MODELS = {
    *("BertModel", "UMT5EncoderModel", "T5GemmaEncoderModel", "T5GemmaEncoder", "T5Gemma2Encoder"),
    *("GemmaModel", "Gemma2Model", "GlmModel", "ChatGLMModel", "LlamaModel", "LlamaForCausalLM"),
    *("MistralModel", "Mistral3Model", "Mistral3ForConditionalGeneration", "SmolLM3ForCausalLM"),
    *("Qwen2Model", "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
    *("Qwen2_5_VLTextModel", "Qwen3Model", "Qwen3ForCausalLM", "Qwen3VLModel"),
    "Qwen3VLForConditionalGeneration",
}
"""The same for language models, as diffusers' own pipelines use them: for what hidden layers hold.

Their attention masks and positions are of one row; padding is part of the row, on either side.
"""

_ROW_AXES = {"ChatGLMModel": 1}
"""Axis of the rows in an encoder's output where it is not the first."""
_ROW_ARGUMENTS = {"attention_mask", "position_ids", "token_type_ids"}
"""Tensor arguments of language models that have one row of tokens per text."""
_NOT_READ = {"logits", "past_key_values", "attentions", "router_logits"}
"""Large outputs that no pipeline reads of its text encoder."""


def cache_text_embeddings(pipe: LibraryObject) -> None:
    """Wrap the `forward` of a pipeline's text encoders with a cache.

    It wraps offload hooks as well, so that a cached text moves no encoder to its device. Pipelines
    make those hooks anew at their end, so this is called before each pass; the cache is kept.
    """
    own = type(pipe).__module__.startswith("diffusers.")
    for module in pipe.components.values():
        name = type(module).__name__
        if name not in _ENCODERS and not (own and name in _LANGUAGE_MODELS):
            continue
        if not isinstance(module.forward, _CachedForward):
            cached = getattr(module, _CACHE_ATTRIBUTE, None) or _CachedForward(module)
            setattr(module, _CACHE_ATTRIBUTE, cached)
            cached.wrap(module.forward)
            module.forward = cached


_CACHE_ATTRIBUTE = "_t2i_cached_forward"
_STATE_ATTRIBUTE = "_t2i_encoder_state"


def set_encoder_state(pipe: LibraryObject, state: Hashable) -> None:
    """Say by what the text encoders differ from those that were loaded, `None` for not at all.

    Texts that were encoded in one state are not taken in another: LoRAs and embeddings change them.
    """
    for module in pipe.components.values():
        if hasattr(module, "forward"):
            setattr(module, _STATE_ATTRIBUTE, state)


def cached_encoders(pipe: LibraryObject) -> list[LibraryObject]:
    """The text encoders of a pipeline whose `forward` has a cache."""
    return [
        module
        for module in pipe.components.values()
        if isinstance(getattr(module, "forward", None), _CachedForward)
    ]


@dataclass
class _Embedding:
    """The output for one text: tensors by field, and of `count` hidden layers those ever read."""

    kind: Callable[..., LibraryObject]
    tensors: dict[str, LibraryObject]
    count: int
    layers: dict[int, LibraryObject] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Their size."""
        return sum(t.nbytes for part in (self.tensors, self.layers) for t in part.values())


@dataclass(frozen=True)
class _Row:
    """One text of a call; `fresh` are its hidden layers, if it was encoded just now."""

    ids: LibraryObject
    arguments: dict[str, LibraryObject]
    embedding: _Embedding
    fresh: Sequence[LibraryObject] | None


class _CachedForward:
    """Replaces an encoder's `forward`, with an LRU cache of its outputs by row."""

    def __init__(self, module: LibraryObject) -> None:
        self._module = module
        self._is_language_model = type(module).__name__ in _LANGUAGE_MODELS
        self._own_hooks: set[int] = set()
        self._axis = _ROW_AXES.get(type(module).__name__, 0)
        self._cache: OrderedDict[tuple[object, ...], _Embedding] = OrderedDict()
        self._bytes = 0

    def wrap(self, forward: Callable[..., LibraryObject]) -> None:
        """Call this `forward` for texts that are not in the cache."""
        # generate() of a language model looks at the signature.
        functools.update_wrapper(self, forward)
        self._forward = forward

    def __call__(
        self, input_ids: LibraryObject = None, *args: LibraryObject, **kwargs: LibraryObject
    ) -> LibraryObject:
        """Encode integer token ids (batch x tokens) row by row, to the encoder's output type."""
        if (
            args
            or input_ids is None
            or input_ids.ndim != 2
            or not _is_row_wise(kwargs, input_ids)
            or (self._is_language_model and not self._only_encodes(kwargs))
        ):
            return self._run(input_ids, *args, **kwargs)
        rows = [
            self._encode(
                input_ids[index : index + 1],
                {name: _row(value, index) for name, value in kwargs.items()},
            )
            for index in range(len(input_ids))
        ]
        return self._join(rows, input_ids.device)

    def _only_encodes(self, kwargs: dict[str, LibraryObject]) -> bool:
        """Whether a language model is to encode a text: not to write one, nor to read an image.

        A pipeline that reads a layer by a hook must get its call.
        """
        tensors = {name for name, value in kwargs.items() if hasattr(value, "shape")}
        return (
            tensors <= _ROW_ARGUMENTS
            and kwargs.get("use_cache") is not True
            and not self._hooks() - self._own_hooks
        )

    def _hooks(self) -> set[int]:
        """The handles of the hooks on a language model and its parts."""
        if not self._is_language_model:
            return set()
        return {
            handle
            for part in self._module.modules()
            # There is no public way to ask.
            for handle in (*part._forward_hooks, *part._forward_pre_hooks)  # noqa: SLF001
        }

    def _run(
        self, ids: LibraryObject, *args: LibraryObject, **kwargs: LibraryObject
    ) -> LibraryObject:
        """Call the encoder; hooks that it has afterwards are its own, as transformers' are."""
        before = self._hooks()
        output = self._forward(ids, *args, **kwargs)
        self._own_hooks |= self._hooks() - before
        return output

    def _encode(self, ids: LibraryObject, kwargs: dict[str, LibraryObject]) -> _Row:
        state = getattr(self._module, _STATE_ATTRIBUTE, None)
        arguments = ((name, _key_part(value)) for name, value in sorted(kwargs.items()))
        key = (state, ids.cpu().numpy().tobytes(), *arguments)
        if key in self._cache:
            self._cache.move_to_end(key)
            return _Row(ids, kwargs, self._cache[key], None)
        output = self._run(ids, **kwargs)
        layers = output.get("hidden_states")
        tensors = {
            name: _to_host(value)
            for name, value in output.items()
            if name != "hidden_states" and name not in _NOT_READ
        }
        embedding = _Embedding(type(output), tensors, 0 if layers is None else len(layers))
        self._cache[key] = embedding
        self._bytes += embedding.bytes
        self._evict()
        return _Row(ids, kwargs, embedding, layers)

    def _join(self, rows: list[_Row], device: LibraryObject) -> LibraryObject:
        """The output for all rows, on `device`; hidden layers are joined when they are read."""
        import torch

        first = rows[0].embedding
        values: dict[str, LibraryObject] = {
            name: torch.cat([row.embedding.tensors[name] for row in rows], self._axis).to(device)
            for name in first.tensors
        }
        if first.count:
            values["hidden_states"] = _HiddenLayers(
                first.count,
                lambda number: torch.cat([self._layer(row, number) for row in rows], self._axis).to(
                    device
                ),
            )
        return first.kind(**values)

    def _layer(self, row: _Row, number: int) -> LibraryObject:
        """A hidden layer of one text; kept from its first reading on."""
        embedding = row.embedding
        if number not in embedding.layers:
            fresh = row.fresh
            if fresh is None:
                fresh = self._run(row.ids, **row.arguments).hidden_states
            before = embedding.bytes
            embedding.layers[number] = _to_host(fresh[number])
            if any(kept is embedding for kept in self._cache.values()):
                self._bytes += embedding.bytes - before
                self._evict()
        return embedding.layers[number]

    def _evict(self) -> None:
        while self._bytes > MAX_CACHE_BYTES and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._bytes -= oldest.bytes


class _HiddenLayers(Sequence[LibraryObject]):
    """The hidden layers of an output, in place of a tuple: most are never read."""

    def __init__(self, count: int, layer: Callable[[int], LibraryObject]) -> None:
        self._count = count
        self._layer = layer

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> LibraryObject: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[LibraryObject, ...]: ...
    def __getitem__(self, place: int | slice) -> LibraryObject:
        if isinstance(place, slice):
            return tuple(map(self._layer, range(self._count)[place]))
        return self._layer(range(self._count)[place])


def _is_row_wise(kwargs: dict[str, LibraryObject], ids: LibraryObject) -> bool:
    """Whether every argument is a plain value, or has one row per text."""
    return kwargs.get("return_dict") is not False and all(
        value is None
        or isinstance(value, bool | int | str)
        or (
            hasattr(value, "shape")
            and value.shape[:1] == ids.shape[:1]
            # Positions in three dimensions begin with those.
            and (name != "position_ids" or value.ndim == 2)
        )
        for name, value in kwargs.items()
    )


def _row(value: LibraryObject, index: int) -> LibraryObject:
    return value[index : index + 1] if hasattr(value, "shape") else value


def _key_part(value: LibraryObject) -> object:
    return value.cpu().numpy().tobytes() if hasattr(value, "shape") else value


def _to_host(tensor: LibraryObject) -> LibraryObject:
    return tensor.detach().cpu()
