"""What is asked for: `GenerateRequest` as the user put it, `ResolvedRequest` with all settled."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from t2i_cli.errors import InputError
from t2i_cli.request_fields import (
    FIELDS,
    LATER,
    MAX_SEED,
    POSITIONAL,
    RequestFields,
    check_range,
)


@dataclass(frozen=True, kw_only=True)
class GenerateRequest(RequestFields):
    """One image as the user asked for it; `None` means not set. Raises InputError on bad values."""

    prompt: str = field()

    def __post_init__(self) -> None:
        """Check what can be checked without knowing any model."""
        FIELDS["prompt"].check(self.prompt)
        if not self.prompt.strip():
            raise InputError("The prompt is empty.", field="prompt")
        for name, known in FIELDS.items():
            if (value := getattr(self, name)) is not None:
                known.check(value)


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest(RequestFields):
    """A request with every field settled; `None` only for what a remote model keeps to itself.

    `user_set` names the fields that the user gave. `model` is the repository, or the name of a
    local model.
    """

    prompt: str = field()
    model: str = field()
    seed: int = field()
    user_set: frozenset[str] = field(default=frozenset(), compare=False)

    def to_json(self) -> dict[str, object]:
        """The fields that make the image, in a fixed order; later ones only where they are set."""
        record = {name: FIELDS[name].written(getattr(self, name)) for name in POSITIONAL}
        return record | {name: FIELDS[name].written(value) for name, value in self._later()}

    def identity_values(self) -> tuple[object, ...]:
        """The fields that make the image, its seed aside."""
        later = ((name, value) for name, value in self._later() if FIELDS[name].identity)
        return (*_made_by(self), *((name, FIELDS[name].identified(v)) for name, v in later))

    def batch_key(self) -> tuple[object, ...]:
        """What requests of one pass have in common: all but prompt, seed, the negative's words."""
        later = (pair for pair in self._later() if not FIELDS[pair[0]].per_image)
        return (*_shared_by_pass(self), bool(self.negative_prompt), *later)

    def identity(self, occurrence: int = 0, *, seed: int | None = None) -> str:
        """A short hash of the fields that make the image, and of how often they came before.

        `seed` stands in for the request's own.
        """
        drawn = self.seed if seed is None else seed
        made = json.dumps([self.identity_values(), drawn, occurrence])
        return hashlib.sha256(made.encode()).hexdigest()[:16]

    def _later(self) -> list[tuple[str, object]]:
        """The later fields that are set."""
        return [(name, v) for name in LATER if (v := getattr(self, name)) is not None]


_made_by = attrgetter(*(name for name in POSITIONAL if name != "seed"))
_shared_by_pass = attrgetter(*(name for name in POSITIONAL if not FIELDS[name].per_image))


def expand_seeds(
    request: ResolvedRequest, seeds: Sequence[int], count: int
) -> list[ResolvedRequest]:
    """One request for each of `seeds`, or `count` with seeds counting up from the request's own."""
    if count < 1:
        raise InputError(f"count must be at least 1, not {count}.", field="count")
    if count > 1 and len(seeds) > 1:
        raise InputError("Give several seeds or a count, not both.", field="count")
    if len(seeds) < 2:
        # A seed that was drawn leaves room for those that count up from it.
        drawn = request.seed % (MAX_SEED + 2 - count)
        first = seeds[0] if seeds else drawn
        seeds = range(first, first + count)
    for seed in (seeds[0], seeds[-1]):
        check_range("seed", seed, 0, MAX_SEED)
    return [replace(request, seed=seed) for seed in seeds]


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels from `512x768`."""
    match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text.strip())
    if not match:
        raise InputError(f"The size {text!r} is not of the form 512x768.", field="size")
    return int(match[1]), int(match[2])


def resolve_size(
    width: int | None, height: int | None, size: str | None
) -> tuple[int | None, int | None]:
    """Width and height in pixels, from themselves or from a size given in their place."""
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise InputError("Give --size or --width and --height, not both.", field="size")
    return parse_size(size)
