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

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_type_hints

from t2i_cli.part_source import (
    PartSource,
    parse_part_source,
    part_source_identity,
    part_source_to_json,
)
from t2i_cli.request_adapters import (
    Adapters,
    adapters_identity,
    adapters_summary,
    adapters_to_json,
    parse_embeddings,
    parse_loras,
)
from t2i_cli.request_extras import Extras, extras_text, extras_to_json, parse_extras
from t2i_cli.request_field import RequestField
from t2i_cli.schedule_names import AUTO_SCHEDULE, SCHEDULE_LABELS, parse_schedule_name
from t2i_cli.style_names import parse_style_names

FieldValue = str | int | float

MAX_SEED = 2**32 - 1
MAX_STEPS = 1_000
"""Schedulers have at most the 1000 timesteps that models are trained on."""
MAX_IMAGE_SIDE = 16_384
"""Pixels; WebP's limit is 16,383, and no model generates larger images."""
MAX_GUIDANCE = 100.0
DEFAULT_MODEL = "sd15"
QUANTIZATIONS = ("int8", "fp8", "fp8-storage", "nf4")
"""How weights can be quantised; docs/memory.md says what each is, and what it needs."""

PROMPT_SYNTAXES = ("plain", "a1111", "compel")
"""How prompts are read; docs/prompts.md."""


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


PARTS_PANEL = "Parts and LoRAs"
PROMPT_PANEL = "How prompts are read"
"""Headings of options in help."""

FIELD = "request_field"
"""Key of the RequestField in an attribute's metadata."""


def _declared(known: RequestField) -> Any:  # noqa: ANN401 - of the attribute's own type
    """An attribute that may be left unset, with what is known of it beside it."""
    return field(default=None, metadata={FIELD: known})


def _part_field(
    flags: tuple[str, ...], label: str, help: str, default: str | None = None
) -> RequestField:
    """The declaration of a field that names a part of the model."""
    return RequestField(
        flags=flags,
        panel=PARTS_PANEL,
        help=help,
        default=default,
        label=label,
        summary=f"{label} {{}}",
        dialects=_named(flags[0].removeprefix("--").replace("-", "_"), "t2i"),
        servings=frozenset({"t2i"}),
        echoed=False,  # a server may call it otherwise
        parse=parse_part_source,
        to_json=part_source_to_json,
        digest=part_source_identity,
        on_page=False,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
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
            help="Short name, repository on the Hub or file in it, folder, file of weights, or URL "
            "in a bucket.",
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
            unset=-1,  # as AUTOMATIC1111 writes it
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
            aliases=("step", "num_steps", "sampling_steps"),
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
            aliases=("cfg_scale", "guidance", "cfg"),
            servings=_ALL_SERVINGS,
            infotext="CFG scale",
            model_default=True,
            needs="guidance",
        )
    )
    guidance_rescale: float | None = _declared(
        RequestField(
            flags=("--guidance-rescale",),
            help="How far to take back the contrast that strong guidance adds, as 0.7.",
            default="0",
            label="Guidance rescale",
            placeholder="0",
            summary="guidance rescale {}",
            low=0,
            high=1,
            dialects=_named("guidance_rescale", "t2i"),
            servings=frozenset({"t2i"}),
            pipeline="guidance_rescale",
            infotext="CFG rescale",
            needs="guidance_rescale",
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
            aliases=("sampler", "sampler_name"),
            servings=frozenset({"t2i"}),
            needs="schedulers",
        )
    )
    schedule: str | None = _declared(
        RequestField(
            flags=("--schedule",),
            help=f"Noise levels of the scheduler's steps: {', '.join(SCHEDULE_LABELS)}.",
            default=AUTO_SCHEDULE,
            label="Schedule",
            summary="{} schedule",
            choices=tuple(SCHEDULE_LABELS),
            dialects=_named("schedule", "t2i"),
            aliases=("schedule_type", "noise_schedule"),
            servings=frozenset({"t2i"}),
            infotext="Schedule type",
            parse=parse_schedule_name,
            needs="schedules",
        )
    )
    quantize: str | None = _declared(
        RequestField(
            flags=("--quantize",),
            help=f"Keep weights in fewer bits ({', '.join(QUANTIZATIONS)}), with loss.",
            label="Quantization",
            summary="{} weights",
            choices=QUANTIZATIONS,
            dialects=_named("quantize", "t2i"),
            servings=frozenset({"t2i"}),
            infotext="Quantization",
            # `--memory low` may set one, and a server has the one that its model is loaded with.
            model_default=True,
            on_page=False,
        )
    )
    step_cache: float | None = _declared(
        RequestField(
            flags=("--step-cache",),
            help="Skip a step's blocks where the first changes less than this, as 0.1, with loss.",
            default="off",
            label="Step cache",
            summary="step cache {}",
            low=0,
            high=1,
            dialects=_named("step_cache", "t2i"),
            servings=frozenset({"t2i"}),
            infotext="Step cache",
            needs="step_cache",
        )
    )
    extras: Extras | None = _declared(
        RequestField(
            flags=("--set",),
            repeated=True,
            help="An argument of the model's pipeline, as true_cfg_scale=4; may be repeated.",
            label="Extras",
            summary="extras {}",
            to_text=lambda extras: extras_text(extras_to_json(extras)),
            dialects=_named("extras", "t2i"),
            servings=frozenset({"t2i"}),
            infotext="Extras",
            parse=parse_extras,
            to_json=extras_to_json,
            on_page=False,
        )
    )
    base: PartSource | None = _declared(
        _part_field(
            ("--base",),
            "Base model",
            "Model from which a single file gets its configs, and the parts that it lacks.",
            "the family's",
        )
    )
    vae: PartSource | None = _declared(
        _part_field(
            ("--vae",),
            "VAE",
            "VAE in place of the model's: file, folder, repository or file in it.",
        )
    )
    text_encoder: PartSource | None = _declared(
        _part_field(
            ("--text-encoder",),
            "Text encoder",
            "Text encoder in place of the model's: file, folder, repository or file in it.",
        )
    )
    transformer: PartSource | None = _declared(
        _part_field(
            ("--transformer", "--unet"),
            "Transformer",
            "Transformer or UNet in place of the model's: file, folder, repository or file in it.",
        )
    )
    loras: Adapters | None = _declared(
        RequestField(
            flags=("--lora",),
            panel=PARTS_PANEL,
            repeated=True,
            help="A LoRA and its weight, as FILE:0.8; also owner/name, or a name in --lora-dir; "
            "may be repeated.",
            label="LoRAs",
            summary="LoRAs {}",
            to_text=adapters_summary,
            placeholder="name:0.8; another:0.5",
            dialects=_named("loras", "t2i"),
            servings=frozenset({"t2i"}),
            echoed=False,  # a server knows the digests
            parse=parse_loras,
            to_json=adapters_to_json,
            digest=adapters_identity,
            needs="loras",
        )
    )
    embeddings: Adapters | None = _declared(
        RequestField(
            flags=("--embedding",),
            panel=PARTS_PANEL,
            repeated=True,
            help="A textual inversion, as FILE:token, for that word in prompts; may be repeated.",
            label="Embeddings",
            summary="embeddings {}",
            to_text=adapters_summary,
            dialects=_named("embeddings", "t2i"),
            servings=frozenset({"t2i"}),
            echoed=False,
            parse=parse_embeddings,
            to_json=adapters_to_json,
            digest=adapters_identity,
            on_page=False,
        )
    )
    prompt_syntax: str | None = _declared(
        RequestField(
            flags=("--prompt-syntax",),
            panel=PROMPT_PANEL,
            help="How weights in prompts are written: plain has none, a1111 as (word:1.3), "
            "compel as (word)1.3.",
            default=PROMPT_SYNTAXES[0],
            label="Prompt syntax",
            summary="{} prompts",
            choices=PROMPT_SYNTAXES,
            dialects=_named("prompt_syntax", "t2i"),
            servings=frozenset({"t2i"}),
            infotext="Prompt syntax",
            needs="prompt_syntaxes",
        )
    )
    clip_skip: int | None = _declared(
        RequestField(
            flags=("--clip-skip",),
            panel=PROMPT_PANEL,
            help="Which layer of CLIP to take, as AUTOMATIC1111 counts: 1 is the model's own, 2 "
            "the one before.",
            label="CLIP skip",
            placeholder="1",
            summary="CLIP skip {}",
            low=1,
            high=64,
            dialects=_named("clip_skip", "t2i"),
            servings=frozenset({"t2i"}),
            infotext="Clip skip",
            needs="clip_skip",
        )
    )
    prompt_2: str | None = _declared(
        RequestField(
            flags=("--prompt-2",),
            panel=PROMPT_PANEL,
            help="The prompt for the second text encoder, where a model has several.",
            default="the prompt",
            label="Second prompt",
            placeholder="For the second text encoder",
            dialects=_named("prompt_2", "t2i"),
            servings=frozenset({"t2i"}),
            infotext="Prompt 2",
            needs="prompt_2",
            per_image=True,
            prose=True,
        )
    )
    style: tuple[str, ...] | None = _declared(
        RequestField(
            flags=("--style",),
            panel=PROMPT_PANEL,
            repeated=True,
            help="A style of the file that --styles names; may be repeated.",
            label="Styles",
            placeholder="name, another",
            dialects=_named("style", "t2i"),
            parse=parse_style_names,
            to_json=list,
            needs="styles",
            per_image=True,
            identity=False,  # the prompt has what a style adds
            expanded=True,
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
OPTIONAL_FIELDS = tuple(
    name for name, spec in FIELDS.items() if name not in {"prompt", "model"} and not spec.expanded
)
"""The fields that a server need not support."""
MODEL_DEFAULTS = tuple(name for name, spec in FIELDS.items() if spec.model_default)
"""The fields with defaults of the model."""
DISPLAY_FIELDS = (
    *("model", "seed"),
    *(name for name, spec in FIELDS.items() if spec.on_page and not spec.prose),
    *(name for name, spec in FIELDS.items() if spec.on_page and spec.prose),
)
"""The fields that pages show for an image beside its prompt, in order."""
