"""Build a request, and resolve it for a model: user values, model defaults, a random seed."""

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import adapter_resolution, catalog, schedulers, user_catalog
from t2i_cli.models.extras_support import (
    TRUE_GUIDANCE,
    acts_by_true_guidance,
    takes_true_guidance,
)
from t2i_cli.models.prompt_support import PLAIN, check_prompt_texts, prompt_complaints
from t2i_cli.models.size_rules import scaled_size
from t2i_cli.models.step_cache_support import step_cache_complaint
from t2i_cli.part_source import PART_FIELDS
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.request_fields import FIELDS, MAX_SEED, MODEL_DEFAULTS, RequestFields
from t2i_cli.schedule_names import AUTO_SCHEDULE

FAR_FROM_NATIVE = 4
"""A size of so many times the pixels of a model's own, or the same fraction, is worth a note."""


def build_request(values: Mapping[str, object]) -> GenerateRequest:
    """Build and validate a request, with the scheduler's name. Raises InputError.

    Every request of a user is built here, so an unknown scheduler is refused before the model is
    known. One that is called as in AUTOMATIC1111 gets its short name.
    """
    request = GenerateRequest(**values)  # type: ignore[arg-type]
    if request.scheduler is not None:
        short_name = schedulers.scheduler_short_name(request.scheduler)
        request = replace(request, scheduler=short_name)
    _check_scheduler(request)
    if request.model:
        model, revision = catalog.parse_address(request.model, request.revision)
        request = replace(request, model=model, revision=revision)
    return request


def resolve_request(
    request: GenerateRequest,
    spec: ModelSpec,
    *,
    lenient: bool = False,
    on_note: Callable[[str], None] = lambda _: None,
    on_size_note: Callable[[str], None] = lambda _: None,
) -> ResolvedRequest:
    """Fill in a request's unset fields: the model's defaults, and a random seed.

    A value that the model does not support raises InputError; with `lenient` it is dropped and
    `on_note` is called with a sentence that says so; `on_size_note` with one on a size that is far
    from the model's own.
    """
    _check_scheduler(request)
    request, own = _with_own_defaults(request, spec)
    values: dict[str, object] = {name: getattr(request, name) for name in FIELDS}
    user_set = {name for name, value in values.items() if value is not None}
    for name, complaint in _unsupported(request, spec):
        if not lenient and name not in own:
            raise InputError(complaint, hint=_way_out(name, spec), field=name)
        on_note(f"{complaint} It is left out.")
        values[name] = None
        user_set.discard(name)
    check_prompt_texts(RequestFields(**values))  # type: ignore[arg-type]
    if values["scheduler"] is not None:
        schedulers.find_scheduler(str(values["scheduler"]), spec.flow)
    for name in MODEL_DEFAULTS:
        if values[name] is None:
            values[name] = getattr(spec, name)
    for name in PART_FIELDS:
        # A backend that loads them has found their content.
        values[name] = getattr(spec, name) or values[name]
    if values["loras"] or values["embeddings"] or "<" in request.prompt:
        adapter_resolution.settle_values(values, spec, user_set, on_size_note, own)
    _check_multiple("width", values["width"], spec)
    _check_multiple("height", values["height"], spec)
    _check_kept_size(values["width"], values["height"], spec)
    if note := _size_note(request, values, spec):
        on_size_note(note)
    if values["seed"] is None:
        values["seed"] = secrets.randbelow(MAX_SEED + 1)
    values |= {"model": spec.repo or spec.name, "revision": spec.revision}
    return ResolvedRequest(
        **values,  # type: ignore[arg-type]
        user_set=_shared_set(frozenset(user_set)),
        model_digest=spec.file_digest,
        own_name=spec.own_name,
    )


_NEUTRAL: Mapping[str, object] = {
    "prompt_syntax": PLAIN,
    "clip_skip": 1,
    "guidance_rescale": 0,
    "schedule": AUTO_SCHEDULE,
    "step_cache": 0,
}
"""Values that are so without being asked for; they are no part of a request, or of its id."""


def _with_own_defaults(
    request: GenerateRequest, spec: ModelSpec
) -> tuple[GenerateRequest, frozenset[str]]:
    """The request with the defaults of the user's own model, and the fields that have one.

    A neutral value keeps a default away, and is left out itself. Raises InputError for a default
    whose file is gone.
    """
    filled = {name: value for name, value in spec.defaults if getattr(request, name) is None}
    if filled:
        user_catalog.check_own_files(spec.shown_name, filled)
        request = replace(request, **filled)
    neutral = [name for name, value in _NEUTRAL.items() if getattr(request, name) == value]
    if neutral:
        request = replace(request, **dict.fromkeys(neutral))  # type: ignore[arg-type]
    return request, frozenset(filled)


@lru_cache(maxsize=1024)
def _shared_set(names: frozenset[str]) -> frozenset[str]:
    """The first set that was equal: a million requests set the same fields."""
    return names


def _size_note(
    request: GenerateRequest, values: Mapping[str, object], spec: ModelSpec
) -> str | None:
    """A sentence on a size that the user set and the model was not trained for.

    The models whose own size is known draw their motif several times over, or a part of it, where
    an image has FAR_FROM_NATIVE times or a fraction of the pixels. Flow-matching models are
    trained on small sizes, too.
    """
    if request.width is None and request.height is None:
        return None
    sides = (values["width"], values["height"], spec.width, spec.height)
    width, height, own_width, own_height = (s if isinstance(s, int) else 0 for s in sides)
    pixels, own = width * height, own_width * own_height
    too_small = pixels * FAR_FROM_NATIVE <= own and not spec.flow
    if not (pixels and own and (pixels >= own * FAR_FROM_NATIVE or too_small)):
        return None
    return (
        f"{spec.name} knows images of {own_width}x{own_height}: at {width}x{height} they may be "
        "distorted."
    )


def _unsupported(request: GenerateRequest, spec: ModelSpec) -> list[tuple[str, str]]:
    """The fields that the user set and the model does not support, each with a sentence."""
    found = [pair for pair in spec.refuses if getattr(request, pair[0]) not in (None, "")]
    if request.guidance_scale is not None and spec.guidance_argument is None:
        found.append(("guidance_scale", f"{spec.name} takes no guidance scale."))
    if request.step_cache and (complaint := step_cache_complaint(spec.name, spec.pipeline)):
        found.append(("step_cache", complaint))
    found += prompt_complaints(request, spec)
    if request.negative_prompt:
        guidance = request.guidance_scale
        if guidance is None:
            guidance = spec.guidance_scale
        if acts_by_true_guidance(request):
            pass  # Whether the model takes it is checked with the other extras.
        elif not spec.negative_prompt:
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


def _way_out(name: str, spec: ModelSpec) -> str:
    """The hint to go on with a request that has an unsupported field."""
    if name == "negative_prompt" and takes_true_guidance(spec.pipeline):
        return f"It acts with --set {TRUE_GUIDANCE}=4, as each step then runs the model twice."
    return "--lenient goes on without it."


def _check_scheduler(request: GenerateRequest) -> None:
    if request.scheduler is not None:
        schedulers.find_scheduler(request.scheduler, None)


def _check_multiple(name: str, value: object, spec: ModelSpec) -> None:
    if isinstance(value, int) and value % spec.multiple:
        nearest = max(spec.multiple, round(value / spec.multiple) * spec.multiple)
        raise InputError(
            f"{name} {value} is not a multiple of {spec.multiple}, which {spec.name} needs; "
            f"the nearest is {nearest}.",
            field=name,
        )


def _check_kept_size(width: object, height: object, spec: ModelSpec) -> None:
    """Raise InputError for a size that the pipeline would make another of."""
    if not isinstance(width, int) or not isinstance(height, int):
        return
    kept = (width, height)
    if spec.sizes and kept not in spec.sizes:
        kept = min(spec.sizes, key=lambda size: _size_distance(size, (width, height)))
    elif spec.area:
        while (scaled := scaled_size(*kept, spec.area, spec.multiple)) != kept and all(scaled):
            kept = scaled
    if kept != (width, height):
        raise InputError(
            f"{spec.name} makes no images of {width}x{height}; the nearest size that it keeps is "
            f"{kept[0]}x{kept[1]}.",
            field="width",
        )


def _size_distance(size: tuple[int, int], other: tuple[int, int]) -> tuple[float, float]:
    """How far two sizes are apart: by their aspect ratio, then by their number of pixels."""
    (width, height), (other_width, other_height) = size, other
    ratio = abs(math.log(width * other_height / height / other_width))
    # Rounded: equal ratios of different sizes differ in the last bits.
    return round(ratio, 2), abs(math.log(width * height / other_width / other_height))
