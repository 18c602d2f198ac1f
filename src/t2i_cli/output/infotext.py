"""Formats and parses AUTOMATIC1111's generation parameters ("infotext").

The format follows `modules/processing.py` (create_infotext) and `modules/infotext_utils.py`
(parse_generation_parameters) of AUTOMATIC1111/stable-diffusion-webui.
"""

import json
import re
from dataclasses import dataclass

from t2i_cli import __version__
from t2i_cli.errors import InputError
from t2i_cli.models import schedulers
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_field import RequestField
from t2i_cli.request_fields import ADDED_FIELDS, FIELDS

_NEGATIVE = "Negative prompt:"
_SETTING = re.compile(r'(\w[\w \-/]{1,100}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""AUTOMATIC1111's regular expression, with a bounded key against quadratic matching time."""
_INFOTEXT_FIELDS = {field.infotext: field for field in FIELDS.values() if field.infotext}
"""Request fields by the names of their settings in the text."""
_FIRST_SETTINGS = ("Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model")
"""Settings that come first, in AUTOMATIC1111's order, which readers expect."""
_MIN_SETTINGS = 3
"""As in AUTOMATIC1111, a last line with fewer settings belongs to the prompt."""


@dataclass(frozen=True, kw_only=True)
class Infotext:
    """A parsed text: `request` by ResolvedRequest's field names, `parameters` as written."""

    request: dict[str, object]
    parameters: dict[str, str]


def format_infotext(request: ResolvedRequest, info: GenerationInfo, size: tuple[int, int]) -> str:
    """Format the text for an image of this size (width, height in pixels)."""
    lines = [request.prompt]
    # Also needed if the prompt itself contains such a line: the parser takes the last one.
    if request.negative_prompt or _negative_line(request.prompt.split("\n")) is not None:
        lines.append(f"{_NEGATIVE} {request.negative_prompt or ''}")
    settings = {
        "Sampler": _sampler(request, info),
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": info.revision and info.revision[:10],
    }
    settings |= {key: _field_text(field, request) for key, field in _INFOTEXT_FIELDS.items()}
    ordered = {key: settings.pop(key) for key in _FIRST_SETTINGS} | settings
    ordered["Version"] = f"t2i {__version__}"
    lines.append(", ".join(f"{key}: {_quote(v)}" for key, v in ordered.items() if v is not None))
    return "\n".join(lines)


def parse_infotext(text: str) -> Infotext | None:
    """Parse a text; `None` if it has no line of settings."""
    lines = text.rstrip("\n").split("\n")
    settings_at = _settings_line(lines)
    if settings_at is None:
        return None
    parameters = {key: _unquote(value) for key, value in _SETTING.findall(lines[settings_at])}
    # Extensions append lines of one setting each ("Template: …").
    for line in lines[settings_at + 1 :]:
        key, colon, value = line.partition(": ")
        if colon:
            parameters[key] = value
    prompt, negative = lines[:settings_at], ""
    split = _negative_line(prompt)
    if split is not None:
        negative = "\n".join(prompt[split:]).removeprefix(_NEGATIVE).removeprefix(" ")
        prompt = prompt[:split]
    return Infotext(
        request={"prompt": "\n".join(prompt), "negative_prompt": negative or None}
        | _request_fields(parameters),
        parameters=parameters,
    )


def _settings_line(lines: list[str]) -> int | None:
    """Index of the line of settings: the last line, or an earlier one before extensions' lines."""
    for position in reversed(range(len(lines))):
        last = position == len(lines) - 1
        if last or lines[position].startswith("Steps: "):
            found = dict(_SETTING.findall(lines[position]))
            if len(found) >= _MIN_SETTINGS and not found.keys().isdisjoint({"Steps", "Seed"}):
                return position
    return None


def _negative_line(lines: list[str]) -> int | None:
    """Index of the line that begins the negative prompt: the last one with its label."""
    found = [n for n, line in enumerate(lines) if line.startswith(_NEGATIVE)]
    return found[-1] if found else None


def _field_text(field: RequestField, request: ResolvedRequest) -> str | None:
    value = field.json_value(getattr(request, field.name))
    return None if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _request_fields(parameters: dict[str, str]) -> dict[str, object]:
    """The request fields among the settings; values that cannot be parsed are left out."""
    width, _, height = parameters.get("Size", "").partition("x")
    texts = {field.name: parameters.get(key) for key, field in _INFOTEXT_FIELDS.items()}
    texts |= {"width": width, "height": height, "scheduler": _scheduler(parameters)}
    found: dict[str, object] = {}
    for name, text in texts.items():
        field = FIELDS[name]
        try:
            found[name] = (field.parse or field.kind)(text) if text else None
        except (ValueError, InputError):
            found[name] = None
    return {name: v for name, v in found.items() if v is not None or name not in ADDED_FIELDS}


def _sampler(request: ResolvedRequest, info: GenerationInfo) -> str | None:
    if request.scheduler is None:
        return info.scheduler
    return {**schedulers.FLOW_SCHEDULERS, **schedulers.NOISE_SCHEDULERS}[request.scheduler].label


def _scheduler(parameters: dict[str, str]) -> str | None:
    """t2i's name of the scheduler; AUTOMATIC1111 1.9 and later adds a "Schedule type"."""
    sampler = parameters.get("Sampler", "")
    labels = {spec.label: name for name, spec in schedulers.NOISE_SCHEDULERS.items()}
    return labels.get(f"{sampler} {parameters.get('Schedule type')}") or labels.get(sampler)


def _quote(value: str) -> str:
    needed = value.startswith('"') or any(c in value for c in ",\n:")
    return json.dumps(value, ensure_ascii=False) if needed else value


def _unquote(value: str) -> str:
    if not value.startswith('"'):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value
