"""Which models read weights in prompts, skip layers of CLIP, and take a second prompt."""

from collections.abc import Iterator, Mapping

from t2i_cli.errors import InputError, T2IError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import class_facts
from t2i_cli.prompts.compel_prompt import check_compel_prompt
from t2i_cli.prompts.weighted_prompt import parse_weights
from t2i_cli.request_fields import RequestFields

A1111, COMPEL, PLAIN = "a1111", "compel", "plain"

ONE_CLIP = frozenset(
    {
        "LatentConsistencyModelPipeline",
        "StableDiffusionModelEditingPipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionPanoramaPipeline",
        "StableDiffusionParadigmsPipeline",
        "StableDiffusionPipeline",
        "StableDiffusionSAGPipeline",
    }
)
"""Pipelines with one CLIP text encoder, whose last layer is normalised."""
TWO_CLIPS = frozenset({"StableDiffusionXLPAGPipeline", "StableDiffusionXLPipeline"})
"""Pipelines with two CLIP text encoders, whose layer before the last is taken as it is."""
CLIP_AND_T5 = frozenset({"FluxKontextPipeline", "FluxPipeline"})
"""Pipelines that take the text from T5, and one vector of it from CLIP."""
SANA = frozenset({"SanaPAGPipeline", "SanaPipeline", "SanaSprintPipeline"})
"""Pipelines of Sana: Gemma's last layer, of the text in lower case behind an instruction."""
LUMINA2 = frozenset({"Lumina2Pipeline"})
"""Pipelines of Lumina 2: Gemma's layer before the last, of the text behind a system prompt."""
LANGUAGE_MODELS = SANA | LUMINA2
"""Pipelines that take the text from a language model, with a mask of the tokens to be read."""
WEIGHTED = ONE_CLIP | TWO_CLIPS | CLIP_AND_T5 | LANGUAGE_MODELS
"""Pipelines that t2i encodes weighted prompts for; tests try each against its own encoding."""

_ARGUMENTS = {
    "clip_skip": "CLIP skip",
    "prompt_2": "second prompt",
    "guidance_rescale": "guidance rescale",
}
"""Fields that are arguments of some pipelines' calls, in words."""
_CLEANING = "clean_caption"
"""An argument that lets pipelines rewrite the prompt before they encode it."""
PROMPTS = ("prompt", "negative_prompt", "prompt_2")


def prompt_complaints(request: RequestFields, spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """The fields on prompts that the request sets and the model does not take, with a sentence."""
    if spec.pipeline is None:
        return  # What a server's model is only that server knows.
    if request.prompt_syntax is not None and spec.pipeline not in WEIGHTED:
        yield (
            "prompt_syntax",
            f"{spec.name} takes no weights in prompts: t2i encodes none for a {spec.pipeline}.",
        )
    for name, words in _ARGUMENTS.items():
        if getattr(request, name) is not None and not _takes(spec.pipeline, name):
            yield name, f"{spec.name} takes no {words}: a {spec.pipeline} has none."


def prompt_facts(spec: ModelSpec) -> Mapping[str, object]:
    """What the model takes of these fields, for the description of a server's model."""
    weighted = spec.pipeline is None or spec.pipeline in WEIGHTED
    taken = {name: spec.pipeline is None or _takes(spec.pipeline, name) for name in _ARGUMENTS}
    return {"prompt_syntaxes": [A1111, COMPEL] if weighted else [], **taken}


def reads_in_parts(spec: ModelSpec) -> bool:
    """Whether long prompts with weights are read in parts of the text encoder's length."""
    return spec.pipeline in ONE_CLIP | TWO_CLIPS


def check_prompt_texts(request: RequestFields) -> None:
    """Raise InputError for a prompt that its syntax does not allow, or for a field set twice."""
    extras = dict(request.extras or ())
    for name in _ARGUMENTS:
        if getattr(request, name) is not None and name in extras:
            flag = name.replace("_", "-")
            raise InputError(f"Give --{flag} or --set {name}, not both.", field=name)
    if request.prompt_syntax in (A1111, COMPEL) and extras.get(_CLEANING):
        raise InputError(
            f"Give --prompt-syntax {request.prompt_syntax} or --set {_CLEANING}, not both.",
            field="prompt_syntax",
        )
    for field in PROMPTS:
        text = getattr(request, field)
        if text and request.prompt_syntax == A1111:
            parse_weights(text, field)
        elif text and request.prompt_syntax == COMPEL:
            check_compel_prompt(text, field)


def _takes(pipeline: str, argument: str) -> bool:
    """Whether the call of a class of diffusers has an argument; true for a model's own code."""
    try:
        return argument in class_facts.facts_of_name(pipeline).call
    except T2IError:
        return True
