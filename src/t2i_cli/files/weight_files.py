"""Which files hold the weights of a component, by the names of what its folder has.

The rules are those of diffusers' and transformers' loaders: weights called `model` (transformers)
or `diffusion_pytorch_model` (diffusers), whole or in shards with an index, with the variant before
or after the shard's number.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeGuard

from t2i_cli.files.state_files import is_text

STEMS = ("diffusion_pytorch_model", "model")
VARIANTS = {"float16": "fp16", "bfloat16": "bf16"}
"""The variant whose weights are stored in a dtype."""
_PRECISE_FIRST = ("fp32", "bf16", "fp16")
SAFE_WEIGHT_ENDINGS = (".safetensors", ".sft", ".gguf")
"""Endings of files of weights that are read; pickles are converted first."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""Endings of files of weights that can run code when loaded, and are not."""

_MAX_NAME = 255
"""Characters of a file's name; the names of shards have about fifty."""
_STEM = f"(?P<stem>{'|'.join(STEMS)})"
_WEIGHTS = re.compile(
    _STEM + r"(\.(?P<before>\w+))?(-\d{5}-of-(?P<of>\d{5}))?(\.(?P<after>\w+))?\.safetensors"
)
_INDEX = re.compile(_STEM + r"\.safetensors(\.(?P<before>\w+))?\.index(\.(?P<after>\w+))?\.json")


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """One set of a component's weights, by names: one whole file, or shards and their index.

    There are several whole ones where they are there for both libraries. `expected` is the number
    of shards by their names.
    """

    variant: str | None
    whole: Sequence[str] = ()
    shards: Sequence[str] = ()
    index: str | None = None
    expected: int = 0

    @property
    def missing(self) -> int:
        """How many shards are not there."""
        return max(0, self.expected - len(self.shards))

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing, by the names."""
        return bool(self.whole) or (self.index is not None and not self.missing)


def choose_weights(names: Iterable[str], dtype: str) -> WeightFiles | None:
    """The weights to load for a dtype, `None` if there are none.

    Those of the dtype's own variant, or else those without a variant, or else of another one; what
    lacks shards only if there is nothing else. `names` are those of one folder's files, without the
    folder.
    """
    names = list(names)
    found = [_of_variant(names, variant) for variant in _variants(names, dtype)]
    sets = [each for each in found if each]
    return next((each for each in sets if each.is_complete), sets[0] if sets else None)


def _variants(names: Iterable[str], dtype: str) -> list[str | None]:
    """The variants that there are, the one to load first."""
    matches = (_WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name) for name in names)
    present = {_variant(match) for match in matches if match}
    order = [VARIANTS.get(dtype), None, *_PRECISE_FIRST]
    places = {variant: place for place, variant in reversed(list(enumerate(order)))}

    def place(variant: str | None) -> tuple[int, bool, str]:
        raw = variant is not None and variant.startswith("non_ema")
        return places.get(variant, len(order)), raw, variant or ""

    return sorted(present, key=place)


def has_pickles(names: Iterable[str]) -> bool:
    """Whether there are weights of a kind that can run code."""
    return any(PurePosixPath(name).suffix in PICKLES for name in names)


def is_weights(name: str) -> bool:
    """Whether the file holds weights, or is an index of such files."""
    return PurePosixPath(name).suffix in {".safetensors", *PICKLES} or is_index(name)


def is_index(name: str) -> bool:
    """Whether the file says which shard has what."""
    return _INDEX.fullmatch(name) is not None


def is_plain_name(name: object) -> TypeGuard[str]:
    """Whether it is the name of a file in its folder, and no path that leads elsewhere."""
    return is_text(name, _MAX_NAME) and name not in {".", ".."} and not set(name) & set("/\\")


def _of_variant(names: list[str], variant: str | None) -> WeightFiles | None:
    whole: list[tuple[int, str]] = []
    # By stem, and by which of two ways to write the variant; a repository may have both.
    shards: dict[tuple[int, bool], list[str]] = {}
    indices: dict[int, str] = {}
    expected: dict[str, int] = {}
    for name in sorted(names):
        if (match := _INDEX.fullmatch(name)) and _variant(match) == variant:
            indices.setdefault(STEMS.index(match["stem"]), name)
        if (match := _WEIGHTS.fullmatch(name)) and _variant(match) == variant:
            stem = STEMS.index(match["stem"])
            if match["of"] is None:
                whole.append((stem, name))
                continue
            shards.setdefault((stem, match["before"] is None), []).append(name)
            expected[name] = int(match["of"])
    if whole:
        return WeightFiles(variant=variant, whole=[name for _, name in sorted(whole)])
    if not shards and not indices:
        return None
    stem, _ = first = min(shards, default=(min(indices, default=0), True))
    found = shards.get(first, [])
    return WeightFiles(
        variant=variant,
        shards=found,
        index=indices.get(stem),
        expected=max((expected[name] for name in found), default=0),
    )


def _variant(match: re.Match[str]) -> str | None:
    return match["before"] or match["after"]
