"""What is asked for: `GenerateRequest` as the user put it, `ResolvedRequest` with all settled."""

import hashlib
import json
import math
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from operator import attrgetter

from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import schedulers

MAX_PROMPT = 5_000
"""Characters; the prompt, the negative prompt and their record fit a JPEG's 64 KB segment."""
MAX_SEED = 2**32 - 1
MAX_STEPS = 1_000
"""No scheduler has more than the 1000 timesteps that models are trained on."""
MAX_IMAGE_SIDE = 16_384
"""Pixels; WebP ends at 16,383, and nothing generates more in one piece."""
MAX_GUIDANCE = 100.0

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Unicode's categories Cc, tab and line ends aside, and Cs."""


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One image as the user asked for it; `None` means not set. Raises InputError on bad values."""

    prompt: str
    negative_prompt: str | None = None
    model: str | None = None
    revision: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without knowing the model."""
        _check_text("prompt", self.prompt)
        if not self.prompt.strip():
            raise InputError("The prompt is empty.", field="prompt")
        for name in ("negative_prompt", "model", "revision"):
            if (text := getattr(self, name)) is not None:
                _check_text(name, text)
                if not text.strip() and name != "negative_prompt":
                    raise InputError(f"The {name} is empty.", field=name)
        _check_range("seed", self.seed, 0, MAX_SEED)
        _check_range("steps", self.steps, 1, MAX_STEPS)
        _check_range("width", self.width, 1, MAX_IMAGE_SIDE)
        _check_range("height", self.height, 1, MAX_IMAGE_SIDE)
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise InputError("guidance_scale must be a number.", field="guidance_scale")
        _check_range("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE)
        if self.scheduler is not None:
            schedulers.find_scheduler(self.scheduler, None)


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest:
    """A request with every field settled; `None` only for what a remote model keeps to itself.

    `user_set` names the fields that the user gave. `model` is the repository, or the name of a
    local model.
    """

    prompt: str
    negative_prompt: str | None
    model: str
    revision: str | None
    seed: int
    steps: int | None
    guidance_scale: float | None
    width: int | None
    height: int | None
    scheduler: str | None
    user_set: frozenset[str] = field(default=frozenset(), compare=False)

    def to_json(self) -> dict[str, object]:
        """The fields that make the image, in a fixed order."""
        record = asdict(self)
        del record["user_set"]
        return record

    def identity_values(self) -> tuple[object, ...]:
        """The fields that make the image, its seed aside."""
        made: tuple[object, ...] = _settings(self)
        return made

    def batch_key(self) -> tuple[object, ...]:
        """What requests of one pass have in common: all but prompt, seed, the negative's words."""
        return (
            *(self.model, self.revision, self.width, self.height, self.steps),
            *(self.guidance_scale, self.scheduler, bool(self.negative_prompt)),
        )

    def identity(self, occurrence: int = 0, *, seed: int | None = None) -> str:
        """A short hash of the fields that make the image, and of how often they came before.

        `seed` stands in for the request's own.
        """
        drawn = self.seed if seed is None else seed
        made = json.dumps([self.identity_values(), drawn, occurrence])
        return hashlib.sha256(made.encode()).hexdigest()[:16]


_settings = attrgetter(*(f.name for f in fields(ResolvedRequest) if f.compare and f.name != "seed"))


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
        _check_range("seed", seed, 0, MAX_SEED)
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


def resolve_request(
    request: GenerateRequest,
    spec: ModelSpec,
    *,
    lenient: bool = False,
    on_note: Callable[[str], None] = lambda _: None,
) -> ResolvedRequest:
    """Settle a request for a model: the user's values, then the model's own, then a random seed.

    A value that the model cannot honour raises InputError; with `lenient` it is dropped and
    `on_note` is told.
    """
    values: dict[str, object] = dict(vars(request))
    user_set = {name for name, value in values.items() if value is not None}
    for name, complaint in _unsupported(request, spec):
        if not lenient:
            raise InputError(complaint, hint="--lenient goes on without it.", field=name)
        on_note(f"{complaint} It is left out.")
        values[name] = None
        user_set.discard(name)
    if values["scheduler"] is not None:
        schedulers.find_scheduler(str(values["scheduler"]), spec.flow)
    for name in ("steps", "guidance_scale", "width", "height"):
        if values[name] is None:
            values[name] = getattr(spec, name)
    _check_multiple("width", values["width"], spec)
    _check_multiple("height", values["height"], spec)
    if values["seed"] is None:
        values["seed"] = secrets.randbelow(MAX_SEED + 1)
    values |= {"model": spec.repo or spec.name, "revision": spec.revision}
    return ResolvedRequest(**values, user_set=frozenset(user_set))  # type: ignore[arg-type]


def _unsupported(request: GenerateRequest, spec: ModelSpec) -> list[tuple[str, str]]:
    """The fields that the user set and the model cannot honour, each with a sentence."""
    found = [pair for pair in spec.refuses if getattr(request, pair[0]) not in (None, "")]
    if request.guidance_scale is not None and spec.guidance_argument is None:
        found.append(("guidance_scale", f"{spec.name} takes no guidance scale."))
    if request.negative_prompt:
        guidance = request.guidance_scale
        if guidance is None:
            guidance = spec.guidance_scale
        if not spec.negative_prompt:
            found.append(("negative_prompt", f"{spec.name} takes no negative prompt."))
        elif guidance is not None and guidance <= spec.guidance_off:
            found.append(
                (
                    "negative_prompt",
                    f"The negative prompt cannot act at guidance {guidance:g}: it needs more than "
                    f"{spec.guidance_off:g}.",
                )
            )
    return found


def _check_text(name: str, text: str) -> None:
    if len(text) > MAX_PROMPT:
        raise InputError(
            f"{name} has {len(text):,} characters; at most {MAX_PROMPT:,} are taken.", field=name
        )
    if found := _CONTROL.search(text):
        raise InputError(
            f"{name} has the control character U+{ord(found[0]):04X} "
            f"at position {found.start() + 1}.",
            field=name,
        )


def _check_range(name: str, value: float | None, low: int, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise InputError(f"{name} must be from {low} to {high:.10g}, not {value}.", field=name)


def _check_multiple(name: str, value: object, spec: ModelSpec) -> None:
    if isinstance(value, int) and value % spec.multiple:
        nearest = max(spec.multiple, round(value / spec.multiple) * spec.multiple)
        raise InputError(
            f"{name} {value} is not a multiple of {spec.multiple}, which {spec.name} needs; "
            f"the nearest is {nearest}.",
            field=name,
        )
