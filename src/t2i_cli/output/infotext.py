"""AUTOMATIC1111's generation text ("infotext"), composed and parsed.

Its format is what `modules/processing.py` (create_infotext) and `modules/infotext_utils.py`
(parse_generation_parameters) of AUTOMATIC1111/stable-diffusion-webui write and read.
"""

import json
import re
from dataclasses import dataclass

from t2i_cli import __version__
from t2i_cli.errors import InputError
from t2i_cli.models import schedulers
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import FIELDS, LATER, RequestField

_NEGATIVE = "Negative prompt:"
_SETTING = re.compile(r'(\w[\w \-/]{1,100}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""AUTOMATIC1111's own expression, its key bounded so that no file can make it slow."""
_FIELDS = {known.infotext: known for known in FIELDS.values() if known.infotext}
"""The fields that are settings of their own there, by their names there."""
_ORDER = ("Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model")
"""AUTOMATIC1111's, which readers expect; others follow."""
_FEWEST_SETTINGS = 3
"""In AUTOMATIC1111, a last line with fewer belongs to the prompt."""


@dataclass(frozen=True, kw_only=True)
class Infotext:
    """A text taken apart: by the names of ResolvedRequest's fields, and the settings as written."""

    request: dict[str, object]
    parameters: dict[str, str]


def format_infotext(request: ResolvedRequest, lock: GenerationInfo, size: tuple[int, int]) -> str:
    """The text for an image of this size (width, height in pixels)."""
    lines = [request.prompt]
    # The line also ends a prompt which has such a line itself.
    if request.negative_prompt or _negative_line(request.prompt.split("\n")) is not None:
        lines.append(f"{_NEGATIVE} {request.negative_prompt or ''}")
    settings = {
        "Sampler": _sampler(request, lock),
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": lock.revision and lock.revision[:10],
    }
    settings |= {key: _written(known, request) for key, known in _FIELDS.items()}
    ordered = {key: settings.pop(key) for key in _ORDER} | settings
    ordered["Version"] = f"t2i {__version__}"
    lines.append(", ".join(f"{key}: {_quoted(v)}" for key, v in ordered.items() if v is not None))
    return "\n".join(lines)


def parse_infotext(text: str) -> Infotext | None:
    """Take a text apart; `None` if it is not of this kind."""
    lines = text.rstrip("\n").split("\n")
    at = _settings_line(lines)
    if at is None:
        return None
    parameters = {key: _unquoted(value) for key, value in _SETTING.findall(lines[at])}
    # Extensions append lines of one setting each ("Template: …").
    for line in lines[at + 1 :]:
        key, colon, value = line.partition(": ")
        if colon:
            parameters[key] = value
    prompt, negative = lines[:at], ""
    split = _negative_line(prompt)
    if split is not None:
        negative = "\n".join(prompt[split:]).removeprefix(_NEGATIVE).removeprefix(" ")
        prompt = prompt[:split]
    return Infotext(
        request={"prompt": "\n".join(prompt), "negative_prompt": negative or None}
        | _fields(parameters),
        parameters=parameters,
    )


def _settings_line(lines: list[str]) -> int | None:
    """Where the settings stand: in the last line, or before the lines that an extension added."""
    for position in reversed(range(len(lines))):
        last = position == len(lines) - 1
        if last or lines[position].startswith("Steps: "):
            found = dict(_SETTING.findall(lines[position]))
            if len(found) >= _FEWEST_SETTINGS and not found.keys().isdisjoint({"Steps", "Seed"}):
                return position
    return None


def _negative_line(lines: list[str]) -> int | None:
    """The last line that can begin the negative prompt: an earlier one is the prompt's own."""
    found = [n for n, line in enumerate(lines) if line.startswith(_NEGATIVE)]
    return found[-1] if found else None


def _written(known: RequestField, request: ResolvedRequest) -> str | None:
    value = known.written(getattr(request, known.name))
    return None if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _fields(parameters: dict[str, str]) -> dict[str, object]:
    """The request's fields among the settings; what does not read as its kind is left out."""
    width, _, height = parameters.get("Size", "").partition("x")
    texts = {known.name: parameters.get(key) for key, known in _FIELDS.items()}
    texts |= {"width": width, "height": height, "scheduler": _scheduler(parameters)}
    found: dict[str, object] = {}
    for name, text in texts.items():
        known = FIELDS[name]
        try:
            found[name] = (known.parse or known.kind)(text) if text else None
        except (ValueError, InputError):
            found[name] = None
    return {name: v for name, v in found.items() if v is not None or name not in LATER}


def _sampler(request: ResolvedRequest, lock: GenerationInfo) -> str | None:
    if request.scheduler is None:
        return lock.scheduler
    return {**schedulers.FLOW_SCHEDULERS, **schedulers.NOISE_SCHEDULERS}[request.scheduler].label


def _scheduler(parameters: dict[str, str]) -> str | None:
    """t2i's short name; since version 1.9 the sigmas have a setting of their own."""
    sampler = parameters.get("Sampler", "")
    labels = {spec.label: name for name, spec in schedulers.NOISE_SCHEDULERS.items()}
    return labels.get(f"{sampler} {parameters.get('Schedule type')}") or labels.get(sampler)


def _quoted(value: str) -> str:
    needed = value.startswith('"') or any(c in value for c in ",\n:")
    return json.dumps(value, ensure_ascii=False) if needed else value


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value
