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
PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})

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


def choose_weights(names: Iterable[str], *, half: bool) -> WeightFiles | None:
    """The weights to load: of the fp16 variant if `half`, or else of the other one; or None.

    `names` are those of one folder's files, without the folder.
    """
    names = list(names)
    for variant in ("fp16", None) if half else (None, "fp16"):
        if found := _of_variant(names, variant):
            return found
    return None


def has_pickles(names: Iterable[str]) -> bool:
    """Whether there are weights of a kind that can run code."""
    return any(PurePosixPath(name).suffix in PICKLES for name in names)


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
