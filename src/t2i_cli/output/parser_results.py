"""Runs a parser of sd-parsers on texts, and flattens what it finds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sd_parsers.data import PromptInfo
    from sd_parsers.parsers import Parser


def run_parser(parser: "type[Parser]", texts: Mapping[str, object]) -> "PromptInfo | None":
    """What sd-parsers finds, `None` for a record without a sampler, or of another form."""
    from sd_parsers.exceptions import ParserError

    try:
        return parser(normalize_parameters=False).parse(dict(texts))
    except (ParserError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        # It checks no types; what a foreign record holds, raises any of these.
        return None


def parsed_values(info: "PromptInfo | None") -> dict[str, object]:
    """Prompts, model and settings that sd-parsers found, as far as it found any."""
    if info is None or not info.samplers:
        return {}
    sampler = info.samplers[0]
    values: dict[str, object] = {**info.metadata, **sampler.parameters}
    values["sampler_name"] = sampler.name
    for key, prompts in (
        ("prompt", sampler.prompts),
        ("negative_prompt", sampler.negative_prompts),
    ):
        values[key] = ", ".join(
            prompt.value for prompt in prompts if isinstance(prompt.value, str) and prompt.value
        )
    if sampler.model is not None and sampler.model.name is not None:
        values["model"] = sampler.model.name
    return values
