"""Declares every field of a request once; other modules derive all they need from here.

A field is an attribute of `RequestFields` with a `RequestField` as metadata. From it come the
option, the column in prompts files, the server's request bodies and those sent to servers, the
placeholder in file names, the metadata in images and the part in ids. Declare a new field at the
end, with default `None`; ids include it by name and only if set, so that the ids of other requests
do not change.

Text and numbers need no more. For other types (a file, a list of records, named extras) the
attribute has the value's type, which must be hashable, and the RequestField its conversions:
`parse` takes text of options and CSV, or a JSON value, and raises InputError; `to_json` encodes the
value for records and bodies; `digest` replaces it in ids, as the SHA-256 of a file's content with a
weight, so that another file of the same name is another row.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_type_hints

from t2i_cli.errors import InputError

FieldValue = str | int | float

MAX_PROMPT = 5_000
"""Characters; prompt, negative prompt and their metadata fit a JPEG's 64 KB segment."""
MAX_SEED = 2**32 - 1
MAX_STEPS = 1_000
"""Schedulers have at most the 1000 timesteps that models are trained on."""
MAX_IMAGE_SIDE = 16_384
"""Pixels; WebP's limit is 16,383, and no model generates larger images."""
MAX_GUIDANCE = 100.0
DEFAULT_MODEL = "sd15"

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Unicode categories Cc, except tab and line ends, and Cs."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One kind of server of OpenAI's images API.

    `owner` is `owned_by` in its model list. With `true_cfg` it takes guidance under the name of
    the pipeline's argument.
    """

    name: str
    owner: str | None = None
    true_cfg: bool = False

    @property
    def takes(self) -> frozenset[str]:
        """The fields that it takes besides prompt and model."""
        return frozenset(name for name, spec in FIELDS.items() if self.name in spec.dialects)


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect(name="t2i", owner="t2i"),
        Dialect(name="openai"),
        Dialect(name="sglang", owner="sglang", true_cfg=True),
        Dialect(name="vllm", owner="vllm", true_cfg=True),
        Dialect(name="localai"),
    )
}
SERVINGS = ("t2i", "model-garden", "torchserve")
"""Kinds of serving at an endpoint of Vertex AI."""

SIZE = "size"
"""The name of width and height together in OpenAI's images API."""


def _named(name: str, *dialects: str) -> dict[str, str]:
    return dict.fromkeys(dialects, name)


_ALL_DIALECTS = tuple(DIALECTS)
_DIFFUSERS_DIALECTS = ("t2i", "sglang", "vllm")
_ALL_SERVINGS = frozenset(SERVINGS)


@dataclass(frozen=True, kw_only=True)
class RequestField:
    """Declaration of a field; `name` and `kind` (the type) come from the attribute.

    For people: `help` describes it, `default` describes its value when not set, `label` is its
    short name on pages, `placeholder` that of its input, `summary` its format in plans. `flags` are
    its option's names, empty if each command declares its own; `unit` is the value's unit, `low`
    and `high` are its inclusive range.

    For servers: `dialects` maps each dialect that takes it to its name there, `true_cfg` is another
    name (see Dialect); `servings` take it under the name `vertex`, or its own if that is empty.
    With `echoed` a server's response must contain the value that was sent.

    `pipeline` is the argument of diffusers' pipelines that it is passed as, `infotext` its name in
    AUTOMATIC1111's infotext. With `model_default` models have their own default; `needs` is the key
    of a model's description (GET /t2i/v1/model) that must be set for it to have an effect, and that
    lists its values if it is a list. Images in one batch may differ in `per_image` fields. `prose`
    is text of any length; `may_be_blank` allows blank text. With `on_page` the server's page
    generates an input for it. With `identity` it is part of an image's id.
    """

    name: str = ""
    kind: type = str
    help: str
    default: str | None = None
    label: str
    placeholder: str | None = None
    summary: str | None = None
    flags: tuple[str, ...] = ()
    unit: str | None = None
    low: int | None = None
    high: float | None = None
    dialects: Mapping[str, str] = field(default_factory=dict)
    true_cfg: str | None = None
    servings: frozenset[str] = frozenset()
    vertex: str = ""
    echoed: bool = True
    pipeline: str | None = None
    infotext: str | None = None
    model_default: bool = False
    needs: str | None = None
    per_image: bool = False
    prose: bool = False
    may_be_blank: bool = False
    on_page: bool = True
    identity: bool = True
    parse: Callable[[object], Any] | None = None
    to_json: Callable[[Any], object] | None = None
    digest: Callable[[Any], object] | None = None

    def check(self, value: Any) -> None:  # noqa: ANN401 - of the field's own type
        """Raise InputError for a value that no model takes."""
        if isinstance(value, str):
            _check_text(self.name, value)
            if not value.strip() and not self.may_be_blank:
                raise InputError(f"The {self.name} is empty.", field=self.name)
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{self.name} must be a number.", field=self.name)
        elif self.low is not None or self.high is not None:
            check_range(self.name, value, self.low, self.high)

    def json_value(self, value: Any) -> object:  # noqa: ANN401 - of the field's own type
        """The value encoded for JSON."""
        return value if self.to_json is None or value is None else self.to_json(value)

    def identity_value(self, value: Any) -> object:  # noqa: ANN401 - of the field's own type
        """The value's representation in ids."""
        return self.json_value(value) if self.digest is None else self.digest(value)


FIELD = "request_field"
"""Key of the RequestField in an attribute's metadata."""


def _declared(known: RequestField) -> Any:  # noqa: ANN401 - of the attribute's own type
    """An attribute that may be left unset, with what is known of it beside it."""
    return field(default=None, metadata={FIELD: known})


@dataclass(frozen=True, kw_only=True)
class RequestFields:
    """Every field of a request for one image; `None` means not set."""

    prompt: str | None = _declared(
        RequestField(
            help="What the image should show.",
            label="Prompt",
            per_image=True,
            prose=True,
            on_page=False,
        )
    )
    negative_prompt: str | None = _declared(
        RequestField(
            flags=("--negative-prompt",),
            help="What the image should not show.",
            label="Negative prompt",
            placeholder="What the image must not show",
            dialects=_named("negative_prompt", *_DIFFUSERS_DIALECTS),
            servings=_ALL_SERVINGS,
            needs="negative_prompt",
            per_image=True,
            prose=True,
            may_be_blank=True,
        )
    )
    model: str | None = _declared(
        RequestField(
            flags=("--model", "-m"),
            help="Alias, repository on the Hub, or folder.",
            default=DEFAULT_MODEL,
            label="Model",
            echoed=False,  # a server may call it otherwise
            infotext="Model",
            on_page=False,
        )
    )
    revision: str | None = _declared(
        RequestField(
            flags=("--revision",),
            help="Branch, tag or commit of the repository.",
            label="Revision",
            echoed=False,
            on_page=False,
        )
    )
    seed: int | None = _declared(
        RequestField(
            help="Decides the noise that an image begins with.",
            default="random",
            label="Seed",
            placeholder="Random",
            low=0,
            high=MAX_SEED,
            dialects=_named("seed", *_DIFFUSERS_DIALECTS),
            # Google's own handler draws its noise by itself.
            servings=_ALL_SERVINGS - {"model-garden"},
            echoed=False,  # whether it is, is recorded
            infotext="Seed",
            per_image=True,
            on_page=False,
        )
    )
    steps: int | None = _declared(
        RequestField(
            flags=("--steps",),
            help="Denoising steps.",
            default="the model's",
            label="Steps",
            summary="{} steps",
            low=1,
            high=MAX_STEPS,
            dialects=_named("num_inference_steps", *_DIFFUSERS_DIALECTS) | {"localai": "step"},
            servings=_ALL_SERVINGS,
            vertex="num_inference_steps",
            pipeline="num_inference_steps",
            infotext="Steps",
            model_default=True,
        )
    )
    guidance_scale: float | None = _declared(
        RequestField(
            flags=("--guidance", "--guidance-scale", "--cfg-scale"),
            help="How closely to follow the prompt.",
            default="the model's",
            label="Guidance",
            summary="guidance {}",
            low=0,
            high=MAX_GUIDANCE,
            dialects=_named("guidance_scale", *_DIFFUSERS_DIALECTS),
            true_cfg="true_cfg_scale",
            servings=_ALL_SERVINGS,
            infotext="CFG scale",
            model_default=True,
            needs="guidance",
        )
    )
    width: int | None = _declared(
        RequestField(
            flags=("--width", "-W"),
            help="Width of the image.",
            default="the model's",
            label="Width",
            unit="pixels",
            low=1,
            high=MAX_IMAGE_SIDE,
            dialects=_named(SIZE, *_ALL_DIALECTS),
            servings=_ALL_SERVINGS,
            pipeline="width",
            model_default=True,
        )
    )
    height: int | None = _declared(
        RequestField(
            flags=("--height", "-H"),
            help="Height of the image.",
            default="the model's",
            label="Height",
            unit="pixels",
            low=1,
            high=MAX_IMAGE_SIDE,
            dialects=_named(SIZE, *_ALL_DIALECTS),
            servings=_ALL_SERVINGS,
            pipeline="height",
            model_default=True,
        )
    )
    scheduler: str | None = _declared(
        RequestField(
            flags=("--scheduler",),
            help="Sampler by short name, as euler.",
            default="the model's",
            label="Scheduler",
            dialects=_named("scheduler", "t2i"),
            servings=frozenset({"t2i"}),
            needs="schedulers",
        )
    )


def _field_table() -> dict[str, RequestField]:
    hints = get_type_hints(RequestFields)
    return {
        one.name: replace(one.metadata[FIELD], name=one.name, kind=get_args(hints[one.name])[0])
        for one in fields(RequestFields)
    }


FIELDS: Mapping[str, RequestField] = _field_table()
"""Every field by name, in display order."""

ORIGINAL_FIELDS = (
    *("prompt", "negative_prompt", "model", "revision", "seed", "steps", "guidance_scale"),
    *("width", "height", "scheduler"),
)
"""The fields that ids and records contain by position; this order must not change."""
ADDED_FIELDS = tuple(sorted(FIELDS.keys() - set(ORIGINAL_FIELDS)))
"""The fields added later, which ids and records contain by name if they are set."""
OPTIONAL_FIELDS = tuple(name for name in FIELDS if name not in {"prompt", "model"})
"""The fields that a server need not support."""
MODEL_DEFAULTS = tuple(name for name, spec in FIELDS.items() if spec.model_default)
"""The fields with defaults of the model."""
DISPLAY_FIELDS = (
    *("model", "seed"),
    *(name for name, spec in FIELDS.items() if spec.on_page and not spec.prose),
    *(name for name, spec in FIELDS.items() if spec.on_page and spec.prose),
)
"""The fields that pages show for an image beside its prompt, in order."""


def check_range(name: str, value: float, low: float | None, high: float | None) -> None:
    """Raise InputError for a number outside its inclusive range."""
    if (low is None or low <= value) and (high is None or value <= high):
        return
    if low is not None and high is not None:
        allowed = f"from {low} to {high:.10g}"
    else:
        allowed = f"at least {low}" if high is None else f"at most {high:.10g}"
    raise InputError(f"{name} must be {allowed}, not {value}.", field=name)


def _check_text(name: str, text: str) -> None:
    """Raise InputError for text that is too long or has control characters."""
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
