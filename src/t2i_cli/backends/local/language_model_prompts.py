"""Encodes weighted prompts with compel where a language model is the text encoder.

The tokens are those that the pipeline itself would encode: of the whole text, and of the
instruction before it. compel's own classes leave Sana's out, and join words without spaces.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

from t2i_cli.backends.local import prompt_instruction, prompt_warnings
from t2i_cli.backends.local.compel_encoders import flat_prompts, parse_prompt
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.models import prompt_support
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.prompts.compel_prompt import with_spaces
from t2i_cli.request import ResolvedRequest

_END = -1
"""A token of no model, behind each part's tokens: compel takes it off."""


class _WholeTextTokenizer:
    """Stands for a tokenizer in compel: the tokens of parts of a text are those of the whole.

    A token belongs to the part in which it ends. compel adds no marks of beginning and end: those
    of the tokenizer belong to the first and to the last part.
    """

    bos_token_id = None
    eos_token_id = _END

    def __init__(self, tokenizer: LibraryObject, instruction: str, length: int) -> None:
        self._tokenizer = tokenizer
        self._instruction = instruction
        self._length = length
        self.pad_token_id = tokenizer.pad_token_id

    def __call__(self, texts: Sequence[str], **_: object) -> dict[str, list[list[int]]]:
        if not texts:
            return {"input_ids": []}
        # compel's empty text
        parts = texts if any(texts) else [self._instruction, *texts[1:]]
        return {"input_ids": [[*ids, _END] for ids in self.token_ids(parts)]}

    def token_ids(self, parts: Sequence[str]) -> list[list[int]]:
        """The tokens of each part, of those that fit the text encoder."""
        encoded = self._tokenizer(
            "".join(parts),
            truncation=True,
            max_length=self._length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        ends = list(accumulate(map(len, parts)))
        found: list[list[int]] = [[] for _ in parts]
        place = 0
        marks = encoded["special_tokens_mask"]
        for number, (token, (_, end)) in enumerate(
            zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ):
            if marks[number]:
                is_last = number and all(marks[number:])
                place = len(parts) - 1 if is_last else place
            else:
                place = min(max(place, bisect_left(ends, end)), len(parts) - 1)
            found[place].append(token)
        return found


class _LanguageModel:
    """Stands for a text encoder in compel: returns the layer that the pipeline takes."""

    def __init__(
        self, pipe: LibraryObject, empty: tuple[LibraryObject, LibraryObject], layer: int | None
    ) -> None:
        self._encoder = pipe.text_encoder
        self._empty = empty
        self._layer = layer
        self.device = pipe._execution_device  # noqa: SLF001 - there is no public way to ask
        self.dtype = pipe.text_encoder.dtype

    def __call__(
        self, ids: LibraryObject, attention_mask: LibraryObject = None, **_: object
    ) -> SimpleNamespace:
        if attention_mask is None:  # compel's empty text, of padding that hides nothing
            ids, attention_mask = self._empty
        hidden = {} if self._layer is None else {"output_hidden_states": True}
        output = self._encoder(
            ids.to(self.device), attention_mask=attention_mask.to(self.device), **hidden
        )
        if self._layer is None:
            return SimpleNamespace(last_hidden_state=output[0])
        return SimpleNamespace(last_hidden_state=output.hidden_states[self._layer])


class _LanguageModelEncoder:
    """Encodes prompts behind one instruction, as embeddings and masks of the tokens to be read."""

    def __init__(
        self, loaded: LoadedPipeline, arguments: Mapping[str, Any], instruction: str
    ) -> None:
        from compel import Compel

        pipe = loaded.pipe
        self._loaded = loaded
        self._instruction = instruction
        self._taken = prompt_instruction.read_tokens(pipe, arguments) or 0
        self._encoded = prompt_instruction.encoded_tokens(pipe, instruction, self._taken)
        self._tokenizer = _WholeTextTokenizer(pipe.tokenizer, instruction, self._encoded)
        layer = -2 if type(pipe).__name__ in prompt_support.LUMINA2 else None
        model = _LanguageModel(pipe, self._padded(self._tokenizer.token_ids([instruction])), layer)
        self._compel = Compel(
            tokenizer=self._tokenizer,
            text_encoder=model,
            truncate_long_prompts=True,
            padding_attention_mask_value=0,
            device=model.device,
            model_max_length=self._encoded,
            suppress_eos=True,
        )

    def encoded(
        self, text: str, field: str, request: ResolvedRequest
    ) -> tuple[LibraryObject, LibraryObject]:
        """A text's embedding (tokens x width) and mask (tokens); tokens to be read come first."""
        import torch

        conjunction = parse_prompt(text, field, request)
        for flat in flat_prompts(conjunction):
            flat.children = self._parts(flat, request)
        masks = [
            torch.stack([self._mask(flat) for flat in getattr(one, "prompts", [one])]).amax(0)
            for one in conjunction.prompts
        ]
        embedding = self._compel.build_conditioning_tensor_for_conjunction(conjunction)[0][0]
        # As the pipeline does: the mark of beginning, and the end of what is encoded.
        taken = [0, *range(self._encoded - self._taken + 1, self._encoded)]
        rows = embedding.reshape(len(masks), self._encoded, -1)[:, taken].flatten(0, 1)
        mask = torch.cat([one[taken] for one in masks]).to(rows.device)
        # Parts that follow each other have padding between them, which transformers do not expect.
        order = mask.argsort(descending=True, stable=True)
        return rows[order], mask[order]

    def _parts(self, flat: LibraryObject, request: ResolvedRequest) -> list[LibraryObject]:
        """A prompt's parts behind the instruction: the first and the last have no weight."""
        from compel import prompt_parser

        texts = [part.text for part in flat.children]
        if len(texts) == 1:
            texts = [prompt_warnings.text_read(self._loaded, texts[0])]
        else:
            texts = [self._read_text(text) for text in texts]
        if request.prompt_syntax == prompt_support.COMPEL:
            texts = with_spaces(texts)
        texts = [prompt_instruction.in_encoded_case(self._loaded.pipe, text) for text in texts]
        if type(self._loaded.pipe).__name__ in prompt_support.SANA:
            texts = _stripped(texts)
        weights = [1.0, *(part.weight for part in flat.children), 1.0]
        texts = [self._instruction, *texts, ""]
        found: list[LibraryObject] = []
        ids = self._tokenizer.token_ids(texts)
        for part, weight, tokens in zip(texts, weights, ids, strict=True):
            if found and not tokens:
                found[-1].text += part
            else:
                found.append(prompt_parser.Fragment(part, weight))
        return found

    def _read_text(self, text: str) -> str:
        """A part's text without the tags of LoRAs, and with the spaces at its ends."""
        read = prompt_warnings.text_read(self._loaded, text)
        if read == text:
            return text
        before, after = text[:1].isspace(), text[-1:].isspace()
        return " " * before + read.strip() + " " * after

    def _mask(self, flat: LibraryObject) -> LibraryObject:
        return self._padded(self._tokenizer.token_ids([part.text for part in flat.children]))[1][0]

    def _padded(self, parts: Sequence[Sequence[int]]) -> tuple[LibraryObject, LibraryObject]:
        """Token ids and mask (1 x tokens), padded to what is encoded."""
        import torch

        ids = [token for part in parts for token in part]
        empty = self._encoded - len(ids)
        padded = [*ids, *[self._tokenizer.pad_token_id] * empty]
        return torch.tensor([padded]), torch.tensor([[1] * len(ids) + [0] * empty])


def language_model_embeddings(
    loaded: LoadedPipeline,
    arguments: Mapping[str, Any],
    requests: Sequence[ResolvedRequest],
    negatives: Sequence[str],
) -> dict[str, Any]:
    """The embeddings and masks of prompts and negative prompts, by the arguments' names."""
    import torch
    from torch.nn.functional import pad

    instruction = prompt_instruction.prompt_instruction(loaded.pipe, arguments)
    reader = _LanguageModelEncoder(loaded, arguments, instruction)
    prompts = [reader.encoded(one.prompt, "prompt", one) for one in requests]
    if negatives and instruction:
        reader = _LanguageModelEncoder(loaded, arguments, "")
    refused = [reader.encoded(text, "negative_prompt", requests[0]) for text in negatives]
    length = max(len(mask) for _, mask in (*prompts, *refused))
    found = {}
    for sign, texts in (("", prompts), ("negative_", refused)):
        if texts:
            rows = [pad(row, (0, 0, 0, length - len(row))) for row, _ in texts]
            masks = [pad(mask, (0, length - len(mask))) for _, mask in texts]
            found[f"{sign}prompt_embeds"] = torch.stack(rows)
            found[f"{sign}prompt_attention_mask"] = torch.stack(masks)
    return found


def parts_joined(request: ResolvedRequest) -> int:
    """How many texts the longer of prompt and negative prompt joins, each of full length."""
    texts = (("prompt", request.prompt), ("negative_prompt", request.negative_prompt))
    return max(
        (len(parse_prompt(text, field, request).prompts) for field, text in texts if text),
        default=1,
    )


def _stripped(texts: Sequence[str]) -> list[str]:
    """Parts of a text without the space at both its ends."""
    found = list(texts)
    for places, strip in ((range(len(found)), str.lstrip), (range(len(found))[::-1], str.rstrip)):
        for place in places:
            found[place] = strip(found[place])
            if found[place]:
                break
    return found
