"""Requests for an image: `GenerateRequest` as the user gave it, `ResolvedRequest` complete."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from t2i_cli.errors import InputError
from t2i_cli.part_source import PART_FIELDS, parts_key
from t2i_cli.request_field import check_range
from t2i_cli.request_fields import ADDED_FIELDS, FIELDS, MAX_SEED, ORIGINAL_FIELDS, RequestFields

MAX_SEED_RANGE = 1_000_000
"""Seeds of one range on the command line, all of which are kept in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest(RequestFields):
    """A request as given by the user; `None` means not set. Raises InputError for bad values."""

    prompt: str = field()

    def model_key(self) -> tuple[object, ...]:
        """What the request names as its model: a name, a revision, and parts from elsewhere."""
        return (self.model, self.revision, *parts_key(self))

    def __post_init__(self) -> None:
        """Validate what does not depend on the model; line ends of prompts become newlines."""
        for name, spec in FIELDS.items():
            if (value := getattr(self, name)) is not None:
                if spec.prose and "\r" in value:
                    value = value.replace("\r\n", "\n").replace("\r", "\n")
                    object.__setattr__(self, name, value)
                spec.check(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedRequest(RequestFields):
    """A request with every default filled in; `None` only where a remote model's is unknown.

    `user_set` has the fields that the user gave. `model` is the repository, or a local model's
    name; of one that is a single file, `model_digest` is the SHA-256, which stands for it in ids.
    `own_name` is the name of the user's own that stood for it, which identifies nothing.
    """

    prompt: str = field()
    model: str = field()
    seed: int = field()
    user_set: frozenset[str] = field(default=frozenset(), compare=False)
    own_name: str | None = field(default=None, compare=False)
    model_digest: str | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, object]:
        """The fields in a fixed order; fields added later only if they are set."""
        record = {name: FIELDS[name].json_value(getattr(self, name)) for name in ORIGINAL_FIELDS}
        return record | {name: FIELDS[name].json_value(value) for name, value in self._added()}

    def identity_values(self) -> tuple[object, ...]:
        """The values that identify the image, without the seed."""
        later = ((name, value) for name, value in self._added() if FIELDS[name].identity)
        digest = self.model_digest
        named = self
        if digest is not None:
            named = replace(self, model=digest, revision=None, model_digest=None)
        return (
            *_identity_fields(named),
            *((name, FIELDS[name].identity_value(v)) for name, v in later),
        )

    def model_key(self) -> tuple[object, ...]:
        """The request's model: its name, its revision, and its parts from elsewhere."""
        return (self.model, self.revision, *parts_key(self))

    def model_request(self) -> GenerateRequest:
        """A request that names the same model and nothing else."""
        named = {name: getattr(self, name) for name in ("model", "revision", *PART_FIELDS)}
        return GenerateRequest(prompt="-", **named)

    def batch_key(self) -> tuple[object, ...]:
        """Batch key: requests with equal keys may share a forward pass.

        It has all fields but the per-image ones, and whether there is a negative prompt.
        """
        later = (pair for pair in self._added() if not FIELDS[pair[0]].per_image)
        return (*_batch_key_fields(self), bool(self.negative_prompt), *later)

    def identity(self, occurrence: int = 0, *, seed: int | None = None) -> str:
        """Id of an image: 16 hex digits of the SHA-256 of its identifying values.

        `occurrence` counts equal requests before it; `seed` replaces the request's own.
        """
        used = self.seed if seed is None else seed
        content = json.dumps([self.identity_values(), used, occurrence])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _added(self) -> list[tuple[str, object]]:
        """The fields added later that are set, with their values."""
        return [(name, v) for name in ADDED_FIELDS if (v := getattr(self, name)) is not None]


_identity_fields = attrgetter(*(name for name in ORIGINAL_FIELDS if name != "seed"))
_batch_key_fields = attrgetter(*(name for name in ORIGINAL_FIELDS if not FIELDS[name].per_image))


def expand_seeds(
    request: ResolvedRequest, seeds: Sequence[int], count: int
) -> list[ResolvedRequest]:
    """One request per seed, or `count` with consecutive seeds from the first. Raises InputError."""
    if count < 1:
        raise InputError(f"count must be at least 1, not {count}.", field="count")
    if count > 1 and len(seeds) > 1:
        raise InputError("Give several seeds or a count, not both.", field="count")
    if len(seeds) < 2:
        # Reduce a random seed so that the last seed does not exceed MAX_SEED.
        drawn = request.seed % (MAX_SEED + 2 - count)
        first = seeds[0] if seeds else drawn
        seeds = range(first, first + count)
    for seed in (seeds[0], seeds[-1]):
        check_range("seed", seed, 0, MAX_SEED)
    return [replace(request, seed=seed) for seed in seeds]


def parse_seeds(text: str) -> list[int]:
    """Parse `1-4,9` as the seeds 1, 2, 3, 4 and 9. Raises InputError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(part) > 24:
            raise InputError(f"--seeds {text} is not of the form 1-4,9.", field="seeds")
        low, high = int(first), int(last or first)
        if not low <= high <= MAX_SEED or high - low >= MAX_SEED_RANGE:
            raise InputError(f"--seeds {part.strip()} is no range of seeds.", field="seeds")
        seeds.extend(range(low, high + 1))
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text} has a seed twice.", field="seeds")
    return seeds


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels from `512x768`, or `512` for a square. Raises InputError."""
    match = re.fullmatch(r"(\d{1,9})(?:[xX×](\d{1,9}))?", text.strip())
    if not match:
        raise InputError(f"The size {text!r} is not of the form 512x768 or 512.", field="size")
    return int(match[1]), int(match[2] or match[1])


def resolve_size(
    width: int | None, height: int | None, size: str | None
) -> tuple[int | None, int | None]:
    """Width and height in pixels, given directly or by `size`. Raises InputError for both."""
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise InputError("Give --size or --width and --height, not both.", field="size")
    return parse_size(size)
