"""What of a prompt the model will not understand: words cut off, or never learnt."""

import inspect
import re
from collections.abc import Iterable, Iterator

from t2i_cli import postcard
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request import ResolvedRequest

_WORD = re.compile(r"[^\W\d_]+")
_SHOWN = 12
"""Words named at most in a note."""


def indices_by_prompt(members: Iterable[tuple[int, ResolvedRequest]]) -> dict[str, list[int]]:
    """Prompts and negative prompts, with the positions of the requests that have them."""
    found: dict[str, list[int]] = {}
    for index, request in members:
        for words in dict.fromkeys((request.prompt, request.negative_prompt)):
            if words:
                found.setdefault(words, []).append(index)
    return found


def prompt_warnings(loaded: LoadedPipeline, prompt: str) -> Iterator[str]:
    """Sentences on the prompt for the person who wrote it."""
    if cut := _cut(loaded.pipe, prompt):
        yield f"The prompt is too long for the text encoder, which does not read: {cut}"
    if loaded.spec.folder == postcard.FOLDER and (unknown := _unknown(prompt)):
        yield (
            f"postcard does not know: {unknown}; `t2i models show postcard` has the words it knows."
        )


def _unknown(prompt: str) -> str:
    words = dict.fromkeys(_WORD.findall(prompt.lower()))
    return _listed([word for word in words if word not in postcard.words()])


def _cut(pipe: LibraryObject, prompt: str) -> str:
    """The end of the prompt that none of the pipeline's text encoders reads."""
    limit = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
    starts = [
        _cut_start(component, prompt, limit.default if limit else None)
        for component in pipe.components.values()
        if hasattr(component, "model_max_length")
    ]
    if not starts:
        return ""
    read = prompt[: max(starts)]
    if read != prompt:
        # A word that is read in part is cut as well.
        read = read[: max(read.rfind(" "), 0)]
    return _listed(prompt[len(read) :].split())


def _cut_start(tokenizer: LibraryObject, prompt: str, limit: int | None) -> int:
    """Where in the prompt the tokenizer's encoder stops reading.

    CLIP's encoders read what their tokenizer says (77); a pipeline's `max_sequence_length` holds
    for the others (T5 and language models).
    """
    longest = tokenizer.model_max_length
    if limit is not None and not type(tokenizer).__name__.startswith("CLIP"):
        longest = min(longest, limit)
    room = longest - tokenizer.num_special_tokens_to_add()
    if prompt.isascii() and len(prompt) < room:
        return len(
            prompt
        )  # a token is a character at least; to count them takes half a millisecond
    encoded = tokenizer(prompt, return_offsets_mapping=True, truncation=False, verbose=False)
    if len(encoded["input_ids"]) <= longest:
        return len(prompt)
    spans = [span for span in encoded["offset_mapping"] if span[1] > span[0]]
    return int(spans[room][0]) if len(spans) > room else len(prompt)


def _listed(words: list[str]) -> str:
    more = len(words) - _SHOWN
    return " ".join(words[:_SHOWN]) + (f" … ({more} more)" if more > 0 else "")
