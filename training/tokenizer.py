"""The model's tokenizer: CLIP's byte-level BPE with merges learnt from captions alone."""

import random
import re
from collections import Counter
from itertools import pairwise
from typing import Final

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from training.captions import caption
from training.scenes import sample_mixed
from training.untyped import Untyped

MAX_TOKENS: Final = 48
START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"
_CAPTIONS: Final = 40_000
_FAMILIES: Final = {"one": 1.0, "two": 1.0, "landscape": 2.0}


def caption_words(seed: int = 0) -> Counter[str]:
    """Every word and punctuation mark of many captions, with how often it came."""
    rng = random.Random(seed)
    counted: Counter[str] = Counter()
    for _ in range(_CAPTIONS):
        counted.update(re.findall(r"[a-z]+|[^\sa-z]", caption(sample_mixed(rng, _FAMILIES), rng)))
    return counted


def learn_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """The merges, most frequent pair first, that make one token of every word.

    Sennrich et al., 2016, "Neural machine translation of rare words with subword units"; equal
    counts are taken in alphabetical order, so that the same captions give the same merges.
    """
    split = {word: [*word[:-1], f"{word[-1]}</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in split.values():
            start = 0
            while start + 1 < len(parts):
                if (parts[start], parts[start + 1]) == best:
                    parts[start : start + 2] = ["".join(best)]
                start += 1


def build() -> CLIPTokenizer:
    """Learn merges until every caption word is one token; any other text falls apart into bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(caption_words())
    tokens = [*alphabet, *(f"{character}</w>" for character in alphabet)]
    tokens += [first + second for first, second in merges]
    ordered = [*dict.fromkeys(tokens), START, END]
    vocabulary = {token: number for number, token in enumerate(ordered)}
    pairs: Untyped = merges
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=MAX_TOKENS)
