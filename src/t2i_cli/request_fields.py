"""The fields of a request, each declared once: all that any other module knows of one stands here.

A field is an attribute of `RequestFields` with a `RequestField` beside it. From that come its
option, its column in prompts files, its place in the server's bodies and in what is sent to
servers, its placeholder in file names, its line in images and its place in ids. A new one is
declared at the end, with `None` as its default; it joins ids by its name, so that the ids of
requests without it stay what they were.

Text and numbers need no more. For any other value (a file, a list of records, extras by name) the
attribute has the type of the value, which must be hashable, and its RequestField says how it is
read and written: `parse` takes text, as options and CSV have it, or what JSON holds, and raises
InputError; `to_json` writes it into records and bodies; `digest` is what stands for it in ids, as
the SHA-256 of a file's content with a weight, so that another file of the same name is another row.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_type_hints

from t2i_cli.errors import InputError

FieldValue = str | int | float

MAX_PROMPT = 5_000
"""Characters; the prompt, the negative prompt and their record fit a JPEG's 64 KB segment."""
MAX_SEED = 2**32 - 1
MAX_STEPS = 1_000
"""No scheduler has more than the 1000 timesteps that models are trained on."""
MAX_IMAGE_SIDE = 16_384
"""Pixels; WebP ends at 16,383, and nothing generates more in one piece."""
MAX_GUIDANCE = 100.0
DEFAULT_MODEL = "sd15"

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Unicode's categories Cc, tab and line ends aside, and Cs."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One kind of server of OpenAI's images API.

    `owner` is what its model list says. With `true_cfg` it takes a field by the name of the
    pipeline's argument where that is the model's.
    """

    name: str
    owner: str | None = None
    true_cfg: bool = False

    @property
    def takes(self) -> frozenset[str]:
        """The fields that it takes, prompt and model aside: it has these always."""
        return frozenset(name for name, known in FIELDS.items() if self.name in known.dialects)


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
"""What may serve at an endpoint of Vertex AI."""

SIZE = "size"
"""What servers of OpenAI's images API call width and height, together."""


def _by(name: str, *dialects: str) -> dict[str, str]:
    return dict.fromkeys(dialects, name)


_ALL = tuple(DIALECTS)
_OPEN = ("t2i", "sglang", "vllm")
_SERVED = frozenset(SERVINGS)


@dataclass(frozen=True, kw_only=True)
class RequestField:
    """What is known of a field beside its name and `kind`, which are those of its attribute.

    For people: `help` says what it is, `default` what it is when it is not set, `label` is its
    short name on pages, `summary` how a plan tells its value. `flags` are its option, empty where
    each command has its own; `unit` is that of its value, `low` and `high` are its range.

    For servers: `dialects` gives its name in each dialect that takes it, `true_cfg` another name
    (see Dialect); `servings` take it by the name `vertex`, which is its own where that is empty.
    With `echoed` a server's answer must tell the value that was sent.

    `pipeline` is the argument of diffusers' pipelines that carries it as it is, `infotext` its name
    in AUTOMATIC1111's text. With `model_default` a model has a value of its own for it; `needs` is
    the key of a model's description (GET /t2i/v1/model) without which it means nothing, and whose
    list, if it is one, holds its values. Images of one pass differ in what is `per_image`.
    `prose` is text of any length; of texts, blank ones are taken with `may_be_blank` alone. The
    server's page has an input for it with `on_page`, of its own for the others. With `identity` it
    is part of an image's id.
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

    def written(self, value: Any) -> object:  # noqa: ANN401 - of the field's own type
        """A value in JSON."""
        return value if self.to_json is None or value is None else self.to_json(value)

    def identified(self, value: Any) -> object:  # noqa: ANN401 - of the field's own type
        """What stands for a value in ids."""
        return self.written(value) if self.digest is None else self.digest(value)


FIELD = "request_field"
"""The key of a RequestField in an attribute's metadata."""


def _declared(known: RequestField) -> Any:  # noqa: ANN401 - of the attribute's own type
    """An attribute that may be left unset, with what is known of it beside it."""
    return field(default=None, metadata={FIELD: known})


@dataclass(frozen=True, kw_only=True)
class RequestFields:
    """What can be asked of one image; `None` is not set."""

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
            dialects=_by("negative_prompt", *_OPEN),
            servings=_SERVED,
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
            dialects=_by("seed", *_OPEN),
            # Google's own handler draws its noise by itself.
            servings=_SERVED - {"model-garden"},
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
            dialects=_by("num_inference_steps", *_OPEN) | {"localai": "step"},
            servings=_SERVED,
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
            dialects=_by("guidance_scale", *_OPEN),
            true_cfg="true_cfg_scale",
            servings=_SERVED,
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
            dialects=_by(SIZE, *_ALL),
            servings=_SERVED,
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
            dialects=_by(SIZE, *_ALL),
            servings=_SERVED,
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
            dialects=_by("scheduler", "t2i"),
            servings=frozenset({"t2i"}),
            needs="schedulers",
        )
    )


def _table() -> dict[str, RequestField]:
    hints = get_type_hints(RequestFields)
    return {
        one.name: replace(one.metadata[FIELD], name=one.name, kind=get_args(hints[one.name])[0])
        for one in fields(RequestFields)
    }


FIELDS: Mapping[str, RequestField] = _table()
"""The table: every field by its name, in the order in which they are told."""

POSITIONAL = (
    *("prompt", "negative_prompt", "model", "revision", "seed", "steps", "guidance_scale"),
    *("width", "height", "scheduler"),
)
"""The fields that ids and records have always had, in their order there: it stays as it is."""
LATER = tuple(sorted(FIELDS.keys() - set(POSITIONAL)))
"""The fields that ids and records have by name, where they are set."""
OPTIONAL = tuple(name for name in FIELDS if name not in {"prompt", "model"})
"""The fields that a server may or may not take."""
MODEL_DEFAULTS = tuple(name for name, known in FIELDS.items() if known.model_default)
"""The fields of which models have values of their own."""
SHOWN = (
    *("model", "seed"),
    *(name for name, known in FIELDS.items() if known.on_page and not known.prose),
    *(name for name, known in FIELDS.items() if known.on_page and known.prose),
)
"""What pages tell of an image beside its prompt, in their order."""


def check_range(name: str, value: float, low: float | None, high: float | None) -> None:
    """Raise InputError, naming the field, for a number out of its range."""
    if (low is None or low <= value) and (high is None or value <= high):
        return
    if low is not None and high is not None:
        taken = f"from {low} to {high:.10g}"
    else:
        taken = f"at least {low}" if high is None else f"at most {high:.10g}"
    raise InputError(f"{name} must be {taken}, not {value}.", field=name)


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
