"""Warnings on prompts: text beyond the encoder's limit, and words unknown to postcard."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from t2i_cli import postcard
from t2i_cli.backends.local import prompt_instruction
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.events import Notice
from t2i_cli.models import adapter_resolution, prompt_support
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.postcard import wording
from t2i_cli.prompts.compel_prompt import compel_texts
from t2i_cli.prompts.weighted_prompt import parse_weights
from t2i_cli.request import ResolvedRequest

_WORD = re.compile(r"[^\W\d_]+")
_MAX_LISTED = 12
"""Maximum number of words that a notice lists."""


@dataclass(frozen=True)
class PromptText:
    """A text to encode; `instruction` is what the pipeline puts before it, `most` its tokens."""

    words: str
    instruction: str = ""
    most: int | None = None


def indices_by_prompt(
    loaded: LoadedPipeline, members: Iterable[tuple[int, ResolvedRequest]]
) -> dict[PromptText, list[int]]:
    """The prompts and negative prompts, each with the positions of its requests."""
    found: dict[PromptText, list[int]] = {}
    for index, request in members:
        extras = dict(request.extras or ())
        instruction = prompt_instruction.prompt_instruction(loaded.pipe, extras)
        most = prompt_instruction.read_tokens(loaded.pipe, extras)
        prompts = (
            (request.prompt, instruction),
            (request.prompt_2, ""),
            (request.negative_prompt, ""),
        )
        for prompt, before in dict.fromkeys(prompts):
            if prompt:
                for words in _without_weights(prompt, request):
                    found.setdefault(PromptText(words, before, most), []).append(index)
    return found


def _without_weights(prompt: str, request: ResolvedRequest) -> Sequence[str]:
    """The words of a prompt as the text encoders get them, of each part encoded on its own."""
    if request.prompt_syntax == prompt_support.A1111:
        return ["".join(part.text for part in parse_weights(prompt))]
    if request.prompt_syntax == prompt_support.COMPEL:
        return list(dict.fromkeys(compel_texts(prompt)))
    return [prompt]


def prompt_warnings(
    loaded: LoadedPipeline, text: PromptText, *, in_parts: bool = False
) -> Iterator[Notice]:
    """Yield warnings on a prompt; `in_parts` says that a long one is read in parts."""
    prompt = text.words
    if _reads_nothing(loaded, prompt):
        yield Notice(
            message="The model reads nothing of the prompt: it has no word that the model knows."
        )
    read_text = text_read(loaded, prompt)
    truncated = "" if in_parts else _truncated_text(loaded.pipe, replace(text, words=read_text))
    if truncated:
        yield Notice(message=f"The prompt is too long for the text encoder, {truncated}")
    if loaded.spec.folder != postcard.FOLDER:
        return
    read = wording.reword(adapter_resolution.without_tags(prompt, loaded.spec))
    if read.changes:
        yield Notice(message=f"postcard reads {_listed(list(read.changes), ', ')}.")
    if unknown := _unknown_words(read.prompt):
        yield Notice(
            message=f"postcard does not know: {unknown}.",
            hint="`t2i models show postcard` has the words it knows.",
        )


def text_read(loaded: LoadedPipeline, prompt: str) -> str:
    """The prompt as the model's tokenizer gets it: for postcard, in the words that it knows."""
    text = adapter_resolution.without_tags(prompt, loaded.spec)
    return wording.reword(text).prompt if loaded.spec.folder == postcard.FOLDER else text


def _reads_nothing(loaded: LoadedPipeline, prompt: str) -> bool:
    """Whether no text encoder gets anything of the prompt that it has a token for.

    postcard was trained on its words alone: what its tokenizer spells in letters, signs or bytes
    means nothing to it.
    """
    if loaded.spec.folder == postcard.FOLDER:
        return not any(
            word in postcard.words() for word in _WORD.findall(text_read(loaded, prompt).lower())
        )
    if any(c.isascii() and c.isalnum() for c in prompt):
        return False  # Every tokenizer has these: skip it, which takes 0.5 ms.
    tokenizers = [part for part in loaded.pipe.components.values() if hasattr(part, "unk_token_id")]
    return bool(tokenizers) and not any(_has_known_token(part, prompt) for part in tokenizers)


def _has_known_token(tokenizer: LibraryObject, prompt: str) -> bool:
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    # SentencePiece puts a mark of a word's beginning before a piece that it does not know.
    words = tokenizer.convert_ids_to_tokens(ids)
    return any(
        token != tokenizer.unk_token_id and word.strip("\u2581 ")
        for token, word in zip(ids, words, strict=True)
    )


def _unknown_words(prompt: str) -> str:
    words = dict.fromkeys(_WORD.findall(prompt.lower()))
    return _listed([word for word in words if word not in postcard.words()])


def _truncated_text(pipe: LibraryObject, text: PromptText) -> str:
    """How much of the prompt is read, and its end, which all of the text encoders truncate.

    Empty if one of them reads it whole.
    """
    prompt = text.words
    encoded = prompt_instruction.in_encoded_case(pipe, prompt)
    if len(encoded) == len(prompt):
        text = replace(text, words=encoded)
    if text.most is not None:
        most = prompt_instruction.encoded_tokens(pipe, text.instruction, text.most)
        text = replace(text, most=most)
    ends = [
        _truncation(component, text)
        for component in pipe.components.values()
        if hasattr(component, "model_max_length")
    ]
    if not ends or None in ends:
        return ""
    end, tokens, most = max(end for end in ends if end)
    # A partly read word counts as truncated.
    read = prompt[: max(prompt.rfind(" ", 0, end), 0)]
    unread = _listed(prompt[len(read) :].split())
    if not unread:
        return ""
    return f"which reads {most} of its {tokens} tokens, and does not read: {unread}"


def _truncation(tokenizer: LibraryObject, text: PromptText) -> tuple[int, int, int] | None:
    """The character offset at which the tokenizer truncates the prompt, its tokens, and the most.

    `None` if it reads it whole; the marks of beginning and end are no tokens of the prompt.

    For CLIP, the limit is the tokenizer's (77 tokens); for other encoders (T5, language models) it
    is also the pipeline's `max_sequence_length`, where an instruction before the prompt takes some.
    """
    max_tokens = tokenizer.model_max_length
    if text.most is not None and not type(tokenizer).__name__.startswith("CLIP"):
        # Those with an instruction say what they truncate to.
        max_tokens = text.most if text.instruction else min(max_tokens, text.most)
    max_text_tokens = max_tokens - tokenizer.num_special_tokens_to_add()
    whole = text.instruction + text.words
    if whole.isascii() and len(whole) < max_text_tokens:
        # A token has at least one character: skip the tokenizer, which takes 0.5 ms.
        return None
    encoded = tokenizer(whole, return_offsets_mapping=True, truncation=False, verbose=False)
    if len(encoded["input_ids"]) <= max_tokens:
        return None
    spans = [span for span in encoded["offset_mapping"] if span[1] > span[0]]
    if len(spans) <= max_text_tokens:
        return None
    begin = len(text.instruction)
    own = [span for span in spans if span[1] > begin]
    most = max(max_text_tokens - (len(spans) - len(own)), 0)
    return max(int(own[most][0]) - begin, 0), len(own), most


def _listed(words: list[str], separator: str = " ") -> str:
    more = len(words) - _MAX_LISTED
    return separator.join(words[:_MAX_LISTED]) + (f" … ({more} more)" if more > 0 else "")
