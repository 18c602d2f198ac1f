"""Formats and parses AUTOMATIC1111's generation parameters ("infotext").

The format follows `modules/processing.py` (create_infotext) and `modules/infotext_utils.py`
(parse_generation_parameters) of AUTOMATIC1111/stable-diffusion-webui.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from t2i_cli import __version__
from t2i_cli.errors import InputError
from t2i_cli.models import noise_schedules, schedulers
from t2i_cli.models.file_digests import autov2
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_adapters import weight_text
from t2i_cli.request_extras import extras_text
from t2i_cli.request_field import RequestField
from t2i_cli.request_fields import ADDED_FIELDS, FIELDS
from t2i_cli.schedule_names import SCHEDULE_LABELS

_NEGATIVE = "Negative prompt:"
_KEY = re.compile(r'\s*(\w[\w \-/]{1,100}(?=:)|\w[^:,"\n]{0,100}(?=: )):\s*')
"""AUTOMATIC1111's names of settings, bounded against quadratic matching time, and other names where
a space follows the colon."""
_QUOTED = re.compile(r'"(?:\\.|[^\\"])*"')
_BRACKETS = re.compile(r'[{}\[\]]|"(?:\\.|[^\\"])*"')
_MAX_PARTS = 10_000
"""Parts between commas that are looked into; the others belong to the last setting."""
_LINE_BREAK = re.compile(r"\r\n?")
_STEPS = re.compile(r"(?<=\s)Steps: \d+,")
"""Where settings begin in a text whose line breaks were lost."""
_MAX_BEGINNINGS = 4
_INFOTEXT_FIELDS = {field.infotext: field for field in FIELDS.values() if field.infotext}
"""Request fields by the names of their settings in the text."""
_SCHEDULE = "Schedule type"
_FIRST_SETTINGS = (
    *("Steps", "Sampler", _SCHEDULE, "CFG scale", "Seed", "Size", "Model hash", "Model"),
)
"""Settings that come first, in AUTOMATIC1111's order, which readers expect."""
_FIRST_LABELS = tuple(f"{key}: " for key in _FIRST_SETTINGS)
_HASH_DIGITS = 10
"""Of a SHA-256, as AUTOMATIC1111 and Civitai (AutoV2) write it."""
_MIN_SETTINGS = 3
"""As in AUTOMATIC1111, a last line with fewer settings belongs to the prompt."""


@dataclass(frozen=True, kw_only=True)
class Infotext:
    """A parsed text: `request` by ResolvedRequest's field names, `parameters` as written."""

    request: dict[str, object]
    parameters: dict[str, str]


def format_infotext(request: ResolvedRequest, info: GenerationInfo, size: tuple[int, int]) -> str:
    """Format the text for an image of this size (width, height in pixels)."""
    lines = [_tagged_prompt(request)]
    # Also needed if the prompt itself contains such a line: the parser takes the last one.
    if request.negative_prompt or _negative_line(request.prompt.split("\n")) is not None:
        lines.append(f"{_NEGATIVE} {request.negative_prompt or ''}")
    settings = {
        "Sampler": _sampler(request, info),
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": (info.sha256 or info.revision or "")[:_HASH_DIGITS] or None,
        "VAE hash": request.vae and request.vae.sha256 and request.vae.sha256[:_HASH_DIGITS],
        "VAE": request.vae and request.vae.name,
    }
    settings |= {key: _field_text(field, request) for key, field in _INFOTEXT_FIELDS.items()}
    settings[_SCHEDULE] = SCHEDULE_LABELS[request.schedule] if request.schedule else None
    ordered = {key: settings.pop(key) for key in _FIRST_SETTINGS} | settings
    if request.extras and isinstance(skip := dict(request.extras).get("clip_skip"), int):
        ordered["Clip skip"] = str(skip + 1)  # AUTOMATIC1111 counts the last layer, too
    ordered |= _adapter_hashes(request)
    ordered["Version"] = f"t2i {__version__}"
    lines.append(", ".join(f"{key}: {_quote(v)}" for key, v in ordered.items() if v is not None))
    return "\n".join(lines)


def _tagged_prompt(request: ResolvedRequest) -> str:
    """The prompt with a tag for each LoRA, as AUTOMATIC1111 has it; it may have some already."""
    tags = [
        f"<lora:{each.name}:{weight_text(each.weight)}>"
        for each in request.loras or ()
        if not re.search(f"<lora:{re.escape(each.name)}[:>]", request.prompt)
    ]
    return " ".join([request.prompt, *tags])


def _adapter_hashes(request: ResolvedRequest) -> dict[str, str]:
    """`Lora hashes` and `TI hashes`: names with the beginnings of their SHA-256."""
    groups = {"Lora hashes": request.loras, "TI hashes": request.embeddings}
    return {
        key: ", ".join(
            f"{each.token or each.name}: {autov2(each.digest)}" for each in given if each.digest
        )
        for key, given in groups.items()
        if given and any(each.digest for each in given)
    }


def parse_infotext(text: str) -> Infotext | None:
    """Parse a text, also one whose line breaks were lost; `None` if it has no settings."""
    lines = _LINE_BREAK.sub("\n", text).rstrip("\n").split("\n")
    found = _find_settings(lines)
    if found is None:
        return None
    settings_at, column, parameters = found
    # Extensions append lines of one setting each ("Template: …").
    for line in lines[settings_at + 1 :]:
        key, colon, value = line.partition(": ")
        if colon:
            parameters[key] = value
    prompt, negative = lines[:settings_at], ""
    if column:
        prompt.append(lines[settings_at][:column].rstrip())
    split = _negative_line(prompt)
    if split is not None:
        negative = "\n".join(prompt[split:]).removeprefix(_NEGATIVE).removeprefix(" ")
        prompt = prompt[:split]
    elif column and _NEGATIVE in prompt[-1]:
        head, _, negative = prompt[-1].rpartition(_NEGATIVE)
        prompt[-1], negative = head.rstrip(), negative.strip()
    return Infotext(
        request={"prompt": "\n".join(prompt), "negative_prompt": negative or None}
        | _request_fields(parameters),
        parameters=parameters,
    )


def _find_settings(lines: list[str]) -> tuple[int, int, dict[str, str]] | None:
    """Line, column and content of the settings, `None` if there are none.

    They are in the last line, or in an earlier one before extensions' lines.
    """
    for position in reversed(range(len(lines))):
        line, last = lines[position], position == len(lines) - 1
        if line.startswith(_FIRST_LABELS if last else "Steps: "):
            settings = _parse_settings(line)
            if _are_settings(settings):
                return position, 0, settings
    line = lines[-1]
    for begin in islice(_STEPS.finditer(line), _MAX_BEGINNINGS):
        settings = _parse_settings(line[begin.start() :])
        # Else it begins in the prompt, and the settings come later.
        whole = not any(key != "Steps" and key.endswith("Steps") for key in settings)
        if whole and _are_settings(settings):
            return len(lines) - 1, begin.start(), settings
    settings = _parse_settings(line)
    return (len(lines) - 1, 0, settings) if _are_settings(settings) else None


def _are_settings(found: dict[str, str]) -> bool:
    return len(found) >= _MIN_SETTINGS and not found.keys().isdisjoint({"Steps", "Seed"})


def _parse_settings(line: str) -> dict[str, str]:
    """The settings of a line by name; empty if it does not begin with one."""
    found: dict[str, str] = {}
    key, start, at = "", 0, 0
    # Characters that may be looked at in vain for the ends of brackets: twice the line.
    budget = 2 * len(line)
    for _ in range(_MAX_PARTS):
        named = _KEY.match(line, at)
        if named:
            if key:
                found[key] = _unquote(line[start : at - 1])
            key, start = named[1], named.end()
            end, reached = _value_end(line, start, start + budget)
            # A plain value may begin like another: "[a:b:0.5] c", "{a".
            if end is not None and line[end : end + 1] in {"", ","}:
                at = end
            else:
                at, budget = start, budget - (reached - start)
        elif not key:
            return {}
        # What follows a comma and is no setting belongs to the value before it.
        comma = line.find(",", at)
        if comma < 0:
            break
        at = comma + 1
    return found | {key: _unquote(line[start:])}


def _value_end(line: str, start: int, limit: int) -> tuple[int | None, int]:
    """Where a quoted text, or JSON at its matching bracket, ends; `None` for a plain value.

    Then how far was looked, at most to `limit`.
    """
    if line[start : start + 1] == '"':
        quoted = _QUOTED.match(line, start)
        return (quoted.end(), start) if quoted else (None, start)
    depth = 0
    if line[start : start + 1] in {"{", "["}:
        for bracket in _BRACKETS.finditer(line, start, limit):
            depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(bracket[0], 0)
            if depth == 0:
                return bracket.end(), bracket.end()
    return (None, min(limit, len(line))) if depth else (None, start)


def _negative_line(lines: list[str]) -> int | None:
    """Index of the line that begins the negative prompt: the last one with its label."""
    found = [n for n, line in enumerate(lines) if line.startswith(_NEGATIVE)]
    return found[-1] if found else None


def _field_text(field: RequestField, request: ResolvedRequest) -> str | None:
    value = field.json_value(getattr(request, field.name))
    if isinstance(value, dict):
        return extras_text(value)
    return None if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _request_fields(parameters: dict[str, str]) -> dict[str, object]:
    width, _, height = parameters.get("Size", "").partition("x")
    texts = {field.name: parameters.get(key) for key, field in _INFOTEXT_FIELDS.items()}
    if "clip_skip" in (texts["extras"] or ""):
        texts["clip_skip"] = None  # the extra says it
    texts |= {"width": width, "height": height}
    texts["scheduler"], texts["schedule"] = noise_schedules.read_sampler_labels(
        parameters.get("Sampler", ""), parameters.get(_SCHEDULE, "")
    )
    return parse_field_texts(texts)


def parse_field_texts(texts: Mapping[str, str | None]) -> dict[str, object]:
    """Request fields from texts by their names; values that cannot be parsed are left out."""
    found: dict[str, object] = {}
    for name, text in texts.items():
        field = FIELDS[name]
        try:
            value = (field.parse or field.kind)(text) if text else None
        except (ValueError, InputError):
            value = None
        # JSON has no NaN and no infinity.
        found[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return {name: v for name, v in found.items() if v is not None or name not in ADDED_FIELDS}


def _sampler(request: ResolvedRequest, info: GenerationInfo) -> str | None:
    """AUTOMATIC1111's name of the sampler; of the model's own one, its class says which it is."""
    if request.scheduler is None:
        return schedulers.label_of_class(info.scheduler)
    return {**schedulers.FLOW_SCHEDULERS, **schedulers.NOISE_SCHEDULERS}[request.scheduler].label


def _quote(value: str) -> str:
    needed = value.startswith('"') or any(c in value for c in ",\n:")
    return json.dumps(value, ensure_ascii=False) if needed else value


def _unquote(value: str) -> str:
    value = value.strip()
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
