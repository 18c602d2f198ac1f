"""What makers of weights write into their headers: names, base model, trigger words.

By the conventions of kohya's sd-scripts (`ss_…`) and Stability's ModelSpec (`modelspec.…`,
https://github.com/Stability-AI/ModelSpec). Anyone can write anything: it is bounded and shown, and
nothing is decided by it but what no tensor tells.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from t2i_cli.files.state_files import is_count, parse_json

_MAX_TEXT = 300
"""Characters of a shown text."""
_MAX_JSON = 8_000_000
_MAX_WORDS = 12
_FEW_STEPS = re.compile(r"\b(turbo|lightning|hyper|lcm|dmd2?|schnell|distilled)\b", re.IGNORECASE)
_NAMES = ("modelspec.title", "ss_output_name", "general.name")
_BASES = (
    "modelspec.architecture",
    "ss_base_model_version",
    "ss_sd_model_name",
    "general.architecture",
)


class MakerWords(NamedTuple):
    """What a file's maker says of it."""

    title: str | None
    base_model: str | None
    trigger_phrase: str | None
    frequent_tags: Mapping[str, int]
    """Tags of the training's captions, and how often they occur, the most frequent first."""
    few_steps: str | None
    """The word by which the title says that the model needs only a few steps."""


def read_maker_words(metadata: Mapping[str, str]) -> MakerWords:
    """What the metadata of a file of weights say."""
    title = _first(metadata, _NAMES)
    phrase = metadata.get("modelspec.trigger_phrase")
    few = _FEW_STEPS.search(" ".join(filter(None, (title, metadata.get("modelspec.architecture")))))
    return MakerWords(
        title=title,
        base_model=_first(metadata, _BASES),
        trigger_phrase=_shortened(phrase) if phrase else None,
        frequent_tags=_frequent_tags(metadata.get("ss_tag_frequency", "")),
        few_steps=few[0].lower() if few else None,
    )


def _first(metadata: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """The first of the named texts that says anything."""
    texts = (_shortened(metadata.get(name, "")) for name in names)
    return next((text for text in texts if text and text != "None"), None)


def _shortened(text: str) -> str:
    """A text on one line, of at most 300 characters."""
    line = " ".join(text[: 10 * _MAX_TEXT].split())
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 1] + "…"


def _frequent_tags(text: str) -> dict[str, int]:
    """The tags that occur most in the training's captions; a damaged record counts as none."""
    if not text or len(text) > _MAX_JSON:
        return {}
    try:
        sets = parse_json(text.encode("utf-8", "replace"))
    except ValueError:
        return {}
    counts: Counter[str] = Counter()
    for tags in sets.values() if isinstance(sets, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if is_count(count) and tag.strip():
                counts[_shortened(tag)] += count
    return dict(counts.most_common(_MAX_WORDS))
