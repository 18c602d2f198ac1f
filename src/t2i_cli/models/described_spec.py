"""Checks what a t2i server or worker says of its model: the values of a ModelSpec as JSON."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import get_args

from t2i_cli.files.state_files import is_amount, is_count, is_unicode_text
from t2i_cli.model_spec import GuidanceArgument, ModelSpec
from t2i_cli.request_fields import QUANTIZATIONS

_MAX_SIDE = 2**20
_MAX_STEPS = 10**6


def check_spec_values(values: Mapping[str, object]) -> None:
    """Raise ValueError for a value that no model has; unknown keys are not looked at."""
    for name, value in values.items():
        if name in _CHECKS and value is not None and not _CHECKS[name](value):
            raise ValueError(f"{name} is none")
    for name in _NEVER_NULL & values.keys():
        if values[name] is None:
            raise ValueError(f"{name} is null")


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_side(value: object) -> bool:
    return is_count(value, _MAX_SIDE) and value > 0


def _is_steps(value: object) -> bool:
    return is_count(value, _MAX_STEPS) and value > 0


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, list) and len(each) == 2 and all(map(_is_side, each))  # noqa: PLR2004
        for each in value
    )


_NEVER_NULL = {"name", "multiple", "sizes", "guidance_off", "gated", "negative_prompt"}
_CHECKS: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(
        ("name", "repo", "folder", "revision", "pipeline", "scheduler"), is_unicode_text
    ),
    **dict.fromkeys(("summary", "licence"), is_unicode_text),
    **dict.fromkeys(("gated", "negative_prompt", "guidance", "flow"), _is_flag),
    **{each.name: is_amount for each in fields(ModelSpec) if "float" in str(each.type)},
    **dict.fromkeys(("width", "height", "multiple"), _is_side),
    "sizes": _are_sizes,
    "area": lambda value: is_count(value) and value > 0,
    "steps": _is_steps,
    "download_bytes": is_count,
    "quantize": QUANTIZATIONS.__contains__,
    "guidance_argument": lambda value: value in get_args(GuidanceArgument),
}
